"""Protocol + folder -> `Case`s: which scans an evaluation asks about, and what is known of each.

A source is a folder that `prepare` wrote, or scans as their publisher laid them out (see layouts.py), which are then read
where they lie. Populations that publications keep apart are protocols of their own.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..train.layouts import LAYOUTS, SPLITS, ScanSource
from ..train.prepare import choose_sources, read_source, read_structures
from ..train.reports import STATEMENTS, split_sections
from ..train.shards import Manifest, agree_on_structures
from ..train.table_files import read_table
from ..volume_ctfm import Volume, read_segmentation
from .metrics import FindingTable
from .protocol import Protocol

VALIDATION_SHARE = 0.2  # of the patients of split "train", where a population has no validation split
ONE_SIDED = 0.99  # of a finding's voxels


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan.

    Args:
        case_id: distinguishes it; patient: whom it is of; neither says who that is.
        labels: finding -> 1 present, 0 absent; what is not stated is missing.
        source: of a scan that is read where it lies; folder and row: of a prepared one.
        path: of its file where that is known, by which features of other models are found.
        has_segmentation: whether a label map belongs to it.
    """

    case_id: str
    patient: str
    split: str
    report: str
    labels: dict[str, float]
    has_segmentation: bool
    source: ScanSource | None = None
    folder: str = ""
    row: int = 0
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Population:
    """The cases of each split of a protocol, and the names of label maps' numbers."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    structures: dict[int, str]


def find_population(protocol: Protocol, sources: Sequence[Path], train_scans: int, test_scans: int) -> Population:
    """Cases of all sources; at most `train_scans` of "train", `test_scans` of "validation" and of "test", the first of each.

    Raises:
        ValueError: there is nothing to test, or two sources name the labels of their label maps otherwise.
    """
    cases, tables = list[Case](), dict[str, dict[int, str]]()
    for source in sources:
        if (source / "manifest.arrow").is_file():
            cases += prepared_cases(source)
            tables[str(source)] = Manifest(source).structures
        else:
            cases += published_cases(protocol, source)
            tables[str(source)] = read_structures(source)
    names = protocol.splits
    test = tuple(case for case in cases if names["test"] in ("*", case.split))[:test_scans]
    if not test:
        for source in sources:
            if protocol.layout == "csv" and source.is_file():
                read_table(source, "split")
        counts = Counter(case.split or "no split" for case in cases)
        raise ValueError(
            f'No scan of {", ".join(map(str, sources))} is of split "{names["test"]}"; there are '
            f"{', '.join(f'{count} of {name}' for name, count in sorted(counts.items())) or 'none'}. Name the splits in the "
            f"table of the scans ({', '.join(SPLITS)}) and prepare it again."
        )
    train = tuple(case for case in cases if names["train"] and case.split == names["train"])
    validation = tuple(case for case in cases if names["validation"] and case.split == names["validation"])
    if train and not validation:
        validation = tuple(case for case in train if falls_under(case.patient, VALIDATION_SHARE))
        train = tuple(case for case in train if not falls_under(case.patient, VALIDATION_SHARE))
    shared = {case.patient for case in test} & {case.patient for case in (*train, *validation)}
    if shared:
        raise ValueError(f"{len(shared)} patients are in the test split and in another: the numbers would be too good.")
    return Population(
        train=train[:train_scans],
        validation=validation[:test_scans],
        test=test,
        structures=agree_on_structures(tables),
    )


def falls_under(patient: str, share: float) -> bool:
    """A draw for each patient, the same on every machine."""
    digest = hashlib.blake2b(patient.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def prepared_cases(folder: Path) -> list[Case]:
    manifest, paths = Manifest(folder), known_paths(folder)
    cases = []
    for row in range(len(manifest)):
        scan = manifest[row]
        cases.append(
            Case(
                case_id=scan.scan_id,
                patient=scan.patient,
                split=scan.split,
                report=scan.report,
                labels=scan.labels,
                has_segmentation=manifest.table.column("places")[row].as_py() != "",
                folder=str(folder),
                row=row,
                path=paths.get(scan.scan_id, ""),
            )
        )
    return cases


def known_paths(folder: Path) -> dict[str, str]:
    """The owner's table of links, where it lies beside the prepared folder."""
    table = folder.with_name(folder.name + "-private") / "sources.csv"
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        return {row["scan_id"]: str(Path(row["path"]).resolve()) for row in csv.DictReader(file)}


