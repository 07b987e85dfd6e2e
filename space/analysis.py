"""Scan -> findings with their evidence, heat maps, embedding, similar scans, principal components, changes.

Everything is computed from one pass of the model over the scan; the pass is kept with the scan in the cache, so a second look
costs a product of small matrices. Arrays are `(depth, height, width)`, places in RAS+ mm.
"""

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from from_package import Judged, find_body_patches, find_inside, join_crops, label_pieces, scan_features, split_crops
from loading import Weights
from uploads import Scan, UploadError

MAX_SECONDS = 180.0  # of one pass of the model; then it is given up
NEAR_CHANCE = 0.6  # an AUROC whose 95 % interval begins below says too little to show the finding unasked
MAX_PRESENT = 0.999  # a threshold above can never be reached: the finding could never be "present"
DEFAULT_FINDINGS = (
    "Pleural effusion",
    "Pericardial effusion",
    "Cardiomegaly",
    "Lung nodule",
    "Consolidation",
    "Atelectasis",
    "Emphysema",
    "Lymphadenopathy",
    "Hiatal hernia",
    "Liver lesion",
    "Kidney stone",
    "Ascites",
)  # for a checkpoint that is calibrated for none

Report = Callable[[float, str], object]  # share done, key of the stage in texts.py


@dataclass(frozen=True, kw_only=True)
class Place:
    """The strongest place of a map: `mm` is RAS+; `slice_number` counts axial slices from the feet, from 1; `size_ml` is how
    much body around it is above the map's level, None where it is below or the map has no level."""

    mm: tuple[float, float, float]
    slice_number: int
    side: str  # "right", "middle", "left" of the body
    front: str  # "front", "centre", "back"
    level: str  # "lower", "middle", "upper" third of the scan
    size_ml: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding's answer. `probability`, `interval`, `verdict` and its thresholds are None where the checkpoint is not
    calibrated for it; `place` is None where the finding is absent or no place stands out; `auroc` is what was measured of it,
    None where nothing was.
    """

    label: str
    score: float
    probability: float | None
    interval: tuple[float, float] | None
    verdict: str | None
    place: Place | None
    absent_below: float | None = None
    present_above: float | None = None
    auroc: Mapping[str, float] | None = None

    @property
    def is_near_chance(self) -> bool:
        return self.auroc is not None and self.auroc.get("low", self.auroc["value"]) < NEAR_CHANCE

    @property
    def order(self) -> float:
        return self.score if self.probability is None else self.probability


@dataclass(kw_only=True)
class Analysis:
    """One pass of the model over a scan.

    `cells` of `maps` is the token grid of the whole scan, `(D, H, W)` of tokens; `body` says which of them lie in the body,
    `inside` the same of finer cells. Where `judged` says that nothing is answered, there are no findings and no maps.
    """

    embedding: Tensor
    vision: Any
    inputs: Any
    body: Tensor
    inside: Tensor
    judged: Judged
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    maps: dict[str, Tensor] = field(default_factory=dict)

    @property
    def geometry(self) -> Any:
        return self.inputs.geometry[0]

    @property
    def num_bytes(self) -> int:
        return self.vision.dense_features.nbytes + sum(cells.nbytes for cells in self.maps.values())


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a sentence gets: its cosine with the scan, how many of the `num_sentences` other sentences fit the scan better, in
    what share of the reference scans it fits less well, its map and the map's strongest place; or the words in it that no
    training report has, and nothing else."""

    unknown: tuple[str, ...] = ()
    similarity: float = 0.0
    rank: int = 0
    num_sentences: int = 0
    better_than: float = 0.0
    cells: Tensor | None = None
    place: Place | None = None

    @property
    def fits(self) -> bool:
        """Among the best tenth of sentences, and better than in nine of ten reference scans."""
        return not self.unknown and self.rank <= 0.1 * self.num_sentences and self.better_than >= 0.9


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A scan of the gallery: `picture` is a PNG, `findings` what its report names."""

    similarity: float
    picture: Path
    findings: tuple[str, ...]
    report: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """A finding in a prior and a current scan; `kind` is "new", "resolved", "more", "less", "same" or "unclear"."""

    label: str
    prior: Finding
    current: Finding
    kind: str


def on_zero_gpu(function: Callable) -> Callable:
    """On a ZeroGPU Space the pass runs where the GPU is lent; anywhere else nothing changes."""
    try:
        import spaces  # type: ignore[reportMissingImports]
    except ImportError:
        return function
    return spaces.GPU(duration=60)(function)


class Analyser:
    """The model and what it answers. One pass at a time; everything else is quick."""

    def __init__(self, weights: Weights, gallery: Path | None = None) -> None:
        self.weights = weights
        known = weights.calibration
        self.labels = tuple(label for label in known if known[label]["unsure_high"] < MAX_PRESENT) or DEFAULT_FINDINGS
        self.not_asked = tuple(label for label in known if label not in self.labels)  # could never be "present"
        self.folder = gallery
        self._gallery: list[tuple[Tensor, Path, tuple[str, ...], str]] = []
        self._lock = threading.Lock()
        self._forward = on_zero_gpu(forward)

    @cached_property
    def directions(self) -> Tensor:
        """`(findings, e)`: the present prompt of every finding minus its absent one."""
        present, absent = (
            self.embed_texts([p for label in self.labels for p in self.prompts(label)])
            .view(-1, 2, self.weights.model.config.projection_dim)
            .unbind(1)
        )
        return present - absent

    @cached_property
    def sentences(self) -> Tensor:
        """`(sentences, e)`: what reports of the reference scans say."""
        assert self.weights.gate is not None
        return self.embed_texts(self.weights.gate.sentences)

    def prompts(self, label: str) -> tuple[str, str]:
        return sys.modules[type(self.weights.grade).__module__].finding_prompts(label)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.weights.processor(text=list(texts))
        output = self.weights.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return torch.nn.functional.normalize(output.pooler_output, dim=-1).cpu()

    @property
    def gallery(self) -> list[tuple[Tensor, Path, tuple[str, ...], str]]:
        """The indexed phantoms, as soon as they are drawn (phantom/gallery.py)."""
        if not self._gallery and self.folder is not None:
            self._gallery = load_gallery(self.folder, self.weights)
        return self._gallery

    @property
    def map_top(self) -> float:
        return 2.0 if self.weights.gate is None else self.weights.gate.map_top

    # ---- one scan ----

    def analyse(self, scan: Scan, report: Report = lambda share, stage: None) -> Analysis:
        """Fills `scan.analysis`, once.

        Raises:
            UploadError: the pass took longer than `MAX_SECONDS`.
        """
        with self._lock:
            if scan.analysis is not None:
                return scan.analysis
            start = time.perf_counter()
            report(0.05, "stage_resample")
            inputs = self.weights.processor.image_processor(scan.volume)
            report(0.3, "stage_encode")
            watch = self.watched(inputs, start, report) if self._forward is forward else contextlib.nullcontext()
            with watch:
                vision = self._forward(self.weights.model, dict(inputs))
            report(0.9, "stage_findings")
            analysis = self.grade(vision, inputs)
            analysis.seconds = time.perf_counter() - start
            scan.analysis = analysis
            return analysis

    def watched(self, inputs: Any, start: float, report: Report) -> Any:
        """Tells how far the local transformer is, and gives up after `MAX_SECONDS`."""
        local = self.weights.model.vision_model.local_model
        occupied = sum(bool(crop.any()) for crop in inputs.pixel_values[0]) + 1
        done = 0

        def after(module: Any, arguments: Any, output: Any) -> None:
            nonlocal done
            done += len(output.pooler_output)
            if time.perf_counter() - start > MAX_SECONDS:
                raise UploadError("error_too_slow", f"{MAX_SECONDS:.0f} s")
            report(0.3 + 0.6 * min(1.0, done / occupied), "stage_encode")

        return local.register_forward_hook(after)

    @torch.no_grad()
    def grade(self, vision: Any, inputs: Any) -> Analysis:
        """Findings, sorted, each with the strongest place of its map."""
        (geometry,) = inputs.geometry
        inside = find_inside(inputs.pixel_values[0, :, 0], geometry)
        body = find_body_patches(inside, vision.dense_features[0], geometry.crop_grid)
        kept = SimpleNamespace(geometry=inputs.geometry, crop_grid=inputs["crop_grid"], crop_mask=inputs["crop_mask"])
        analysis = Analysis(
            embedding=torch.nn.functional.normalize(vision.pooler_output, dim=-1)[0],
            vision=vision,
            inputs=kept,
            body=body,
            inside=inside,
            judged=self.judge(vision, body, geometry),
        )
        if not analysis.judged.answers:
            return analysis
        for label, cells in zip(self.labels, self.map_directions(analysis, self.directions), strict=True):
            analysis.maps[label] = cells
        grade = self.weights.grade
        answers = grade.postprocess(grade.keep(vision), list(self.labels))
        findings = [self.finding(answer, analysis) for answer in answers]
        analysis.findings = tuple(sorted(findings, key=lambda finding: -finding.order))
        return analysis

    def judge(self, vision: Any, body: Tensor, geometry: Any) -> Judged:
        """Whether questions about the scan are answered."""
        if self.weights.gate is None:
            return Judged(answers=False, reason="gate_unknown")
        if body.sum() < 2:
            return Judged(answers=False, reason="no_body")
        return self.weights.gate.judge(scan_features(vision, split_crops(body, geometry.crop_grid)))

    def place(self, analysis: Analysis, label: str) -> Place | None:
        """The strongest place of a finding's map, None where the map stays below what scans without the finding reach."""
        place = strongest_place(analysis, analysis.maps[label], self.map_level(label))
        return None if place.size_ml is None else place

    def finding(self, answer: dict[str, Any], analysis: Analysis) -> Finding:
        label = answer["label"]
        numbers = self.weights.calibration.get(label, {})
        verdict = answer.get("verdict")
        return Finding(
            label=label,
            score=answer["score"],
            probability=answer.get("probability"),
            interval=tuple(answer["interval"]) if "interval" in answer else None,
            verdict=verdict,
            place=None if verdict == "absent" else self.place(analysis, label),
            absent_below=numbers.get("unsure_low"),
            present_above=numbers.get("unsure_high"),
            auroc=self.weights.metrics.get(f"zero_shot/{label}/auroc"),
        )

    @torch.no_grad()
    def map_directions(self, analysis: Analysis, directions: Tensor) -> Tensor:
        """`(texts, e)` -> `(texts, D, H, W)` on the token grid of the whole scan."""
        model, inputs = self.weights.model, analysis.inputs
        maps = model.get_text_maps(analysis.vision, inputs.crop_grid, inputs.crop_mask, directions)
        return torch.stack([join_crops(cells, analysis.geometry.crop_grid) for cells in maps[0].detach().float()])

    def ask(self, analysis: Analysis, text: str) -> Answer:
        """What a sentence gets, compared with what reports of the reference scans say.

        Raises:
            UploadError: no text, too much of it, or a scan about which nothing is answered.
        """
        text = " ".join(text.split())
        if not text:
            raise UploadError("error_no_text")
        if len(text) > 500:
            raise UploadError("error_long_text", f"{len(text)} > 500")
        gate = self.weights.gate
        if gate is None or not analysis.judged.answers:
            raise UploadError("error_no_answers")
        if unknown := gate.unknown_words(text):
            return Answer(unknown=tuple(unknown))
        direction = self.embed_texts([text])
        others = self.sentences[self.sentences @ direction[0] < 0.999]
        ours, theirs = (standardise(texts, analysis.embedding, gate.embeddings) for texts in (direction, others))
        (cells,) = self.map_directions(analysis, direction)
        return Answer(
            similarity=float(direction[0] @ analysis.embedding),
            rank=1 + int((theirs > ours).sum()),
            num_sentences=1 + len(others),
            better_than=float((gate.embeddings @ direction[0] < direction[0] @ analysis.embedding).float().mean()),
            cells=cells,
            place=strongest_place(analysis, cells, self.map_level(None)),
        )

    def map_level(self, label: str | None) -> float:
        """What one unit of a map's scale is: see `Gate.map_levels`; of a sentence, the middle of the findings' levels."""
        levels = {} if self.weights.gate is None else self.weights.gate.map_levels
        if label in levels:
            return levels[label]
        return float(np.median([*levels.values()])) if levels else 1.0

    def find_similar(self, analysis: Analysis, count: int = 4) -> list[Similar]:
        """The gallery's nearest scans by the cosine of their embeddings."""
        ranked = [
            (float(embedding @ analysis.embedding), picture, findings, report)
            for embedding, picture, findings, report in self.gallery
        ]
        ranked.sort(key=lambda row: -row[0])
        return [Similar(similarity=s, picture=p, findings=f, report=r) for s, p, f, r in ranked[:count]]

    def draw_components(self, scan: Scan) -> Any:
        """The first three principal components of the patch features, as colours over the scan."""
        analysis: Analysis = scan.analysis
        (geometry,) = analysis.inputs.geometry
        dense = join_crops(analysis.vision.dense_features[0].float().cpu().movedim(-1, 0), geometry.crop_grid, lead=1)
        drawing = self.weights.drawing
        colours = drawing.principal_components(dense.movedim(0, -1), analysis.body)  # (D, H, W, 3)
        small = shrink(scan.volume, 4_000_000)
        placed = place_on(geometry, small.hu.shape, small.affine)
        channels = [lay_cells(channel, placed, self.weights) for channel in colours.unbind(-1)]
        return drawing.draw_planes(small, colours=channels)


