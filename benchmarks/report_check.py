"""Trial reports -> seconds to check each once the model is loaded, and the peak of memory, as JSON.

python benchmarks/report_check.py median.md longest.md --repeat 3 > benchmarks/results/report_check_cpu.json
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import torch
from ctfm.reporting.check import check


def measure(article: Path, repeat: int) -> dict:
    report = check(article)  # loads the model, the first time
    runs = []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        check(article)
        runs.append({"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)})
    return {
        "article": article.stem,
        "words": len(article.read_text().split()),
        "sentences": len(report.document.sentences),
        "runs": runs,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,  # of the process so far
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path, nargs="+", help="Markdown or plain text")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"machine": machine, "articles": [measure(article, arguments.repeat) for article in arguments.articles]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
