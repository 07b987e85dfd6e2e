"""A node of a DICOM network that takes studies by C-STORE, works them and stores the results back: `ctfm listen`.

    ctfm listen --port 11113 --peer 127.0.0.1:4242:ORTHANC --out DIR --keep-identifiers

It listens on this machine alone unless --host names another address. A study is worked when no association that sent to it is
open and nothing of it has come for --quiet seconds. What comes lies in DIR/studies until somebody deletes it, results beside
it, and everything that is not done yet is done at the next start: a peer that is down is asked again, a study that is sent
again gives the same objects under the same UIDs, and one whose sender broke off waits for being sent whole. Files and folders
are named by digests, and what is printed names nobody. Research only: not for any decision about a patient.
"""

import argparse
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from ..segmentation import write_json
from ..volume_ctfm import VolumeError
from ..volume_dicom_header_ctfm import PARSE_ERRORS, quiet_pydicom
from ..volume_studies_ctfm import find_scans
from .report import Reporter, add_report_arguments, load_reporter
from .source import digest

CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
SYNTAXES = [
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian),
    *(JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000, RLELossless),
    *(JPEGBaseline8Bit, JPEGExtended12Bit),
]
SUCCESS, OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with a remark
TIMEOUT_SECONDS = 30.0  # of one step of talking to the peer
MAX_SENT = 200  # over one association
OPEN, WORKED, SENT = "open", "worked.json", "sent.json"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A node that takes results: address, port and the title that it is called by."""

    host: str
    port: int
    title: str = "ANY-SCP"


def parse_peer(text: str) -> Peer:
    host, _, rest = text.rpartition(":") if text.count(":") == 1 else text.partition(":")
    port, _, title = rest.partition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or len(title) > 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT or HOST:PORT:TITLE, such as 127.0.0.1:4242:ORTHANC")
    return Peer(host=host, port=int(port), title=title or "ANY-SCP")


class Inbox:
    """Studies as they come, on disk: `studies/STUDY/slices/FILE`, named by digests.

    The file `open` in a study stands from the first slice of an association to its end, and stays where the association, or
    this program, broke off: what has come may be half of the study. Methods run in the threads of associations and in the
    worker's.
    """

    def __init__(self, out: Path, quiet_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.quiet_seconds, self._clock = out / "studies", quiet_seconds, clock
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._open: dict[object, set[str]] = {}  # association -> studies that it has sent to
        self._last = {
            study.name: clock() for study in self.folder.iterdir()
        }  # when something of it came; worked ones leave

    def take(self, association: object, study_uid: str, instance_uid: str, held: bytes) -> None:
        """Keeps one file, whole or not at all. The same file again changes nothing.

        Raises:
            OSError: there is no room, or no right to write.
        """
        study = digest(study_uid)
        file = self.folder / study / "slices" / f"{digest(instance_uid)}.dcm"
        with self._lock:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._open.setdefault(association, set()).add(study)
            self._last[study] = self._clock()
            (self.folder / study / OPEN).touch()
        if file.is_file() and file.read_bytes() == held:
            return
        partial = file.with_name(f".{file.name}.{threading.get_ident()}.partial")
        partial.write_bytes(held)
        partial.replace(file)

    def end(self, association: object, is_whole: bool) -> None:
        """An association is over. Where it broke off, its studies wait for one that does not."""
        with self._lock:
            for study in self._open.pop(association, ()):
                self._last[study] = self._clock()
                if is_whole and not any(study in others for others in self._open.values()):
                    (self.folder / study / OPEN).unlink(missing_ok=True)

    def ready(self) -> list[tuple[Path, float]]:
        """Studies that are complete and not yet worked in this run, and when the last of each came; the oldest first."""
        with self._lock:
            now = self._clock()
            quiet = sorted((last, study) for study, last in self._last.items() if now - last >= self.quiet_seconds)
            folders = [(self.folder / study, last) for last, study in quiet]
            return [(folder, last) for folder, last in folders if not (folder / OPEN).exists()]

    def put_away(self, folder: Path, last: float) -> None:
        """A study is worked, unless something of it has come meanwhile."""
        with self._lock:
            if self._last.get(folder.name) == last:
                del self._last[folder.name]

    def num_broken_off(self) -> int:
        return sum((folder / OPEN).exists() for folder in self.folder.iterdir())


class Listener:
    """Takes studies, works those that are complete and sends their results.

    Args:
        work: a folder of slices -> objects in another folder; see `report_study`.
    """

    def __init__(
        self,
        inbox: Inbox,
        work: Callable[[Path, Path], list[str]],
        peer: Peer | None,
        title: str = "CTFM",
        say: Callable[[str], None] = print,
    ) -> None:
        self.inbox, self.peer, self.title, self.say = inbox, peer, title, say
        self._work, self._left = work, 0

    # ---- taking ----

    def start(self, host: str, port: int) -> Any:
        """Listens in threads of its own; returns the server, whose `shutdown` ends it."""
        node = AE(ae_title=self.title)
        for sop_class in CLASSES:
            node.add_supported_context(sop_class, SYNTAXES)
        node.add_supported_context(Verification)
        handlers = [
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_RELEASED, lambda event: self.inbox.end(event.assoc, is_whole=True)),
            (evt.EVT_ABORTED, lambda event: self.inbox.end(event.assoc, is_whole=False)),
            (evt.EVT_CONN_CLOSE, lambda event: self.inbox.end(event.assoc, is_whole=False)),  # after either, or neither
        ]
        return node.start_server((host, port), block=False, evt_handlers=handlers)

    def store(self, event: Event) -> int:
        request: Any = event.request
        try:
            with quiet_pydicom:
                study_uid = str(event.dataset.get("StudyInstanceUID") or "")
                instance_uid = str(request.AffectedSOPInstanceUID or "")
                held = event.encoded_dataset()
        except PARSE_ERRORS:
            return NOT_UNDERSTOOD
        if not study_uid or not instance_uid:
            return NOT_UNDERSTOOD
        try:
            self.inbox.take(event.assoc, study_uid, instance_uid, held)
        except OSError as error:
            self.say(f"a slice could not be kept: {error.strerror}")
            return OUT_OF_RESOURCES
        return SUCCESS

    # ---- working and sending ----

    def step(self) -> None:
        """Works what is complete and not worked yet, then sends what is not sent yet."""
        for folder, last in self.inbox.ready():
            contents = fingerprint_of(folder / "slices")
            if read_json(folder / WORKED).get("contents") != contents:
                notes = self._work(folder / "slices", folder / "results")
                write_json(folder / WORKED, {"contents": contents, "notes": notes})
                for note in notes:
                    self.say(f"study {folder.name}: {note}")
                self.say(f"study {folder.name}: worked")
            self.inbox.put_away(folder, last)
        self.send()

    def send(self) -> None:
        """Sends every object that the peer has not taken, those of all studies over one association."""
        waiting = [] if self.peer is None else [*self.waiting()]
        if not waiting:
            return
        taken = self.send_files(waiting[:MAX_SENT]) if self.is_up() else 0
        left = len(waiting) - taken
        if taken or left != self._left:  # and not again and again while the peer is down
            self.say(f"{taken} objects sent" + (f"; {left} are not taken yet and are sent again" if left else ""))
        self._left = left

    def is_up(self) -> bool:
        """Whether the peer's port is open."""
        assert self.peer is not None
        # pynetdicom 3.0.4 leaves the socket of an association that is refused open, so it is not asked for one.
        try:
            socket.create_connection((self.peer.host, self.peer.port), TIMEOUT_SECONDS).close()
        except OSError:
            return False
        return True

    def waiting(self) -> Iterator[tuple[Path, Path]]:
        """Every object that the peer has not taken, and the folder of its study."""
        for folder in sorted(self.inbox.folder.iterdir()):
            sent = read_json(folder / SENT)
            for file in sorted((folder / "results").rglob("*.dcm")) if (folder / WORKED).is_file() else ():
                if sent.get(str(file.relative_to(folder))) != stamp(file):
                    yield folder, file

    def send_files(self, waiting: Sequence[tuple[Path, Path]]) -> int:
        """How many were taken."""
        assert self.peer is not None
        with quiet_pydicom:
            classes = {dcmread(file, specific_tags=["SOPClassUID"]).SOPClassUID for _, file in waiting}
        node = AE(ae_title=self.title)
        node.acse_timeout = node.dimse_timeout = node.network_timeout = node.connection_timeout = TIMEOUT_SECONDS
        for sop_class in sorted(classes):
            node.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        association = node.associate(self.peer.host, self.peer.port, ae_title=self.peer.title)
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        taken = 0
        for folder, file in waiting:
            if not association.is_established:
                break
            with quiet_pydicom:
                data_set = dcmread(file)
                if data_set.SOPClassUID not in accepted:
                    continue
                status = association.send_c_store(data_set).get("Status")
            if status == SUCCESS or status in WARNINGS:
                taken += 1
                write_json(folder / SENT, read_json(folder / SENT) | {str(file.relative_to(folder)): stamp(file)})
        if association.is_established:
            association.release()
        return taken