def published_cases(protocol: Protocol, root: Path) -> list[Case]:
    found = LAYOUTS[protocol.layout](root)
    if not protocol.takes_what_the_publisher_left_out:
        found = [source for source in found if not source.refused]
    if protocol.reconstructions == "best":
        found = choose_sources(found, all_reconstructions=False)[0]
    if protocol.reconstructions == "first":
        firsts: dict[str, str] = {}
        for source in found:
            firsts[source.group] = min(firsts.get(source.group, source.name), source.name)
        found = [source for source in found if not source.group or firsts[source.group] == source.name]
    return [
        Case(
            case_id=digest(source.name),
            patient=digest("patient " + source.patient),
            split=source.split,
            report=source.report,
            labels=source.labels,
            has_segmentation=source.segmentation is not None,
            source=source,
            path=str(source.path.resolve()),
        )
        for source in found
    ]


def digest(text: str) -> str:
    """Names a scan or a patient in caches and results, without what it is called."""
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


# ---- what is known of a case ----


@lru_cache(maxsize=8)
def open_manifest(folder: str) -> Manifest:
    return Manifest(folder)


def read_case(case: Case) -> Volume:
    """Its scan.

    Raises:
        VolumeError: it cannot be read safely.
    """
    if case.source is not None:
        return read_source(case.source)[0]
    manifest = open_manifest(case.folder)
    scan = manifest[case.row]
    return Volume(hu=manifest.read_box(scan, (0, 0, 0), scan.shape), affine=scan.affine)


def read_label_map(case: Case, volume: Volume) -> np.ndarray:
    """`(D, H, W)`, the numbers of `Population.structures`, on the scan's voxels."""
    if case.source is not None:
        assert case.source.segmentation is not None
        return read_segmentation(case.source.segmentation, volume)
    manifest = open_manifest(case.folder)
    scan = manifest[case.row]
    return manifest.read_box(scan, (0, 0, 0), scan.shape, "segmentation")


def report_part(report: str, part: str) -> str:
    """ "findings", "impression", or "report", which is both; empty where the report has none."""
    wanted = STATEMENTS if part == "report" else (part,)
    return " ".join(text for heading, text in split_sections(report) if heading in wanted)


def label_table(cases: Sequence[Case], findings: Sequence[str]) -> FindingTable:
    """1, 0, or NaN where nothing is stated."""
    rows = [[case.labels.get(name, np.nan) for name in findings] for case in cases]
    return FindingTable(findings=tuple(findings), values=np.array(rows).reshape(len(cases), len(findings)))


def all_findings(cases: Iterable[Case]) -> tuple[str, ...]:
    """Labels in the order in which they first occur."""
    return tuple(dict.fromkeys(name for case in cases for name in case.labels))


def find_sides(
    segmentation: np.ndarray, spacing: Sequence[float], structures: dict[int, str], findings: Sequence[str]
) -> dict[str, str]:
    """Of each finding in a label map: "left", "right", or "both".

    The plane between is that of the organs which the label map has on both sides ("left kidney", "right kidney"), so that a
    patient who lies turned or off the middle has sides too. Empty where the scan shows no such pair.
    """
    numbers = {name: number for number, name in structures.items()}
    coarse = segmentation[::2, ::2, ::2]
    centres = []
    for name, number in numbers.items():
        partner = numbers.get("right " + name.removeprefix("left "))
        if name.startswith("left ") and partner is not None:
            sides = [np.argwhere(coarse == n) for n in (number, partner)]
            if min(map(len, sides)) > 0:
                centres.append([2 * side.mean(0) * spacing for side in sides])
    if not centres:
        return {}
    left, right = np.mean(centres, 0)
    across, middle = left - right, (left + right) / 2
    found = {}
    for name in findings:
        voxels = np.argwhere(segmentation == numbers[name]) if name in numbers else np.zeros((0, 3))
        if len(voxels):
            share = float(((voxels * spacing - middle) @ across > 0).mean())
            found[name] = "left" if share >= ONE_SIDED else "right" if share <= 1 - ONE_SIDED else "both"
    return found
