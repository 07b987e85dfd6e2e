"""scans and reports -> sigmoid loss, a loss on prompts where findings are labelled, and metrics.

Report alignment (SigLIP, Zhai et al. 2023, arXiv:2303.15343) of a whole `CTFMModel`, with the same interface as
`objective.py`. It runs in two phases with one lineage of checkpoints, since both have the same state: first the local
transformer is frozen and its gradients are never computed (its descriptors may come from a cache), then it is trained.

With several processes every process compares its scans with the reports of all, so the gradients are those of one process
with the whole batch; see `processes.py`. SPECTRE's are not: its text gradients point elsewhere (cosine 0.28).
"""

# ruff: noqa: F722
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..modeling_ctfm import CTFMModel, pool_text
from .processes import ALONE, Processes

Metrics = dict[str, Tensor]
MAX_TEXTS = 100_000  # that a frozen text tower's outputs are kept of: 150 MB at 384 numbers each


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What is trained. The loss has no numbers of its own: its scale (from 10) and bias (from -10) are learnt, and their
    first values are those of SigLIP and SPECTRE in `CTFMConfig`.

    Args:
        local_is_frozen: the first phase (SPECTRE: 10 of 100 epochs, 5,900 of 59,000 steps).
        text_is_frozen: keep the text tower as it is and train its projection alone. A tower with adapters (PEFT) freezes
            itself, so this stays False.
        prompt_weight: of the loss on prompts, a sum over labelled findings and a mean over scans; of parts of scans as much
            again.
    """

    local_is_frozen: bool = True
    text_is_frozen: bool = False
    prompt_weight: float = 0.5


@dataclass(frozen=True, kw_only=True)
class AlignmentBatch:
    """Scan i belongs to report i. Either voxels or, in the first phase, cached descriptors.

    pixel_values, crop_grid, crop_mask: see `CTFMVisionModel.forward`.
    descriptors: `(b, g, t, 2e)`, as `CTFMVisionOutput.crop_embeds`.
    kept_crops: `(b, kept)`, the crops to encode, from `masking.draw_kept_crops`; None for all.
    input_ids, attention_mask: `(b, tokens)`.
    text_keys: `(b, k)` int64, what a text is known by, from `reports.hash_words`: texts that share a key in one of the k
        columns are no negatives of each other's scans. None where no two texts are equal.
    labels: `(b, k)`, 1 present, 0 absent, NaN not stated; prompt_ids, prompt_mask: `(2k, tokens)`, a text for "present" of
        every finding, then one for "absent". All three or none.
    part_crops, part_labels: `(b, kept)` and `(b, k)`, crops of a part of every scan and the findings that it holds.
    """

    input_ids: Tensor
    attention_mask: Tensor
    crop_grid: Tensor
    text_keys: Tensor | None = None
    pixel_values: Tensor | None = None
    descriptors: Tensor | None = None
    crop_mask: Tensor | None = None
    kept_crops: Tensor | None = None
    labels: Tensor | None = None
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None
    part_crops: Tensor | None = None
    part_labels: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.pixel_values is None) == (self.descriptors is None):
            raise ValueError("A batch holds either pixel_values or descriptors, and this one holds both or neither.")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AlignmentBatch":
        """The same batch on another device."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: t.to(device, non_blocking=non_blocking) for name, t in present.items() if t is not None}
        return replace(self, **moved)


