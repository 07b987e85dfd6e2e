"""The named runs, and the dataclasses they are built from. A recipe holds all that decides what is learnt, and nothing of the
machine: that is `launch/*.yaml`, and `Run` in pretrain.py.

    ctfm pretrain RECIPE --help
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from .alignment import AlignmentConfig
from .drawn import FINDINGS, STRUCTURES
from .joint import JointConfig
from .masking import MaskingConfig
from .objective import SelfSupervisionConfig, SinkhornConfig
from .reports import ReportConfig
from .segmentation import SegmentationConfig
from .views import ViewConfig, ViewShape


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with two parameter groups: matrices decay, everything else does not.

    Args:
        learning_rate: reached after `warmup_steps`; from there along a cosine to `last_learning_rate`.
        weight_decay: along a cosine to `last_weight_decay`.
        clip_norm: of all gradients together.
    """

    learning_rate: float
    last_learning_rate: float = 1e-6
    warmup_steps: int
    weight_decay: float
    last_weight_decay: float
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SelfSupervisionPhase:
    """Crops -> local transformer.

    Args:
        steps: number of optimizer steps.
        global_batch: crops of a step, over all processes and accumulated batches.
        micro_batch: of them, what one forward pass takes over all processes; a smaller one accumulates gradients.
        crops_per_scan: consecutive crops that come from one scan.
        crop_mm: extent of a crop, `(depth, height, width)`.
    """

    steps: int
    global_batch: int
    micro_batch: int
    crops_per_scan: int = 4
    crop_mm: tuple[float, float, float] = (128.0, 128.0, 128.0)
    split: str = "train"
    optimizer: OptimizerConfig
    views: ViewConfig = ViewConfig()
    masking: MaskingConfig = MaskingConfig()
    objective: SelfSupervisionConfig = SelfSupervisionConfig()


@dataclass(frozen=True, kw_only=True)
class AlignmentPhase:
    """Scans and reports -> joint space.

    Args:
        steps: number of optimizer steps.
        global_batch: pairs of a step, over all processes and accumulated batches.
        micro_batch: of them, what one forward pass takes; a scan is compared with the reports of its micro-batch.
        kept_crops: share of a scan's crops that are encoded in a step.
        descriptors_are_cached: the frozen local transformer encodes every scan once, before the phase.
        varied: with cached descriptors, how the intensities of a scan are varied before: its shifts and noise, since the cache
            holds one view of every scan; None for not at all.
        prompts: set of prompts that ask about labelled findings, as "protocol/set"; "" for none.
        part_crops: with cached descriptors and label maps, the same prompts ask about a part of every scan as well, of one to
            so many crops; 0 for none. A part has the findings that lie in it.
    """

    steps: int
    global_batch: int
    micro_batch: int
    split: str = "train"
    kept_crops: float = 1.0
    descriptors_are_cached: bool = False
    varied: ViewConfig | None = None
    prompts: str = ""
    part_crops: int = 0
    optimizer: OptimizerConfig
    reports: ReportConfig = ReportConfig()
    objective: AlignmentConfig = AlignmentConfig()

    def __post_init__(self) -> None:
        if self.part_crops and not (self.descriptors_are_cached and self.prompts):
            raise ValueError(f"part_crops {self.part_crops} needs descriptors_are_cached and prompts; or set it to 0.")


@dataclass(frozen=True, kw_only=True)
class SegmentationPhase:
    """Crops with label maps -> local transformer.

    Args:
        steps: number of optimizer steps.
        global_batch: crops of a step, over all processes and accumulated batches.
        micro_batch: of them, what one forward pass takes over all processes; a smaller one accumulates gradients.
        crops_per_scan: consecutive crops that come from one scan.
        crop_mm: extent of a crop, `(depth, height, width)`.
        focal_share: of the crops that lie around a finding.
        views: a crop is seen once, as a global view.
    """

    steps: int
    global_batch: int
    micro_batch: int
    crops_per_scan: int = 4
    crop_mm: tuple[float, float, float] = (160.0, 160.0, 160.0)
    focal_share: float = 0.7
    split: str = "train"
    optimizer: OptimizerConfig
    views: ViewConfig = ViewConfig()
    objective: SegmentationConfig = SegmentationConfig()


