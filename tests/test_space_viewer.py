"""The viewer's script comes from npm in one pinned version, or not at all."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

import fetch_viewer
from fetch_viewer import FetchError


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