def forward(model: Any, tensors: dict[str, Tensor]) -> Any:
    """The pass, on a GPU where there is one; what comes back is on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        vision = model.to(device).get_image_features(**tensors, output_dense_features=True)
        model.to("cpu")
        return type(vision)(**{name: value.cpu() for name, value in vision.items() if isinstance(value, Tensor)})


def standardise(texts: Tensor, embedding: Tensor, reference: Tensor) -> Tensor:
    """`(texts, e)` -> how far each text's cosine with a scan is above its mean over the reference scans, in their spreads."""
    known = reference @ texts.t()  # (n, texts)
    return (texts @ embedding - known.mean(0)) / known.std(0).clamp(min=1e-6)


# ---- the token grid of a scan ----


def cell_affine(geometry: Any, grid: Sequence[int]) -> np.ndarray:
    """`(4, 4)`, cell of the token grid `(d, h, w, 1)` -> RAS+ mm."""
    voxels = [
        crops * size / count for crops, size, count in zip(geometry.crop_grid, geometry.crop_size, grid, strict=True)
    ]
    to_grid = np.diag([*voxels, 1.0])
    to_grid[:3, 3] = [size / 2 - 0.5 for size in voxels]
    return geometry.grid_affine @ to_grid


def relative_map(cells: Tensor, body: Tensor, level: float) -> Tensor:
    """A map on the scale that all maps share: what a patch departs from the middle patch of the body, in units of `level`
    (`Gate.map_levels`); 0 outside the body."""
    middle = cells[body].median() if body.any() else cells.median()
    return torch.where(body, (cells - middle) / level, 0.0)


