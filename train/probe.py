"""Checkpoint and prepared folder -> how much its features know of the labels, quickly: while a run goes on, and for curves.

    python -m ctfm.train.probe runs/x/checkpoints/* --data runs/prepared --train-scans 400 --test-scans 400

Scans of split "train" are neighbours and training set, those of "test" are asked about. evaluate.py does it with
intervals and more questions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMModel, CTFMVisionModel
from ..pipeline_ctfm import finding_prompts
from ..processing_ctfm import CTFMProcessor
from .checkpoint import load_exported
from .data import SourceConfig, read_scan, select_rows
from .segmentation import count_voxels
from .shards import Manifest
from .views import cut_scans

FEWEST = 5  # present and absent scans that a finding must have


@dataclass(frozen=True, kw_only=True)
class ProbeSet:
    """Features of scans, or of patches of scans, and what is known of them.

    features: `(n, f)`; labels: `(n, findings)` of 0 and 1; scans: `n` ids; image_embeds: `(n, e)` of a dual encoder.
    """

    features: np.ndarray
    labels: np.ndarray
    findings: tuple[str, ...]
    scans: tuple[str, ...]
    image_embeds: np.ndarray | None = None


@torch.no_grad()
def encode_split(
    models: Sequence[CTFMModel | CTFMVisionModel],
    processor: CTFMImageProcessor,
    manifest: Manifest,
    split: str,
    num_scans: int,
) -> list[ProbeSet]:
    """The first scans of a split, read once for all models. Features are the mean and the largest value of the local
    transformer's crop descriptors."""
    device = next(models[0].parameters()).device
    features, embeds, labels, scans = [[] for _ in models], [[] for _ in models], [], []
    rows = select_rows(manifest, SourceConfig(folder=manifest.folder, split=split))[:num_scans]
    if not len(rows):
        raise ValueError(f"{manifest.folder} has no scan of split {split!r}; prepare some, or leave the probe out.")
    for row in rows:
        scan = manifest[int(row)]
        batch = cut_scans([read_scan(manifest, scan)], processor, device)
        labels.append(scan.labels)
        scans.append(scan.scan_id)
        for model, own_features, own_embeds in zip(models, features, embeds, strict=True):
            output = (model.vision_model if isinstance(model, CTFMModel) else model)(**batch)
            crops = output.crop_embeds[0].flatten(0, 1).float()
            own_features.append(torch.cat((crops.mean(0), crops.amax(0))).cpu().numpy())
            if isinstance(model, CTFMModel):
                projected = model.visual_projection(output.pooler_output)
                own_embeds.append(torch.nn.functional.normalize(projected.float(), dim=-1)[0].cpu().numpy())
    findings = tuple(sorted(labels[0]))
    table = np.array([[row[name] for name in findings] for row in labels])
    return [
        ProbeSet(
            features=np.array(own),
            labels=table,
            findings=findings,
            scans=tuple(scans),
            image_embeds=np.array(joint) if joint else None,
        )
        for own, joint in zip(features, embeds, strict=True)
    ]


@torch.no_grad()
def encode_patches(
    models: Sequence[CTFMModel | CTFMVisionModel],
    processor: CTFMImageProcessor,
    manifest: Manifest,
    split: str,
    num_scans: int,
    num_patches: int = 40,
) -> list[ProbeSet]:
    """Patches of the first scans of a split that have label maps, `num_patches` at random of each scan's that hold
    something. Features are the local transformer's tokens; labels say of which structures any voxel is."""
    device = next(models[0].parameters()).device
    towers = [model.vision_model if isinstance(model, CTFMModel) else model for model in models]
    structures, patch_size = manifest.structures, towers[0].config.patch_size
    features, labels, scans = [[] for _ in models], [], []
    rows = select_rows(manifest, SourceConfig(folder=manifest.folder, split=split, with_segmentation=True))[:num_scans]
    for row in rows:
        scan = manifest[int(row)]
        batch = cut_scans([read_scan(manifest, scan, with_segmentation=True)], processor, device)
        counts = count_voxels(batch.pop("labels")[0].clamp(min=0), patch_size, tuple(structures)).flatten(0, 1)
        held = counts.sum(1).nonzero()[:, 0]
        order = torch.randperm(len(held), generator=torch.Generator().manual_seed(int(row)))[:num_patches]
        chosen = held[order.to(device)]
        labels.append((counts[chosen] > 0).float().cpu().numpy())
        scans += [scan.scan_id] * len(chosen)
        for tower, own in zip(towers, features, strict=True):
            tokens = tower(**batch, output_dense_features=True).dense_features[0].flatten(0, 3)  # (g*n, e)
            own.append(tokens[chosen].float().cpu().numpy())
    known = {"labels": np.concatenate(labels), "findings": tuple(structures.values()), "scans": tuple(scans)}
    return [ProbeSet(features=np.concatenate(own), **known) for own in features]


