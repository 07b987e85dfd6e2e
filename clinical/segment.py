"""`ctfm segment`: label maps of scans, and DICOM objects of them where these are asked for."""

from collections.abc import Sequence
from pathlib import Path

from ..segmentation import Segmentation, Writer, build_parser, segment
from ..volume_ctfm import Volume
from .extra import need_extra


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    parser.add_argument(
        "--dicom-seg", action="store_true", help="also segmentation.dcm, a DICOM SEG on the scan's slices"
    )
    parser.add_argument(
        "--keep-identifiers",
        action="store_true",
        help="patient, accession number and dates of the scan in the DICOM objects, which otherwise name nobody",
    )
    given = parser.parse_args(arguments)
    writers = []
    if given.dicom_seg:
        writers.append(dicom_seg_writer(given.model, given.spacing, given.overlap, given.keep_identifiers))
    return segment(
        given.scans,
        given.out,
        given.model,
        spacing=given.spacing,
        overlap=given.overlap,
        also=given.also,
        writers=writers,
        device=given.device,
    )


def dicom_seg_writer(model_id: str, spacing: str | None, overlap: str, keep_identifiers: bool) -> Writer:
    with need_extra():
        from .segmentation_object import make_segmentation, write_object
        from .source import describe_maker, read_source
    maker = describe_maker(model_id, spacing, overlap)

    def write(folder: Path, scan: Path, series_uid: str | None, volume: Volume, segmentation: Segmentation) -> None:
        source = read_source(scan, series_uid, volume)
        write_object(
            folder / "segmentation.dcm", make_segmentation(source, volume, segmentation, maker, keep_identifiers)
        )

    return Writer(name=f"dicom-seg{' with identifiers' if keep_identifiers else ''}", write=write)