@dataclass(frozen=True, kw_only=True)
class JointPhase:
    """Phantoms drawn as they are asked for -> dual encoder, classifier and decoder at once; see joint.py and drawn.py.

    Args:
        steps: number of optimizer steps.
        global_batch: scans of a step, over all processes and accumulated batches.
        micro_batch: of them, what one forward pass takes over all processes; a smaller one accumulates gradients.
        repeats: how often a scan is learnt from, on average.
        window: of the latest scans, from which those that come again are taken; the folder that keeps them needs some 35 MB a
            scan at 2 x 1.5 x 1.5 mm.
        first_scan: number of the first new scan, so that a later phase sees other patients than the one before.
        boxes: share of scans that are one crop of a patient around a finding; see drawn.py.
        prompts: set of prompts that ask about findings, as "protocol/set".
    """

    steps: int
    global_batch: int
    micro_batch: int
    repeats: int = 4
    window: int = 512
    first_scan: int = 0
    boxes: float = 0.0
    prompts: str = "phantoms/ensemble"
    optimizer: OptimizerConfig
    reports: ReportConfig = ReportConfig()
    objective: JointConfig = JointConfig()


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What finetune.py teaches a checkpoint: recipe and only phase in one.

    Args:
        name: of the recipe.
        task: findings of scans, or the label of every voxel.
        start: folder of any checkpoint, or its Hub id.
        from_scratch: takes its architecture and image processor alone.
        trunk_is_frozen: the head alone learns, beside what `last_layers` and `adapter_rank` name.
        last_layers: of a frozen trunk's local transformer, so many learn, and all that follows them.
        adapter_rank: of LoRA (PEFT) on the attention of a frozen trunk; merged in what is exported.
        question: what a label of a scan is (see targets.py); a segmentation has none.
        max_positive_weight: a finding's present scans weigh as much as its absent ones together, but no more than this each.
        patience: probes without a better one, of split `test_split`, after which training ends; the best is exported. 0 trains
            all steps and exports the last.
        steps: number of optimizer steps.
        global_batch: scans of a step, over all processes and accumulated batches.
        micro_batch: of them, what one forward pass takes over all processes.
        split, test_split: of the prepared folders; what is not stated about a scan does not count.
        seed: of new weights, samples, dropout.
        skip_data_steps: see `Recipe`.
    """

    name: str
    task: Annotated[Literal["findings", "segmentation"], tyro.conf.Suppress]
    start: str
    from_scratch: bool = False
    trunk_is_frozen: bool = False
    last_layers: int = 0
    adapter_rank: int = 0
    question: Literal["findings", "one_of", "value", "survival"] = "findings"
    max_positive_weight: float = 1.0
    patience: int = 0
    steps: int = 2000
    global_batch: int = 16
    micro_batch: int = 16
    split: str = "train"
    test_split: str = "test"
    optimizer: OptimizerConfig
    seed: int = 0
    skip_data_steps: int = 0

    def __post_init__(self) -> None:
        if self.from_scratch and self.trunk_is_frozen:
            raise ValueError("A trunk drawn from scratch that is frozen learns nothing; choose one of the two.")
        if (self.last_layers or self.adapter_rank) and not self.trunk_is_frozen:
            raise ValueError(
                f"last_layers {self.last_layers} and adapter_rank {self.adapter_rank} are what learns of a frozen trunk; set "
                "trunk_is_frozen."
            )
        check_warmup(self.phases)

    @property
    def phases(self) -> "dict[str, Phase]":
        return {self.name: self}


Phase = SelfSupervisionPhase | SegmentationPhase | AlignmentPhase | JointPhase | FineTuning


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One lineage of checkpoints, phase after phase.

    Args:
        name: of the recipe.
        model: arguments of `CTFMConfig`.
        processor: arguments of `CTFMImageProcessor`.
        text_start: folder or Hub id of a pretrained text tower with its tokenizer; without one both are made from the
            reports of the training split.
        text_adapter_rank: of LoRA on that tower (PEFT); 0 trains it whole.
        vocabulary: pieces of a tokenizer that is made.
        start: folder or Hub id of a checkpoint of this architecture, whose weights the first phase goes on from; joint phases
            alone can. Without it they are drawn from the seed.
        phases: in order, by name.
        seed: of weights, samples, views, dropout.
        skip_data_steps: a step takes the samples of so many steps later, so that a run that diverged passes over those that it
            diverged on; 0 at first, and larger each time that it should.
    """

    name: str
    model: Annotated[dict[str, Any], tyro.conf.Suppress]
    processor: Annotated[dict[str, Any], tyro.conf.Suppress]
    text_start: str = ""
    text_adapter_rank: int = 0
    vocabulary: int = 2000
    start: str = ""
    phases: Annotated[dict[str, Phase], tyro.conf.AvoidSubcommands]
    seed: int = 0
    skip_data_steps: int = 0

    def __post_init__(self) -> None:
        check_warmup(self.phases)
        name, first = next(iter(self.phases.items()))
        if self.start and not isinstance(first, JointPhase):
            raise ValueError(
                f"Recipe {self.name!r} begins with phase {name!r}, which cannot go on from start={self.start!r}: only "
                "joint phases can (recipes trunk and boxes). Leave it out."
            )


