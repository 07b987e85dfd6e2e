"""The wheel that a release publishes: what is in it, and that pip installs and resolves it from an index over HTTP."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from ctfm.__main__ import COMMANDS
from ctfm.embedding import main as embed
from ctfm.installation import how_to_install

ROOT = Path(__file__).parent.parent
BUILT_BY = {"build", "dist", "runs", "demo"}  # folders that commands of the Makefile write
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of links to this tree, so that it lies outside."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in BUILT_BY and path.suffix != ".egg-info":
            (source / path.name).symlink_to(path)
    run([*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)])
    (built,) = out.glob("*.whl")
    return built


def run(command: list[str], cwd: Path | None = None) -> str:
    """As a user would, of whom no variable says where this tree lies."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "HF_"))}
    done = subprocess.run(
        command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def index(wheel: Path) -> Iterator[str]:
    """A simple index (PEP 503) of the wheel and of what is installed here; of the latter only metadata (PEP 658)."""
    files = {f"/files/{wheel.name}": wheel.read_bytes()}
    links = {"ctfm": f'<a href="/files/{wheel.name}">{wheel.name}</a>'}
    for installed in distributions():
        if (name := normal(installed.name)) != "ctfm":
            file = f"{name.replace('-', '_')}-{installed.version}-py3-none-any.whl"
            files[f"/files/{file}.metadata"] = (installed.read_text("METADATA") or "").encode()
            links[name] = f'<a href="/files/{quote(file)}" data-core-metadata="true">{file}</a>'
    files |= {
        f"/simple/{name}/": f"<!DOCTYPE html><html><body>{link}</body></html>".encode() for name, link in links.items()
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(unquote(self.path))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple/"
        server.shutdown()
        thread.join()


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The interpreter of an environment without anything."""
    venv.create(tmp_path / "fresh", with_pip=False)
    return tmp_path / "fresh" / "bin" / "python"


def install(fresh: Path, index: str, *arguments: str) -> str:
    return run([*PIP, "--python", str(fresh), "install", "--index-url", index, *arguments], fresh.parent)


def test_the_wheel_holds_every_module_and_no_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if "checkpoints/" in name or name.endswith((".safetensors", ".bin", ".pt"))]
    assert wheel.stat().st_size < 2**21
    commands = [module for _, group in COMMANDS.values() for module, _ in group.values()]
    rooms = {module.split(".")[0] for module in commands if "." in module}
    expected = [*ROOT.glob("*.py"), *(file for room in rooms for file in (ROOT / room).glob("*.py"))]
    assert not [path for path in expected if f"ctfm/{path.relative_to(ROOT).as_posix()}" not in names]
    data = [*ROOT.glob("evaluate/protocols/*.json"), *ROOT.glob("reporting/checklists/*.json")]
    others = {"py.typed", *(path.relative_to(ROOT).as_posix() for path in data)}
    assert not [name for name in others if f"ctfm/{name}" not in names]


def test_pip_installs_the_command_from_an_index_and_it_names_the_extra_that_is_missing(fresh: Path, index: str) -> None:
    install(fresh, index, "--quiet", "--no-deps", "ctfm", "--pre")
    command = str(fresh.with_name("ctfm"))
    assert "usage: ctfm COMMAND" in run([command, "--help"], fresh.parent)
    assert run([command, "--version"], fresh.parent).startswith("ctfm 0.")
    done = subprocess.run([command, "inspect", "scan"], cwd=fresh.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "ctfm[io]"' in done.stderr


def test_pip_resolves_the_extras_that_make_setup_installs(fresh: Path, index: str) -> None:
    (extras,) = re.findall(r'--editable "\.\[(.+)\]"', (ROOT / "Makefile").read_text().split(".venv/.done:")[1])[:1]
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {normal(re.split(r"[\[<>=; ]", line)[0]) for extra in extras.split(",") for line in stated[extra]}
    if missing := sorted(needed - {normal(installed.name) for installed in distributions()}):
        pytest.skip(f"not installed, so the index lacks it: {', '.join(missing)}; run make setup")
    said = install(fresh, index, "--dry-run", "--pre", f"ctfm[{extras}]")
    found = {normal(word.rsplit("-", 1)[0]) for word in said.rpartition("Would install ")[2].split()}
    assert {"ctfm", "torch", "pydicom", "accelerate", "gradio", "lxml"} <= found


def test_embed_says_which_checkpoint_it_needs_where_none_lies_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("ctfm.embedding.DEFAULT_CHECKPOINT", tmp_path / "checkpoints" / "default")
    with pytest.raises(SystemExit) as left:
        embed([str(tmp_path), "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert "--model: this installation has no checkpoint of its own. Give a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_container_file_copies_installs_and_starts_is_there() -> None:
    """No container engine is asked for: the file is read."""
    lines = (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [words for line in lines if line.startswith("COPY ") for words in line.split()[1:-1]]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    (extras,) = [re.findall(r'--editable "\.\[(.+)\]"', line) for line in lines if "--editable" in line]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras[0].split(",")) <= set(known)
    (start,) = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD ")]
    assert (ROOT / start[1]).is_file()
    kept_out = (ROOT / ".containerignore").read_text().split()
    assert not {"checkpoints", "space", "reporting", "clinical"} & set(kept_out)


def test_a_clone_is_installed_where_it_lies_so_that_the_weights_stay() -> None:
    assert how_to_install("io") == 'pip install --editable ".[io]" in the cloned folder'