def sigmoid_loss(
    image_embeds: Float[Tensor, "b e"],
    text_embeds: Float[Tensor, "b e"],
    logit_scale: Float[Tensor, "1"],
    logit_bias: Float[Tensor, "1"],
    text_keys: Int[Tensor, "b k"] | None = None,
    processes: Processes = ALONE,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Scan i belongs to report i (arXiv:2303.15343, equation 1), summed over reports, mean over this process's scans.

    Args:
        image_embeds, text_embeds: of length 1.
        logit_scale: logarithm of the scale.
        text_keys: see `AlignmentBatch`. Pairs of a scan with another scan's report of an equal key are left out: the report
            is true of both, so it is no negative, and that it was written about the other makes it no positive.

    Returns:
        The loss, and of it the part of the pairs that belong together and of those that do not; share of scans of which no
        report is nearer than their own or one equal to it.
    """
    texts = processes.gather(text_embeds.float())
    with torch.autocast(texts.device.type, enabled=False):  # it would round both factors of the product to bfloat16
        logits = image_embeds.float() @ texts.T * logit_scale.exp() + logit_bias  # (b, count*b)
    keys = None if text_keys is None else processes.gather(text_keys)
    return pair_loss(logits, text_keys, keys, processes.rank * len(logits))


def pair_loss(
    logits: Float[Tensor, "b texts"],
    text_keys: Int[Tensor, "b k"] | None,
    other_keys: Int[Tensor, "texts k"] | None,
    first: int = 0,
) -> tuple[Float[Tensor, ""], Metrics]:
    """`sigmoid_loss` of logits: scan i belongs to text `first` + i; the keys are those of the scans' own and of all texts."""
    own = torch.zeros_like(logits, dtype=torch.bool)
    own.diagonal(first).fill_(True)
    equal = own
    if text_keys is not None and other_keys is not None:
        equal = (text_keys[:, None] == other_keys).any(-1)  # (b, texts)
    losses = -nn.functional.logsigmoid(torch.where(own, logits, -logits))
    losses = losses.masked_fill(equal & ~own, 0.0)
    loss = losses.sum(1).mean()
    with torch.no_grad():
        matched = losses.diagonal(first).mean()
        nearest = equal.gather(1, logits.argmax(1, keepdim=True)).float().mean()
    return loss, {
        "alignment": loss.detach(),
        "matched": matched,
        "unmatched": loss.detach() - matched,
        "nearest_is_own": nearest,
    }


def prompt_loss(
    image_embeds: Float[Tensor, "b e"],
    present_embeds: Float[Tensor, "k e"],
    absent_embeds: Float[Tensor, "k e"],
    labels: Float[Tensor, "b k"],
    logit_scale: Float[Tensor, "1"],
) -> Float[Tensor, ""]:
    """Binary cross entropy of the zero-shot answer, the difference of a scan's logits for "present" and for "absent", over
    the findings that are stated; see `zero-shot-image-classification` in pipeline_ctfm.py."""
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = image_embeds.float() @ (present_embeds.float() - absent_embeds.float()).T * logit_scale.exp()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return losses.masked_fill(labels.isnan(), 0.0).sum(1).mean()


class FrozenTexts:
    """What a frozen text tower makes of each text, which it reads once: prompts and short excerpts come again and again, and a
    CPU spends more time on them than on scans."""

    def __init__(self) -> None:
        self.known: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def read(self, model: CTFMModel, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "texts w"]:
        """The text tower's pooled states."""
        if len(self.known) > MAX_TEXTS:
            self.known.clear()
        rows = zip(input_ids.cpu().numpy(), attention_mask.bool().cpu().numpy(), strict=True)
        keys = [row[mask].tobytes() for row, mask in rows]
        new = [row for row, key in enumerate(keys) if key not in self.known]
        if new:
            ids, mask = input_ids[new], attention_mask[new]
            states = model.text_model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
            pooled = pool_text(states, mask, model.config.text_pooling)
            self.known |= {keys[row]: found for row, found in zip(new, pooled, strict=True)}
        return torch.stack([self.known[key] for key in keys])


class AlignmentObjective(nn.Module):
    """See the module. `model` is trained in place.

    The mask token belongs to self-supervision and is frozen here: it has no gradient, which DDP would wait for. Build the
    objective anew for the second phase, before DDP or FSDP look at what is trainable.
    """

    def __init__(self, model: CTFMModel, config: AlignmentConfig, processes: Processes = ALONE):
        super().__init__()
        self.config, self.processes = config, processes
        self.model = model
        local = model.vision_model.local_model
        local.requires_grad_(not config.local_is_frozen)
        local.embeddings.mask_token.requires_grad_(False)
        self.texts = FrozenTexts()
        if config.text_is_frozen:
            model.text_model.requires_grad_(False)

    @property
    def inference_model(self) -> CTFMModel:
        return self.model

    def train(self, mode: bool = True) -> "AlignmentObjective":
        """Keeps frozen modules in eval mode."""
        super().train(mode)
        if self.config.local_is_frozen:
            self.model.vision_model.local_model.eval()
        if self.config.text_is_frozen:
            self.model.text_model.eval()
        return self

    def forward(self, batch: AlignmentBatch) -> tuple[Float[Tensor, ""], Metrics]:
        model = self.model
        image_embeds = self.encode_scans(batch, batch.kept_crops)
        text_embeds = self.encode_texts(batch.input_ids, batch.attention_mask)
        scale, bias = model.logit_scale, model.logit_bias
        loss, metrics = sigmoid_loss(image_embeds, text_embeds, scale, bias, batch.text_keys, self.processes)
        if batch.labels is not None:
            present, absent = self.encode_texts(batch.prompt_ids, batch.prompt_mask).chunk(2)
            prompts = prompt_loss(image_embeds, present, absent, batch.labels, scale)
            loss = loss + self.config.prompt_weight * prompts
            metrics |= {"prompts": prompts.detach()}
            if batch.part_labels is not None:
                part_embeds = self.encode_scans(batch, batch.part_crops)
                parts = prompt_loss(part_embeds, present, absent, batch.part_labels, scale)
                loss = loss + self.config.prompt_weight * parts
                metrics |= {"parts": parts.detach()}
        # A copy: FSDP frees the gathered parameter that a view would look into.
        return loss, metrics | {"logit_scale": scale.detach().exp()[0], "logit_bias": bias.detach().clone()[0]}

    def encode_texts(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Float[Tensor, "texts e"]:
        """Embeddings of length 1."""
        assert input_ids is not None
        assert attention_mask is not None
        model = self.model
        if self.config.text_is_frozen:
            embeds = model.text_projection(self.texts.read(model, input_ids, attention_mask))
        else:
            embeds = model.get_text_features(input_ids, attention_mask).pooler_output
        assert embeds is not None
        return nn.functional.normalize(embeds, dim=-1)

    def encode_scans(self, batch: AlignmentBatch, kept: Int[Tensor, "b kept"] | None) -> Float[Tensor, "b e"]:
        """Embeddings of length 1, from the crops that are kept."""
        vision = self.model.vision_model
        crops = batch.pixel_values if batch.descriptors is None else batch.descriptors
        assert crops is not None
        num_crops, crop_mask = crops.shape[1], batch.crop_mask
        if kept is not None:
            scans = torch.arange(len(kept), device=kept.device)[:, None]
            crops = crops[scans, kept]
            crop_mask = None if crop_mask is None else crop_mask[scans, kept]
        if batch.descriptors is None:
            crops = self.describe(crops)
        elif not self.config.local_is_frozen:
            raise ValueError("Cached descriptors cannot train the local transformer; give pixel_values in this phase.")
        coordinates = vision.descriptor_coordinates(batch.crop_grid, num_crops)
        if kept is not None:
            coordinates = coordinates.unflatten(1, (num_crops, -1))[scans, kept].flatten(1, 2)
        features = vision.mix_descriptors(crops, coordinates, crop_mask).pooler_output
        return nn.functional.normalize(self.model.visual_projection(features), dim=-1)

    def describe(self, pixel_values: Float[Tensor, "b g c D H W"]) -> Float[Tensor, "b g t f"]:
        """Crop descriptors, without a graph in the first phase; also what a cache of descriptors is made with."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.local_is_frozen):
            found = self.model.vision_model.encode_crops(pixel_values, output_tokens=False).pooler_output
        assert found is not None
        return found

    def after_step(self, step: int) -> None:
        """There is no teacher to update."""
