"""Volume -> what limits how far it can be judged: noise, truncation, metal, what the reader repaired. No model is asked."""

from dataclasses import dataclass

import numpy as np

from .volume_ctfm import Volume

SOFT_TISSUE_HU = (-150, 200)
TISSUE_HU = -300
METAL_HU = 2500  # above the densest bone
CUT_SHARE = 0.05  # of a slice's border that tissue touches where the body goes on beyond the field of view
MIN_VOXELS = 1000  # of soft tissue, fewer give no noise


@dataclass(frozen=True, kw_only=True)
class ImageQuality:
    """
    noise_hu: standard deviation of white noise in soft tissue; None where there is too little of it.
    cut_slices: share of the axial slices in which the body reaches the border of the image.
    metal_ml: volume of what is denser than bone.
    length_mm: of the scan along the body; spacing_mm: between slices.
    repairs: what the reader repaired or suspects, missing slices among it.
    """

    noise_hu: float | None
    cut_slices: float
    metal_ml: float
    length_mm: float
    spacing_mm: float
    repairs: tuple[str, ...]


def measure_quality(volume: Volume) -> ImageQuality:
    return ImageQuality(
        noise_hu=measure_noise(volume.hu),
        cut_slices=measure_cut(volume.hu),
        metal_ml=round(float((volume.hu >= METAL_HU).sum() * np.prod(volume.spacing) / 1000), 2),
        length_mm=round(volume.spacing[0] * volume.hu.shape[0], 1),
        spacing_mm=round(volume.spacing[0], 3),
        repairs=volume.warnings,
    )


def measure_noise(hu: np.ndarray) -> float | None:
    """From how far soft tissue departs from the mean of its neighbours left and right, by the median, so that edges do not
    count: of white noise of spread s this departure has the spread sqrt(1.5) s. Every fourth slice is enough."""
    low, high = SOFT_TISSUE_HU
    departures = []
    for plane in hu[::4]:
        plane = plane.astype(np.float32)
        soft = (plane > low) & (plane < high)
        inside = soft[:, :-2] & soft[:, 1:-1] & soft[:, 2:]
        departures.append((plane[:, 1:-1] - (plane[:, :-2] + plane[:, 2:]) / 2)[inside])
    together = np.abs(np.concatenate(departures))
    if len(together) < MIN_VOXELS:
        return None
    return round(float(1.4826 * np.median(together) / np.sqrt(1.5)), 1)


def measure_cut(hu: np.ndarray) -> float:
    border = np.concatenate((hu[:, 0], hu[:, -1], hu[:, 1:-1, 0], hu[:, 1:-1, -1]), axis=1)  # (D, voxels)
    return round(float(((border > TISSUE_HU).mean(1) > CUT_SHARE).mean()), 3)
