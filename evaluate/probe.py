"""Checkpoint and prepared folder -> how much its features know of the labels, quickly: while a run goes on, and for curves.

    ctfm probe-checkpoints runs/x/checkpoints/* --data runs/prepared --train-scans 400 --test-scans 400

Scans of split "train" are neighbours and training set, those of "test" are asked about. evaluate.py does it with
intervals and more questions.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMModel, CTFMVisionModel
from ..processing_ctfm import CTFMProcessor
from ..train.checkpoint import load_exported
from ..train.data import SourceConfig, read_scan, select_rows
from ..train.segmentation import count_voxels
from ..train.shards import Manifest
from ..train.tables import read_findings
from ..train.views import cut_scans
from .features import encode_texts, image_processor
from .frozen import knn_scores, linear_scores
from .metrics import FindingTable, macro_auroc
from .protocol import PAIR, finding_directions

Checkpoint = tuple[CTFMModel | CTFMVisionModel, CTFMImageProcessor | CTFMProcessor]


@dataclass(frozen=True, kw_only=True)
class ProbeSet:
    """Features of scans, or of patches of scans, and what is known of them.

    features: `(n, f)`; labels: of the findings, NaN where nothing is stated; scans: `n` ids; zero_shot: scores of a dual
    encoder for the same findings.
    """

    features: np.ndarray
    labels: FindingTable
    scans: tuple[str, ...]
    zero_shot: FindingTable | None = None

    def scores_of(self, test: "ProbeSet") -> dict[str, FindingTable]:
        """Scores of the scans of `test`, by the ways to ask that take no more training than a probe."""
        ways = {
            "knn": knn_scores(self.features, self.labels, [test.features])[0],
            "linear": linear_scores(self.features, self.labels, [test.features])[0],
        }
        return ways if test.zero_shot is None else ways | {"zero_shot": test.zero_shot}


def choose_rows(manifest: Manifest, split: str, num_scans: int, with_segmentation: bool = False) -> np.ndarray:
    """The first scans of a split.

    Raises:
        ValueError: there is none.
    """
    source = SourceConfig(folder=manifest.folder, split=split, with_segmentation=with_segmentation)
    rows = select_rows(manifest, source)[:num_scans]
    if not len(rows):
        raise ValueError(f"{manifest.folder} has no scan of split {split!r}; prepare some, or leave the probe out.")
    return rows


def stated_findings(*parts: tuple[Manifest, np.ndarray]) -> tuple[str, ...]:
    """What is stated of any of the scans, in the order of the alphabet."""
    return tuple(sorted({name for manifest, rows in parts for row in rows for name in manifest.labels_of(int(row))}))


@torch.no_grad()
def encode_scans(
    checkpoints: Sequence[Checkpoint], manifest: Manifest, rows: np.ndarray, findings: Sequence[str]
) -> list[ProbeSet]:
    """Scans, read once for all checkpoints, which share an image processor. Features are the mean and the largest value of
    the local transformer's crop descriptors."""
    device = next(checkpoints[0][0].parameters()).device
    directions = [
        torch.from_numpy(finding_directions(partial(encode_texts, model, processor), PAIR, findings)).float().to(device)
        if isinstance(model, CTFMModel) and isinstance(processor, CTFMProcessor)
        else None
        for model, processor in checkpoints
    ]
    features, scores = ([[] for _ in checkpoints] for _ in range(2))
    labels, scans = [], []
    for row in rows:
        scan = manifest[int(row)]
        batch = cut_scans([read_scan(manifest, scan)], image_processor(checkpoints[0][1]), device)
        labels.append([scan.labels.get(name, np.nan) for name in findings])
        scans.append(scan.scan_id)
        for (model, _), asked, own_features, own_scores in zip(checkpoints, directions, features, scores, strict=True):
            if isinstance(model, CTFMModel):
                output = model.get_image_features(**batch, output_dense_features=model.config.token_scores)  # pyright: ignore
            else:
                output = model(**batch)
            crops = output.crop_embeds[0].flatten(0, 1).float()
            own_features.append(torch.cat((crops.mean(0), crops.amax(0))).cpu().numpy())
            if asked is not None and isinstance(model, CTFMModel):
                own_scores.append(model.score_texts(output, asked)[0][0].float().cpu().numpy())
    names = tuple(findings)
    return [
        ProbeSet(
            features=np.array(own),
            labels=FindingTable(findings=names, values=np.array(labels)),
            scans=tuple(scans),
            zero_shot=FindingTable(findings=names, values=np.array(scored)) if scored else None,
        )
        for own, scored in zip(features, scores, strict=True)
    ]


