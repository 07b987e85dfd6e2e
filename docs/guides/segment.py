"""Four labelled patients -> a model of their structures, and label maps on the voxels of a new scan.

    python docs/guides/segment.py checkpoints/default guide

From the command line: ctfm finetune segmentation TABLE --out OUT; ctfm segment SCAN --out LABELS --model OUT/model
"""

import json
import sys
from pathlib import Path

from ctfm import read_volume
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.segmentation import load_segmenter, measure_structures, segment_volume
from ctfm.train.table_finetune import main as fine_tune

checkpoint, out = sys.argv[1], Path(sys.argv[2])
size = tuple(int(n) for n in (sys.argv[3] if len(sys.argv) > 3 else "96,160,160").split(","))  # voxels of a phantom
steps = sys.argv[4] if len(sys.argv) > 4 else "400"

# 1. Scans and label maps. The table's column segmentation names the maps; structures.json beside it names their numbers.
patients = PhantomDataset(folder=out / "scans", num_train=4, num_validation=2, num_test=2, shape=size)
table = write_dataset(patients)

# 2. Training ends when validation gets no better; what is kept is the best.
settings = ["--model", checkpoint, "--trunk", "full", "--steps", steps, "--batch", "4"]
fine_tune(["segmentation", str(table), "--out", str(out / "tuned"), *settings])
print("Dice", json.loads((out / "tuned" / "metrics.json").read_text())["test"])

# 3. A scan that was not trained on, with volumes in ml and sizes in mm.
scan = next(path for path in sorted((out / "scans" / "test").glob("*.mha")) if "segmentation" not in path.name)
volume = read_volume(scan)
segmentation = segment_volume(load_segmenter(str(out / "tuned" / "model")), volume)
for row in measure_structures(volume, segmentation):
    print(row)

# 4. Back on the voxels as they lie on disk, tilted and oblique series included.
labels, affine = volume.segmentation_to_source(segmentation.labels)
print("labels", labels.shape, affine.round(2).tolist())
