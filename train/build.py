"""Recipe -> model, tokenizer, image processor; phase -> objective and its batches. What the loop calls without looking in."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..configuration_ctfm import CTFMConfig
from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMModel
from ..processing_ctfm import CTFMProcessor
from ..volume_ctfm import Volume
from .alignment import AlignmentBatch, AlignmentObjective
from .data import (
    SamplingConfig,
    Schedule,
    SourceConfig,
    StepBatches,
    hash_numbers,
    ignore_signals,
    load_crops,
    load_scans,
    select_rows,
)
from .descriptors import DescriptorDataset, collate_descriptors, encode_sources
from .drawn import (
    FINDING_STEP,
    FINDINGS,
    STRUCTURES,
    DrawingConfig,
    DrawingSchedule,
    DrawnScan,
    cut_drawn,
    finding_codes,
    load_drawn,
)
from .joint import JointBatch, JointObjective, find_codes
from .labels import LabelObjective, draw_parts, name_findings, tabulate, tabulate_parts
from .masking import draw_kept_crops, draw_token_mask
from .objective import SelfSupervisionBatch, SelfSupervisionObjective
from .processes import Processes
from .prompts import draw_prompts, find_prompts
from .recipes import AlignmentPhase, JointPhase, Phase, Recipe, SegmentationPhase, SelfSupervisionPhase
from .reports import hash_words, vary_report
from .segmentation import SegmentationBatch, SegmentationObjective
from .shards import Manifest, agree_on_structures
from .throughput import alignment_flops, crop_flops, num_tokens, segmentation_flops, self_supervision_flops, view_tokens
from .views import cut_scans, make_labelled_views, make_views

Objective = SelfSupervisionObjective | SegmentationObjective | AlignmentObjective | JointObjective | LabelObjective
OCCUPIED_CROPS = 48  # of a whole drawn scan, the mean of ten: for the log's throughput alone
SPECIAL_TOKENS = ["[PAD]", "[CLS]", "[SEP]"]


# ---- model ----


def build_processor(recipe: Recipe, data: Iterable[SourceConfig]) -> CTFMProcessor:
    """Image processor and tokenizer; without a `text_start`, one made of the training reports."""
    image_processor = CTFMImageProcessor(**recipe.processor)
    if recipe.text_start:
        return CTFMProcessor(image_processor, AutoTokenizer.from_pretrained(recipe.text_start))
    reports = []
    for source in data:
        table = Manifest(source.folder).table.select(["report", "split"]).to_pylist()
        reports += [row["report"] for row in table if row["split"] == source.split or not source.split]
    return CTFMProcessor(image_processor, train_tokenizer(reports, recipe.vocabulary))


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte pairs in lower case: no word is unknown, and the same texts give the same pieces (word pieces would not)."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        **{f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS},  # type: ignore[arg-type]
    )


def build_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> CTFMConfig:
    arguments = dict(recipe.model)
    if recipe.text_start:
        text_config = AutoConfig.from_pretrained(recipe.text_start)
        text_config.name_or_path = ""  # a folder of this machine has no business in a published config
        arguments["text_config"] = text_config
    else:
        arguments["text_config"] = {
            **arguments["text_config"],
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        }
    return CTFMConfig(**arguments)


def build_model(recipe: Recipe, config: CTFMConfig) -> CTFMModel:
    """Weights are drawn from the recipe's seed; the text tower is read from `text_start` and given its adapters."""
    torch.manual_seed(recipe.seed)
    model = CTFMModel(config)
    if recipe.text_start:
        weights = AutoModel.from_pretrained(recipe.text_start, dtype=torch.float32).state_dict()
        model.text_model.load_state_dict({name: w for name, w in weights.items() if not name.startswith("pooler.")})
    add_adapters(model, recipe.text_adapter_rank)
    return model


def add_adapters(model: CTFMModel, rank: int) -> None:
    """LoRA on the attention of the text tower, at SPECTRE's scale of 4, which freezes the rest of it; nothing for rank 0."""
    if rank:
        from peft import LoraConfig, get_peft_model

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value"]
        config = LoraConfig(r=rank, lora_alpha=4 * rank, lora_dropout=0.05, target_modules=names)
        model.text_model = get_peft_model(model.text_model, config)  # type: ignore[assignment]


