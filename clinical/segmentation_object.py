"""Segmentation -> DICOM SEG on the slices that it was made of: one segment a structure that was found."""

from collections.abc import Iterable
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import Segmentation as SegmentationObject
from highdicom.seg import SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ..segmentation import Segmentation
from ..volume_ctfm import Volume, VolumeError
from ..volume_dicom_header_ctfm import quiet_pydicom
from ..whole_files import written_whole
from .codes import coding_scheme, structure_code
from .source import MANUFACTURER, NOTICE, REQUIRED_EMPTY, UTF_8, Maker, SourceSeries, finish_object

SERIES_NUMBER = 9101


def make_segmentation(
    source: SourceSeries, volume: Volume, segmentation: Segmentation, maker: Maker, keep_identifiers: bool
) -> SegmentationObject:
    """A binary DICOM SEG: a frame for each slice on which a structure lies, at that slice's own place.

    Of a scan that was straightened (tilt, oblique axes) or whose gaps were filled, labels are those of its slices as they lie
    on disk, and planes that were filled in have no frame.

    Raises:
        VolumeError: no structure was found, or the slices have no frame of reference in common.
    """
    labels, _ = volume.segmentation_to_source(segmentation.labels)
    planes = labels[list(source.planes)]
    found = [number for number in segmentation.structures if number and (planes == number).any()]
    if not found:
        raise VolumeError("no structure was found, and a DICOM SEG holds one at least")
    renumbered = np.zeros(max(segmentation.structures) + 1, np.uint8)  # segments are numbered from 1 without a gap
    renumbered[found] = np.arange(1, len(found) + 1)
    _ = source.frame_of_reference
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"CTFM {maker.name}"[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=f"{maker.version} {maker.digest}"[:64],
    )
    with quiet_pydicom:
        made = SegmentationObject(
            source_images=list(blank(source.headers)),
            pixel_array=renumbered[planes],
            segmentation_type="BINARY",
            segment_descriptions=[
                describe_segment(number, segmentation.structures[old], source, maker, algorithm)
                for number, old in enumerate(found, 1)
            ],
            series_instance_uid=source.derive_uid("SEG series", *maker.facts(), keep_identifiers),
            series_number=SERIES_NUMBER,
            sop_instance_uid=source.derive_uid("SEG", *maker.facts(), keep_identifiers),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.name,
            software_versions=maker.version,
            device_serial_number=maker.digest or "none",
            content_label="STRUCTURES",
            content_description=NOTICE[:64],
            series_description="Structures, research only",
            specific_character_set=UTF_8,
        )
        finish_object(made, source, keep_identifiers)
        made.CodingSchemeIdentificationSequence = [coding_scheme()]
    return made


def describe_segment(
    number: int,
    name: str,
    source: SourceSeries,
    maker: Maker,
    algorithm: highdicom.AlgorithmIdentificationSequence,
) -> SegmentDescription:
    code, side = structure_code(name)
    described = SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=code,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=source.derive_uid("segment", name, *maker.facts()),
        tracking_id=name[:64],
    )
    if side is not None:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            highdicom.sr.CodedConcept.from_code(side)
        ]
    return described


def blank(headers: Iterable[Dataset]) -> Iterable[Dataset]:
    """Headers with the attributes that highdicom copies, empty: identifiers are added to what it made, or not at all."""
    for header in headers:
        empty = Dataset()
        empty.update(header)
        for keyword in REQUIRED_EMPTY:
            setattr(empty, keyword, None if keyword.endswith(("Date", "Time")) else "")
        yield empty


def write_object(path: Path, made: Dataset) -> None:
    """Whole or not at all."""
    with written_whole(path) as partial, quiet_pydicom:
        made.save_as(partial, enforce_file_format=True)
