"""What both resamplings of the image processor keep of noise and of small spheres, and what they cost: JSON on standard output.

    python benchmarks/resampling.py [--seconds 20] > benchmarks/results/resampling_cpu.json

A scan of 0.7 mm voxels goes to each of the spacings below. All numbers are in HU, of samples away from the borders.

- noise_hu      standard deviation of what white noise of 50 HU leaves.
- spheres       of spheres of 200 HU over a background of 0, many at places of their own between the samples, the mean and
                the range of the brightest sample; and `contrast_to_noise`, that mean over the noise. A voxel of the scan
                holds the share of the sphere that lies in it, as a scanner's does.
- aliasing      share of the amplitude of a sine too fine for the grid (a period of 1.5 samples) that comes back as a
                coarser one that is not there.
- cpu_s         of processing a whole scan (400 x 400 x 400 voxels), the least of runs that alternate, on one thread.
"""

import argparse
import json
import platform
import time

import numpy as np
import torch
from ctfm import CTFMImageProcessor
from ctfm.volume_ctfm import Volume

SPACING_MM = 0.7
SPACINGS = {"1.5 x 0.75 x 0.75": (1.5, 0.75, 0.75), "3 x 1.5 x 1.5": (3.0, 1.5, 1.5), "3 x 3 x 3": (3.0, 3.0, 3.0)}
DIAMETERS_MM = (3, 4, 6, 10)
WIDE = (-4000.0, 4000.0)  # a window that clips nothing


def as_volume(hu: np.ndarray) -> Volume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = SPACING_MM, -SPACING_MM, -SPACING_MM, 1
    return Volume(hu=hu, affine=affine)


def resample(hu: np.ndarray, spacing: tuple[float, float, float], resampling: str) -> np.ndarray:
    """A scan as one crop in HU, without the samples near its borders."""
    size = [int(np.ceil(n * SPACING_MM / mm - 1e-3)) for n, mm in zip(hu.shape, spacing, strict=True)]
    processor = CTFMImageProcessor(
        crop_size=size, spacing=spacing, resampling=resampling, intensity_window=WIDE, air_hu=WIDE[0]
    )
    pixels = processor(as_volume(hu)).pixel_values[0, 0, 0].numpy()
    return (pixels * (WIDE[1] - WIDE[0]) + WIDE[0])[2:-2, 2:-2, 2:-2]


def draw_spheres(diameter_mm: float, count: int = 4, seed: int = 0, pitch_mm: float = 28.0) -> np.ndarray:
    """`count`^3 spheres of 200 HU, `pitch_mm` apart, each at a place of its own, by 4 x 4 x 4 points a voxel."""
    rng = np.random.default_rng(seed)
    size = round(pitch_mm / SPACING_MM)
    points = ((np.arange(4 * size) + 0.5) / 4 - 0.5) * SPACING_MM
    hu = np.zeros((count * size,) * 3, np.float32)
    for cell in np.ndindex(count, count, count):
        d, h, w = (points - pitch_mm / 2 - shift for shift in rng.uniform(-3, 3, 3))
        inside = (d[:, None, None] ** 2 + h[:, None] ** 2 + w**2) < (diameter_mm / 2) ** 2
        share = inside.reshape(size, 4, size, 4, size, 4).mean((1, 3, 5))
        hu[tuple(slice(c * size, (c + 1) * size) for c in cell)] = 200 * share
    return hu


def brightest_samples(
    hu: np.ndarray, spacing: tuple[float, float, float], resampling: str, count: int = 4
) -> np.ndarray:
    """Of every sphere."""
    size = hu.shape[0] // count
    cells = [hu[tuple(slice(c * size, (c + 1) * size) for c in cell)] for cell in np.ndindex(count, count, count)]
    return np.array([resample(cell, spacing, resampling).max() for cell in cells])


def measure_aliasing(spacing: tuple[float, float, float], resampling: str) -> float:
    """Along the axis with the coarsest grid."""
    axis = int(np.argmax(spacing))
    period = 1.5 * spacing[axis] / SPACING_MM
    wave = 200 * np.sin(2 * np.pi * np.arange(300) / period).astype(np.float32)
    shape = [300 if a == axis else 30 for a in range(3)]
    hu = np.broadcast_to(wave.reshape([-1 if a == axis else 1 for a in range(3)]), shape).copy()
    return float(resample(hu, spacing, resampling).std() / wave.std())


def measure_seconds(spacing: tuple[float, float, float], budget_s: float) -> dict[str, float]:
    hu = np.random.default_rng(0).integers(-900, 900, (400, 400, 400), dtype=np.int16)
    volume, least = as_volume(hu), {"linear": np.inf, "area": np.inf}
    processors = {name: CTFMImageProcessor(spacing=spacing, resampling=name) for name in least}
    stop = time.process_time() + budget_s
    while time.process_time() < stop:
        for name, processor in processors.items():
            start = time.process_time()
            processor(volume)
            least[name] = min(least[name], time.process_time() - start)
    return {name: round(seconds, 3) for name, seconds in least.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU time for the timing of each spacing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).normal(0, 50, (128, 128, 128)).astype(np.float32)
    spheres = {diameter: draw_spheres(diameter) for diameter in DIAMETERS_MM}
    results = {}
    for name, spacing in SPACINGS.items():
        seconds = measure_seconds(spacing, options.seconds)
        results[name] = {}
        for resampling in ("linear", "area"):
            noise_hu = float(resample(noise, spacing, resampling).std())
            kept = {d: brightest_samples(hu, spacing, resampling) for d, hu in spheres.items()}
            results[name][resampling] = {
                "noise_hu": round(noise_hu, 2),
                "spheres": {
                    f"{diameter} mm": {
                        "mean_hu": round(float(values.mean()), 1),
                        "range_hu": [round(float(values.min()), 1), round(float(values.max()), 1)],
                        "contrast_to_noise": round(float(values.mean()) / noise_hu, 2),
                    }
                    for diameter, values in kept.items()
                },
                "aliasing": round(measure_aliasing(spacing, resampling), 3),
                "cpu_s": seconds[resampling],
            }
    machine = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
    print(json.dumps({"scan_spacing_mm": SPACING_MM, "machine": machine, "spacings_mm": results}, indent=2))


if __name__ == "__main__":
    main()
