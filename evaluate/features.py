"""Checkpoint + cases -> features, encoded once and kept; or features that another model wrote.

An encoder is named by

- a folder that `from_pretrained` loads (ours, converted SPECTRE), or a checkpoint of a run (runs/x/checkpoints/PHASE-STEP);
- `random:FOLDER`, its architecture with random weights;
- `histogram`, how the HU of the scan are distributed and nothing else;
- a folder with manifest.csv (columns scan, the path, and features, a file) as `ctfm embed` writes it, of any model: files
  hold `scan_features` `(f,)`, and where there is a joint space `image_embeds` `(e,)`, with the texts' embeddings in
  texts.safetensors, one tensor `(e,)` under each text.
"""

import csv
import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedModel

from .. import modeling_ctfm
from ..image_processing_ctfm import CTFMBatchFeature, CTFMImageProcessor
from ..modeling_ctfm import CTFMForImageClassification, CTFMModel, CTFMVisionOutput
from ..processing_ctfm import CTFMProcessor
from ..train.checkpoint import load_exported
from ..volume_ctfm import Volume
from ..weights import load_complete
from ..whole_files import written_whole
from .cases import Case, digest, read_case, read_label_map
from .metrics import distance_to

CHUNK = 50  # scans of a file: what a killed evaluation does again
HISTOGRAM_HU = np.linspace(-1024, 1024, 65)
BODY_HU = -300  # chance level of the pointing game: any voxel denser than this
CHANCE_POINTS = 1000
TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Where to look with which text: for the focal findings of a case, a heat map's largest value against the label map.

    directions: finding -> present minus absent text embedding `(e,)`; numbers: finding -> its number in label maps.
    """

    directions: dict[str, np.ndarray]
    numbers: dict[str, int]
    tolerance_mm: float


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """One question of the pointing game.

    distance_mm: from the largest value of the map to the finding, 0 inside; chance: share of the body that would be a hit.
    """

    case: int
    finding: str
    distance_mm: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Features:
    """sets: "scan" (the encoder's own pooling), "crops" (mean and largest crop descriptor), "joint" (unit vectors beside
    texts), "scores" (of the directions that were asked), "logits" (of a classifier): each `(cases, channels)`."""

    sets: dict[str, np.ndarray]
    pointed: tuple[Pointed, ...] = ()


# ---- encoders ----


@lru_cache(maxsize=1)
def load_encoder(name: str) -> tuple[PreTrainedModel, Any]:
    """Model and processor, in float32: stored as bfloat16, computed as published numbers are."""
    torch.manual_seed(0)
    path = Path(name.removeprefix("random:"))
    if (path / "state.json").is_file():
        model, processor = load_exported(path)
        return model.float().eval(), processor
    facts = json.loads((path / "config.json").read_text())
    kind: Any = getattr(modeling_ctfm, facts["architectures"][0])
    if name.startswith("random:"):
        model = kind(kind.config_class.from_pretrained(path))
    else:
        model = load_complete(kind, path, dtype=torch.float32)
    has_text = (path / "tokenizer_config.json").is_file() and kind is CTFMModel
    processor = (CTFMProcessor if has_text else CTFMImageProcessor).from_pretrained(path)
    return model.eval(), processor


def image_processor(processor: Any) -> CTFMImageProcessor:
    return processor.image_processor if isinstance(processor, CTFMProcessor) else processor


def is_feature_folder(name: str) -> bool:
    return (Path(name) / "manifest.csv").is_file() and not (Path(name) / "config.json").is_file()


class Texts:
    """Text -> unit vector in the joint space, each text once."""

    def __init__(self, name: str) -> None:
        self.name, self.known = name, dict[str, np.ndarray]()
        if is_feature_folder(name) and (Path(name) / "texts.safetensors").is_file():
            self.known = {text: unit(row) for text, row in load_file(Path(name) / "texts.safetensors").items()}

    @property
    def are_available(self) -> bool:
        if is_feature_folder(self.name):
            return bool(self.known)
        return self.name != "histogram" and isinstance(load_encoder(self.name)[0], CTFMModel)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """`(texts, e)`.

        Raises:
            ValueError: of a feature folder: a text is not in texts.safetensors.
        """
        missing = list(dict.fromkeys(text for text in texts if text not in self.known))
        if missing and is_feature_folder(self.name):
            raise ValueError(f"{self.name}/texts.safetensors lacks {len(missing)} texts, such as {missing[0]!r}.")
        for start in range(0, len(missing), TEXTS_AT_ONCE):
            some = missing[start : start + TEXTS_AT_ONCE]
            self.known |= dict(zip(some, encode_texts(*load_encoder(self.name), some), strict=True))
        return np.stack([self.known[text] for text in texts])


@torch.inference_mode()
def encode_texts(model: Any, processor: CTFMProcessor, texts: Sequence[str]) -> np.ndarray:
    words = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
    output = model.get_text_features(words["input_ids"], words["attention_mask"])
    return unit(output.pooler_output.float().cpu().numpy())


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-12)


# ---- encode ----


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What one process encodes. `local` keeps what the local transformer made, which checkpoints that share one share;
    `file` the features."""

    encoder: str
    cases: tuple[Case, ...]
    focal: tuple[str, ...]  # findings of whose scans the patch tokens are kept
    pointer: Pointer | None
    directions: np.ndarray | None  # (texts, e)
    local: Path
    file: Path


