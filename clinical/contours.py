"""Segmentation -> RT Structure Set: the outline of each structure on every slice, exact to the voxel.

An outline runs along the borders of voxels, so that the voxels whose centres lie inside it are those of the structure. A hole
is joined to what surrounds it by a channel without width ("keyhole", PS3.3 C.8.8.6.3), since a contour is one outline.
"""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

from ..drawing_ctfm import label_colours
from ..segmentation import Segmentation
from ..volume_ctfm import Volume
from ..volume_dicom_header_ctfm import quiet_pydicom
from .codes import coding_scheme, structure_code
from .source import MANUFACTURER, NOTICE, Maker, SourceSeries, finish_object, now

SERIES_NUMBER = 9104
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, and what RT structure sets still refer to a study by
Corner = tuple[int, int]  # (row, column): between the voxels (row - 1, column - 1) and (row, column)


def trace_outlines(mask: np.ndarray) -> list[list[Corner]]:
    """Closed outlines of a mask `(rows, columns)`, clockwise as seen, one for each part that holds together by sides of voxels;
    its holes are joined to it."""
    loops = [*trace_borders(mask)]
    outlines = [loop for loop in loops if area(loop) > 0]
    holes = [loop for loop in loops if area(loop) < 0]
    owner = {corner: outline for outline in outlines for corner in outline}
    # From its leftmost corner a hole's channel runs to the left through the part itself, and ends at the border of the part or
    # of a hole that begins further left and was joined before.
    for hole in sorted(holes, key=leftmost):
        column, row = leftmost(hole)
        start, end = hole.index((row, column)), column - 1
        while (row, end) not in owner:
            end -= 1
        outline = owner[row, end]
        at = outline.index((row, end)) + 1
        outline[at:at] = [*hole[start:], *hole[: start + 1], (row, end)]
        owner |= dict.fromkeys(hole, outline)
    return [straighten(outline) for outline in outlines]


