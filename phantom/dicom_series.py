"""Volume -> DICOM CT series on disk, one file a slice: for the demo and for tests of the reader. It holds no patient.

write_dicom_series(volume.hu, volume.affine, folder)
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_dicom_series(
    hu: np.ndarray,
    affine: np.ndarray,
    folder: str | Path,
    *,
    series_uid: str | None = None,
    slope: float = 1.0,
    intercept: float = -1024.0,
    kernel: str = "STANDARD",
    edit: Callable[[FileDataset, int], None] | None = None,
) -> list[Path]:
    """Writes a CT series that any viewer opens.

    Args:
        hu: `(slices, rows, columns)` Hounsfield units; stored as int16 `(hu - intercept) / slope`, rounded.
        affine: 4 x 4, `(slice, row, column, 1)` -> patient millimetres, RAS+; its rows and columns at right angles.
        series_uid: a new one by default.
        edit: called with each data set and its slice index before it is written, to change headers or pixels.

    Returns:
        The files, in slice order.

    Raises:
        ValueError: the array is not 3-D, or a value does not fit int16 with this slope and intercept.
    """
    if hu.ndim != 3:
        raise ValueError(f"hu has {hu.ndim} axes; (slices, rows, columns) is needed.")
    stored = np.rint((hu.astype(np.float64) - intercept) / slope)
    if stored.min() < -32768 or stored.max() > 32767:
        raise ValueError(f"stored values {stored.min():g} to {stored.max():g} do not fit int16; choose another slope.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lps = RAS_TO_LPS @ affine
    series = series_uid or generate_uid()
    common = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": series, "FrameOfReferenceUID": generate_uid()}
    paths = []
    for index, plane in enumerate(stored.astype(np.int16)):
        data_set = slice_data_set(plane, lps, index)
        for name, value in common.items():
            setattr(data_set, name, value)
        data_set.RescaleSlope, data_set.RescaleIntercept = _decimal(slope), _decimal(intercept)
        data_set.ConvolutionKernel = kernel
        if edit is not None:
            edit(data_set, index)
        paths.append(folder / f"slice{index:04d}.dcm")
        data_set.save_as(paths[-1], enforce_file_format=True)
    return paths


def slice_data_set(plane: np.ndarray, lps: np.ndarray, index: int) -> FileDataset:
    """One CT image of stored values `(rows, columns)` int16, placed by the 4 x 4 affine `(slice, row, column, 1)` -> LPS mm."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data_set.Modality = "CT"
    data_set.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data_set.Manufacturer = "CTFM phantom"
    data_set.PatientName, data_set.PatientID = "PHANTOM", "PHANTOM"
    data_set.PatientBirthDate, data_set.PatientSex = "", ""
    data_set.StudyDate, data_set.StudyTime, data_set.AccessionNumber, data_set.StudyID = "", "", "", ""
    data_set.ReferringPhysicianName = ""
    data_set.PatientPosition = "HFS"
    data_set.KVP = "120"
    data_set.SeriesNumber, data_set.AcquisitionNumber, data_set.InstanceNumber = 1, 1, index + 1
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    data_set.ImagePositionPatient = [_decimal(place) for place in (lps @ [index, 0, 0, 1])[:3]]
    data_set.ImageOrientationPatient = [_decimal(part) for part in [*lps[:3, 2] / steps[2], *lps[:3, 1] / steps[1]]]
    data_set.PixelSpacing = [_decimal(steps[1]), _decimal(steps[2])]
    data_set.SliceThickness = _decimal(steps[0])
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.Rows, data_set.Columns = plane.shape
    data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = 16, 16, 15, 1
    data_set.RescaleType = "HU"
    data_set.PixelData = np.ascontiguousarray(plane, "<i2").tobytes()
    return data_set


def _decimal(value: float) -> str:
    """A decimal string holds at most 16 characters."""
    return next(text for digits in range(16, 5, -1) if len(text := f"{float(value):.{digits}g}") <= 16)
