"""Whole scans of which everything is known -> one loss that teaches a dual encoder and its heads at once.

Where label maps, findings and reports of a scan are all at hand (phantoms, or scans with pseudo labels), nothing has to be
frozen or learnt in turn. Five questions are asked of one forward pass, crops of air left out:

- tokens: does this patch hold this finding, asked with prompts (the map of a text) and of the classifier's token head;
- scan: does this scan show this finding, asked with prompts (soft maximum over tokens beside the whole) and of the classifier;
- structures: which organ does this patch hold, and each voxel of some crops;
- report: which excerpt belongs to which scan (SigLIP, arXiv:2303.15343).

A small finding lights up one token among thousands: the dense questions teach it, the scan's questions teach how to pool it.
"""

# ruff: noqa: F722
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..modeling_ctfm import (
    CTFMForImageClassification,
    CTFMForSemanticSegmentation,
    CTFMModel,
    CTFMVisionOutput,
    crop_context,
    pool_token_scores,
    segmentation_loss,
)
from .alignment import FrozenTexts, pair_loss
from .objective import Metrics
from .segmentation import presence_loss


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Weights of the losses; each is a sum over findings or structures and a mean over tokens, scans or crops.

    Args:
        token_weight: of findings in tokens, asked with prompts and of the classifier; scan_weight: of findings in scans;
            organ_weight: of structures in tokens; segmentation_weight: of structures in voxels; report_weight: of excerpts.
        rare_weight: a token with a finding weighs at most so many times as much as one without.
        segmented_crops: of a step, whose voxels are asked about.
    """

    token_weight: float = 1.0
    scan_weight: float = 0.1
    organ_weight: float = 0.3
    segmentation_weight: float = 0.5
    report_weight: float = 0.1
    rare_weight: float = 20.0
    segmented_crops: int = 16


@dataclass(frozen=True, kw_only=True)
class JointBatch:
    """Occupied crops of b scans, one scan after the other, and what is known of them.

    pixel_values: `(m, c, D, H, W)`; scan, crop: `(m,)`, to which scan and which place of its crop grid each belongs.
    crop_grid: `(b, 3)`.
    structures: `(m, D, H, W)` int64, number of each voxel's structure, -100 outside the scan.
    token_structures: `(m, n, s)` bool, whether a patch holds a structure; token_findings: `(m, n, k)` bool, a finding.
    labels: `(b, k)`, 1 present, 0 absent.
    input_ids, attention_mask: `(b, tokens)`, an excerpt of each scan's report; text_keys `(b, j)`: see `AlignmentBatch`.
    prompt_ids, prompt_mask: `(2k, tokens)`, a text for "present" of every finding, then one for "absent".
    segmented: `(crops,)`, rows of `pixel_values` whose voxels are asked about.
    """

    pixel_values: Tensor
    scan: Tensor
    crop: Tensor
    crop_grid: Tensor
    structures: Tensor
    token_structures: Tensor
    token_findings: Tensor
    labels: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    text_keys: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    segmented: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "JointBatch":
        """The same batch on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        )


def find_codes(codes: Int[Tensor, "m D H W"], patch_size: Sequence[int], num_codes: int) -> Bool[Tensor, "m n codes"]:
    """Which codes lie in each patch, in the order of the patch tokens; negative codes lie nowhere.

    One comparison a code: counting by scattered additions waits for itself, since the voxels of a patch are mostly alike.
    """
    d, h, w = patch_size
    parts = codes.to(torch.int8).unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, d))
    patches = parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3).contiguous()  # (m, n, voxels)
    return torch.stack([(patches == code).any(2) for code in range(num_codes)], 2)


