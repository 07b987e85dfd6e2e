"""A small asymmetric scan for tests: every flip, transposition or shift of it is another scan."""

import numpy as np
from ctfm.volume_ctfm import Volume

SHAPE = (24, 48, 40)
SPACING = (3.0, 1.0, 1.25)


def canonical_affine(
    spacing: tuple[float, float, float] = SPACING, origin: tuple[float, float, float] = (-30.0, 40.0, -50.0)
) -> np.ndarray:
    """(d, h, w, 1) -> RAS mm: depth to the head, height to the back, width to the left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing[0], -spacing[1], -spacing[2]
    affine[:, 3] = (*origin, 1)
    return affine


def phantom_hu(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Noisy air and an off-centre body, with a bone rod at the back, a bright ball at the left front near the head and a
    wedge that widens towards the head."""
    d, h, w = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    hu = np.random.default_rng(seed).normal(-1000, 8, shape)
    body = ((h - 0.52) / 0.42) ** 2 + ((w - 0.47) / 0.38) ** 2 < 1
    hu[body] += 1040
    hu[body & ((h - 0.8) ** 2 + (w - 0.45) ** 2 < 0.006)] += 700
    hu[(d - 0.8) ** 2 + (h - 0.3) ** 2 + (w - 0.7) ** 2 < 0.02] += 350
    hu[body & (h < 0.5) & (w < 0.4) & (w > 0.35 - 0.2 * d)] -= 800
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def phantom_volume(seed: int = 0) -> Volume:
    return Volume(hu=phantom_hu(seed=seed), affine=canonical_affine())
