"""Scan -> what a hospital takes of it: `ctfm report`.

    ctfm report study/ --out reported/
    ctfm report study/ --out reported/ --segmenter organs --keep-identifiers

DIR holds report.dcm (DICOM SR, TID 1500), page.dcm (a page of PDF as a DICOM object), page.pdf, report.json (FHIR R4) and,
with --segmenter, segmentation.dcm (DICOM SEG); of several scans a folder each. Research only: not for any decision about a
patient. Nobody is named in them unless --keep-identifiers asks for it, and nobody is named in what the command says.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..embedding import (
    add_device_argument,
    add_model_arguments,
    add_scans_argument,
    fingerprint,
    list_scans,
    resolve_device,
    weight_files,
)
from ..grading import Grader
from ..segmentation import Segmenter, load_segmenter, measure_structures, name_folders, segment_volume, write_json
from ..volume_ctfm import VolumeError, read_volume
from ..worklist import draw_thumbnail, shrink_volume
from .fhir import make_fhir
from .measurement_report import make_report
from .pdf_report import make_pdf
from .results import collect_results
from .segmentation_object import make_segmentation, write_object
from .source import describe_maker, read_source

DONE = "report.done.json"


class Reporter:
    """Models that are loaded once, and what is made of every scan with them.

    Args:
        segmenter: checkpoint whose structures are reported too; None for findings alone.

    Raises:
        OSError: there is no such checkpoint, or it grades no finding or segments nothing.
    """

    def __init__(
        self,
        model_id: str,
        *,
        findings: Sequence[str] = (),
        segmenter: str | None = None,
        spacing: str | None = None,
        keep_identifiers: bool = False,
        device: str | None = None,
    ) -> None:
        self.grader = Grader(model_id, findings, resolve_device(device))
        self.segmenter: Segmenter | None = None if segmenter is None else load_segmenter(segmenter, device)
        self.spacing, self.keep_identifiers = spacing, keep_identifiers
        others = None if segmenter is None else describe_maker(segmenter).facts()
        self.maker = describe_maker(model_id, spacing, self.grader.findings, others)
        self.settings = (
            self.maker.facts(),
            [weight_files(name) for name in (model_id, segmenter) if name],
            keep_identifiers,
        )

    def report(self, scan: Path, series_uid: str | None, folder: Path) -> bool:
        """Writes a scan's objects into a folder, unless they are there already. Returns whether anything was done.

        Raises:
            VolumeError: the scan cannot be read, or is no DICOM series that objects can refer to.
        """
        key = fingerprint(scan, series_uid, self.settings)
        if read_done(folder) == key:
            return False
        volume = read_volume(scan, series_uid)
        source = read_source(scan, series_uid, volume)
        inputs = self.grader.processor.preprocess(volume, spacing=self.spacing)
        graded = self.grader.grade(inputs)
        segmented, structures = None, []
        if self.segmenter is not None:
            segmentation = segment_volume(self.segmenter, volume)
            structures = measure_structures(volume, segmentation)
            if structures:
                segmented = make_segmentation(source, volume, segmentation, self.maker, self.keep_identifiers)
        results = collect_results(graded, structures, volume.warnings)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DONE).unlink(missing_ok=True)
        (folder / "segmentation.dcm").unlink(missing_ok=True)
        if segmented is not None:
            write_object(folder / "segmentation.dcm", segmented)
        write_object(folder / "report.dcm", make_report(source, results, self.maker, self.keep_identifiers, segmented))
        shown = None if results.gate == "unlike" else graded
        picture = draw_thumbnail(shrink_volume(volume), shown, inputs, self.grader.processor)
        page = make_pdf(source, results, self.maker, picture, self.keep_identifiers)
        write_object(folder / "page.dcm", page)
        (folder / "page.pdf").write_bytes(page.EncapsulatedDocument[: page.EncapsulatedDocumentLength])
        write_json(folder / "report.json", make_fhir(source, results, self.maker, self.keep_identifiers))
        write_json(folder / DONE, {"key": key})  # last, so that it says that the others are whole
        return True


def read_done(folder: Path) -> str | None:
    try:
        return json.loads((folder / DONE).read_text()).get("key")
    except (OSError, ValueError):
        return None


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """What `Reporter` takes."""
    parser.add_argument("--findings", nargs="+", default=[], metavar="FINDING", help="these, not all")
    parser.add_argument("--segmenter", metavar="CHECKPOINT", help="also the structures that this checkpoint finds")
    parser.add_argument(
        "--keep-identifiers",
        action="store_true",
        help="patient, accession number and dates of the scan in the objects, which otherwise name nobody",
    )
    add_device_argument(parser)
    add_model_arguments(parser)


def load_reporter(given: argparse.Namespace) -> Reporter:
    return Reporter(
        given.model,
        findings=given.findings,
        segmenter=given.segmenter,
        spacing=given.spacing,
        keep_identifiers=given.keep_identifiers,
        device=given.device,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_scans_argument(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="of one scan; of several, of a folder each"
    )
    add_report_arguments(parser)
    given = parser.parse_args(arguments)
    found = list_scans(given.scans)
    reporter = load_reporter(given)
    num_failed = 0
    names = name_folders(found, given.scans)
    bar = tqdm(found, desc="report", unit="scan", disable=not sys.stderr.isatty())
    for number, ((scan, series_uid), name) in enumerate(zip(bar, names, strict=True), 1):
        try:
            reporter.report(scan, series_uid, given.out / name)
        except VolumeError as error:
            num_failed += 1
            tqdm.write(f"ctfm: scan {number}: {error}", file=sys.stderr)  # a folder's name may be the patient's
    print(f"{len(found) - num_failed} of {len(found)} scans are reported in {given.out}; {num_failed} could not be")
    return 1 if num_failed else 0