def trace_borders(mask: np.ndarray) -> Iterator[list[Corner]]:
    """Loops along the borders of voxels with the mask at their right hand: clockwise around it, the other way around holes."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    steps: dict[Corner, list[Corner]] = {}  # corner -> directions of the borders that leave it
    for direction, offset, neighbour in (
        ((0, 1), (0, 0), padded[:-2, 1:-1]),
        ((1, 0), (0, 1), padded[1:-1, 2:]),
        ((0, -1), (1, 1), padded[2:, 1:-1]),
        ((-1, 0), (1, 0), padded[1:-1, :-2]),
    ):
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            steps.setdefault((row + offset[0], column + offset[1]), []).append(direction)
    while steps:
        first = corner = next(iter(steps))
        loop, before = [], (0, 0)
        while True:
            choices = steps[corner]
            right = (before[1], -before[0])  # where parts touch at a corner alone, each is gone around by itself
            direction = right if right in choices else choices[0]
            choices.remove(direction)
            if not choices:
                del steps[corner]
            loop.append(corner)
            corner, before = (corner[0] + direction[0], corner[1] + direction[1]), direction
            if corner == first and (corner not in steps or (before[1], -before[0]) not in steps[corner]):
                break
        yield loop


def area(loop: list[Corner]) -> float:
    """Above 0 where the loop runs clockwise as seen, rows downwards."""
    rows, columns = np.array(loop).T
    return float((columns * np.roll(rows, -1) - np.roll(columns, -1) * rows).sum()) / 2


def leftmost(loop: list[Corner]) -> tuple[int, int]:
    """Column and row of its first corner from the left, and from above."""
    return min((column, row) for row, column in loop)


def straighten(outline: list[Corner]) -> list[Corner]:
    """Without the corners at which it goes straight on."""
    points = np.array(outline)
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    goes_on = (np.sign(before) == np.sign(after)).all(1)
    return [corner for corner, is_straight in zip(outline, goes_on, strict=True) if not is_straight]


def make_structure_set(
    source: SourceSeries, volume: Volume, segmentation: Segmentation, maker: Maker, keep_identifiers: bool
) -> FileDataset:
    """A structure set with one ROI for each structure that was found, numbered as the segmentation numbers them.

    Raises:
        GeometryError: the slices have no frame of reference in common.
    """
    labels, _ = volume.segmentation_to_source(segmentation.labels)
    planes = labels[list(source.planes)]
    names = {number: name for number, name in segmentation.structures.items() if number and (planes == number).any()}
    colours = np.rint(255 * label_colours(max(segmentation.structures) + 1)).astype(int)
    frame = source.frame_of_reference
    with quiet_pydicom:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = RTStructureSetStorage
        meta.MediaStorageSOPInstanceUID = UID(source.derive_uid("RTSTRUCT", *maker.facts(), keep_identifiers))
        made = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        made.StudyInstanceUID, made.FrameOfReferenceUID = source.study_uid, frame
        made.SeriesInstanceUID = source.derive_uid("RTSTRUCT series", *maker.facts(), keep_identifiers)
        made.SeriesNumber, made.InstanceNumber, made.Modality = SERIES_NUMBER, 1, "RTSTRUCT"
        made.SeriesDescription, made.OperatorsName = "Structures, research only", ""
        made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = MANUFACTURER, maker.name, maker.version
        made.PositionReferenceIndicator = ""
        made.StructureSetLabel, made.StructureSetDescription = "RESEARCH ONLY", NOTICE
        made.StructureSetDate, made.StructureSetTime = now()
        made.ReferencedFrameOfReferenceSequence = [refer_to_study(source, frame)]
        made.StructureSetROISequence = [
            data_set(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame,
                ROIName=name[:64],
                ROIGenerationAlgorithm="AUTOMATIC",
            )
            for number, name in names.items()
        ]
        made.ROIContourSequence = [
            data_set(
                ROIDisplayColor=colours[number].tolist(),
                ContourSequence=[*contours_of(planes == number, source)],
                ReferencedROINumber=number,
            )
            for number in names
        ]
        made.RTROIObservationsSequence = [
            data_set(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIIdentificationCodeSequence=[code_item(name)],
                RTROIInterpretedType="ORGAN",
                ROIInterpreter="",
            )
            for number, name in names.items()
        ]
        made.ApprovalStatus = "UNAPPROVED"
        finish_object(made, source, keep_identifiers)
        made.CodingSchemeIdentificationSequence = [coding_scheme()]
    return made


def contours_of(masks: np.ndarray, source: SourceSeries) -> Iterator[Dataset]:
    """Every outline of one structure `(slices, rows, columns)`."""
    for index in np.flatnonzero(masks.any((1, 2))).tolist():
        position, along_rows, along_columns = source.places[index]
        for outline in trace_outlines(masks[index]):
            places = np.array(outline) - 0.5
            points = position + places[:, :1] * along_rows + places[:, 1:] * along_columns
            yield data_set(
                ContourImageSequence=[refer_to_slice(source, index)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.4f}" for value in points.ravel()],
            )


def refer_to_study(source: SourceSeries, frame: str) -> Dataset:
    series = data_set(
        SeriesInstanceUID=source.headers[0].SeriesInstanceUID,
        ContourImageSequence=[refer_to_slice(source, index) for index in range(len(source.planes))],
    )
    study = data_set(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=source.study_uid,
        RTReferencedSeriesSequence=[series],
    )
    return data_set(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])


def refer_to_slice(source: SourceSeries, index: int) -> Dataset:
    is_one_file = len(source.headers) == 1
    header = source.headers[0 if is_one_file else index]
    referred = data_set(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if is_one_file:
        referred.ReferencedFrameNumber = index + 1
    return referred


def code_item(name: str) -> Dataset:
    code, _ = structure_code(name)
    return data_set(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)


def data_set(**attributes: object) -> Dataset:
    """A data set of attributes by their DICOM keywords."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made
