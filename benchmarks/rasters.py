"""One scan as NIfTI, MetaImage and NRRD through the raster reader, nibabel and SimpleITK: CPU seconds, memory, what is refused.

    python benchmarks/rasters.py [--slices 150] [--repeats 2] > benchmarks/results/rasters_cpu.json

Every read is a process of its own and must give the same sum of voxels. `cpu_s` is user and system time of the read without
imports, the least of the repeats; of an unpacked NIfTI nibabel only maps the file, and reads it later. `memory_gb` is how far
the peak rose. "cut in half" and "header of 35 TB" say what a reader makes of a truncated file and of a header that claims more
voxels than the file holds: the class of the error, or "read" where voxels came back.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ctfm.benchmarks.own_process import cpu_seconds, status_bytes
from ctfm.volume_archive_ctfm import tell_kind
from ctfm.volume_raster_ctfm import read_raster

FORMATS = (".nii", ".nii.gz", ".mha", ".nrrd")
READERS = {".nii": ("ctfm", "nibabel", "simpleitk"), ".nii.gz": ("ctfm", "nibabel", "simpleitk")}


def read_with(reader: str, path: Path) -> np.ndarray:
    if reader == "nibabel":
        import nibabel

        return np.asanyarray(nibabel.load(path).dataobj)
    if reader == "simpleitk":
        import SimpleITK

        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return read_raster(path, tell_kind(path), path.parent).hu


def measure(reader: str, path: Path, warm: Path) -> dict[str, Any]:
    read_with(reader, warm)  # what is imported when it is first needed
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before, memory = cpu_seconds(), status_bytes("VmRSS")
    try:
        found = read_with(reader, path)
    except Exception as error:
        return {"damaged": type(error).__name__, "memory_gb": round((status_bytes("VmHWM") - memory) / 1e9, 3)}
    cpu, peak = cpu_seconds() - before, status_bytes("VmHWM")
    return {
        "cpu_s": round(cpu, 3),
        "memory_gb": round((peak - memory) / 1e9, 3),
        "sum": int(found.sum(dtype=np.int64)),
    }


def write_scans(folder: Path, num_slices: int) -> None:
    import SimpleITK

    noise = np.random.default_rng(0)
    for name, shape in (("scan", (num_slices, 512, 512)), ("warm", (8, 16, 16))):
        hu = noise.normal(0, 300, shape).round().clip(-1000, 1000).astype(np.int16)
        for ending in FORMATS:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(hu), str(folder / f"{name}{ending}"), ending == ".nii.gz")
    for ending in FORMATS:
        data = (folder / f"scan{ending}").read_bytes()
        (folder / f"cut{ending}").write_bytes(data[: len(data) // 2])
    header = bytearray((folder / "scan.nii").read_bytes()[: 352 + 1000])
    struct.pack_into("<4h", header, 40, 3, 32767, 32767, 32767)  # dim: 35 TB of int16 in 1,352 bytes
    (folder / "hostile.nii").write_bytes(header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=200, help="of 512 x 512")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("READER", "FILE", "WARM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], Path(given.one[1]), Path(given.one[2]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scans(folder, given.slices)

        def run(reader: str, file: str, ending: str) -> dict[str, Any]:
            command = [sys.executable, __file__, "--one", reader, str(folder / file), str(folder / f"warm{ending}")]
            done = subprocess.run(command, capture_output=True, text=True)
            return (
                json.loads(done.stdout)
                if done.returncode == 0
                else {"damaged": f"process ended with {done.returncode}"}
            )

        result: dict[str, Any] = {"slices": given.slices, "versions": {p: version(p) for p in ("nibabel", "SimpleITK")}}
        for ending in FORMATS:
            readers = READERS.get(ending, ("ctfm", "simpleitk"))
            runs = {reader: [run(reader, f"scan{ending}", ending) for _ in range(given.repeats)] for reader in readers}
            if len({one["sum"] for each in runs.values() for one in each}) != 1:
                raise SystemExit(f"the readers give different voxels of {ending}: {runs}")
            result[ending] = {
                reader: {key: min(one[key] for one in each) for key in ("cpu_s", "memory_gb")}
                | {"cut in half": run(reader, f"cut{ending}", ending).get("damaged", "read")}
                for reader, each in runs.items()
            }
        result["header of 35 TB"] = {reader: run(reader, "hostile.nii", ".nii") for reader in READERS[".nii"]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
