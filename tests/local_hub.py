"""A small Hugging Face Hub in memory, over real HTTP: repositories of models and Spaces, LFS, commits, tags, downloads.

    with LocalHub() as hub:
        HfApi(hub.url, token="hf_test").create_repo("org/model")

It speaks what huggingface_hub 2.4 asks for without Xet (HF_HUB_DISABLE_XET=1). `hub.break_next("PUT", "/lfs/")` closes the
connection at the next such request, before it is done; with `after=True` it is done and the answer is lost.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS_BYTES = 2**20  # larger files, and all weights, go by LFS


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """Git's name of what lies in the repository: the content, or LFS's pointer to it."""
        stored = self.content
        if self.is_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(stored)}\n"
            stored = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


Tree = dict[str, File]


@dataclass
class Repository:
    commits: dict[str, Tree] = field(default_factory=dict)  # oldest first
    titles: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    def find(self, revision: str) -> str | None:
        revision = self.head if revision == "main" else self.tags.get(revision, revision)
        return revision if revision in self.commits else None

    def commit(self, tree: Tree, title: str) -> str:
        names = f"{len(self.commits)} {title} {sorted((path, file.blob) for path, file in tree.items())}"
        sha = hashlib.sha1(names.encode()).hexdigest()
        self.commits[sha] = tree
        self.titles.append(title)
        return sha


@dataclass(frozen=True)
class Answer:
    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def say(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def refuse(status: int, code: str, message: str) -> Answer:
    answer = say({"error": message}, status)
    return Answer(status, answer.content, answer.headers | {"X-Error-Code": code, "X-Error-Message": message})


def make_handler(hub: "LocalHub") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def answer(self) -> None:
            body, path = self.read_body(), unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            breaks_after = hub.take_fault(self.command, path)
            if breaks_after is False:
                self.close_connection = True
                return
            answer = hub.route(self.command, path, body, self.headers.get("Authorization") is not None)
            if breaks_after:
                self.close_connection = True
                return
            self.send(answer)

        def send(self, answer: Answer) -> None:
            status, content, headers = answer.status, answer.content, answer.headers
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and status == 200:
                first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
                headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
                status, content = 206, content[first : last + 1]
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

    return Handler


class LocalHub:
    """Listens on a free port of this machine while the `with` block lasts."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}  # ("models" or "spaces", "owner/name")
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.faults: list[tuple[str, str, bool]] = []  # method, part of the path, whether it breaks after it is done
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def break_next(self, method: str, part_of_path: str, *, after: bool = False, times: int = 1) -> None:
        self.faults += times * [(method, part_of_path, after)]

    def take_fault(self, method: str, path: str) -> bool | None:
        """None, or whether the next request of that kind breaks after it is done."""
        for fault in self.faults:
            if fault[0] == method and fault[1] in path:
                self.faults.remove(fault)
                return fault[2]
        return None

    # ---- routes ----

    def routes(self) -> Iterator[tuple[str, str, Callable[..., Answer]]]:
        repository = r"/api/(models|spaces)/([^/]+/[^/]+)"
        yield "GET", r"/api/whoami-v2", lambda body: say({"type": "user", "name": "tester", "orgs": [], "auth": {}})
        yield "POST", r"/api/repos/create", self.create
        yield "POST", r"/api/validate-yaml", self.validate
        yield "GET", repository + r"/refs", self.refs
        yield "GET", repository + r"/tree/([^/]+)", self.tree
        yield "POST", repository + r"/preupload/([^/]+)", self.preupload
        yield "POST", repository + r"/commit/([^/]+)", self.commit
        yield "POST", repository + r"/tag/([^/]+)", self.tag
        yield "GET", repository + r"(?:/revision/([^/]+))?", self.info
        yield "POST", r"/(?:(spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.lfs_batch
        yield "PUT", r"/lfs/(\w+)", self.lfs_put
        yield "POST", r"/lfs-verify", self.lfs_verify
        for method in ("GET", "HEAD"):
            yield method, r"/(?:(spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve

    def route(self, method: str, path: str, body: bytes, is_authorized: bool) -> Answer:
        if method in ("POST", "PUT") and not is_authorized and "/lfs" not in path:
            return refuse(401, "Unauthorized", "Invalid username or password.")
        for allowed, pattern, act in self.routes():
            if method == allowed and (found := re.fullmatch(pattern, path)):
                return act(*found.groups(), body)
        return refuse(404, "NotFound", f"{method} {path} is nothing that this Hub knows.")

    def look_up(self, kind: str | None, name: str, revision: str | None) -> tuple[Repository, str] | Answer:
        repository = self.repositories.get((kind or "models", name))
        if repository is None:
            return refuse(404, "RepoNotFound", f"{name} is not there.")
        sha = repository.find(revision or "main")
        return (repository, sha) if sha else refuse(404, "RevisionNotFound", f"{name} has no {revision}.")

    def create(self, body: bytes) -> Answer:
        wish = json.loads(body)
        kind, name = f"{wish.get('type') or 'model'}s", f"{wish.get('organization') or 'tester'}/{wish['name']}"
        url = f"{self.url}/{name}" if kind == "models" else f"{self.url}/{kind}/{name}"
        if (kind, name) in self.repositories:
            return say({"error": "You already created this repo", "url": url}, 409)
        if kind == "spaces" and wish.get("sdk") != "gradio":
            return refuse(400, "BadRequest", "A Space needs an sdk.")
        self.repositories[kind, name] = Repository()
        attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
        self.repositories[kind, name].commit({".gitattributes": attributes}, "initial commit")
        return say({"url": url, "name": name, "id": "0" * 24})

    def validate(self, body: bytes) -> Answer:
        """As far as the Hub does that: the header is YAML, and a licence and a base model are what they should be."""
        header = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            facts = yaml.safe_load(header[1]) if header else {}
        except yaml.YAMLError as error:
            return say({"errors": [{"message": str(error)}], "warnings": []}, 400)
        errors = [
            {"message": f'"{key}" must be text'}
            for key in ("license", "sdk")
            if not isinstance(facts.get(key, ""), str)
        ]
        return say({"errors": errors, "warnings": []}, 400 if errors else 200)

    def refs(self, kind: str, name: str, body: bytes) -> Answer:
        found = self.look_up(kind, name, None)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in repository.tags.items()]
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": sha}]
        return say({"branches": branches, "tags": tags, "converts": []})

    def info(self, kind: str, name: str, revision: str | None, body: bytes) -> Answer:
        found = self.look_up(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        facts = {
            "id": name,
            "modelId": name,
            "sha": sha,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
        }
        return say(
            facts | {"_id": "0" * 24, "author": name.split("/")[0], "downloads": 0, "likes": 0, "siblings": siblings}
        )

    def tree(self, kind: str, name: str, revision: str, body: bytes) -> Answer:
        """Recursive, whatever was asked for, and without the folders."""
        found = self.look_up(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        entries = []
        for path, file in sorted(repository.commits[sha].items()):
            entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob}
            if file.is_lfs:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
            entries.append(entry)
        return say(entries)

    def preupload(self, kind: str, name: str, revision: str, body: bytes) -> Answer:
        found = self.look_up(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        modes = []
        for wish in json.loads(body)["files"]:
            is_lfs = wish["size"] > LFS_BYTES or wish["path"].endswith((".safetensors", ".gz", ".bin", ".npy"))
            there = repository.commits[sha].get(wish["path"])
            oid = there and (there.sha256 if there.is_lfs else there.blob)
            mode = {
                "path": wish["path"],
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }
            modes.append(mode)
        return say({"files": modes})

    def lfs_batch(self, kind: str | None, name: str, body: bytes) -> Answer:
        objects = []
        for wish in json.loads(body)["objects"]:
            upload = {"href": f"{self.url}/lfs/{wish['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.url}/lfs-verify"}}
            objects.append(wish | ({} if wish["oid"] in self.objects else {"actions": actions}))
        return say({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return refuse(400, "BadRequest", "These bytes have another SHA-256.")
        self.objects[oid] = body
        return Answer()

    def lfs_verify(self, body: bytes) -> Answer:
        return Answer() if json.loads(body)["oid"] in self.objects else refuse(404, "NotFound", "No such object.")

    def commit(self, kind: str, name: str, branch: str, body: bytes) -> Answer:
        found = self.look_up(kind, name, branch)
        if isinstance(found, Answer):
            return found
        repository, head = found
        tree, title = dict(repository.commits[head]), ""
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    return refuse(
                        412, "PreconditionFailed", "A commit has happened since. Please refresh and try again."
                    )
            elif step["key"] == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return refuse(400, "BadRequest", f"{value['path']} was never uploaded.")
                tree[value["path"]] = File(self.objects[value["oid"]], is_lfs=True)
            elif step["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                return refuse(400, "BadRequest", f"{step['key']} is nothing that this Hub knows.")
        sha = repository.commit(tree, title)
        return say(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{name}/commit/{sha}", "hookOutput": ""}
        )

    def tag(self, kind: str, name: str, revision: str, body: bytes) -> Answer:
        found = self.look_up(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        tag = json.loads(body)["tag"]
        if tag in repository.tags:
            return refuse(409, "Conflict", f"Tag {tag} is there already.")
        repository.tags[tag] = sha
        return Answer()

    def resolve(self, kind: str | None, name: str, revision: str, path: str, body: bytes) -> Answer:
        """LFS content comes directly: a client takes commit and names from this answer, and would follow a redirect."""
        found = self.look_up(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        file = repository.commits[sha].get(path)
        if file is None:
            missing = refuse(404, "EntryNotFound", f"{name} has no {path}.")
            return Answer(404, missing.content, missing.headers | {"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.blob}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        return Answer(200, file.content, headers | {"Content-Type": "application/octet-stream"})
