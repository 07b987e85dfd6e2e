"""SPECTRE's published weights -> a CTFM folder, and features of scans with it.

    python docs/guides/spectre.py BACKBONE COMBINER guide

Both files are paths or hf://owner/repo/file. The weights, and what is converted from them, are CC-BY-NC-SA-4.0.
From the command line: ctfm convert-spectre --backbone FILE --combiner FILE --out spectre; ctfm embed SCANS --model spectre ...
"""

import sys
from pathlib import Path

import torch
from ctfm import CTFMImageProcessor, CTFMVisionModel
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.release.convert_spectre import SpectreFiles, convert, save

backbone, combiner, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
size = tuple(int(n) for n in (sys.argv[4] if len(sys.argv) > 4 else "96,160,160").split(","))  # voxels of a phantom

# 1. Every tensor finds its place or the conversion is refused; outputs equal SPECTRE's within 2e-5.
files = SpectreFiles(backbone=backbone, combiner=combiner)
save(convert(files), files, out / "spectre", tokenizer=None)

# 2. A folder like any other: the image processor knows SPECTRE's spacing, window and crops.
model = CTFMVisionModel.from_pretrained(out / "spectre").eval()
processor = CTFMImageProcessor.from_pretrained(out / "spectre")
write_dataset(PhantomDataset(folder=out / "scans", num_train=2, num_test=0, shape=size))
scans = sorted(path for path in (out / "scans").rglob("*.mha") if "segmentation" not in path.name)
with torch.inference_mode():
    features = [model(**processor(scan)).pooler_output[0] for scan in scans]
print("features", tuple(torch.stack(features).shape))

# 3. From here on as with any checkpoint: ctfm probe, ctfm finetune, ctfm index with --model guide/spectre.
