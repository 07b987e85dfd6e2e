"""The Space with gates, so that a test decides how long a computation takes: APP GATES [--port PORT]

A computation that begins looks for a file of its name in the folder GATES. A test puts it there (`space_process.hold`): the
port on which it listens, and where the computation waits until the connection ends.
"""

import contextlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def gated(function: Callable, gate: Path) -> Callable:
    def wait_and_go_on(*arguments: Any, **named: Any) -> Any:
        with (
            contextlib.suppress(FileNotFoundError, ConnectionError),  # no gate, or the test let go meanwhile
            socket.create_connection(("127.0.0.1", int(gate.read_text()))) as held,
        ):
            held.recv(1)
        return function(*arguments, **named)

    return wait_and_go_on


def main(app_file: str, gates: str, *arguments: str) -> None:
    sys.path.insert(0, str(Path(app_file).parent))
    import app
    import scan_tab
    from analysis import Analyser

    Analyser.analyse = gated(Analyser.analyse, Path(gates) / "analyse")
    scan_tab.write_view = gated(scan_tab.write_view, Path(gates) / "view")
    app.main(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