def check_warmup(phases: Mapping[str, Phase]) -> None:
    """Raises ValueError where a phase ends before its warm-up, so that it would never learn at its learning rate."""
    for name, phase in phases.items():
        if phase.steps < phase.optimizer.warmup_steps:
            raise ValueError(
                f"Phase {name} has {phase.steps} steps and a warm-up of {phase.optimizer.warmup_steps}; set "
                f"optimizer.warmup_steps to {phase.steps} or fewer, a tenth of the steps for one."
            )


def demo() -> Recipe:
    """Minutes on a laptop, all phases: proves that the machinery runs, not that the model is good."""
    return _phantoms(
        "demo",
        width=96,
        layers=4,
        phases={
            "self_supervision": _self_supervision(steps=60, batch=16, width=96),
            "segmentation": _segmentation(steps=120, batch=16),
            "alignment": _alignment(steps=60, batch=32),
            "alignment_of_all": _alignment_of_all(steps=10, batch=32),
        },
    )


def phantoms() -> Recipe:
    """The large recipe's two objectives, in a quarter of an hour on one CPU core: what they teach without any label."""
    alignment = _alignment(steps=350, batch=32)
    return _phantoms(
        "phantoms",
        width=96,
        layers=4,
        phases={
            "self_supervision": _self_supervision(steps=400, batch=32, width=96),
            "alignment": replace(alignment, reports=replace(alignment.reports, max_tokens=64)),
        },
    )


