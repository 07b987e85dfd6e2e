"""A real DICOM server, Orthanc of Debian, for one test module: on this machine alone, on ports that are free."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = "Orthanc and its DICOMweb plugin (Debian: apt-get install orthanc orthanc-dicomweb) are not installed"


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    http_port: int
    dicom_port: int

    @property
    def dicomweb(self) -> str:
        return f"dicomweb://127.0.0.1:{self.http_port}/dicom-web"

    def get(self, path: str) -> list:
        answer = requests.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def clear(self) -> None:
        for study in self.get("/studies"):
            requests.delete(f"http://127.0.0.1:{self.http_port}/studies/{study}", timeout=60).raise_for_status()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@contextmanager
def run_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Runs until the block ends; what it says is read until it says that it has started."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None or not PLUGIN.is_file():
        pytest.skip(MISSING)
    server = Orthanc(http_port=free_port(), dicom_port=free_port())
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": server.http_port,
        "DicomPort": server.dicom_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    process = subprocess.Popen(
        [program, folder / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "Orthanc has started" in line:
                break
        else:
            pytest.fail("Orthanc ended: " + "".join(said[-5:]))
        yield server
    finally:
        process.terminate()
        process.communicate()