@torch.no_grad()
def encode_patches(
    checkpoints: Sequence[Checkpoint],
    manifest: Manifest,
    rows: np.ndarray,
    num_patches: int = 40,
) -> list[ProbeSet]:
    """Patches of scans that have label maps, `num_patches` at random of each scan's that hold something. Features are the
    local transformer's tokens; labels say of which structures any voxel is."""
    device = next(checkpoints[0][0].parameters()).device
    towers = [model.vision_model if isinstance(model, CTFMModel) else model for model, _ in checkpoints]
    structures, patch_size = manifest.structures, towers[0].config.patch_size
    features, labels, scans = [[] for _ in towers], [], []
    for row in rows:
        scan = manifest[int(row)]
        sample = read_scan(manifest, scan, with_segmentation=True)
        batch = cut_scans([sample], image_processor(checkpoints[0][1]), device)
        counts = count_voxels(batch.pop("labels")[0].clamp(min=0), patch_size, tuple(structures)).flatten(0, 1)
        held = counts.sum(1).nonzero()[:, 0]
        order = torch.randperm(len(held), generator=torch.Generator().manual_seed(int(row)))[:num_patches]
        chosen = held[order.to(device)]
        labels.append((counts[chosen] > 0).float().cpu().numpy())
        scans += [scan.scan_id] * len(chosen)
        for tower, own in zip(towers, features, strict=True):
            tokens = tower(**batch, output_dense_features=True).dense_features[0].flatten(0, 3)  # (g*n, e)
            own.append(tokens[chosen].float().cpu().numpy())
    table = FindingTable(findings=tuple(structures.values()), values=np.concatenate(labels))
    table = table.select(sorted(table.findings))  # whichever number a folder gives them
    return [ProbeSet(features=np.concatenate(own), labels=table, scans=tuple(scans)) for own in features]


def probe(
    model: CTFMModel | CTFMVisionModel,
    processor: CTFMImageProcessor | CTFMProcessor,
    manifest: Manifest,
    num_train: int,
    num_test: int,
) -> dict[str, float]:
    """Macro AUROC on the scans of split "test": nearest neighbours, linear probe and, of a dual encoder, zero-shot."""
    rows = choose_rows(manifest, "train", num_train), choose_rows(manifest, "test", num_test)
    findings = stated_findings(*((manifest, some) for some in rows))
    (train,), (test,) = (encode_scans([(model, processor)], manifest, some, findings) for some in rows)
    return {f"{way}/macro_auroc": macro_auroc(scores, test.labels) for way, scores in train.scores_of(test).items()}


def probe_tables(
    train: Dataset, test: Dataset, features: str = "scan_features", findings: Sequence[str] | None = None
) -> dict[str, float]:
    """Macro AUROC of nearest neighbours and of a linear probe over a column of features, such as `ctfm embed` writes to
    features.parquet, beside columns of findings (see `read_findings`).

    Raises:
        ValueError: a column is missing, or both tables are not of the same findings.
    """
    parts = []
    for table in (train, test):
        if features not in table.column_names:
            raise ValueError(f"The table has no column {features!r}; its columns are {', '.join(table.column_names)}.")
        scans = tuple(map(str, range(len(table))))
        rows = np.array(table[features][:], np.float32)
        parts.append(ProbeSet(features=rows, labels=read_findings(table, findings), scans=scans))
    known, asked = parts
    return {f"{way}/macro_auroc": macro_auroc(s, asked.labels) for way, s in known.scores_of(asked).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm probe-checkpoints", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder")
    parser.add_argument("--train-scans", type=int, default=400)
    parser.add_argument("--test-scans", type=int, default=400)
    given = parser.parse_args(arguments)
    for path in given.checkpoints:
        model, processor = load_exported(path)
        found = probe(model, processor, Manifest(given.data), given.train_scans, given.test_scans)
        print(
            json.dumps({"checkpoint": path.name} | {name: round(value, 4) for name, value in found.items()}), flush=True
        )
    return 0
