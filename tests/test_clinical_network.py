"""Studies over a network: a node that takes, works and stores back, and a DICOMweb server that is read. Loopback alone."""

import argparse
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from ctfm import read_volume
from ctfm.__main__ import main
from ctfm.clinical import dicomweb
from ctfm.clinical.listen import CLASSES, OPEN, SENT, WORKED, Inbox, Listener, Peer, parse_peer
from ctfm.clinical.measurement_report import make_report
from ctfm.clinical.pdf_report import make_pdf
from ctfm.clinical.segmentation_object import make_segmentation, write_object
from ctfm.clinical.source import digest, read_source
from ctfm.clinical.worklist import fetch
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, evt

from tests.orthanc import Orthanc, free_port, run_orthanc
from tests.phantoms import canonical_affine
from tests.test_clinical_objects import MAKER, SECRETS, make, name_patient, results_of, segment_by_threshold, write_scan
from tests.test_worklist import write_checkpoint

STUDY = "1.2.826.0.1.3680043.8.498.1"
PATIENCE_SECONDS = 120.0  # after which a test that waits for another thread ends, which it does long before


def write_study(folder: Path) -> Path:
    """Two series of one study of a patient with a name."""
    for number in (1, 2):

        def edit(data_set: Dataset, index: int, number: int = number) -> None:
            name_patient(data_set, index)
            data_set.StudyInstanceUID, data_set.SeriesInstanceUID = STUDY, f"{STUDY}.{number}"
            data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.{number}.{index}"
            data_set.SeriesNumber, data_set.FrameOfReferenceUID = number, f"{STUDY}.9"

        write_scan(folder / str(number), canonical_affine(), edit, slices=8)
    return folder


def slices_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.dcm"))


