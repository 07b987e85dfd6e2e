"""DICOM series -> `SourceSeries`: the slices that objects made of a scan refer to, and nothing else of their headers.

What identifies the patient, the study or the order stays apart in `identity`, and goes into an object only where
`finish_object` is asked to keep it.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.valuerep import DA, TM

from ..volume_ctfm import GeometryError, Volume, VolumeError, dicom_planes
from ..volume_dicom_header_ctfm import Slice, quiet_pydicom

NOTICE = "Research only. Not for diagnosis or any decision about a patient."
MANUFACTURER = "CTFM, research software"
NAMESPACE = uuid.UUID("6c5f4c7e-4e0b-5c43-9a53-5b2f4f8a9d10")  # of the UIDs that are derived here
UTF_8 = "ISO_IR 192"
MAX_OFF_PLANE = 0.6  # of the slice distance, between a slice and the plane of the volume that it stands for

IDENTIFIERS = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "StudyDescription", "ReferringPhysicianName"),
)
# Type 2 attributes of every object: without identifiers they are there and empty.
REQUIRED_EMPTY = (
    *(
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ),
    "ReferringPhysicianName",
)
REFERENCES = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("PositionReferenceIndicator", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness", "NumberOfFrames", "LossyImageCompression", "LossyImageCompressionRatio"),
    "LossyImageCompressionMethod",
)


def digest(uid: str) -> str:
    """A name for a file or a folder from which no UID can be read."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class SourceSeries:
    """
    headers: of the files, in the order of their first plane: what places their slices and what refers to them.
    planes: for each slice, or for each frame of the only file, the index of its plane among those of the volume's
        `segmentation_to_source`.
    places: `(n, 3, 3)` mm, LPS, of the same slices or frames: position of the first voxel, step to the next row, and to the
        next column.
    identity: `IDENTIFIERS` as the source has them.
    """

    headers: tuple[Dataset, ...]
    planes: tuple[int, ...]
    places: np.ndarray
    identity: Dataset

    @property
    def study_uid(self) -> str:
        return str(self.headers[0].StudyInstanceUID)

    @property
    def frame_of_reference(self) -> str:
        """
        Raises:
            GeometryError: the slices name none, or several.
        """
        found = {str(header.get("FrameOfReferenceUID", "")) for header in self.headers}
        if len(found) > 1 or not min(found):
            raise GeometryError(
                "the slices have no frame of reference in common, so no object can say where in the patient it lies",
                value=f"{len(found - {''})} of them named",
                cure="Export the series again with its FrameOfReferenceUID.",
            )
        return found.pop()

    def derive_uid(self, *facts: object) -> str:
        """The same for the same slices and facts whenever and wherever it is asked for, so that a study that is worked again
        gives the same objects and no duplicates."""
        instances = sorted(str(header.SOPInstanceUID) for header in self.headers)
        text = json.dumps([self.study_uid, instances, facts], default=str)
        return f"2.25.{uuid.uuid5(NAMESPACE, text).int}"


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What made an object: name is that of the checkpoint without its folder, digest of its weights, settings what it was
    run with."""

    name: str
    digest: str
    settings: str

    @property
    def version(self) -> str:
        return version("ctfm")

    @property
    def uid(self) -> str:
        """Of the program with these weights, as a device."""
        return f"2.25.{uuid.uuid5(NAMESPACE, json.dumps(['device', self.version, self.name, self.digest])).int}"

    def facts(self) -> tuple[str, ...]:
        return self.name, self.digest, self.settings


def describe_maker(model_id: str, *settings: object) -> Maker:
    """Of a folder the digest is that of its weights and its config; of the Hub the name says which weights they are."""
    files = sorted([*Path(model_id).glob("*.safetensors"), *Path(model_id).glob("*config.json")])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    name = Path(model_id).name if files else model_id
    return Maker(name=name[:64], digest=digest.hexdigest()[:16], settings=json.dumps(settings, default=str))


def read_source(scan: Path, series_uid: str | None, volume: Volume) -> SourceSeries:
    """The slices of which `volume` was read.

    Raises:
        VolumeError: they are no DICOM series, lack what objects refer to, or do not lie where the volume does.
    """
    with dicom_planes(scan, series_uid) as found, quiet_pydicom:
        paths = list(dict.fromkeys(one.pixels.path for one, _ in found))
        read = [dcmread(path, stop_before_pixels=True, force=True) for path in paths]
        if len(paths) == 1:
            return place_frames(read[0], found, volume)
        headers = tuple(keep(header, REFERENCES) for header in read)
        check_references(headers)
        planes = tuple(plane for _, plane in found)
        places = place_slices([one for one, _ in found])
        check_places(places[:, 0], planes, volume)
        return SourceSeries(headers=headers, planes=planes, places=places, identity=keep(read[0], IDENTIFIERS))


def place_frames(header: Dataset, found: Sequence[tuple[Slice, int]], volume: Volume) -> SourceSeries:
    """As `read_source`, of a multi-frame file: its planes in the order of the frames."""
    plane_of = {one.frame: plane for one, plane in found}
    count = int(header.get("NumberOfFrames", 1))
    if sorted(plane_of) != list(range(count)):
        raise VolumeError(
            "DICOM objects of a multi-frame file need all of its frames in one scan",
            value=f"{len(plane_of)} of {count}",
            cure="Export the acquisition as single slices, or as a file of its own.",
        )
    headers = (keep(header, REFERENCES),)
    check_references(headers)
    frames = [one for one, _ in sorted(found, key=lambda pair: pair[0].frame)]
    places = place_slices(frames)
    planes = tuple(plane_of[frame] for frame in range(count))
    check_places(places[:, 0], planes, volume)
    place_functional_groups(headers[0], frames, volume)
    return SourceSeries(headers=headers, planes=planes, places=places, identity=keep(header, IDENTIFIERS))


def place_functional_groups(header: Dataset, frames: Sequence[Slice], volume: Volume) -> None:
    """Where the frames lie, as highdicom looks for it: what is the same for all of them in the shared groups. The groups of the
    file may have it elsewhere, and hold more than objects need."""
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = list(frames[0].pixel_spacing)
    thickness = frames[0].facts["thickness"]
    measures.SliceThickness = thickness or f"{np.linalg.norm(volume.source_affine[:3, 0]):.6g}"  # type: ignore[index]
    orientation.ImageOrientationPatient = [f"{part:.12g}" for part in frames[0].orientation]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], []
    for frame in frames:
        position, groups = Dataset(), Dataset()
        position.ImagePositionPatient = [f"{place:.12g}" for place in frame.position]
        groups.PlanePositionSequence = [position]
        header.PerFrameFunctionalGroupsSequence.append(groups)


def place_slices(slices: Sequence[Slice]) -> np.ndarray:
    """See `SourceSeries.places`."""
    return np.array(
        [
            (
                one.position,
                np.array(one.orientation[3:]) * one.pixel_spacing[0],
                np.array(one.orientation[:3]) * one.pixel_spacing[1],
            )
            for one in slices
        ]
    )


def keep(header: Dataset, keywords: Sequence[str]) -> Dataset:
    """A new data set with these attributes, decoded, and no other."""
    kept = Dataset()
    for keyword in keywords:
        if keyword in header:
            setattr(kept, keyword, header[keyword].value)
    return kept


def check_references(headers: Sequence[Dataset]) -> None:
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        missing = sum(not header.get(keyword) for header in headers)
        if missing:
            raise VolumeError(
                f"slices have no {keyword}, so no object can refer to them",
                value=f"{missing} of {len(headers)}",
                cure="Export the series again.",
            )
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise VolumeError("slices share a SOPInstanceUID", value=len(headers), cure="Export the series again.")


def check_places(positions: np.ndarray, planes: Sequence[int], volume: Volume) -> None:
    """
    Args:
        positions: `(n, 3)` mm, LPS, of the first voxel of each slice.
    """
    if volume.source_affine is None:
        raise GeometryError("the volume does not say where its slices lie on disk", cure="Read it with read_volume.")
    step = volume.source_affine[:3, 0]
    expected = volume.source_affine[:3, 3] + np.outer(planes, step)
    off = np.linalg.norm(positions * (-1, -1, 1) - expected, axis=1).max()
    if off > MAX_OFF_PLANE * np.linalg.norm(step):
        raise GeometryError(
            "the slices do not lie where the scan was read", value=f"one is {off:.1f} mm off", cure="Read it again."
        )


def finish_object(made: Dataset, source: SourceSeries, keep_identifiers: bool) -> None:
    """Gives an object the identifiers of its source, or none."""
    made.SpecificCharacterSet = UTF_8
    for keyword in REQUIRED_EMPTY:
        setattr(made, keyword, None if keyword.endswith(("Date", "Time")) else "")
    if not keep_identifiers:
        return
    with quiet_pydicom:
        for keyword in IDENTIFIERS:
            value = source.identity.get(keyword)
            if value is not None and is_writable(keyword, value):
                setattr(made, keyword, value)


def now() -> tuple[str, str]:
    """Date and time of what is made now."""
    moment = datetime.now()
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")


def is_writable(keyword: str, value: object) -> bool:
    """Whether an identifier may go into an object as it is: a damaged date is left out, and so is a code of sex that DICOM does
    not know."""
    if keyword == "PatientSex":
        return value in ("M", "F", "O")
    kind = DA if keyword.endswith("Date") else TM if keyword.endswith("Time") else None
    if kind is None:
        return True
    try:
        kind(str(value))
    except ValueError:
        return False
    return True
