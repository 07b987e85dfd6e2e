"""The Space's functions for programs: `gradio_client` endpoints and MCP tools with typed JSON. space/README.md has examples.

Every call takes the files themselves and keeps nothing of them but the scan in memory, so a second call on the same files is
quick. A docstring here is what a client and a language model read.
"""

import functools
import inspect
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import gradio as gr
import httpx
from gradio import FileData
from gradio.processing_utils import ssrf_protected_download
from gradio.utils import get_upload_folder

from analysis import Finding, Place, compare
from exports import CaveatJson, GateJson, answer_facts, scan_facts, write_map
from service import Service
from uploads import UploadError


class ScanJson(TypedDict):
    shape: list[int]
    spacing_mm: list[float]
    orientation_on_disk: str
    hu_1_percent: float
    hu_99_percent: float
    kind: str
    num_files: int
    num_slices: int
    checks: list[str]
    warnings: list[str]


class SeriesJson(TypedDict):
    number: int
    shape: list[int]
    spacing_mm: list[float]
    plane: str
    kernel: str


class InspectJson(TypedDict):
    scan: ScanJson | None
    series: list[SeriesJson]


class PlaceJson(TypedDict):
    mm: list[float]
    slice_number: int
    side: str
    front: str
    level: str
    size_ml: float | None


class FindingJson(TypedDict):
    label: str
    score: float
    probability: float | None
    interval: list[float] | None
    verdict: str | None
    absent_below: float | None
    present_above: float | None
    auroc: float | None
    is_near_chance: bool
    strongest_place: PlaceJson | None


class FindingsJson(CaveatJson):
    scan: ScanJson
    not_asked: list[str]
    findings: list[FindingJson]
    seconds: float


class QueryJson(CaveatJson):
    text: str
    is_understood: bool
    unknown_words: list[str]
    fits: bool
    similarity: float | None
    rank: int | None
    num_sentences: int | None
    better_than_share_of_reference_scans: float | None
    strongest_place: PlaceJson | None


class SimilarJson(TypedDict):
    similarity: float
    findings: list[str]
    report: str


class SimilarsJson(CaveatJson):
    scans: list[SimilarJson]


class EmbeddingJson(CaveatJson):
    embedding: list[float]


class ChangeJson(TypedDict):
    label: str
    change: str
    prior: FindingJson
    current: FindingJson


class CompareJson(CaveatJson):
    prior_gate: GateJson
    embedding_cosine: float
    changes: list[ChangeJson]


def add_api(service: Service, limit: dict) -> None:
    """Registers the endpoints inside a `gr.Blocks`; `limit` bounds how many run at once."""

    def inspect_scan(files: list[FileData], series: int = -1) -> InspectJson:
        """What is in a CT scan, what was checked and what was repaired. Nothing is computed by the model.

        Args:
            files: one zip of DICOM, several DICOM files, or one NIfTI, MHA or NRRD file.
            series: which series where there are several; -1 asks for the list of them.
        """
        upload = service.receive(paths_of(files))
        try:
            scan, _ = service.read(upload, None if series < 0 else series)
            choices = [
                SeriesJson(
                    number=number,
                    shape=list(choice.shape),
                    spacing_mm=list(choice.spacing),
                    plane=choice.plane,
                    kernel=choice.kernel,
                )
                for number, choice in enumerate(upload.series)
            ]
        finally:
            upload.delete()
        return {"scan": None if scan is None else scan_json(scan), "series": choices}

    def find(files: list[FileData], series: int = -1) -> FindingsJson:
        """Findings in a CT scan, sorted, each with its calibrated probability and its strongest place. Research only.

        Args:
            files: one zip of DICOM, several DICOM files, or one NIfTI, MHA or NRRD file.
            series: which series where there are several, as inspect_scan numbers them.
        """
        scan, analysis = service.open(paths_of(files), number_of(series))
        return {
            **answer_facts(analysis, service.weights),
            "scan": scan_json(scan),
            "not_asked": list(service.analyser.not_asked),
            "findings": [finding_json(finding) for finding in analysis.findings],
            "seconds": round(scan.read_seconds + analysis.seconds, 2),
        }

    def query(files: list[FileData], text: str, series: int = -1) -> QueryJson:
        """Whether an English sentence fits a CT scan, compared with sentences of reports and with reference scans, and where it
        fits best. A sentence with words that no training report has is not understood.

        Args:
            files: one zip of DICOM, several DICOM files, or one NIfTI, MHA or NRRD file.
            text: a sentence as a radiologist would write it, such as "Pleural effusion on the right."
            series: which series where there are several, as inspect_scan numbers them.
        """
        _, analysis = service.open(paths_of(files), number_of(series))
        answer = service.analyser.ask(analysis, text)
        understood = not answer.unknown
        return {
            **answer_facts(analysis, service.weights),
            "text": text,
            "is_understood": understood,
            "unknown_words": list(answer.unknown),
            "fits": answer.fits,
            "similarity": answer.similarity if understood else None,
            "rank": answer.rank if understood else None,
            "num_sentences": answer.num_sentences if understood else None,
            "better_than_share_of_reference_scans": answer.better_than if understood else None,
            "strongest_place": place_json(answer.place),
        }

    def heat_map(files: list[FileData], finding: str, series: int = -1) -> FileData:
        """Where a CT scan looks like a finding, or like any English sentence: NIfTI on the scan's own voxels.

        Args:
            files: one zip of DICOM, several DICOM files, or one NIfTI, MHA or NRRD file.
            finding: a label that find() returns, or a sentence.
            series: which series where there are several, as inspect_scan numbers them.
        """
        scan, analysis = service.open(paths_of(files), number_of(series))
        cells = analysis.maps.get(finding)
        if cells is None:
            cells = service.analyser.ask(analysis, finding).cells
        if cells is None:
            raise UploadError("error_not_understood")
        path = write_map(scan, cells, service.weights, service.made)
        return FileData(path=path, orig_name="heat_map.nii.gz")

    def embed(files: list[FileData], series: int = -1) -> EmbeddingJson:
        """The scan's embedding, of length 1, in the space that it shares with texts.

        Args:
            files: one zip of DICOM, several DICOM files, or one NIfTI, MHA or NRRD file.
            series: which series where there are several, as inspect_scan numbers them.
        """
        _, analysis = service.open(paths_of(files), number_of(series))
        return {**answer_facts(analysis, service.weights), "embedding": analysis.embedding.tolist()}

    def similar_scans(files: list[FileData], count: int = 4, series: int = -1) -> SimilarsJson:
        """The synthetic scans of the Space's gallery that are nearest to a CT scan.

        Args:
            files: one zip of DICOM, several DICOM files, or one NIfTI, MHA or NRRD file.
            count: how many, nearest first.
            series: which series where there are several, as inspect_scan numbers them.
        """
        _, analysis = service.open(paths_of(files), number_of(series))
        near = service.analyser.find_similar(analysis, max(1, min(count, 50)))
        return {
            **answer_facts(analysis, service.weights),
            "scans": [{"similarity": s.similarity, "findings": list(s.findings), "report": s.report} for s in near],
        }

    def compare_scans(
        prior: list[FileData], current: list[FileData], prior_series: int = -1, series: int = -1
    ) -> CompareJson:
        """What changed between two CT scans of a person: a finding is new, resolved, more or less likely, the same or unclear.

        Args:
            prior: the files of the earlier scan.
            current: the files of the later scan.
            prior_series, series: which series of each where there are several, as inspect_scan numbers them.
        """
        _, before = service.open(paths_of(prior), number_of(prior_series))
        _, after = service.open(paths_of(current), number_of(series))
        return {
            **answer_facts(after, service.weights),
            "prior_gate": answer_facts(before, service.weights)["gate"],
            "embedding_cosine": float(before.embedding @ after.embedding),
            "changes": [
                {
                    "label": change.label,
                    "change": change.kind,
                    "prior": finding_json(change.prior),
                    "current": finding_json(change.current),
                }
                for change in compare(before.findings, after.findings)
            ],
        }

    functions: Sequence[Callable] = (inspect_scan, find, query, heat_map, embed, similar_scans, compare_scans)
    for function in functions:
        gr.api(checked(function), api_name=function.__name__, **limit)


