"""npm -> static/niivue.umd.js: the NiiVue viewer, one pinned version, checked and served by the Space itself.

    python space/fetch_viewer.py

Run by `make space` and by a release. It is not committed; what it is and its licence (BSD-2-Clause) come along as
static/niivue.json. Where npm cannot be had, nothing is written and the Space serves its plain slice viewer instead.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.69.0"
SHA256 = "6e9a6a471b428eb3b258a0086beca9187d95e43a781a39e8a519c6da246af485"  # of the archive that npm serves for this version
STATIC = Path(__file__).parent / "static"
MEMBERS = {"package/dist/niivue.umd.js": "niivue.umd.js", "package/package.json": "niivue.json"}


class FetchError(RuntimeError):
    """The viewer could not be brought; the message says why."""


def fetch_viewer(static: Path = STATIC) -> Path:
    """Brings the viewer's one script; what is there already and is of this version stays.

    Raises:
        FetchError: no npm, no network, or another archive than the pinned one.
    """
    script, stamp = static / "niivue.umd.js", static / "niivue.version"
    if script.is_file() and stamp.is_file() and stamp.read_text() == VERSION:
        return script
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed (Debian: apt-get install npm).")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"@niivue/niivue@{VERSION}", "--silent", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise FetchError(f"npm pack failed: {done.stderr.strip()[-300:] or 'no archive'}")
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if found != SHA256:
            raise FetchError(f"npm served another archive: sha256 {found}, pinned is {SHA256}.")
        static.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archives[0]) as archive:
            for member, name in MEMBERS.items():
                content = archive.extractfile(member)
                if content is None:
                    raise FetchError(f"{member} is no file in the archive.")
                (static / name).write_bytes(content.read())
    stamp.write_text(VERSION)
    return script


if __name__ == "__main__":
    try:
        print(f"viewer: {fetch_viewer().relative_to(STATIC.parent)}, NiiVue {VERSION}")
    except (FetchError, subprocess.TimeoutExpired) as error:
        print(f"viewer: {error} The Space will serve its plain slice viewer.", file=sys.stderr)