def encode(
    encoder: str,
    cases: Sequence[Case],
    cache: Path,
    pointer: Pointer | None = None,
    focal: Sequence[str] = (),
    directions: np.ndarray | None = None,
    num_workers: int = 0,
) -> Features:
    """Features of all cases; what is in `cache` already, made by the same weights and questions, is not made again.

    Args:
        pointer: plays the pointing game beside.
        focal: findings that a pointer may look for, now or when another checkpoint is asked.
        directions: `(texts, e)`, see `CTFMModel.score_texts`; features of other models are scored by their cosine.
    """
    if is_feature_folder(encoder):
        sets = read_features(Path(encoder), cases).sets
        scores = {"scores": sets["joint"] @ directions.T} if directions is not None and "joint" in sets else {}
        return Features(sets=sets | scores)
    local_key, key = fingerprints(encoder, pointer, focal, directions)
    chunks = []
    for start in range(0, len(cases), CHUNK):
        some = tuple(cases[start : start + CHUNK])
        ids = "".join(case.case_id for case in some)
        local, file = (
            cache / f"{kind}-{digest(text + ids)}.safetensors" for kind, text in (("local", local_key), ("f", key))
        )
        asked = {"focal": tuple(focal), "pointer": pointer, "directions": directions}
        chunks.append(Chunk(encoder=encoder, cases=some, local=local, file=file, **asked))
    cache.mkdir(parents=True, exist_ok=True)
    missing = [chunk for chunk in chunks if not chunk.file.is_file()]
    done = run_chunks(missing, num_workers)
    for _ in tqdm(done, total=len(missing), desc=encoder[-30:], disable=None):
        pass
    return join_chunks(chunks)


def run_chunks(chunks: Sequence[Chunk], num_workers: int) -> Iterable[None]:
    if num_workers < 2 or len(chunks) < 2:
        yield from map(encode_chunk, chunks)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(encode_chunk, chunks)


def fingerprints(
    encoder: str, pointer: Pointer | None, focal: Sequence[str], directions: np.ndarray | None
) -> tuple[str, str]:
    """Of the local transformer and what is kept of it; of all weights and questions."""
    if encoder == "histogram":
        return encoder, encoder
    model, processor = load_encoder(encoder)
    kept = [*focal, has_token_scores(model)]
    settings = json.dumps([kept, image_processor(processor).to_dict()], default=str, sort_keys=True)
    local_key = hash_weights(getattr(model, "vision_model", model).local_model) + settings  # pyright: ignore[reportArgumentType]
    key = local_key + hash_weights(model)
    if directions is not None:
        key += hashlib.sha256(directions.round(5).tobytes()).hexdigest()
    if pointer is not None:
        pointed = {k: hashlib.sha256(v.round(5).tobytes()).hexdigest() for k, v in pointer.directions.items()}
        key += json.dumps([pointed, pointer.numbers, pointer.tolerance_mm])
    return local_key, key


def has_token_scores(model: Any) -> bool:
    """Whether scores of texts and findings need every patch token."""
    return bool(getattr(model.config, "token_scores", False))