def embedded() -> Recipe:
    """The checkpoint in checkpoints/default, in an hour and a quarter on two CPU cores: label maps of phantoms teach the local
    transformer, reports and prompts about labelled findings the rest. Self-supervision needs far more crops than that time
    allows.

    Phantoms' reports hold few of the words that people use. The text tower is therefore all-MiniLM-L6-v2 (22 million
    parameters, Apache-2.0), which knows them, left as it is under a projection that learns. One or two sentences are short,
    like prompts, and a CPU reads them quickly."""
    noisy: dict[str, Any] = {
        "window_shift_hu": (-20.0, 20.0),
        "window_scale": (0.95, 1.05),
        "gamma": (0.96, 1.04),
        "noise": (0.0, 0.03),
    }
    fine = ViewShape(count=2, size=(24, 36, 36), spacing=(4.0, 3.0, 3.0), zoom=(0.8, 1.2))
    segmentation = _segmentation(steps=3000, batch=32)
    segmentation = replace(
        segmentation,
        crop_mm=(120.0, 136.0, 136.0),
        objective=SegmentationConfig(crop_weight=0.5, rare_weight=50.0),
        views=replace(segmentation.views, global_views=fine, **noisy),
    )
    recipe = _phantoms(
        "embedded",
        width=144,
        layers=5,
        phases={
            "segmentation": segmentation,
            "alignment": replace(
                _alignment(steps=1500, batch=64),
                optimizer=_constant_decay(1e-3, 1500),
                objective=AlignmentConfig(text_is_frozen=True),
                varied=ViewConfig(noise_probability=0.7, **noisy),
                prompts="phantoms/ensemble",
                part_crops=6,
                reports=ReportConfig(excerpt_probability=1.0, longest_excerpt=2, max_tokens=40),
            ),
        },
    )
    recipe.model["vision_config"] |= {"patch_size": (4, 6, 6), "windows": WINDOWS}
    # Of the projections, about one over the square root of their widths; and a scale at which prompts can be answered with
    # certainty. From 0.02 and SigLIP's 10 the same phase tells findings apart three times as slowly (measured).
    recipe.model.update(initializer_range=0.05, logit_scale_init_value=math.log(30))
    return replace(
        recipe,
        text_start="sentence-transformers/all-MiniLM-L6-v2",
        processor={"crop_size": fine.size, "spacing": fine.spacing},
    )


# Of -1000 to 1000 HU: all of it, lungs, soft tissue, and soft tissue at high contrast.
WINDOWS = [(0.0, 1.0), (0.0, 0.3), (0.42, 0.62), (0.475, 0.575)]


def trunk() -> Recipe:
    """What follows checkpoints/default: phantoms drawn as they are asked for teach tokens, scans, voxels and reports at once,
    on one GPU with 16 processor cores beside it; two cores alone need weeks. Not yet trained to its end: see README.md.

    The text tower is all-MiniLM-L6-v2, as in `embedded`."""
    size: dict[str, Any] = {
        "hidden_size": 288,
        "intermediate_size": 1152,
        "num_attention_heads": 4,
        # A small model needs larger weights and open residuals from the start (measured with the recipe phantoms).
        "layerscale_value": 1.0,
        "initializer_range": 0.05,
    }
    return Recipe(
        name="trunk",
        model={
            "vision_config": {
                **size,
                "num_hidden_layers": 8,
                "patch_size": (8, 8, 8),
                "stem_channels": (24, 64),
                "windows": WIDE_WINDOWS,
                "global_config": {**size, "num_hidden_layers": 3},
            },
            "text_config": {"model_type": "bert"},
            "projection_hidden_size": 512,
            "projection_bottleneck_size": 256,
            "projection_dim": 256,
            "initializer_range": 0.05,
            "logit_scale_init_value": math.log(20),
            "token_scores": True,
            "decoder_stride": 2,
            "structures": dict(STRUCTURES),
            "id2label": dict(enumerate(FINDINGS)),
            "label2id": {name: number for number, name in enumerate(FINDINGS)},
        },
        processor={
            "crop_size": (48, 64, 64),
            "spacing": (2.0, 1.5, 1.5),
            "intensity_window": (-1024.0, 3071.0),  # metal (2,600) and dense bone (1,300) stay apart
        },
        text_start="sentence-transformers/all-MiniLM-L6-v2",
        phases={"joint": _joint(2000, 8e-4), "refinement": replace(_joint(2000, 5e-4), first_scan=2000)},
    )


def boxes() -> Recipe:
    """Goes on from a trunk on one or two CPU cores: boxes of one crop around findings, and the same places in other patients.

    Needs --recipe.start. With bfloat16 a core learns from 2.4 boxes a second (train/README.md, section 7), and a whole scan has
    some fifty crops; how crops make a scan stays what the start knows."""
    recipe, phase = trunk(), _joint(1000, 4e-4)
    return replace(
        recipe,
        name="boxes",
        phases={
            "boxes": replace(
                phase,
                global_batch=16,
                micro_batch=16,
                repeats=2,
                boxes=1.0,
                optimizer=replace(phase.optimizer, warmup_steps=50),
                objective=replace(phase.objective, segmented_crops=2),
            )
        },
    )