# ---- phases ----


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the loop knows of a phase.

    objective: a module, see objective.py; schedule: which samples a step has.
    load: `(batches, num_workers) -> loader`; make_batch: what the loader gives -> what the objective takes, on the device.
    sample_flops, sample_tokens: of forward and backward of one sample, for the log.
    """

    objective: Objective
    schedule: Schedule | DrawingSchedule
    load: Callable[[StepBatches, int], Iterable[Any]]
    make_batch: Callable[[Any], Any]
    sample_flops: float
    sample_tokens: float


def build_task(
    phase: Phase,
    recipe: Recipe,
    data: tuple[SourceConfig, ...],
    model: CTFMModel,
    processor: CTFMProcessor,
    *,
    device: torch.device,
    processes: Processes,
    cache: Path,
) -> Task:
    """`cache` is where the first alignment phase keeps its descriptors."""
    if isinstance(phase, SelfSupervisionPhase):
        return build_self_supervision(phase, recipe, data, model, device, processes)
    if isinstance(phase, SegmentationPhase):
        return build_segmentation(phase, recipe, data, model, device)
    if isinstance(phase, JointPhase):
        return build_joint(phase, recipe, model, processor, device, cache.with_name("drawn"))
    assert isinstance(phase, AlignmentPhase)
    return build_alignment(phase, recipe, data, model, processor, device, processes, cache)


def build_self_supervision(
    phase: SelfSupervisionPhase,
    recipe: Recipe,
    data: tuple[SourceConfig, ...],
    model: CTFMModel,
    device: torch.device,
    processes: Processes,
) -> Task:
    schedule = Schedule(
        SamplingConfig(
            sources=data,
            seed=recipe.seed,
            global_batch=phase.global_batch,
            crops_per_scan=phase.crops_per_scan,
            crop_mm=phase.crop_mm,
        )
    )
    local = model.vision_model.local_model
    shape = phase.views.global_views
    depth, height, width = (n // p for n, p in zip(shape.size, local.config.patch_size, strict=True))

    def make_batch(crops: Any) -> SelfSupervisionBatch:
        views = make_views(crops.to(device), phase.views)
        # Stratified over the rows of this process, so another number of processes has other masks, and only those.
        generator = torch.Generator().manual_seed(hash_numbers(recipe.seed, int(crops.seeds[0]), 3))
        rows = len(crops.seeds)
        mask = draw_token_mask(shape.count * rows, (depth, height, width), phase.masking, generator)
        return SelfSupervisionBatch(
            global_views=views.global_views.unflatten(0, (shape.count, rows)),
            local_views=views.local_views.unflatten(0, (phase.views.local_views.count, rows)),
            token_mask=mask.unflatten(0, (shape.count, rows)),
        )

    return Task(
        objective=SelfSupervisionObjective(local, phase.objective, total_steps=phase.steps, processes=processes).to(
            device
        ),
        schedule=schedule,
        load=lambda batches, num_workers: load_crops(schedule, batches, num_workers=num_workers),
        make_batch=make_batch,
        sample_flops=self_supervision_flops(phase, local.config),
        sample_tokens=view_tokens(phase, local.config),
    )


def build_segmentation(
    phase: SegmentationPhase,
    recipe: Recipe,
    data: tuple[SourceConfig, ...],
    model: CTFMModel,
    device: torch.device,
) -> Task:
    schedule = Schedule(
        SamplingConfig(
            sources=tuple(replace(source, with_segmentation=True) for source in data),
            seed=recipe.seed,
            global_batch=phase.global_batch,
            crops_per_scan=phase.crops_per_scan,
            crop_mm=phase.crop_mm,
            focal_share=phase.focal_share,
        )
    )
    structures = name_structures(schedule)
    local = model.vision_model.local_model

    def make_batch(crops: Any) -> SegmentationBatch:
        pixel_values, segmentation = make_labelled_views(crops.to(device), phase.views)
        return SegmentationBatch(pixel_values=pixel_values, segmentation=segmentation)

    return Task(
        objective=SegmentationObjective(local, tuple(sorted(structures)), phase.objective).to(device),
        schedule=schedule,
        load=lambda batches, num_workers: load_crops(schedule, batches, num_workers=num_workers),
        make_batch=make_batch,
        sample_flops=segmentation_flops(phase, local.config),
        sample_tokens=num_tokens(local.config, phase.views.global_views.size),
    )


def name_structures(schedule: Schedule) -> dict[int, str]:
    """Names of the labels of label maps.

    Raises:
        ValueError: there are none, or two folders name them otherwise.
    """
    structures = agree_on_structures({manifest.folder: manifest.structures for manifest in schedule.manifests})
    if not structures:
        folders = ", ".join(manifest.folder for manifest in schedule.manifests)
        raise ValueError(
            f"The label maps of {folders} have no names, and this phase learns from them. Put a structures.json beside the "
            'table, {"1": "liver", ...}, and prepare it again.'
        )
    return structures


def build_alignment(
    phase: AlignmentPhase,
    recipe: Recipe,
    data: tuple[SourceConfig, ...],
    model: CTFMModel,
    processor: CTFMProcessor,
    device: torch.device,
    processes: Processes,
    cache: Path,
) -> Task:
    schedule = Schedule(
        SamplingConfig(
            sources=choose_reported(data, processes),
            seed=recipe.seed,
            global_batch=phase.global_batch,
            crops_per_scan=1,
        )
    )
    objective = AlignmentObjective(model, phase.objective, processes).to(device)
    if phase.descriptors_are_cached:
        encode_sources(
            schedule,
            model.vision_model,
            processor.image_processor,
            cache,
            processes,
            varied=phase.varied,
            with_structures=phase.part_crops > 0,
        )
        processes.add(torch.zeros(1, device=device))  # until all shards are there
    dataset = DescriptorDataset(schedule, cache)
    prompts = find_prompts(phase.prompts) if phase.prompts else None
    findings = name_findings(schedule.manifests, schedule.rows) if prompts else ()
    structures = name_structures(schedule) if phase.part_crops else {}

    def load(batches: StepBatches, num_workers: int) -> Iterable[Any]:
        if not phase.descriptors_are_cached:
            return load_scans(schedule, batches, num_workers=num_workers)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate_descriptors,
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
        )

    def make_batch(loaded: Any) -> AlignmentBatch:
        samples, tensors = loaded if phase.descriptors_are_cached else (loaded, None)
        tensors = tensors or cut_scans(samples, processor.image_processor, device)
        texts = [vary_report(sample.report, phase.reports, sample.seed) for sample in samples]
        input_ids, attention_mask = read_texts(texts, processor, phase.reports.max_tokens)
        # Two scans may have the same report, or reports of which this step reads the same sentence.
        text_keys = torch.tensor([[hash_words(s.report), hash_words(t)] for s, t in zip(samples, texts, strict=True)])
        if prompts is not None:
            present, absent = draw_prompts(findings, prompts, hash_numbers(recipe.seed, samples[0].seed, 5))
            tensors["labels"] = tabulate(samples, findings)
            tensors["prompt_ids"], tensors["prompt_mask"] = read_texts(
                [*present, *absent], processor, phase.reports.max_tokens
            )
            if phase.part_crops:
                seed = hash_numbers(recipe.seed, samples[0].seed, 6)
                tensors["part_crops"] = draw_parts(samples, findings, structures, phase.part_crops, seed)
                tensors["part_labels"] = tabulate_parts(samples, tensors["part_crops"], findings, structures)
        kept = None
        if phase.kept_crops < 1:
            generator = torch.Generator().manual_seed(hash_numbers(recipe.seed, samples[0].seed, 4))
            kept = draw_kept_crops(tensors["crop_mask"].cpu(), phase.kept_crops, generator)
        batch = AlignmentBatch(
            input_ids=input_ids, attention_mask=attention_mask, text_keys=text_keys, kept_crops=kept, **tensors
        )
        return batch.to(device, non_blocking=True)

    vision, crops = model.vision_model.config, mean_crops(schedule, processor.image_processor)
    crop_size = tuple(processor.image_processor.crop_size)
    return Task(
        objective=objective,
        schedule=schedule,
        load=load,
        make_batch=make_batch,
        sample_flops=alignment_flops(phase, vision, crop_size, crops),
        sample_tokens=phase.kept_crops * crops * num_tokens(vision, crop_size),
    )


def choose_reported(data: Sequence[SourceConfig], processes: Processes) -> tuple[SourceConfig, ...]:
    """Sources of scans that have a report. A folder without any is left out, and said: other phases may learn from it.

    Raises:
        ValueError: none has.
    """
    reported = [replace(source, with_report=True) for source in data]
    chosen = [source for source in reported if len(select_rows(Manifest(source.folder), source))]
    left_out = ", ".join(source.folder for source in reported if source not in chosen)
    if not chosen:
        raise ValueError(
            f"No scan of split {data[0].split!r} in {left_out} has a report, and this phase aligns scans with reports. "
            "Prepare a folder whose table has a column report, or take a recipe without such a phase."
        )
    if left_out and processes.rank == 0:
        print(f"No scan in {left_out} has a report; alignment goes without.")
    return tuple(chosen)


def read_texts(texts: Sequence[str], processor: CTFMProcessor, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Tokens and their mask, `(texts, tokens)` both."""
    words = processor.tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    return words["input_ids"], words["attention_mask"].bool()


