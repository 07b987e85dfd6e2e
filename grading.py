"""Checkpoint -> what it says of a scan: findings with probabilities, and whether the scan is like those of the training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.utils import cached_file

from .body import find_body_patches, find_inside, join_crops, split_crops
from .embedding import load
from .gate import Gate, load_gate, scan_features
from .image_processing_ctfm import CropGeometry, CTFMBatchFeature, CTFMImageProcessor
from .modeling_ctfm import CTFMForImageClassification, CTFMModel, CTFMVisionOutput
from .pipeline_ctfm import finding_prompts, grade_labels
from .processing_ctfm import CTFMProcessor
from .weights import load_complete


@dataclass(frozen=True, kw_only=True)
class Graded:
    """
    findings: label and score of each, and where it is calibrated probability, interval and verdict; of one that is not absent
        `place_mm`, RAS+, where its map is strongest inside the body, where the checkpoint has maps of findings.
    distance: to the reference scans of the checkpoint, 1 at the edge of what is like them; None where it has none, infinite
        where the scan shows no body.
    heat: `(g, d, h, w)`, the map of the likeliest finding that has a place, from 0 at the middle patch of the body to 1 at that
        place.
    """

    findings: tuple[dict[str, Any], ...]
    distance: float | None
    heat: torch.Tensor | None = None


class Grader:
    """Findings by name of a checkpoint that aligns scans with texts, or those that a classifier was trained for.

    Args:
        model_id: folder or Hub id.
        findings: which; by default all that a classifier has, or that the checkpoint is calibrated for.

    Raises:
        OSError: there is no such checkpoint, or it grades no finding or not this one.
    """

    def __init__(self, model_id: str, findings: Sequence[str] = (), device: torch.device | None = None):
        architectures = AutoConfig.from_pretrained(model_id).architectures or ()
        if "CTFMForImageClassification" in architectures:
            model: Any = load_complete(CTFMForImageClassification, model_id, dtype=torch.float32).eval()
            self.processor, self.name = CTFMImageProcessor.from_pretrained(model_id), model_id
            known = [model.config.id2label[number] for number in sorted(model.config.id2label)]
        else:
            loaded: Any = load(model_id)
            model, self.processor, self.name = loaded
            if not isinstance(model, CTFMModel):
                raise OSError(f"{model_id} holds a scan encoder without findings. Train a head on it: ctfm probe.")
            known = list(model.config.calibration or ())
        torch.nn.Module.to(model, device or torch.device("cpu"))
        self.model: Any = model
        self.findings = list(findings) or known
        if not self.findings:
            raise OSError(f"{model_id} is calibrated for no finding. Name some: --findings 'Pleural effusion' ...")
        if isinstance(model, CTFMForImageClassification) and (unknown := set(findings) - set(known)):
            raise OSError(f"{model_id} was not trained for {', '.join(sorted(unknown))}; it grades {', '.join(known)}.")
        self.names = dict(enumerate(self.findings))
        self.directions = self.embed_findings(model_id) if isinstance(model, CTFMModel) else None
        gate = cached_file(model_id, "gate.safetensors", _raise_exceptions_for_missing_entries=False)
        self.gate: Gate | None = load_gate(None if gate is None else Path(gate))

    @torch.no_grad()
    def embed_findings(self, model_id: str) -> torch.Tensor:
        """Present minus absent prompt of each finding, `(findings, e)`, once for all scans."""
        prompts = [prompt for name in self.findings for prompt in finding_prompts(name)]
        words = CTFMProcessor.from_pretrained(model_id)(text=prompts).to(self.model.device)
        text = self.model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
        present, absent = torch.nn.functional.normalize(text, dim=-1).view(len(self.findings), 2, -1).unbind(1)
        return present - absent

    @torch.inference_mode()
    def grade(self, inputs: CTFMBatchFeature) -> Graded:
        """One scan."""
        tensors = {name: value.to(self.model.device) for name, value in inputs.items()}
        vision = self.model.vision_model(**tensors, output_dense_features=True)
        body = self.find_body(vision, inputs)
        distance = self.distance_of(vision, body)
        if self.directions is not None:
            vision.pooler_output = self.model.visual_projection(vision.pooler_output)
            logits = self.model.score_texts(vision, self.directions)[0][0]
        else:
            logits = self.model.score(vision)[0][0]
        findings = self.describe(logits.float().cpu())
        heat = self.place_findings(findings, vision, inputs, body)
        return Graded(findings=tuple(findings), distance=distance, heat=heat)

    def describe(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        """The likeliest first."""
        config = self.model.config
        names: Any = self.names if self.directions is not None else config.id2label
        kind = None if self.directions is not None else config.problem_type
        graded = grade_labels(logits, names, kind, config.calibration or {})
        chosen = [row for row in graded if row["label"] in self.findings]
        return sorted(chosen, key=lambda row: (-row.get("probability", row["score"]), row["label"]))

    def find_body(self, vision: CTFMVisionOutput, inputs: CTFMBatchFeature) -> torch.Tensor:
        """Which patches lie in the body, `(g, d, h, w)`."""
        (geometry,), dense = inputs.geometry, vision.dense_features
        assert dense is not None
        inside = find_inside(inputs["pixel_values"][0, :, 0], geometry)
        return split_crops(find_body_patches(inside, dense[0], geometry.crop_grid), geometry.crop_grid).to(dense.device)

    def distance_of(self, vision: CTFMVisionOutput, body: torch.Tensor) -> float | None:
        """As the Space judges it; infinite where the scan shows no body."""
        if self.gate is None:
            return None
        if body.sum() < 2:
            return math.inf
        return self.gate.distance(scan_features(vision, body).cpu()) / self.gate.threshold

    def place_findings(
        self,
        findings: Sequence[dict[str, Any]],
        vision: CTFMVisionOutput,
        inputs: CTFMBatchFeature,
        body: torch.Tensor,
    ) -> torch.Tensor | None:
        """Adds `place_mm` to the findings that are not absent, and returns the map of the first of them, see `Graded`."""
        placed = [finding for finding in findings if finding.get("verdict") != "absent"]
        if self.directions is None or not placed or body.sum() < 2:
            return None
        directions = self.directions[[self.findings.index(finding["label"]) for finding in placed]]
        grid, mask = (inputs[name].to(self.model.device) for name in ("crop_grid", "crop_mask"))
        (maps,) = self.model.get_text_maps(vision, grid, mask, directions)
        (geometry,) = inputs.geometry
        for finding, cells in zip(placed, maps, strict=True):
            inside = join_crops(torch.where(body, cells, -torch.inf), geometry.crop_grid)
            finding["place_mm"] = place_of(int(inside.argmax()), tuple(inside.shape), geometry)
        middle, top = maps[0][body].median(), maps[0][body].max()
        return torch.where(body, (maps[0] - middle) / (top - middle).clamp(min=1e-12), 0.0).clamp(0, 1).cpu()


def place_of(number: int, shape: tuple[int, ...], geometry: CropGeometry) -> list[float]:
    """Where on the scan the centre of a patch lies, RAS+ mm: of patch `number` of all `(D, H, W)`."""
    index = np.array(np.unravel_index(number, shape))
    size = np.array(geometry.crop_grid) * geometry.crop_size / shape  # in voxels of the grid
    voxel = np.array(geometry.offset) + np.array(geometry.step) * ((index + 0.5) * size - 0.5)
    inside = voxel.clip(0, np.array(geometry.shape) - 1)  # a patch at the border may reach over it
    return [round(float(place), 1) for place in (geometry.affine @ [*inside, 1.0])[:3]]