def _joint(steps: int, learning_rate: float) -> JointPhase:
    return JointPhase(
        steps=steps,
        global_batch=8,
        micro_batch=8,
        repeats=8,  # 15 processes draw 2 to 4 scans a second, one H200 learns from 17 to 25 (README.md)
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            last_learning_rate=1e-5,
            warmup_steps=150,
            weight_decay=0.05,
            last_weight_decay=0.05,
            betas=(0.9, 0.98),
            clip_norm=1.0,
        ),
        reports=ReportConfig(excerpt_probability=1.0, longest_excerpt=2, max_tokens=40),
    )


# Of -1024 to 3071 HU: lungs, all soft tissue, soft tissue at high contrast, bone and contrast medium, and everything to metal.
WIDE_WINDOWS = [(0.0, 0.16), (0.17, 0.37), (0.2295, 0.2785), (0.25, 0.6), (0.0, 1.0)]

# Phantoms are seen at 3 mm, in crops of 96 mm with patches of 24 mm: what fits a CPU, and small findings still show.
PHANTOM_SPACING = (3.0, 3.0, 3.0)
PHANTOM_VIEW = ViewShape(count=2, size=(32, 32, 32), spacing=PHANTOM_SPACING, zoom=(0.8, 1.2))
PHANTOM_CROP_MM = (128.0, 128.0, 128.0)


def _phantoms(name: str, *, width: int, layers: int, phases: dict[str, Phase]) -> Recipe:
    """A small model needs larger weights and open residuals from the start: with 0.02 and 0.1, class tokens are so alike
    that self-supervision does not leave its uniform targets in 400 steps (measured)."""
    size = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 24,
        "layerscale_value": 1.0,
        "initializer_range": 0.08,
    }
    return Recipe(
        name=name,
        model={
            "vision_config": {
                "patch_size": (8, 8, 8),
                "num_hidden_layers": layers,
                "global_config": {**size, "num_hidden_layers": 2},
                **size,
            },
            "text_config": {
                "model_type": "bert",
                "hidden_size": 192,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 768,
                "max_position_embeddings": 512,
            },
            "projection_hidden_size": 512,
            "projection_bottleneck_size": 256,
            "projection_dim": 256,
        },
        processor={"crop_size": PHANTOM_VIEW.size, "spacing": PHANTOM_SPACING},
        phases=phases,
    )


def _self_supervision(*, steps: int, batch: int, width: int) -> SelfSupervisionPhase:
    return SelfSupervisionPhase(
        steps=steps,
        global_batch=batch,
        micro_batch=batch,
        crop_mm=PHANTOM_CROP_MM,
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            last_learning_rate=1e-5,
            warmup_steps=min(30, steps // 4),
            weight_decay=0.04,
            last_weight_decay=0.2,
            clip_norm=3.0,
        ),
        views=ViewConfig(
            global_views=PHANTOM_VIEW,
            local_views=ViewShape(count=4, size=(16, 16, 16), spacing=PHANTOM_SPACING, zoom=(0.7, 1.1)),
        ),
        masking=MaskingConfig(smallest_block=2),
        objective=SelfSupervisionConfig(
            num_prototypes=256,
            head_hidden_size=2 * width,
            head_bottleneck_size=64,
            last_teacher_temperature=0.04,
            teacher_temperature_warmup_steps=0,
            first_teacher_momentum=0.98,
            frozen_prototype_steps=0,
            centring=SinkhornConfig(),  # a running mean leaves the targets of so few steps nearly uniform
        ),
    )


def _segmentation(*, steps: int, batch: int) -> SegmentationPhase:
    return SegmentationPhase(
        steps=steps,
        global_batch=batch,
        micro_batch=batch,
        crop_mm=PHANTOM_CROP_MM,
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            last_learning_rate=1e-5,
            warmup_steps=steps // 50,
            weight_decay=0.05,
            last_weight_decay=0.05,
            betas=(0.9, 0.98),
        ),
        views=ViewConfig(
            global_views=PHANTOM_VIEW,
            window_shift_hu=(-20.0, 20.0),
            window_scale=(0.95, 1.05),
            gamma=(0.96, 1.04),
            noise=(0.0, 0.03),
        ),
    )