def hash_weights(model: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    return found.hexdigest()


def encode_chunk(chunk: Chunk) -> None:
    if chunk.encoder == "histogram":
        write(chunk.file, {"scan": np.stack([histogram(read_case(case)) for case in chunk.cases])})
        return
    model, processor = load_encoder(chunk.encoder)
    if not chunk.local.is_file():
        write(chunk.local, encode_crops(model, image_processor(processor), chunk))
    rows, pointed = list[dict[str, np.ndarray]](), list[list[float]]()
    with safe_open(chunk.local, framework="pt") as stored:
        kept = set(stored.keys())
        for number, case in enumerate(chunk.cases):
            output, grid = stored_output(stored, number, with_tokens=has_token_scores(model))
            rows.append(mix_crops(model, output, grid, chunk.directions))
            wanted = [name for name in chunk.focal if case.labels.get(name) == 1]
            if chunk.pointer is not None and wanted and f"{number}.tokens" in kept:
                output, grid = stored_output(stored, number, with_tokens=True)
                found = point(model, image_processor(processor), output, grid, case, wanted, chunk.pointer)
                pointed += [[number, index, distance, chance] for index, distance, chance in found]
    tensors = {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]}
    write(chunk.file, tensors | {"pointed": np.array(pointed, np.float32).reshape(-1, 4)})


def encode_crops(model: Any, processor: CTFMImageProcessor, chunk: Chunk) -> dict[str, np.ndarray]:
    """What the local transformer makes of each case: descriptors, crop grid, which crops are occupied and, of scans with a
    focal finding or for token scores, patch tokens in float16."""
    vision, tensors = getattr(model, "vision_model", model), dict[str, np.ndarray]()
    for number, case in enumerate(chunk.cases):
        inputs = processor.preprocess(read_case(case))
        has_focal = case.has_segmentation and any(case.labels.get(name) == 1 for name in chunk.focal)
        with torch.no_grad():
            keeps_tokens = has_focal or has_token_scores(model)
            local = vision.encode_crops(inputs["pixel_values"], output_tokens=keeps_tokens)
        tensors[f"{number}.descriptors"] = local.pooler_output.float().numpy()
        tensors[f"{number}.crop_grid"] = inputs["crop_grid"].numpy()
        tensors[f"{number}.occupied"] = inputs["pixel_values"].flatten(2).any(2).numpy()
        if keeps_tokens:
            tensors[f"{number}.tokens"] = vision.to_grid(local.last_hidden_state, inputs["pixel_values"]).half().numpy()
    return tensors


def stored_output(stored: Any, number: int, with_tokens: bool) -> tuple[CTFMVisionOutput, torch.Tensor]:
    """What `encode_crops` kept, as the vision tower puts it, and the crop grid."""
    output = CTFMVisionOutput(
        crop_embeds=stored.get_tensor(f"{number}.descriptors"), occupied=stored.get_tensor(f"{number}.occupied")
    )
    if with_tokens:
        output.dense_features = stored.get_tensor(f"{number}.tokens").float()
    return output, stored.get_tensor(f"{number}.crop_grid")


@torch.no_grad()
def mix_crops(
    model: Any, output: CTFMVisionOutput, grid: torch.Tensor, directions: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """One scan's features: everything after the local transformer. With `directions` `(texts, e)` also its "scores"."""
    vision, descriptors = getattr(model, "vision_model", model), output.crop_embeds
    assert descriptors is not None
    places = vision.descriptor_coordinates(grid, descriptors.shape[1])
    mixed = vision.mix_descriptors(descriptors, places, None)
    pooled = mixed.pooler_output
    whole = CTFMVisionOutput(
        last_hidden_state=mixed.last_hidden_state,
        pooler_output=pooled,
        dense_features=output.dense_features,
        occupied=output.occupied,
    )
    crops = descriptors[0].flatten(0, 1)
    features = {"scan": pooled[0], "crops": torch.cat((crops.mean(0), crops.amax(0)))}
    if isinstance(model, CTFMModel):
        whole.pooler_output = model.visual_projection(pooled)
        features["joint"] = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)[0]
        if directions is not None:
            features["scores"] = model.score_texts(whole, torch.from_numpy(directions).float())[0][0]
    if isinstance(model, CTFMForImageClassification):
        features["logits"] = model.score(whole)[0][0]
    return {name: value.float().numpy() for name, value in features.items()}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with written_whole(path) as partial:
        save_file(tensors, partial)