def size_around(analysis: Analysis, relative: Tensor, index: Sequence[int]) -> float | None:
    """Millilitres of the connected patches above 1 of `relative_map` around one of them."""
    if relative[tuple(index)] <= 1:
        return None
    pieces = label_pieces((relative > 1).numpy())
    cell = abs(float(np.linalg.det(cell_affine(analysis.geometry, relative.shape)[:3, :3])))
    return float((pieces == pieces[tuple(index)]).sum()) * cell / 1000


def strongest_place(analysis: Analysis, cells: Tensor, level: float | None = None) -> Place:
    """Where the map is largest inside the body; its size where the map has a level."""
    inside = torch.where(analysis.body, cells, -torch.inf) if analysis.body.any() else cells
    index = np.array(np.unravel_index(int(inside.argmax()), cells.shape))
    mm = cell_affine(analysis.geometry, cells.shape) @ [*index, 1.0]
    voxel = np.linalg.solve(analysis.geometry.affine, mm)[:3]
    voxel = voxel.clip(0, np.array(analysis.geometry.shape) - 1)
    mm = analysis.geometry.affine @ [*voxel, 1.0]
    where = np.argwhere(analysis.body.numpy()) if analysis.body.any() else np.argwhere(np.ones(cells.shape))
    low, high = where.min(0), where.max(0) + 1
    part = (index + 0.5 - low) / (high - low)  # 0 to 1 through the body, along depth, height, width

    def name(share: float, names: tuple[str, str, str]) -> str:
        return names[int(min(2, max(0, share * 3)))]

    return Place(
        mm=(float(mm[0]), float(mm[1]), float(mm[2])),
        slice_number=round(float(voxel[0])) + 1,
        side=name(part[2], ("right", "middle", "left")),
        front=name(part[1], ("front", "centre", "back")),
        level=name(part[0], ("lower", "middle", "upper")),
        size_ml=None
        if level is None
        else size_around(analysis, relative_map(cells, analysis.body, level), index.tolist()),
    )


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A coarser sampling of a scan: whole blocks of `factors` voxels."""

    factors: tuple[int, int, int]
    shape: tuple[int, int, int]
    affine: np.ndarray


def blocks_of(volume: Any, max_voxels: int) -> Blocks:
    """The finest axes grow first, until there are few enough voxels."""
    factors = [1, 1, 1]
    while math.prod(size // f for size, f in zip(volume.hu.shape, factors, strict=True)) > max_voxels:
        coarse = [spacing * f for spacing, f in zip(volume.spacing, factors, strict=True)]
        factors = [f + 1 if size < 1.3 * min(coarse) else f for f, size in zip(factors, coarse, strict=True)]
    to_full = np.diag([*map(float, factors), 1.0])
    to_full[:3, 3] = [(f - 1) / 2 for f in factors]
    depth, height, width = (max(1, size // f) for size, f in zip(volume.hu.shape, factors, strict=True))
    return Blocks(
        factors=(factors[0], factors[1], factors[2]), shape=(depth, height, width), affine=volume.affine @ to_full
    )


def shrink(volume: Any, max_voxels: int) -> Any:
    """The same scan with the mean of every block, int16."""
    blocks = blocks_of(volume, max_voxels)
    if blocks.factors == (1, 1, 1):
        return volume
    deep, high, wide = blocks.factors
    height, width = blocks.shape[1] * high, blocks.shape[2] * wide
    hu = np.empty(blocks.shape, np.int16)
    for start in range(blocks.shape[0]):  # slab by slab, so that no second volume of floats is made
        slab = torch.from_numpy(volume.hu[start * deep : (start + 1) * deep, :height, :width]).float()
        pooled = torch.nn.functional.avg_pool3d(slab[None], blocks.factors)
        hu[start] = pooled[0, 0].round().clamp(-1024, 3071).numpy()
    return replace(volume, hu=hu, affine=blocks.affine)


def place_on(geometry: Any, shape: tuple[int, ...], affine: np.ndarray) -> Any:
    """The geometry of the same crops on another sampling of the same scan."""
    to_full = np.linalg.solve(geometry.affine, affine)
    factors, offsets = np.diag(to_full)[:3], to_full[:3, 3]
    return replace(
        geometry,
        shape=shape,
        affine=affine,
        offset=tuple((o - at) / f for o, at, f in zip(geometry.offset, offsets, factors, strict=True)),
        step=tuple(s / f for s, f in zip(geometry.step, factors, strict=True)),
    )


def lay_cells(cells: Tensor, geometry: Any, weights: Weights) -> np.ndarray:
    """A map over the token grid -> the voxels of `geometry`, through the processor's own way back."""
    crops = split_crops(cells, geometry.crop_grid)
    (laid,) = weights.processor.to_patient_space(crops[None], SimpleNamespace(geometry=(geometry,)))
    return laid


