"""Scans with labels -> loss of a head on the trunk: what `finetune.py` trains, with the interface of `objective.py`.

Findings are labels of scans (`CTFMForImageClassification`), a segmentation is a label of every voxel
(`CTFMForSemanticSegmentation`). A scan is read whole, as inference reads it: head and global transformer see in training what
they will see in use.
"""

# ruff: noqa: F722

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..evaluate.metrics import FindingTable, auroc, measure_findings
from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMForImageClassification, CTFMForSemanticSegmentation, CTFMVisionModel
from .data import ScanSample, SourceConfig, read_scan, select_rows
from .descriptors import DescriptorSample
from .objective import Metrics
from .processes import ALONE, Processes
from .shards import Manifest
from .survival import cox_loss
from .views import cut_scans

LabelModel = CTFMForImageClassification | CTFMForSemanticSegmentation
MIN_VOXELS = 3  # of a finding that a part of a scan has; fewer at its edge say nothing
FOCAL_SHARE = 0.7  # of the parts that hold a finding for sure, of scans that have one


@dataclass(frozen=True, kw_only=True)
class LabelBatch:
    """pixel_values, crop_grid, crop_mask: see `CTFMVisionModel.forward`; labels: as the model of the task takes them."""

    pixel_values: Tensor
    crop_grid: Tensor
    crop_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LabelBatch":
        moved = {field.name: getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)}
        return replace(self, **moved)