class JointObjective(nn.Module):
    """See the module. `model` is trained in place; its text tower stays as it is under a projection that learns."""

    def __init__(self, model: CTFMModel, config: JointConfig):
        super().__init__()
        if not model.config.token_scores:
            raise ValueError("The joint objective teaches token scores; set token_scores in the recipe's model.")
        self.config, self.model, self.texts = config, model, FrozenTexts()
        model.text_model.requires_grad_(False)
        model.vision_model.local_model.embeddings.mask_token.requires_grad_(False)  # nothing is hidden here
        self.findings = CTFMForImageClassification(model.config)
        self.findings.vision_model = None  # type: ignore[assignment]  # it reads this model's
        self.decoder = CTFMForSemanticSegmentation(model.config).decoder
        assert model.config.structures is not None
        self.organ_head = nn.Linear(model.config.vision_config.hidden_size, len(model.config.structures))  # type: ignore[union-attr]
        nn.init.zeros_(self.organ_head.weight)
        nn.init.constant_(self.organ_head.bias, -3.0)  # most structures are in few patches

    @property
    def inference_model(self) -> CTFMModel:
        return self.model

    def train(self, mode: bool = True) -> "JointObjective":
        """Keeps the frozen text tower in eval mode."""
        super().train(mode)
        self.model.text_model.eval()
        return self

    def forward(self, batch: JointBatch) -> tuple[Float[Tensor, ""], Metrics]:
        model, config = self.model, self.config
        image, tokens, context = self.encode(batch)
        present, absent = self.encode_texts(batch.prompt_ids, batch.prompt_mask).chunk(2)
        excerpts = self.encode_texts(batch.input_ids, batch.attention_mask)
        directions = torch.cat((present - absent, excerpts))

        assert image.pooler_output is not None
        embeds = nn.functional.normalize(model.visual_projection(image.pooler_output), dim=-1)
        similarities = embeds.float() @ directions.float().t() * model.logit_scale.exp()
        token_scores = model.score_tokens(tokens, context, directions)[0]  # (k + b, m, d, h, w)
        scores = similarities * model.score_weights[0] + self.pool(token_scores, batch) * model.score_weights[1]
        scores = scores + model.score_bias  # (b, k + b)
        num_findings = batch.labels.shape[1]

        class_tokens = self.findings.token_head(tokens, context).movedim(-1, 1)[0]  # (k, m, d, h, w)
        class_scores = self.findings.classifier(image.pooler_output).float()
        class_scores = class_scores + self.pool(class_tokens, batch) * self.findings.token_weights

        parts = {
            "tokens": self.token_loss(token_scores[:num_findings], batch),
            "class_tokens": self.token_loss(class_tokens, batch),
            "scans": presence(scores[:, :num_findings], batch.labels),
            "class_scans": presence(class_scores, batch.labels),
            "organs": self.organ_loss(tokens, batch),
            "segmentation": self.segmentation_loss(batch, tokens, context),
        }
        weights = {
            "tokens": config.token_weight,
            "class_tokens": config.token_weight / 2,
            "scans": config.scan_weight,
            "class_scans": config.scan_weight,
            "organs": config.organ_weight,
            "segmentation": config.segmentation_weight,
        }
        report, metrics = pair_loss(scores[:, num_findings:] + model.logit_bias, batch.text_keys, batch.text_keys)
        loss = sum((parts[name] * weight for name, weight in weights.items()), config.report_weight * report)
        return loss, metrics | {name: part.detach() for name, part in parts.items()}

    def encode(
        self, batch: JointBatch
    ) -> tuple[CTFMVisionOutput, Float[Tensor, "1 m d h w e"], Float[Tensor, "1 m f"]]:
        """The whole scans' output, and patch tokens and context of the occupied crops.

        Crops of air stand in the scan as they do in inference, encoded once for all of them.
        """
        vision = self.model.vision_model
        pixels = torch.cat((batch.pixel_values, torch.zeros_like(batch.pixel_values[:1])))
        local = vision.local_model(pixels, return_dict=True)
        num_crops = batch.crop_grid.prod(1)  # (b,)
        longest = int(num_crops.max())
        rows = torch.full((len(num_crops), longest), len(pixels) - 1, device=pixels.device)
        rows[batch.scan, batch.crop] = torch.arange(len(pixels) - 1, device=pixels.device)
        crop_mask = torch.arange(longest, device=pixels.device) < num_crops[:, None]
        coordinates = vision.descriptor_coordinates(batch.crop_grid, longest)
        mixed = vision.mix_descriptors(local.pooler_output[rows], coordinates, crop_mask)
        assert mixed.last_hidden_state is not None
        context = crop_context(mixed.last_hidden_state, longest)[batch.scan, batch.crop]  # (m, f)
        tokens = vision.to_grid(local.last_hidden_state[None, :-1], pixels[None])
        return CTFMVisionOutput(pooler_output=mixed.pooler_output), tokens, context[None]

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "texts e"]:
        """Embeddings of length 1."""
        states = self.texts.read(self.model, input_ids, attention_mask)
        return nn.functional.normalize(self.model.text_projection(states).float(), dim=-1)

    def pool(self, scores: Float[Tensor, "k m d h w"], batch: JointBatch) -> Float[Tensor, "b k"]:
        """What the tokens of each scan say together."""
        counts = batch.scan.bincount(minlength=len(batch.crop_grid)).tolist()
        pooled = []
        for part in scores.split(counts, 1):
            everything = torch.ones(1, part.shape[1], dtype=torch.bool, device=part.device)
            pooled.append(pool_token_scores(part[None], everything))
        return torch.cat(pooled)

    def token_loss(self, scores: Float[Tensor, "k m d h w"], batch: JointBatch) -> Float[Tensor, ""]:
        logits = scores.flatten(2).permute(1, 2, 0)  # (m, n, k)
        return presence_loss(logits, batch.token_findings, logits.new_ones(()), self.config.rare_weight)

    def organ_loss(self, tokens: Float[Tensor, "1 m d h w e"], batch: JointBatch) -> Float[Tensor, ""]:
        logits = self.organ_head(tokens[0].flatten(1, 3))  # (m, n, s)
        return presence_loss(logits, batch.token_structures, logits.new_ones(()), self.config.rare_weight)

    def segmentation_loss(
        self, batch: JointBatch, tokens: Float[Tensor, "1 m d h w e"], context: Float[Tensor, "1 m f"]
    ) -> Float[Tensor, ""]:
        chosen = batch.segmented
        logits = self.decoder(batch.pixel_values[chosen], tokens[0, chosen], context[0, chosen])
        return segmentation_loss(logits.float()[None], batch.structures[chosen][None])

    def after_step(self, step: int) -> None:
        """Nothing to update outside the optimizer."""


def presence(logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Binary cross entropy, summed over the findings, mean over scans."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return losses.sum(1).mean()
