"""`ctfm segment`: label maps of scans, and DICOM objects of them where these are asked for."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..segmentation import Segmentation, Writer, build_parser, segment
from ..volume_ctfm import Volume
from .extra import need_extra


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    parser.add_argument(
        "--dicom-seg", action="store_true", help="also segmentation.dcm, a DICOM SEG on the scan's slices"
    )
    parser.add_argument("--rtstruct", action="store_true", help="also rtstruct.dcm, an RT Structure Set of outlines")
    parser.add_argument(
        "--keep-identifiers",
        action="store_true",
        help="patient, accession number and dates of the scan in the DICOM objects, which otherwise name nobody",
    )
    given = parser.parse_args(arguments)
    return segment(
        given.scans,
        given.out,
        given.model,
        spacing=given.spacing,
        overlap=given.overlap,
        also=given.also,
        writers=make_writers(given),
        device=given.device,
    )


def make_writers(given: argparse.Namespace) -> list[Writer]:
    """Of the DICOM objects that are asked for; each leaves no file where nothing was found."""
    if not (given.dicom_seg or given.rtstruct):
        return []
    with need_extra():
        from .contours import make_structure_set
        from .segmentation_object import make_segmentation, write_object
        from .source import describe_maker, read_source
    maker = describe_maker(given.model, given.spacing, given.overlap)

    def make_writer(file: str, make: Callable[..., Any]) -> Writer:
        def write(folder: Path, scan: Path, series_uid: str | None, volume: Volume, segmentation: Segmentation) -> None:
            source = read_source(scan, series_uid, volume)
            (folder / file).unlink(missing_ok=True)
            if segmentation.labels.any():
                write_object(folder / file, make(source, volume, segmentation, maker, given.keep_identifiers))

        return Writer(name=f"{file}{' with identifiers' if given.keep_identifiers else ''}", write=write)

    asked_for = (
        (given.dicom_seg, "segmentation.dcm", make_segmentation),
        (given.rtstruct, "rtstruct.dcm", make_structure_set),
    )
    return [make_writer(file, make) for is_asked_for, file, make in asked_for if is_asked_for]
