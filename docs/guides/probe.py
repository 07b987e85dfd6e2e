"""A table of scans -> a classifier, in minutes: features once, then a head on them.

    python docs/guides/probe.py checkpoints/default guide

Synthetic patients stand for your scans; your own table has a row a scan with its path, patient and findings (docs/tables.md).
The same from the command line: ctfm probe TABLE --out OUT
"""

import json
import sys
from pathlib import Path

from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.train.table_probe import main as probe
from transformers import pipeline

checkpoint, out = sys.argv[1], Path(sys.argv[2])
size = tuple(int(n) for n in (sys.argv[3] if len(sys.argv) > 3 else "96,160,160").split(","))  # voxels of a phantom

# 1. Scans and a table. Every column that is not path, patient, split, report, ... is a finding of 1 and 0.
patients = PhantomDataset(folder=out / "scans", num_train=60, num_validation=30, num_test=30, shape=size)
table = write_dataset(patients)

# 2. Features, head, calibration, few-shot curve. A scan is encoded once: run it again and it is there at once.
probe([str(table), "--out", str(out / "probe"), "--model", checkpoint])
metrics = json.loads((out / "probe" / "metrics.json").read_text())
print("test", {name: value for name, value in metrics["test"].items() if name.endswith("auroc")})

# 3. What came out is a model like any other: a folder for from_pretrained, pipelines and `ctfm worklist`.
classify = pipeline("image-classification", model=str(out / "probe" / "model"), trust_remote_code=True)
scan = next(path for path in (out / "scans" / "test").iterdir() if "segmentation" not in path.name)
for row in classify(str(scan), top_k=3):
    print(row)