class LabelObjective(nn.Module):
    """`model` is trained in place; of a frozen trunk only adapters and what `new` names, parts that the checkpoint did not have
    or that learn all the same.

    Losses of labels weigh every stated label alike, whichever process it is on, apart from `positive_weights`; soft Dice and
    the partial likelihood are those of a process's scans.

    Args:
        question: what the labels of scans are, see targets.py.
        positive_weights: of each finding, how much a present scan weighs more than an absent one.
    """

    def __init__(
        self,
        model: LabelModel,
        *,
        trunk_is_frozen: bool,
        new: Sequence[str] = (),
        processes: Processes = ALONE,
        question: str = "findings",
        positive_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.model, self.trunk_is_frozen, self.processes = model, trunk_is_frozen, processes
        self.question, self.positive_weights = question, positive_weights
        for name, parameter in model.vision_model.named_parameters():
            learns = not trunk_is_frozen or name.startswith(tuple(new)) or ".lora_" in name
            parameter.requires_grad_(learns)
        model.vision_model.local_model.embeddings.mask_token.requires_grad_(False)  # nothing is hidden here

    @property
    def inference_model(self) -> LabelModel:
        return self.model

    def train(self, mode: bool = True) -> "LabelObjective":
        """Keeps frozen modules in eval mode."""
        super().train(mode)
        if self.trunk_is_frozen:
            self.model.vision_model.eval()
        return self

    def forward(self, batch: LabelBatch) -> tuple[Float[Tensor, ""], Metrics]:
        if not isinstance(self.model, CTFMForImageClassification):
            return self.model(**vars(batch)).loss, {}
        logits = self.model(batch.pixel_values, batch.crop_grid, batch.crop_mask).logits
        loss = label_loss(logits, batch.labels, self.question, self.positive_weights)
        stated = count_stated(batch.labels, self.question)
        return loss * stated * self.processes.count / self.processes.add(stated).clamp(min=1), {}

    def after_step(self, step: int) -> None:
        """There is no teacher to update."""


def label_loss(
    logits: Float[Tensor, "b k"],
    labels: Float[Tensor, "b l"],
    question: str = "findings",
    positive_weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Mean over what is stated; 0 where nothing is. Classes come as 1 of k, numbers as they are, time beside event."""
    logits, labels = logits.float(), labels.float()
    if question == "survival":
        return cox_loss(logits[:, 0], labels[:, 0], labels[:, 1]) + 0 * logits.sum()  # a batch may hold no event
    stated = ~labels.isnan()
    if question == "one_of":
        known = stated.all(1)
        each = nn.functional.cross_entropy(logits, labels.nan_to_num(0.0).argmax(1), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)
    if question == "value":
        losses = (logits - labels.nan_to_num(0.0)) ** 2
    else:
        weight = None if positive_weights is None else logits.new_tensor(positive_weights)
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, labels.nan_to_num(0.0), reduction="none", pos_weight=weight
        )
    return (losses * stated).sum() / stated.sum().clamp(min=1)


def count_stated(labels: Tensor, question: str) -> Tensor:
    """What `label_loss` divides by: labels, classes, or events."""
    if question == "survival":
        return (labels[:, 1] == 1).sum().float()
    stated = ~labels.isnan()
    return (stated.all(1).sum() if question == "one_of" else stated.sum()).float()


# ---- adapters ----


def add_adapters(vision: CTFMVisionModel, rank: int) -> None:
    """LoRA on the attention of the trunk, in place; nothing for rank 0."""
    if rank:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["qkv", "out"])
        inject_adapter_in_model(config, vision)


def merge_adapters(vision: CTFMVisionModel) -> None:
    """Adapters into the weights that they adapt, in place."""
    from peft.tuners.lora import LoraLayer

    for module in list(vision.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[operator]
                setattr(module, name, child.get_base_layer())


# ---- labels of a prepared folder ----


def name_findings(manifests: Sequence[Manifest], rows: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Findings that some of the scans have and some have not, in the order of the alphabet.

    Raises:
        ValueError: there is none.
    """
    stated: dict[str, set[bool]] = {}
    for manifest, chosen in zip(manifests, rows, strict=True):
        for row in chosen:
            for name, value in manifest.labels_of(int(row)).items():
                stated.setdefault(name, set()).add(value > 0.5)
    names = tuple(sorted(name for name, values in stated.items() if len(values) == 2))
    if not names:
        folders = ", ".join(manifest.folder for manifest in manifests)
        raise ValueError(
            f"No finding in {folders} is present in one scan and absent in another, so there is nothing to learn."
        )
    return names


def tabulate(samples: Sequence[ScanSample | DescriptorSample], findings: Sequence[str]) -> Float[Tensor, "b k"]:
    """1 present, 0 absent, NaN not stated."""
    return torch.tensor([[sample.labels.get(name, float("nan")) for name in findings] for sample in samples])


def tabulate_parts(
    samples: Sequence[DescriptorSample],
    crops: Int[Tensor, "b kept"],
    findings: Sequence[str],
    structures: Mapping[int, str],
) -> Float[Tensor, "b k"]:
    """Findings of the part of every scan that `crops` are, by its label map: 1 present, 0 absent, NaN not known.

    A finding without a structure of its own may be one on a side, "Left lung nodule" of "Lung nodule": a part has it where
    it holds the finding and the scan has it on that side alone.
    """
    numbers = {name: number for number, name in structures.items()}
    unknown = float("nan")
    rows = []
    for sample, kept in zip(samples, crops, strict=True):
        assert sample.structures is not None
        held = sample.structures[kept].sum(0)  # (kept, 256) -> (256,)

        def ask(name: str, held: Tensor = held) -> float:
            count = int(held[numbers[name]]) if name in numbers else -1
            return 1.0 if count >= MIN_VOXELS else 0.0 if count == 0 else unknown

        row = []
        for name in findings:
            side, _, rest = name.partition(" ")
            other = {"Left": "Right", "Right": "Left"}.get(side)
            value = ask(name if other is None else rest.capitalize())
            if other is not None and value == 1:
                here, there = (sample.labels.get(f"{which} {rest}", unknown) for which in (side, other))
                value = here if here != there else unknown
            row.append(value)
        rows.append(row)
    return torch.tensor(rows)


def draw_parts(
    samples: Sequence[DescriptorSample], findings: Sequence[str], structures: Mapping[int, str], most: int, seed: int
) -> Int[Tensor, "b kept"]:
    """Crops of a part of every scan, one to `most`, of those that hold anything if there are enough. Most parts hold a finding,
    if the scan does."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 + int(torch.randint(most, (), generator=generator))
    count = min(count, *(len(sample.descriptors) for sample in samples))
    named = torch.tensor([number for number, name in structures.items() if name in findings], dtype=torch.long)
    rows = []
    for sample in samples:
        assert sample.structures is not None
        # The crops with the highest scores are taken: 0 to 1 at random, 1 more for holding anything, 2 more for the finding.
        holds_anything = sample.structures[:, 1:].any(1)
        scores = torch.rand(len(sample.structures), generator=generator) + holds_anything
        with_finding = sample.structures[:, named].any(1).nonzero()[:, 0]
        if len(with_finding) and torch.rand((), generator=generator) < FOCAL_SHARE:
            chosen = with_finding[torch.randint(len(with_finding), (), generator=generator)]
            scores[chosen] += 2
        best = scores.argsort(descending=True)[:count]
        rows.append(best.sort().values)
    return torch.stack(rows)


def make_label_batch(
    samples: Sequence[ScanSample], processor: CTFMImageProcessor, findings: Sequence[str], device: torch.device
) -> LabelBatch:
    """`findings` is empty where the labels are those of voxels."""
    cut = cut_scans(samples, processor, device)
    return LabelBatch(labels=tabulate(samples, findings).to(device), **cut) if findings else LabelBatch(**cut)


def label_names(model: LabelModel) -> list[str]:
    """In the order of the logits."""
    names = model.config.id2label or {}
    return [names[number] for number in sorted(names)]  # type: ignore[index]


# ---- how well a checkpoint names them ----


@torch.no_grad()
def grade(
    model: LabelModel, processor: CTFMImageProcessor, manifest: Manifest, split: str, num_scans: int
) -> dict[str, float]:
    """AUROC of every finding, or Dice of every structure, over scans of a split, and their mean; empty without scans.

    Dice of a structure is the mean over the scans that hold it; a finding needs `metrics.MIN_SCANS` scans of either kind.
    """
    names = label_names(model)
    if isinstance(model, CTFMForImageClassification):
        logits, truth, _ = answer(model, processor, manifest, split, num_scans, names)
        return grade_findings(names, logits, truth) if len(logits) else {}
    rows = select_rows(manifest, SourceConfig(folder=manifest.folder, split=split, with_segmentation=True))[:num_scans]
    device, dice = next(model.parameters()).device, []
    for row in rows:
        sample = read_scan(manifest, manifest[int(row)], with_segmentation=True)
        batch = make_label_batch([sample], processor, (), device)
        labels = model.segment(batch.pixel_values, batch.crop_grid, batch.crop_mask)[0]
        dice.append(dice_of(labels, batch.labels[0], len(names)))
    return mean_over(names[1:], means_of_stated(np.array(dice)[:, 1:]), "dice") if dice else {}


@torch.no_grad()
def answer(
    model: CTFMForImageClassification,
    processor: CTFMImageProcessor,
    manifest: Manifest,
    split: str,
    num_scans: int,
    columns: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits `(n, k)` and labels `(n, columns)` of scans of a split, and their ids."""
    rows = select_rows(manifest, SourceConfig(folder=manifest.folder, split=split))[:num_scans]
    device = next(model.parameters()).device
    logits, truth, ids = [], [], []
    for row in rows:
        scan = manifest[int(row)]
        batch = make_label_batch([read_scan(manifest, scan)], processor, columns, device)
        logits.append(model(batch.pixel_values, batch.crop_grid, batch.crop_mask).logits[0].float().cpu().numpy())
        truth.append(batch.labels[0].cpu().numpy())
        ids.append(scan.scan_id)
    return np.array(logits), np.array(truth), ids


def grade_findings(names: Sequence[str], logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    a, b = (FindingTable(findings=tuple(names), values=table) for table in (logits, truth))
    found = measure_findings(auroc, a, b, np.ones((1, len(logits))))
    return mean_over(list(found), [float(values[0]) for values in found.values()], "auroc")


def dice_of(found: Tensor, labels: Tensor, num_labels: int) -> list[float]:
    """Of every label in one scan's crops, `(g, D, H, W)` both; NaN where the scan has none of it. -100 does not count."""
    counted = labels != -100
    pairs = labels[counted] * num_labels + found[counted]
    table = torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels).double()  # (truth, found)
    in_truth, in_found = table.sum(1), table.sum(0)
    dice = 2 * table.diagonal() / (in_truth + in_found)
    return torch.where(in_truth > 0, dice, float("nan")).tolist()


def means_of_stated(values: np.ndarray) -> list[float]:
    """Over rows, without NaN; NaN where a column has nothing else."""
    return [
        float(np.mean(column[~np.isnan(column)])) if (~np.isnan(column)).any() else float("nan") for column in values.T
    ]


def mean_over(names: Sequence[str], values: Sequence[float], kind: str) -> dict[str, float]:
    known = {f"{name}/{kind}": value for name, value in zip(names, values, strict=True) if not np.isnan(value)}
    return {f"macro_{kind}": float(np.mean(list(known.values())))} | known if known else {}