def report_study(reporter: Reporter, slices: Path, results: Path) -> list[str]:
    """Reports every CT series of a study, each into a folder named by a digest.

    Returns:
        Why series were left out.
    """
    notes = []
    for scan, series_uid in find_scans(slices):
        try:
            reporter.report(scan, series_uid, results / digest(series_uid or "only series"))
        except VolumeError as error:
            notes.append(f"a series could not be read: {error.problem}. {error.cure}".strip())
    return notes


def fingerprint_of(folder: Path) -> str:
    """Changes with the slices of a study, and not with when they came."""
    names = [(file.name, hash_file(file)) for file in sorted(folder.glob("*.dcm"))]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def stamp(file: Path) -> str:
    """Another one when a file is written again."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def read_json(file: Path) -> dict[str, Any]:
    """Empty where there is none, or half of one."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm listen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True, help="to listen on; 0: one that is free")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of studies and results")
    parser.add_argument(
        "--peer", type=parse_peer, metavar="HOST:PORT[:TITLE]", help="takes the results; without it they stay"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--title", default="CTFM", help="of this node (%(default)s)")
    parser.add_argument(
        "--quiet", type=float, default=30.0, metavar="SECONDS", help="without a new slice (%(default)s)"
    )
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks (%(default)s)")
    add_report_arguments(parser)
    given = parser.parse_args(arguments)
    reporter = load_reporter(given)
    inbox = Inbox(given.out, given.quiet)
    listener = Listener(inbox, lambda slices, results: report_study(reporter, slices, results), given.peer, given.title)
    server = listener.start(given.host, given.port)
    print(f"listening on {given.host}:{server.server_address[1]} as {given.title}; until Ctrl-C", flush=True)
    if given.host not in ("127.0.0.1", "localhost", "::1"):
        print("ctfm: other machines can send to this one, without a password and unencrypted", file=sys.stderr)
    if count := inbox.num_broken_off():
        print(f"{count} studies broke off while they were sent and wait for being sent again")
    try:
        while True:
            listener.step()
            time.sleep(given.every)
    except KeyboardInterrupt:
        return 0
    finally:
        server.shutdown()