def _alignment(*, steps: int, batch: int) -> AlignmentPhase:
    """Mostly excerpts: they are short, and so are prompts."""
    return AlignmentPhase(
        steps=steps,
        global_batch=batch,
        micro_batch=batch,
        descriptors_are_cached=True,
        optimizer=_constant_decay(5e-4, steps),
        reports=ReportConfig(excerpt_probability=0.8, max_tokens=96),
    )


def _alignment_of_all(*, steps: int, batch: int) -> AlignmentPhase:
    return replace(
        _alignment(steps=steps, batch=batch),
        descriptors_are_cached=False,
        kept_crops=0.5,
        optimizer=_constant_decay(1e-4, steps),
        objective=AlignmentConfig(local_is_frozen=False),
    )


def _constant_decay(learning_rate: float, steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate, warmup_steps=steps // 10, weight_decay=0.01, last_weight_decay=0.01
    )


def large() -> Recipe:
    """SPECTRE's size and schedule (arXiv:2511.17209, tables 5 and 6) for a quarter of a million scans: 83,100 steps of 1,536
    crops, then its 8.5 million pairs in 66,380 steps of 128, of which 6,640 with the local transformer frozen. SPECTRE's
    batches of 144 do not divide among 32 processes; 128 do, among up to 128. The text tower is Qwen3-Embedding-0.6B with
    adapters."""
    decay: Any = {"weight_decay": 0.01, "last_weight_decay": 0.01}
    first = AlignmentPhase(
        steps=6_640,
        global_batch=128,
        micro_batch=128,
        descriptors_are_cached=True,
        optimizer=OptimizerConfig(learning_rate=1e-4, last_learning_rate=1e-4, warmup_steps=6_640, **decay),
        reports=ReportConfig(max_tokens=512),
    )
    return Recipe(
        name="large",
        model={
            "vision_config": {
                "hidden_size": 1080,
                "num_hidden_layers": 24,
                "num_attention_heads": 12,
                "intermediate_size": 4320,
                "drop_path_rate": 0.3,
                "global_config": {
                    "hidden_size": 1080,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 12,
                    "intermediate_size": 4320,
                },
            },
            "text_config": {"model_type": "qwen3"},
            "text_pooling": "last",
        },
        processor={"spacing": "scan"},
        text_start="Qwen/Qwen3-Embedding-0.6B",
        text_adapter_rank=16,
        phases={
            "self_supervision": SelfSupervisionPhase(
                steps=83_100,
                global_batch=1_536,
                micro_batch=1_536,
                optimizer=OptimizerConfig(
                    learning_rate=1e-3,
                    warmup_steps=5_540,
                    weight_decay=0.04,
                    last_weight_decay=0.4,
                    betas=(0.9, 0.999),
                    clip_norm=3.0,
                ),
            ),
            "alignment": first,
            "alignment_of_all": replace(
                first,
                steps=59_740,
                descriptors_are_cached=False,
                optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1_000, **decay),
                objective=AlignmentConfig(local_is_frozen=False),
            ),
        },
    )


def findings() -> FineTuning:
    """Findings of scans, from the labels of the prepared folders."""
    return FineTuning(
        name="findings",
        task="findings",
        start=tyro.MISSING,
        optimizer=OptimizerConfig(
            learning_rate=2e-4, warmup_steps=100, weight_decay=0.05, last_weight_decay=0.05, betas=(0.9, 0.98)
        ),
    )


def segmentation() -> FineTuning:
    """The label of every voxel, from the label maps of the prepared folders."""
    return replace(findings(), name="segmentation", task="segmentation", global_batch=4, micro_batch=4)


RECIPES = {recipe.__name__: recipe for recipe in (demo, phantoms, embedded, trunk, boxes, large)}
FINE_TUNINGS = {recipe.__name__: recipe for recipe in (findings, segmentation)}