# ---- more than one scan ----


def load_gallery(folder: Path, weights: Weights) -> list[tuple[Tensor, Path, tuple[str, ...], str]]:
    """Embeddings, pictures, findings and reports of the indexed phantoms; nothing where they are of other weights."""
    index = folder / "gallery.json"
    if not index.is_file():
        return []
    rows = json.loads(index.read_text())
    embeddings = load_file(folder / "gallery.safetensors")["image_embeds"]
    if rows["weights"] != weights.digest:
        return []
    return [
        (embedding, folder / row["picture"], tuple(row["findings"]), row["report"])
        for embedding, row in zip(embeddings, rows["scans"], strict=True)
    ]


def compare(prior: Sequence[Finding], current: Sequence[Finding]) -> list[Change]:
    """What changed between two scans: a verdict that turned, or intervals that do not overlap; largest change first."""
    before = {finding.label: finding for finding in prior}
    changes = [
        Change(label=f.label, prior=before[f.label], current=f, kind=change_kind(before[f.label], f)) for f in current
    ]
    return sorted(changes, key=lambda c: (c.kind in ("same", "unclear"), -abs(c.current.order - c.prior.order)))


def change_kind(prior: Finding, current: Finding) -> str:
    if prior.interval is None or current.interval is None:
        return "unclear"
    if prior.verdict == current.verdict == "absent":
        return "same"
    if {prior.verdict, current.verdict} == {"present", "absent"}:
        return "new" if current.verdict == "present" else "resolved"
    if current.interval[0] > prior.interval[1]:
        return "more"
    if current.interval[1] < prior.interval[0]:
        return "less"
    return "unclear" if "not sure" in (prior.verdict, current.verdict) else "same"