def write_seg(slices: Path, results: Path) -> list[str]:
    """Stands for models: of every series a DICOM SEG by threshold."""
    results.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        uid = f"{STUDY}.{number}"
        volume = read_volume(slices, uid)
        source = read_source(slices, uid, volume)
        seg = make_segmentation(source, volume, segment_by_threshold(volume), MAKER, keep_identifiers=True)
        write_object(results / f"{number}.dcm", seg)
    return []


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A listener on a free port, of which a test can wait until an association is over."""

    def __init__(
        self, out: Path, peer: Peer | None = None, work: Callable[[Path, Path], list[str]] = write_seg
    ) -> None:
        self.clock, self.said = Clock(), []
        self.inbox = Inbox(out, quiet_seconds=30.0, clock=self.clock)
        self.num_worked = 0
        self._over = threading.Semaphore(0)

        def counted(slices: Path, results: Path) -> list[str]:
            self.num_worked += 1
            return work(slices, results)

        end = self.inbox.end

        def ended(association: object, is_whole: bool) -> None:
            end(association, is_whole)
            self._over.release()

        self.inbox.end = ended  # type: ignore[method-assign]
        self.listener = Listener(self.inbox, counted, peer, say=self.said.append)
        self.server = self.listener.start("127.0.0.1", 0)
        self.port = self.server.server_address[1]

    def send(self, files: list[Path], *, abort: bool = False) -> list[int]:
        """What a scanner does; returns the statuses."""
        node = AE()
        for sop_class in CLASSES:
            node.add_requested_context(sop_class, [ExplicitVRLittleEndian])
        association = node.associate("127.0.0.1", self.port)
        statuses = [association.send_c_store(dcmread(file)).Status for file in files]
        (association.abort if abort else association.release)()
        assert self._over.acquire(timeout=PATIENCE_SECONDS)
        return statuses

    def step_after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.listener.step()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes = []

    def make_node(*arguments: Any, **settings: Any) -> Node:
        nodes.append(Node(tmp_path / "out", *arguments, **settings))
        return nodes[-1]

    yield make_node
    for node in nodes:
        node.server.shutdown()


@pytest.fixture
def peer() -> Iterator[tuple[Peer, dict[str, Dataset], list[int]]]:
    """A node that takes results; it refuses with the statuses of the list as long as there are some."""
    taken: dict[str, Dataset] = {}
    refusals: list[int] = []

    def store(event: evt.Event) -> int:
        if refusals:
            return refusals.pop()
        taken[event.dataset.SOPInstanceUID] = event.dataset
        return 0

    node = AE()
    node.add_supported_context(SegmentationStorage)
    server: Any = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    yield Peer(host="127.0.0.1", port=server.server_address[1]), taken, refusals
    server.shutdown()


# ---- taking and working -------------------------------------------------------------------------------------------------


def test_a_study_is_worked_once_when_its_association_is_closed_and_it_has_been_quiet(
    start: Callable[..., Node], peer: tuple, tmp_path: Path
) -> None:
    node = start(peer[0])
    files = slices_of(write_study(tmp_path / "study"))
    assert set(node.send(files[:5])) == {0}
    node.step_after(29.0)
    assert node.num_worked == 0
    node.send(files[5:])
    node.step_after(29.0)
    assert node.num_worked == 0
    node.step_after(1.0)
    assert node.num_worked == 1
    assert len(peer[1]) == 2
    for seg in peer[1].values():
        assert (seg.StudyInstanceUID, seg.PatientID, seg.Modality) == (STUDY, "907351", "SEG")
    node.step_after(1000.0)
    assert node.num_worked == 1
    for secret in (*SECRETS, STUDY):
        assert secret not in "".join(node.said)
        assert not any(secret in str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*"))


def test_the_same_study_again_is_neither_worked_nor_sent_again(
    start: Callable[..., Node], peer: tuple, tmp_path: Path
) -> None:
    node = start(peer[0])
    files = slices_of(write_study(tmp_path / "study"))
    node.send(files)
    node.step_after(30.0)
    first = dict(peer[1])
    peer[1].clear()
    node.send(files + files[:3])  # with duplicates
    node.step_after(30.0)
    assert (node.num_worked, peer[1]) == (1, {})
    (study,) = node.inbox.folder.iterdir()
    assert len(slices_of(study / "slices")) == len(files)
    for file in (study / WORKED, study / SENT):
        file.unlink()  # as if it had never been worked: the objects are the same
    again = start(peer[0])
    again.step_after(30.0)
    assert again.num_worked == 1
    assert set(peer[1]) == set(first)


def test_half_a_study_waits_until_it_is_sent_whole_also_over_a_restart(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    files = slices_of(write_study(tmp_path / "study"))
    node = start()
    node.send(files[:6], abort=True)
    node.step_after(1000.0)
    assert node.num_worked == 0
    again = start()  # and the program was ended
    assert again.inbox.num_broken_off() == 1
    again.step_after(1000.0)
    assert again.num_worked == 0
    again.send(files)
    again.step_after(30.0)
    assert again.num_worked == 1
    assert again.inbox.num_broken_off() == 0


def test_what_was_killed_before_it_was_worked_is_worked_at_the_next_start(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    def killed(slices: Path, results: Path) -> list[str]:
        raise KeyboardInterrupt

    node = start(work=killed)
    node.send(slices_of(write_study(tmp_path / "study")))
    with pytest.raises(KeyboardInterrupt):
        node.step_after(30.0)
    again = start()
    again.step_after(30.0)
    assert again.num_worked == 1
    assert len(slices_of(tmp_path / "out")) == 16 + 2


def test_a_slice_that_comes_while_the_study_is_worked_has_it_worked_again(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    files = slices_of(write_study(tmp_path / "study"))
    nodes: list[Node] = []

    def work(slices: Path, results: Path) -> list[str]:
        if nodes[0].num_worked == 1:
            nodes[0].send(files[-1:])
        return []

    nodes.append(start(work=work))
    nodes[0].send(files[:-1])
    nodes[0].step_after(30.0)
    nodes[0].step_after(30.0)
    nodes[0].step_after(30.0)
    assert nodes[0].num_worked == 2


def test_what_cannot_be_kept_is_refused_so_that_its_sender_keeps_it(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    (tmp_path / "out" / "studies" / digest(STUDY)).write_text("a file where a folder should be")
    assert set(node.send(slices_of(write_study(tmp_path / "study"))[:2])) == {0xA700}
    assert any("could not be kept" in line for line in node.said)


# ---- sending ------------------------------------------------------------------------------------------------------------


def test_results_wait_for_a_peer_that_is_down_and_for_one_that_refuses(
    start: Callable[..., Node], peer: tuple, tmp_path: Path
) -> None:
    down = Peer(host="127.0.0.1", port=free_port())
    node = start(down)
    node.send(slices_of(write_study(tmp_path / "study")))
    node.step_after(30.0)
    assert node.num_worked == 1
    assert "2 are not taken yet" in node.said[-1]
    again = start(peer[0])
    peer[2].append(0xA700)  # out of resources, once
    again.listener.send()
    assert len(peer[1]) == 1
    again.listener.send()
    assert len(peer[1]) == 2
    assert [*again.listener.waiting()] == []
    assert again.num_worked == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:4242", Peer(host="127.0.0.1", port=4242)),
        ("pacs.local:104:ARCHIVE", Peer(host="pacs.local", port=104, title="ARCHIVE")),
        ("pacs.local", None),
        ("pacs:0", None),
        ("pacs:104:A TITLE THAT IS TOO LONG", None),
    ],
)
def test_a_peer_is_host_port_and_title(text: str, expected: Peer | None) -> None:
    if expected is None:
        with pytest.raises(argparse.ArgumentTypeError, match="HOST:PORT"):
            parse_peer(text)
    else:
        assert parse_peer(text) == expected


# ---- a real server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def server(orthanc: Orthanc) -> Orthanc:
    orthanc.clear()
    return orthanc


def test_orthanc_takes_objects_by_stow_finds_them_by_qido_and_gives_them_back_by_wado(
    server: Orthanc, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "scan")
    volume, source, seg = make(scan, keep_identifiers=True)
    report = make_report(source, results_of(volume), MAKER, True, seg)
    page = make_pdf(source, results_of(volume), MAKER, None, True)
    client = dicomweb.connect(server.dicomweb)
    client.store_instances([dcmread(path) for path in slices_of(scan)])
    for _ in range(2):  # again: the same objects
        client.store_instances([seg, report, page])
    assert len(server.get("/instances")) == 12 + 3
    assert len(server.get("/patients")) == 1
    found = client.search_for_series(source.study_uid)
    assert sorted(series["00080060"]["Value"][0] for series in found) == ["CT", "DOC", "SEG", "SR"]
    back = client.retrieve_instance(seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.SOPInstanceUID)
    again = highdicom.seg.Segmentation.from_dataset(back)
    uids = [header.SOPInstanceUID for header in source.headers]
    np.testing.assert_array_equal(
        again.get_pixels_by_source_instance(uids, combine_segments=True), segment_by_threshold(volume).labels
    )
    (document,) = client.retrieve_series(page.StudyInstanceUID, page.SeriesInstanceUID)
    assert document.SOPClassUID == EncapsulatedPDFStorage
    assert document.EncapsulatedDocument.startswith(b"%PDF")


def test_orthanc_is_where_results_of_a_study_go_by_c_store(
    server: Orthanc, start: Callable[..., Node], tmp_path: Path
) -> None:
    node = start(Peer(host="127.0.0.1", port=server.dicom_port, title="ORTHANC"))
    node.send(slices_of(write_study(tmp_path / "study")))
    node.step_after(30.0)
    assert [*node.listener.waiting()] == []
    (study,) = server.get("/studies?expand")
    assert study["MainDicomTags"]["StudyInstanceUID"] == STUDY
    assert study["PatientMainDicomTags"]["PatientID"] == "907351"
    assert len(server.get("/instances")) == 2


def test_series_of_a_server_are_fetched_once_and_read_as_they_were(server: Orthanc, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    client = dicomweb.connect(server.dicomweb)
    client.store_instances([dcmread(path) for path in slices_of(study)])
    folder = fetch(server.dicomweb, tmp_path / "incoming")
    assert len(slices_of(folder)) == 16
    for number in (1, 2):
        uid = f"{STUDY}.{number}"
        np.testing.assert_array_equal(read_volume(folder, uid).hu, read_volume(study, uid).hu)
    assert not any(STUDY in str(path) for path in folder.rglob("*"))
    written = {path: path.stat().st_mtime_ns for path in slices_of(folder)}
    fetch(server.dicomweb, tmp_path / "incoming")
    assert {path: path.stat().st_mtime_ns for path in slices_of(folder)} == written
    write_seg(study, tmp_path / "results")
    client.store_instances([dcmread(path) for path in slices_of(tmp_path / "results")])
    fetch(server.dicomweb, tmp_path / "incoming")
    assert len(slices_of(folder)) == 16  # what is no CT is not asked for


def test_a_worklist_of_a_server_ranks_its_studies(
    server: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dicomweb.connect(server.dicomweb).store_instances(
        [dcmread(path) for path in slices_of(write_study(tmp_path / "study"))]
    )
    numbers = {"slope": 0.0, "intercept": 3.0, "unsure_low": 0.2, "unsure_high": 0.8}
    model = write_checkpoint(tmp_path / "model", Emphysema=numbers)
    arguments = ["worklist", server.dicomweb, "--out", tmp_path / "out", "--model", model, "--device", "cpu"]
    assert main([*map(str, arguments)]) == 0
    (row,) = json.loads((tmp_path / "out" / "worklist.json").read_text())["studies"]
    assert (row["group"], row["other_series"]) == ("present", 1)
    said = "".join(capsys.readouterr())
    for secret in (*SECRETS, STUDY):
        assert secret not in said


def test_the_command_listens_until_it_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"slope": 0.0, "intercept": 3.0, "unsure_low": 0.2, "unsure_high": 0.8}
    model = write_checkpoint(tmp_path / "model", Emphysema=numbers)
    study, study_folder = write_study(tmp_path / "study"), tmp_path / "out" / "studies" / digest(STUDY)
    inbox = Inbox(tmp_path / "out", 0.0)
    for path in slices_of(study):  # what lies there from before
        inbox.take("earlier", STUDY, path.name + path.parent.name, path.read_bytes())
    inbox.end("earlier", is_whole=True)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ctfm.clinical.listen.time.sleep", interrupt)
    arguments = [
        "listen",
        "--port",
        "0",
        "--out",
        tmp_path / "out",
        "--quiet",
        "0",
        "--model",
        model,
        "--device",
        "cpu",
    ]
    assert main([*map(str, arguments)]) == 0
    assert "listening on 127.0.0.1:" in capsys.readouterr().out
    assert len([*study_folder.rglob("report.dcm")]) == 2


def test_a_fetch_that_broke_off_goes_on(server: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = dicomweb.connect(server.dicomweb)
    client.store_instances([dcmread(path) for path in slices_of(write_study(tmp_path / "study"))])
    whole = dicomweb.DICOMwebClient.iter_series

    def broken(client: Any, *uids: str) -> Iterator[Dataset]:
        for number, data_set in enumerate(whole(client, *uids)):
            if number == 3:
                raise ConnectionResetError("as a server does that goes down")
            yield data_set

    monkeypatch.setattr(dicomweb.DICOMwebClient, "iter_series", broken)
    with pytest.raises(OSError, match=r"broke off\. What came until then is kept"):
        fetch(server.dicomweb, tmp_path / "incoming")
    assert len(slices_of(tmp_path / "incoming")) == 3
    monkeypatch.undo()
    fetch(server.dicomweb, tmp_path / "incoming")
    assert len(slices_of(tmp_path / "incoming")) == 16


def test_a_server_that_is_down_is_named_and_no_study_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no server answers there"):
        fetch(f"dicomweb://127.0.0.1:{free_port()}/dicom-web", tmp_path)
    with pytest.raises(OSError, match="write dicomweb://HOST:PORT/PATH"):
        fetch("ftp://127.0.0.1/x", tmp_path)
    assert fetch(str(tmp_path), tmp_path / "incoming") == tmp_path


def test_an_open_association_marks_its_study(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, 0.0, Clock())
    inbox.take("first", STUDY, "1", b"x")
    inbox.take("second", STUDY, "2", b"y")
    inbox.end("first", is_whole=True)
    assert (tmp_path / "studies" / digest(STUDY) / OPEN).exists()
    inbox.end("second", is_whole=True)
    assert [folder.name for folder, _ in inbox.ready()] == [digest(STUDY)]