def build_joint(
    phase: JointPhase,
    recipe: Recipe,
    model: CTFMModel,
    processor: CTFMProcessor,
    device: torch.device,
    cache: Path,
) -> Task:
    schedule = DrawingSchedule(
        DrawingConfig(
            seed=recipe.seed,
            global_batch=phase.global_batch,
            repeats=phase.repeats,
            window=phase.window,
            first_scan=phase.first_scan,
            boxes=phase.boxes,
        )
    )
    image_processor, prompts, vision = processor.image_processor, find_prompts(phase.prompts), model.vision_model.config
    patch_size, num_structures = vision.patch_size, len(STRUCTURES)
    numbers, num_crops = finding_codes(), phase.boxes + (1 - phase.boxes) * OCCUPIED_CROPS

    def make_batch(scans: Sequence[DrawnScan]) -> JointBatch:
        generator = torch.Generator().manual_seed(hash_numbers(recipe.seed, scans[0].seed, 10))
        cut = [cut_drawn(scan, image_processor, device) for scan in scans]
        voxels = torch.cat([voxel_codes for _, voxel_codes in cut])
        organs = torch.where(voxels < 0, -1, voxels % FINDING_STEP)
        found = torch.where(voxels < 0, -1, voxels // FINDING_STEP)
        held = find_codes(found, patch_size, FINDING_STEP)
        texts = [vary_report(scan.report, phase.reports, scan.seed) for scan in scans]
        input_ids, attention_mask = read_texts(texts, processor, phase.reports.max_tokens)
        present, absent = draw_prompts(FINDINGS, prompts, hash_numbers(recipe.seed, scans[0].seed, 5))
        prompt_ids, prompt_mask = read_texts([*present, *absent], processor, phase.reports.max_tokens)
        crops = [scan.occupied.nonzero()[:, 0] for scan in scans]
        chosen = torch.randperm(len(voxels), generator=generator)[: phase.objective.segmented_crops]
        keys = torch.tensor([[hash_words(s.report), hash_words(t)] for s, t in zip(scans, texts, strict=True)])
        return JointBatch(
            pixel_values=torch.cat([crop_pixels for crop_pixels, _ in cut]),
            scan=torch.cat([torch.full_like(rows, number) for number, rows in enumerate(crops)]),
            crop=torch.cat(crops),
            crop_grid=torch.tensor([scan.geometry.crop_grid for scan in scans]),
            structures=torch.where(organs < 0, -100, organs).long(),
            token_structures=find_codes(organs, patch_size, num_structures),
            token_findings=torch.stack([held[..., list(numbers[name])].any(-1) for name in FINDINGS], -1),
            labels=torch.tensor([[float(scan.labels[name]) for name in FINDINGS] for scan in scans]),
            input_ids=input_ids,
            attention_mask=attention_mask,
            text_keys=keys,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            segmented=chosen,
        ).to(device, non_blocking=True)

    return Task(
        objective=JointObjective(model, phase.objective).to(device),
        schedule=schedule,
        load=lambda batches, num_workers: load_drawn(
            schedule, image_processor, cache, batches, num_workers=num_workers
        ),
        make_batch=make_batch,
        sample_flops=num_crops * crop_flops(vision, image_processor.crop_size, backward=True),
        sample_tokens=num_crops * num_tokens(vision, image_processor.crop_size),
    )


def mean_crops(schedule: Schedule, processor: CTFMImageProcessor, num_scans: int = 32) -> float:
    """Crops of a scan, of the first scans of a run."""
    counts = []
    for number in range(num_scans):
        draw = schedule.draw(number)
        scan = schedule.manifests[draw.source][draw.row]
        volume = Volume(hu=np.empty(scan.shape, np.int16), affine=scan.affine)
        spacing = None if processor.spacing == "native" else [float(mm) for mm in processor.spacing]
        counts.append(math.prod(processor.place_grid(volume, spacing).crop_grid))
    return sum(counts) / num_scans


def trained_parameters(objective: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, which decay, and the rest, which does not: biases, norms, scales, tokens."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return [p for p in trained if p.ndim >= 2 and p.shape[0] > 1], [p for p in trained if p.ndim < 2 or p.shape[0] == 1]
