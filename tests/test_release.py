"""A release over HTTP to a small Hub on this machine: what is sent, what is refused, and what an interruption leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ctfm.train.release import Package, ReleaseError, publish
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.local_hub import LocalHub, Repository

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's way of sending LFS
REPO = "org/ctfm"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(hub.url, token="hf_test")


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (tmp_path / "protocols" / "findings.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return Package(repo=REPO, kind="model", folder=tmp_path)


def on_hub(repository: Repository, revision: str) -> dict[str, bytes]:
    sha = repository.find(revision)
    assert sha
    return {path: file.content for path, file in repository.commits[sha].items() if path != ".gitattributes"}


def on_disk(package: Package) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in package.files().items()}


# ---- publish ----


def test_a_release_is_one_commit_with_weights_in_lfs_and_a_tag(hub: LocalHub, api: HfApi, package: Package) -> None:
    commit = publish(api, package, "v1.0.0")
    repository = hub.repositories["models", REPO]
    assert repository.titles == ["initial commit", "v1.0.0"]
    assert repository.tags == {"v1.0.0": commit} == {"v1.0.0": repository.head}
    assert on_hub(repository, "v1.0.0") == on_disk(package)
    files = repository.commits[commit]
    assert {path for path, file in files.items() if file.is_lfs} == {"model.safetensors"}
    assert ("POST", "/api/validate-yaml") in hub.requests


def test_a_repeated_release_changes_nothing(hub: LocalHub, api: HfApi, package: Package) -> None:
    first = publish(api, package, "v1.0.0")
    hub.requests.clear()
    assert publish(api, package, "v1.0.0") == first
    assert {request for request in hub.requests if request[0] != "GET"} == {("POST", "/api/repos/create")}


@pytest.mark.parametrize(
    ("method", "path", "after", "times"),
    [
        ("POST", "/preupload/", False, 6),  # huggingface_hub asks six times
        ("PUT", "/lfs/", False, 6),
        ("POST", "/lfs-verify", False, 6),
        ("POST", "/commit/", False, 1),
        ("POST", "/commit/", True, 1),
        ("POST", "/tag/", False, 1),
        ("POST", "/tag/", True, 1),
    ],
)
def test_an_interrupted_release_leaves_no_half_and_is_finished_by_the_same_call(
    hub: LocalHub, api: HfApi, package: Package, method: str, path: str, after: bool, times: int
) -> None:
    hub.break_next(method, path, after=after, times=times)
    with pytest.raises(Exception, match=r"disconnected|while uploading"):
        publish(api, package, "v1.0.0")
    assert not hub.faults
    repository = hub.repositories["models", REPO]
    assert on_hub(repository, "main") in ({}, on_disk(package))
    assert all(on_hub(repository, tag) == on_disk(package) for tag in repository.tags)
    commit = publish(api, package, "v1.0.0")
    assert repository.titles == ["initial commit", "v1.0.0"]
    assert repository.tags == {"v1.0.0": commit}
    assert on_hub(repository, "v1.0.0") == on_disk(package)


def test_a_connection_that_breaks_once_while_weights_travel_is_taken_up_again(
    hub: LocalHub, api: HfApi, package: Package
) -> None:
    hub.break_next("PUT", "/lfs/")
    publish(api, package, "v1.0.0")
    assert on_hub(hub.repositories["models", REPO], "v1.0.0") == on_disk(package)


def test_the_next_version_replaces_and_removes_files_and_leaves_the_last_one(
    hub: LocalHub, api: HfApi, package: Package
) -> None:
    publish(api, package, "v1.0.0")
    before = on_disk(package)
    (package.folder / "protocols" / "findings.json").rename(package.folder / "protocols" / "others.json")
    (package.folder / "model.safetensors").write_bytes(b"other weights")
    publish(api, package, "v1.1.0")
    repository = hub.repositories["models", REPO]
    assert on_hub(repository, "v1.0.0") == before
    assert on_hub(repository, "main") == on_hub(repository, "v1.1.0") == on_disk(package)
    assert ".gitattributes" in repository.commits[repository.head]


@pytest.mark.parametrize("change", ["another byte", "one file more", "one file less"])
def test_a_version_that_was_published_with_other_files_is_refused(
    hub: LocalHub, api: HfApi, package: Package, change: str
) -> None:
    publish(api, package, "v1.0.0")
    if change == "another byte":
        weights = package.folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    elif change == "one file more":
        (package.folder / "config.json").write_text("{}")
    else:
        (package.folder / "model.safetensors").unlink()
    commits = list(hub.repositories["models", REPO].commits)
    with pytest.raises(ReleaseError, match=r"published as v1\.0\.0 with other files .*raise it in pyproject"):
        publish(api, package, "v1.0.0")
    assert list(hub.repositories["models", REPO].commits) == commits


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(
    hub: LocalHub, api: HfApi, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(HfApi):
        def create_commit(self, *arguments, **named):  # type: ignore[override]
            repository = hub.repositories["models", REPO]
            repository.commit(dict(repository.commits[repository.head]), "somebody else")
            return super().create_commit(*arguments, **named)

    with pytest.raises(HfHubHTTPError, match="412"):
        publish(Slow(hub.url, token="hf_test"), package, "v1.0.0")
    assert hub.repositories["models", REPO].titles == ["initial commit", "somebody else"]
    assert not hub.repositories["models", REPO].tags


def test_a_card_whose_header_the_hub_refuses_is_not_published(hub: LocalHub, api: HfApi, package: Package) -> None:
    (package.folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        publish(api, package, "v1.0.0")
    assert hub.repositories["models", REPO].titles == ["initial commit"]


def test_a_space_is_published_as_a_space(hub: LocalHub, api: HfApi, package: Package) -> None:
    publish(api, Package(repo=REPO, kind="space", folder=package.folder), "v1.0.0")
    assert on_hub(hub.repositories["spaces", REPO], "v1.0.0") == on_disk(package)
    assert ("models", REPO) not in hub.repositories


def test_without_a_token_nothing_is_published(hub: LocalHub, package: Package) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        publish(HfApi(hub.url, token=False), package, "v1.0.0")
    assert not hub.repositories
