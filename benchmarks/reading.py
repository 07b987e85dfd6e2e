"""A DICOM series through `read_volume`, SimpleITK, dicom2nifti and a bare pydicom loop, and its zip: CPU seconds and memory.

    python benchmarks/reading.py [--slices 300 1000] [--size 512] [--repeats 5]    JSON on standard output

Every read is a process of its own, and the readers take turns, so that all see the same machine. `cpu_s` is user and system
time of the process between the imports and the voxels (the least of the repeats; on cores that others use wall time says
little), `memory_gb` how far its memory rose meanwhile at most. All read the same files from the page cache, and their
voxels must have the same sum. `against_simpleitk` and its like, and `zip_against_folder`, are ratios of this run.

SimpleITK and pydicom come with the extras "dev" and "io"; dicom2nifti is measured where it is installed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ctfm.benchmarks.own_process import cpu_seconds, status_bytes

PACKAGES = {"simpleitk": "SimpleITK", "pydicom_loop": "pydicom", "dicom2nifti": "dicom2nifti"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("READER", "SOURCE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*given.one)))
        return
    readers = ["ctfm", "ctfm_zip", "simpleitk", "pydicom_loop"]
    if find_spec("dicom2nifti") is None:
        print("dicom2nifti is not installed and is left out: pip install dicom2nifti", file=sys.stderr)
    else:
        readers.append("dicom2nifti")
    result: dict[str, Any] = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for reader, name in PACKAGES.items() if reader in readers},
        "repeats": given.repeats,
        "load_average_at_start": round(os.getloadavg()[0], 1),
        "scans": [],
    }
    for num_slices in given.slices:
        with tempfile.TemporaryDirectory() as folder:
            write_scan(Path(folder), num_slices, given.size)
            result["scans"].append(compare(Path(folder), num_slices, given.size, readers, given.repeats))
    print(json.dumps(result, indent=2))


def write_scan(folder: Path, num_slices: int, size: int) -> None:
    """A noisy body in air as a series, 1 mm apart, and a deflated zip of it."""
    from ctfm.phantom.dicom_series import write_dicom_series

    noise = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    body = (rows / 0.4) ** 2 + (columns / 0.45) ** 2 < 1
    slices = (np.where(body, 40 + 30 * np.sin(8 * rows + k / 30), -1000) for k in range(num_slices))
    hu = np.stack([np.rint(plane + noise.normal(0, 15, plane.shape)).astype(np.int16) for plane in slices])
    affine = np.array([[0, 0, -0.7, 180], [0, -0.7, 0, 180], [1.0, 0, 0, -150], [0, 0, 0, 1]])
    write_dicom_series(hu, affine, folder / "series")
    with zipfile.ZipFile(folder / "scan.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in sorted((folder / "series").iterdir()):
            zipped.write(path, path.name)


def compare(folder: Path, num_slices: int, size: int, readers: list[str], repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
    for _ in range(repeats):
        for reader in readers:
            source = folder / ("scan.zip" if reader == "ctfm_zip" else "series")
            command = [sys.executable, __file__, "--one", reader, str(source)]
            runs[reader].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    sums = {run["sum"] for found in runs.values() for run in found}
    if len(sums) != 1:
        raise SystemExit(f"the readers give different voxels: {sums}")
    found = {
        reader: {
            "cpu_s": min(run["cpu_s"] for run in each),
            "cpu_s_median": round(statistics.median(run["cpu_s"] for run in each), 3),
            "wall_s": min(run["wall_s"] for run in each),
            "memory_gb": round(statistics.median(run["memory_gb"] for run in each), 3),
        }
        for reader, each in runs.items()
    }
    against = {
        reader: {key: round(found["ctfm"][key] / found[reader][key], 2) for key in ("cpu_s", "memory_gb")}
        for reader in readers
        if not reader.startswith("ctfm")
    }
    zipped = {key: round(found["ctfm_zip"][key] / found["ctfm"][key], 2) for key in ("cpu_s", "wall_s", "memory_gb")}
    return {
        "scan": f"synthetic, {num_slices} x {size} x {size}, DICOM",
        "readers": found,
        **{f"against_{reader}": ratios for reader, ratios in against.items()},
        "zip_against_folder": zipped,
        "zip_share_of_bytes": round((folder / "scan.zip").stat().st_size / (num_slices * size * size * 2), 2),
    }


def measure(reader: str, source: str) -> dict[str, float]:
    read = {
        "ctfm": read_ctfm,
        "ctfm_zip": read_ctfm,
        "simpleitk": read_simpleitk,
        "pydicom_loop": read_pydicom,
        "dicom2nifti": read_dicom2nifti,
    }[reader]()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before, start, memory = cpu_seconds(), time.perf_counter(), status_bytes("VmRSS")
    hu = read(source)
    wall, cpu, peak = time.perf_counter() - start, cpu_seconds() - before, status_bytes("VmHWM")
    return {
        "cpu_s": round(cpu, 3),
        "wall_s": round(wall, 3),
        "memory_gb": round((peak - memory) / 1e9, 3),
        "sum": int(hu.sum(dtype=np.int64)),
    }


def read_ctfm():
    from ctfm import read_volume

    read_volume(
        (np.random.default_rng(0).normal(0, 300, (8, 8, 8)), np.eye(4))
    )  # what is imported when it is first needed
    return lambda source: read_volume(source).hu


def read_simpleitk():
    import SimpleITK

    def read(source: str) -> np.ndarray:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(source))
        return SimpleITK.GetArrayFromImage(reader.Execute())

    return read


def read_pydicom():
    import pydicom

    def read(source: str) -> np.ndarray:
        slices = [pydicom.dcmread(path) for path in Path(source).iterdir()]
        slices.sort(key=lambda one: one.ImagePositionPatient[2])
        return np.stack([one.pixel_array + np.int16(one.RescaleIntercept) for one in slices])

    return read


def read_dicom2nifti():
    import dicom2nifti
    import nibabel

    def read(source: str) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            dicom2nifti.dicom_series_to_nifti(source, str(Path(folder, "scan.nii")), reorient_nifti=False)
            return np.asarray(nibabel.load(Path(folder, "scan.nii")).dataobj)  # pyright: ignore

    return read


if __name__ == "__main__":
    main()
