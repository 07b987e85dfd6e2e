"""Commands that should answer at once -> CPU seconds of each, as JSON.

    python benchmarks/startup.py [--runs 5] > benchmarks/results/startup.json

Each command runs in a process of its own; the median of the user and system seconds of its runs is given.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ctfm import Volume


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder, "scan.nii")
        hu = np.full((32, 64, 64), -1000, np.int16)
        hu[4:28, 12:52, 12:52] = 40  # a block of soft tissue in air: what holds no tissue is refused as no CT
        to_world = np.array([[0.0, 0.0, -5.0, 0.0], [0.0, -5.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        Volume(hu=hu, affine=to_world).to_nifti(scan)
        commands = {
            "ctfm --help": ["-m", "ctfm", "--help"],
            "ctfm inspect SCAN": ["-m", "ctfm", "inspect", str(scan)],
            "import ctfm": ["-c", "import ctfm"],
            "import ctfm; ctfm.read_volume": ["-c", "import ctfm; ctfm.read_volume"],
            "import ctfm; ctfm.CTFMModel": ["-c", "import ctfm; ctfm.CTFMModel"],
        }
        seconds = {
            name: round(statistics.median(cpu_seconds([sys.executable, *command]) for _ in range(runs)), 3)
            for name, command in commands.items()
        }
    print(json.dumps({"runs": runs, "cpu_seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
