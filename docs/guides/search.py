"""A folder of scans -> an index that answers texts, scans and regions of scans.

    python docs/guides/search.py checkpoints/default guide

From the command line: ctfm embed SCANS --out FEATURES; ctfm index FEATURES --out INDEX; ctfm search INDEX --text "..."
"""

import sys
from pathlib import Path

from ctfm import CTFMProcessor, read_volume
from ctfm.embedding import embed, load
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.search import search_region, search_scan, search_text
from ctfm.vector_index import build_index, open_index
from datasets import load_dataset

checkpoint, out = sys.argv[1], Path(sys.argv[2])
size = tuple(int(n) for n in (sys.argv[3] if len(sys.argv) > 3 else "96,160,160").split(","))  # voxels of a phantom

write_dataset(PhantomDataset(folder=out / "scans", num_train=12, num_test=0, shape=size))
scans = sorted(path for path in (out / "scans").rglob("*.mha") if "segmentation" not in path.name)

# 1. One file a scan, and one table of all. What is done is not done again, so this may be stopped.
embed(scans, out / "features", checkpoint, None, dense=False, batch=2)

# 2. The table is Parquet, so datasets, pandas and the Hub's viewer open it.
table = load_dataset("parquet", data_files=str(out / "features" / "features.parquet"), split="train")
print(table.column_names, len(table))

# 3. An index on disk. --crops also keeps every crop, so that regions can be asked for.
build_index(out / "features", out / "index", with_crops=True)
index, (model, processor, _) = open_index(out / "index"), load(checkpoint)

# 4. Ask. A score is a cosine: it orders scans and is no probability.
for hit in search_text(index, model, CTFMProcessor.from_pretrained(checkpoint), "Large pleural effusion.", 3):
    print("text", round(hit.score, 3), Path(hit.scan).name)
volume = read_volume(scans[0])
for hit in search_scan(index, model, processor, volume, 3):
    print("scan", round(hit.score, 3), Path(hit.scan).name)
region = tuple(slice(n // 4, n // 2) for n in volume.hu.shape)
for hit in search_region(index, model, processor, volume, region, 3):
    print("region", round(hit.score, 3), Path(hit.scan).name, [round(mm) for mm in hit.centre_mm])
