"""A trial report -> seconds to check it, once the model is loaded, as JSON.

python benchmarks/report_check.py article.md [--repeat 3]
"""

import argparse
import json
import time
from pathlib import Path

import torch
from ctfm.reporting.check import check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("article", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    report = check(arguments.article)  # loads the model
    runs = []
    for _ in range(arguments.repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        check(arguments.article)
        runs.append({"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)})
    result = {
        "words": len(arguments.article.read_text().split()),
        "sentences": len(report.document.sentences),
        "threads": torch.get_num_threads(),
        "runs": runs,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
