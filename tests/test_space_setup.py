"""What the Space is set up with: pinned libraries, the viewer from npm in one version or not at all, `make space`."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import fetch_viewer
from fetch_viewer import FetchError
from texts import TEXTS
from uploads import MAX_FILES, MAX_UPLOAD_BYTES, MAX_VOXELS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for npm serves, as the only program on the path."""
    path = tmp_path / "served.tgz"
    with tarfile.open(path, "w:gz") as file:
        for member in fetch_viewer.MEMBERS:
            info = tarfile.TarInfo(member)
            info.size = len(member)
            file.addfile(info, io.BytesIO(member.encode()))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f'#!/bin/sh\necho "$2" >> {tmp_path}/asked\nfor folder; do :; done\n/bin/cp {path} "$folder/niivue.tgz"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    return path


def test_another_archive_than_the_pinned_one_is_refused_and_nothing_is_written(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="another archive"):
        fetch_viewer.fetch_viewer(tmp_path / "static")
    assert not (tmp_path / "static").exists()


def test_the_pinned_archive_is_unpacked_once_with_its_licence(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_viewer, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    for _ in range(2):
        script = fetch_viewer.fetch_viewer(tmp_path / "static")
        assert script.read_text() == "package/dist/niivue.umd.js"
    assert {path.name for path in script.parent.iterdir()} == {"niivue.umd.js", "niivue.json", "niivue.version"}
    assert (tmp_path / "asked").read_text().splitlines() == [f"@niivue/niivue@{fetch_viewer.VERSION}"]


def test_without_npm_it_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="npm is not installed"):
        fetch_viewer.fetch_viewer(tmp_path / "static")


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)$", path.read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in found}


def test_the_space_pins_the_versions_that_are_tested() -> None:
    pinned, tested = pins(ROOT / "space" / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert len(pinned) > 10
    assert {name: tested.get(name) for name in pinned} == pinned
    assert f"sdk_version: {pinned['gradio']}\n" in (ROOT / "space" / "README.md").read_text()


@pytest.mark.parametrize("told", [TEXTS["limits"][0], (ROOT / "space" / "README.md").read_text()])
def test_the_limits_that_are_told_are_those_that_hold(told: str) -> None:
    for limit in (f"{MAX_UPLOAD_BYTES >> 30} GiB", f"{MAX_FILES:,} files", f"{MAX_VOXELS // 10**6} million voxels"):
        assert limit in told


def planned(target: str, checkpoint: Path) -> list[str]:
    """The programs that `make` would start, whether or not it would install them before."""
    command = ["make", "--dry-run", target, "SPACE=yes", f"CHECKPOINT={checkpoint}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    started = re.findall(r"(?:^|; )\.venv/bin/python ([^&;\n]+)", said, re.MULTILINE)
    return [program for program in started if not program.startswith("-m pip ")]


@pytest.mark.parametrize("target", ["space", "demo"])
def test_where_there_is_a_checkpoint_make_opens_the_space(target: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    programs = [program.strip() for program in planned(target, tmp_path)]
    beside = [f"-m ctfm gallery --checkpoint {tmp_path}", "space/app.py"]
    assert programs == [*["-m ctfm demo"] * (target == "demo"), "space/fetch_viewer.py", *beside]


def test_where_there_is_none_make_demo_ends_without_the_space(tmp_path: Path) -> None:
    assert [program.strip() for program in planned("demo", tmp_path)] == ["-m ctfm demo"]


def test_a_pass_runs_on_one_thread_unless_the_host_says_otherwise() -> None:
    pytest.importorskip("gradio", reason="the extra [space] is not installed")
    for given, threads in ((None, "1"), ("2", "2")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment |= {} if given is None else {"OMP_NUM_THREADS": given}
        said = subprocess.run(
            [sys.executable, "-c", "import app, torch; print(torch.get_num_threads())"],
            cwd=ROOT / "space",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert said.strip() == threads