def join_chunks(chunks: Sequence[Chunk]) -> Features:
    sets, pointed, first = dict[str, list[np.ndarray]](), list[Pointed](), 0
    for chunk in chunks:
        tensors = load_file(chunk.file)
        names = list(chunk.pointer.directions) if chunk.pointer else []
        for case, finding, distance, chance in tensors.pop("pointed", np.zeros((0, 4))).tolist():
            pointed.append(
                Pointed(case=first + int(case), finding=names[int(finding)], distance_mm=distance, chance=chance)
            )
        for name, rows in tensors.items():
            sets.setdefault(name, []).append(rows)
        first += len(chunk.cases)
    return Features(sets={name: np.concatenate(parts) for name, parts in sets.items()}, pointed=tuple(pointed))


def histogram(volume: Volume) -> np.ndarray:
    """Logarithms of the shares of voxels in 64 bins of 32 HU."""
    counts, _ = np.histogram(volume.hu, HISTOGRAM_HU)
    return np.log(counts / volume.hu.size + 1e-6).astype(np.float32)


# ---- heat maps ----


def text_maps(
    model: Any,
    processor: CTFMImageProcessor,
    output: CTFMVisionOutput,
    grid: torch.Tensor,
    volume: Volume,
    directions: np.ndarray,
) -> list[np.ndarray]:
    """Heat maps `(D, H, W)` on the scan, one a direction `(e,)`."""
    rows = torch.from_numpy(np.ascontiguousarray(directions)).float()
    maps = model.get_text_maps(output, grid, None, rows)  # (1, texts, g, d, h, w)
    spacing = None if processor.spacing == "native" else [float(mm) for mm in processor.spacing]
    inputs = CTFMBatchFeature()
    inputs.geometry = (processor.place_grid(volume, spacing),)
    return [processor.to_patient_space(maps[:, k], inputs)[0] for k in range(maps.shape[1])]


def point(
    model: Any,
    processor: CTFMImageProcessor,
    output: CTFMVisionOutput,
    grid: torch.Tensor,
    case: Case,
    wanted: Sequence[str],
    pointer: Pointer,
) -> list[tuple[int, float, float]]:
    """Of each wanted finding its index, the distance in mm from its map's largest value, and the chance of a hit."""
    volume, names = read_case(case), list(pointer.directions)
    truth, directions = read_label_map(case, volume), np.stack([pointer.directions[name] for name in wanted])
    maps = text_maps(model, processor, output, grid, volume, directions)
    body = np.argwhere(volume.hu > BODY_HU)
    body = body[np.random.default_rng(0).integers(len(body), size=CHANCE_POINTS)] if len(body) else body
    found = []
    for name, heat in zip(wanted, maps, strict=True):
        voxels = np.argwhere(truth == pointer.numbers[name])
        if not len(voxels):
            continue
        peak = np.array(np.unravel_index(int(np.argmax(heat)), heat.shape))[None]
        distance = float(distance_to(peak, voxels, volume.spacing)[0])
        near = distance_to(body, voxels, volume.spacing) <= pointer.tolerance_mm
        found.append((names.index(name), distance, float(near.mean())))
    return found


# ---- features of other models ----


def read_features(folder: Path, cases: Sequence[Case]) -> Features:
    """Features that lie in a folder with manifest.csv.

    Raises:
        ValueError: a case has none.
    """
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        files = {str(Path(row["scan"]).resolve()): row["features"] for row in csv.DictReader(file) if row["features"]}
    missing = [case for case in cases if case.path not in files]
    if missing:
        raise ValueError(
            f"{folder}/manifest.csv has no features of {len(missing)} of {len(cases)} scans; its column scan must hold the "
            "paths from which the evaluated scans were prepared or are read."
        )
    sets = dict[str, list[np.ndarray]]()
    for case in cases:
        tensors = load_file(folder / files[case.path])
        found = {"scan": tensors["scan_features"]}
        if "crop_embeds" in tensors:
            crops = tensors["crop_embeds"].reshape(-1, tensors["crop_embeds"].shape[-1])
            found["crops"] = np.concatenate((crops.mean(0), crops.max(0)))
        if "image_embeds" in tensors:
            found["joint"] = unit(tensors["image_embeds"])
        for name, row in found.items():
            sets.setdefault(name, []).append(row.astype(np.float32))
    return Features(sets={name: np.stack(rows) for name, rows in sets.items()})
