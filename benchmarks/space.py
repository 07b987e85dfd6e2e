"""A chest as a zip of DICOM -> seconds to its findings through the running Space over HTTP: JSON on standard output.

    python benchmarks/space.py [--checkpoint checkpoints/default] [--shape 300 512 512] [--zip chest.zip]

The scan is a phantom, drawn for this (--zip takes one that is there, or keeps it there). The Space is started as a process of
its own. first: from the file to the findings, as `gradio_client` sees it, uploaded over the loopback. second: the same
file again. page: what the page took to come, asked every half second while the first look ran. A wall time is of a machine
that may be shared; `cpu_s` is what the Space's process computed, on all its threads.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from ctfm.benchmarks.space_process import start_space
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.phantom.make import make_phantom
from gradio_client import Client, handle_file

ROOT = Path(__file__).parent.parent
BARS_S = {"first": 20.0, "second": 1.0}
TICKS = os.sysconf("SC_CLK_TCK")


def draw_zip(path: Path, shape: tuple[int, int, int]) -> None:
    phantom = make_phantom(3_200_001, shape=shape)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in write_dicom_series(phantom.hu.numpy(), phantom.affine, folder):
            archive.write(file, file.name)


def cpu_seconds(process: subprocess.Popen) -> float:
    """User and system time of a process and its threads so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_memory_gb(process: subprocess.Popen) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)


def timed(process: subprocess.Popen, act: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), cpu_seconds(process)
    result = act()
    return result, {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(cpu_seconds(process) - cpu, 2)}


def ask_for_page(url: str, done: threading.Event, seconds: list[float]) -> None:
    while not done.wait(0.5):
        start = time.perf_counter()
        httpx.get(url, timeout=600).raise_for_status()
        seconds.append(time.perf_counter() - start)


def measure(checkpoint: Path, study: Path) -> dict[str, Any]:
    with start_space(environment={"CTFM_MODEL": str(checkpoint)}, output=sys.stderr) as (process, url):
        client = Client(url, verbose=False, httpx_kwargs={"timeout": 600})
        done, page = threading.Event(), []
        asking = threading.Thread(target=ask_for_page, args=(url, done, page))
        asking.start()
        try:
            answer, first = timed(process, lambda: client.predict([handle_file(study)], api_name="/find"))
        finally:
            done.set()
            asking.join()
        again, second = timed(process, lambda: client.predict([handle_file(study)], api_name="/find"))
        assert again == answer
        page.sort()
        return {
            "scan": {"shape": answer["scan"]["shape"], "zip_mb": round(study.stat().st_size / 1e6, 1)},
            "findings": len(answer["findings"]),
            "first": first | {"read_and_analyse_wall_s": answer["seconds"], "bar_s": BARS_S["first"]},
            "second": second | {"bar_s": BARS_S["second"]},
            "page": {"asked": len(page), "median_s": round(page[len(page) // 2], 3), "longest_s": round(page[-1], 3)},
            "peak_memory_gb": peak_memory_gb(process),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "default")
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512), metavar=("D", "H", "W"))
    parser.add_argument("--zip", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = options.zip or Path(folder) / "chest.zip"
        if not study.is_file():
            draw_zip(study, tuple(options.shape))
        result = measure(options.checkpoint, study)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"machine": machine | {"load": os.getloadavg()[0]}, **result}, indent=1))


if __name__ == "__main__":
    main()