def macro_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over findings with at least `FEWEST` present and absent scans."""
    found = [
        float(roc_auc_score(labels[:, k], scores[:, k]))
        for k in range(labels.shape[1])
        if FEWEST <= labels[:, k].sum() <= len(labels) - FEWEST
    ]
    return float(np.mean(found))


def knn_scores(train: ProbeSet, test: ProbeSet, k: int = 20) -> np.ndarray:
    """Share of the k most alike training scans (cosine of standardised features) that have each finding."""
    scaler = StandardScaler().fit(train.features)
    a, b = scaler.transform(train.features), scaler.transform(test.features)
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    similarity = b @ a.T
    nearest = np.argsort(-similarity, axis=1)[:, :k]
    weights = np.take_along_axis(similarity, nearest, 1).clip(min=0)[..., None]
    return (train.labels[nearest] * weights).sum(1) / weights.sum(1).clip(min=1e-9)


def linear_scores(train: ProbeSet, test: ProbeSet, penalty: float = 1e-2) -> np.ndarray:
    """Logistic regression a finding; `penalty` is sklearn's C, not tuned."""
    scores = np.zeros(test.labels.shape)
    for k in range(train.labels.shape[1]):
        if 0 < train.labels[:, k].sum() < len(train.labels):
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))
            scores[:, k] = probe.fit(train.features, train.labels[:, k]).decision_function(test.features)
    return scores


@torch.no_grad()
def zero_shot_scores(model: CTFMModel, processor: CTFMProcessor, test: ProbeSet) -> np.ndarray:
    """Similarity to "Finding." minus similarity to "No finding."."""
    assert test.image_embeds is not None
    prompts = [prompt for finding in test.findings for prompt in finding_prompts(finding)]
    words = processor.tokenizer(prompts, padding=True, return_tensors="pt").to(next(model.parameters()).device)
    embeds = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    assert embeds is not None
    texts = torch.nn.functional.normalize(embeds.float(), dim=-1).cpu().numpy()
    similarity = test.image_embeds @ texts.T
    return similarity[:, 0::2] - similarity[:, 1::2]


def probe(
    model: CTFMModel | CTFMVisionModel,
    processor: CTFMImageProcessor | CTFMProcessor,
    manifest: Manifest,
    num_train: int,
    num_test: int,
) -> dict[str, float]:
    """Macro AUROC on the scans of split "test": nearest neighbours, linear probe and, of a dual encoder, zero-shot."""
    cutter = processor.image_processor if isinstance(processor, CTFMProcessor) else processor
    (train,) = encode_split([model], cutter, manifest, "train", num_train)
    (test,) = encode_split([model], cutter, manifest, "test", num_test)
    found = {
        "knn/macro_auroc": macro_auroc(knn_scores(train, test), test.labels),
        "linear/macro_auroc": macro_auroc(linear_scores(train, test), test.labels),
    }
    if isinstance(model, CTFMModel) and isinstance(processor, CTFMProcessor):
        found["zero_shot/macro_auroc"] = macro_auroc(zero_shot_scores(model, processor, test), test.labels)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


if __name__ == "__main__":
    sys.exit(main())
