"""Starts the Space on a free port as a process of its own: for space.py beside this file, docs/space_pictures.py and tests."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

APP = Path(__file__).parent.parent / "space" / "app.py"


@contextlib.contextmanager
def start_space(
    *program: str | Path, environment: Mapping[str, str] | None = None, output: IO[str] | int | None = None
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Waits until the Space answers, however long that takes; when the `with` block ends, so does the Space.

    Args:
        program: what Python runs, app.py of this repository where nothing is given; it takes `--port`.
        environment: added to this process' own.
        output: where it writes, as for `subprocess.Popen`.

    Yields:
        The process and its address.

    Raises:
        RuntimeError: the process ended before it answered.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *map(str, program or (APP,)), "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | dict(environment or {}), stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(url):
            if process.poll() is not None:
                raise RuntimeError(f"The Space ended with exit status {process.returncode} before it answered.")
            time.sleep(0.2)
        yield process, url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=60):
        return True
    return False