KINDS = {int: "a whole number", str: "a text", bool: "true or false"}


def checked(function: Callable) -> Callable:
    """The function, refusing a value of another type than it declares: Gradio passes on whatever a client writes.

    Raises:
        UploadError: of the call, with the argument and what it has to be.
    """
    kinds = {name: kind for name, kind in get_type_hints(function).items() if kind in KINDS and name != "return"}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        for name, value in signature.bind(*values).arguments.items():
            if name in kinds and type(value) is not kinds[name]:
                raise UploadError("error_argument", f"{name}: {KINDS[kinds[name]]}.")
        return function(*values)

    return call


def paths_of(files: Any) -> list[str]:
    """Where the uploads lie that a client named: a `FileData`, its JSON, a path or an address, or a list of those.

    Raises:
        UploadError: one is no upload of this Space. A client may write any path, and what is taken is moved and deleted.
    """
    listed = files if isinstance(files, list | tuple) else [files]
    return [path_of(file) for file in listed if file is not None]


def path_of(file: Any) -> str:
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    if not isinstance(path, str):
        raise UploadError("error_no_file")
    if path.startswith(("http://", "https://")):
        return bring_address(path)
    if not is_upload(path):
        raise UploadError("error_upload_gone")
    return path


def is_upload(path: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())


def bring_address(address: str) -> str:
    """An MCP client names a file by its address: an upload of this Space, or a public one, never one of its private network."""
    own = address.partition("/gradio_api/file=")[2]
    if own and is_upload(own) and Path(own).is_file():
        return own
    try:
        return ssrf_protected_download(address, str(Path(get_upload_folder()) / secrets.token_hex(16)))
    except (httpx.HTTPError, ValueError, OSError):
        raise UploadError("error_upload_gone") from None


def number_of(series: int) -> int | None:
    return None if series < 0 else series


def scan_json(scan) -> ScanJson:
    facts = scan_facts(scan)
    return {name: facts[name] for name in ScanJson.__annotations__}  # type: ignore[return-value]


def place_json(place: Place | None) -> PlaceJson | None:
    if place is None:
        return None
    return {
        "mm": [round(value, 1) for value in place.mm],
        "slice_number": place.slice_number,
        "side": place.side,
        "front": place.front,
        "level": place.level,
        "size_ml": place.size_ml,
    }


def finding_json(finding: Finding) -> FindingJson:
    return {
        "label": finding.label,
        "score": finding.score,
        "probability": finding.probability,
        "interval": None if finding.interval is None else list(finding.interval),
        "verdict": finding.verdict,
        "absent_below": finding.absent_below,
        "present_above": finding.present_above,
        "auroc": None if finding.auroc is None else finding.auroc["value"],
        "is_near_chance": finding.is_near_chance,
        "strongest_place": place_json(finding.place),
    }
