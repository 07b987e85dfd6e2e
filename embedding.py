"""Scans -> feature files, a manifest and one table: `ctfm embed`."""

import argparse
import csv
import hashlib
import itertools
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoConfig
from transformers.utils import cached_file

from . import (
    CTFMImageProcessor,
    CTFMModel,
    CTFMVisionConfig,
    CTFMVisionModel,
    Volume,
    VolumeError,
    collate_scans,
)
from .image_processing_ctfm import SPACING_PRESETS, CTFMBatchFeature
from .precision_ctfm import PRECISIONS
from .volume_studies_ctfm import Found, find_scans
from .weights import load_complete
from .whole_files import written_whole

UNTRAINED = "untrained"
DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
VECTORS = ("scan_features", "image_embeds")  # of a whole scan: what the table holds
PARQUET_ROWS = 5000  # in memory at once
Task = TypeVar("Task")
Read = TypeVar("Read")
MANIFEST_FIELDS = [
    "scan",
    "series",
    "status",
    "features",
    "outputs",
    "shape",
    "spacing_mm",
    "crop_grid",
    "seconds",
    "model",
    "precision",
    "note",
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one of `world_size` processes does. A scan belongs to a part by its path and series alone, so a part stays the same
    when scans are added and when it is started again, on whichever machine.

    Raises:
        ValueError: there is no such part.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"--rank {self.rank} must be from 0 to {self.world_size - 1}, one less than --world-size {self.world_size}."
            )

    def holds(self, scan: Path, series_uid: str | None) -> bool:
        digest = hashlib.sha256(json.dumps([str(scan), series_uid]).encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.world_size == self.rank


def manifest_path(out: Path, part: Part | None) -> Path:
    """A part has a manifest of its own, since processes on several machines cannot share one file."""
    return out / ("manifest.csv" if part is None else f"manifest-{part.rank:05d}-of-{part.world_size:05d}.csv")


def embed(
    scans: Sequence[Path],
    out: Path,
    model_id: str,
    spacing: str | None,
    dense: bool,
    *,
    device: str | None = None,
    precision: str = "float32",
    batch: int = 1,
    readers: int = 2,
    as_npz: bool = False,
    part: Part | None = None,
) -> int:
    """Writes one file a scan, `manifest.csv` and `features.parquet`; what is done already is not done again.

    Args:
        device: of the model, such as "cuda:1" or "mps"; an accelerator that is there, or else the CPU.
        precision: see `CTFMPreTrainedModel.set_precision`; features made in another are not taken for these.
        batch: scans that go through the model together, `readers` that are read ahead of it.
        as_npz: NumPy's files instead of safetensors.
        part: the share of one of several processes that write into the same folder.
    """
    found = list_scans(scans)
    if part is not None:
        found = [one for one in found if part.holds(*one)]
    how = {"device": device, "precision": precision, "batch": batch, "readers": readers, "as_npz": as_npz, "part": part}
    failed = embed_found(found, out, model_id, spacing, dense, **how)
    listed = manifest_path(out, part).name
    print(f"{len(found) - failed} of {len(found)} scans have features in {out}; {failed} could not be read ({listed})")
    return 1 if failed else 0


def list_scans(scans: Sequence[Path]) -> list[Found]:
    """Files, and the scans of folders.

    Raises:
        VolumeError: there is none.
    """
    found = [one for scan in scans for one in (find_scans(scan) if scan.is_dir() else [(scan, None)])]
    if not found:
        raise VolumeError(
            "there is no scan", value=", ".join(scan.name for scan in scans), cure="Give a folder or a file."
        )
    return found


def embed_found(
    found: Sequence[Found],
    out: Path,
    model_id: str,
    spacing: str | None = None,
    dense: bool = False,
    *,
    device: str | None = None,
    precision: str = "float32",
    batch: int = 1,
    readers: int = 2,
    as_npz: bool = False,
    part: Part | None = None,
) -> int:
    """As `embed`, of scans by path and series. Returns how many could not be read."""
    out.mkdir(parents=True, exist_ok=True)
    model, processor, name = load(model_id)
    torch.nn.Module.to(model, resolve_device(device))
    chosen = model.set_precision(precision)
    if precision == "auto":
        print(f"ctfm: computing in {chosen}, which --precision changes", file=sys.stderr)
    weights = weight_files(model_id)
    manifest = Manifest(manifest_path(out, part))
    failed = 0
    settings = (name, weights, spacing or processor.spacing, dense, chosen)
    files_of = {}
    for scan, series_uid in found:
        file = out / f"{fingerprint(scan, series_uid, settings)}{'.npz' if as_npz else '.safetensors'}"
        if not (manifest.is_done(scan, series_uid, file.name) and file.is_file()):
            files_of[scan, series_uid] = file

    def prepare(task: Found) -> CTFMBatchFeature:
        return processor.preprocess(task[0], spacing=spacing, series_uid=task[1])

    bar = tqdm(total=len(found), initial=len(found) - len(files_of), desc="embed", unit="scan", disable=None)
    start = time.perf_counter()
    for tasks in in_batches(read_ahead(list(files_of), prepare, readers), batch):
        bar.update(len(tasks))
        read = []
        for task, inputs in tasks:
            if isinstance(inputs, VolumeError):
                failed += 1
                row = {"scan": str(task[0]), "series": task[1] or "", "model": name, "precision": chosen}
                manifest.add(row | {"status": "failed", "note": str(inputs)})
            else:
                read.append((task, inputs))
        if not read:
            continue
        encoded = encode_inputs(model, [inputs for _, inputs in read], processor, dense)
        seconds = round(
            (time.perf_counter() - start) / len(tasks), 2
        )  # of the batch, reading that it waited for included
        for ((scan, series_uid), _), (features, facts) in zip(read, encoded, strict=True):
            file = files_of[scan, series_uid]
            save_features(features, file)
            row = {"scan": str(scan), "series": series_uid or "", "model": name, "precision": chosen}
            manifest.add(row | facts | {"status": "done", "features": file.name, "seconds": seconds})
        start = time.perf_counter()
    bar.close()
    manifest.tidy()
    if part is None:
        for torn in out.glob("*.partial"):  # of processes that were killed
            torn.unlink()
        manifest.write_parquet(out)
    return failed


def resolve_device(device: str | None) -> torch.device:
    """
    Raises:
        OSError: this machine has no such device.
    """
    if device is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what PyTorch raises differs by device
        raise OSError(f"no device {device!r} here: {str(error).splitlines()[0]}") from error
    return torch.device(device)


def read_ahead(
    tasks: Sequence[Task], read: Callable[[Task], Read], num_readers: int
) -> Iterator[tuple[Task, Read | VolumeError]]:
    """Every task in order with what `read` makes of it, or why it is refused. `num_readers` threads stay a few tasks ahead of
    whoever takes the results; more would hold more scans in memory."""
    if num_readers < 1:
        for task in tasks:
            yield task, try_to_read(read, task)
        return
    with ThreadPoolExecutor(num_readers) as pool:
        waiting: deque[tuple[Task, Future]] = deque()
        try:
            for task in tasks:
                waiting.append((task, pool.submit(try_to_read, read, task)))
                if len(waiting) > num_readers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:  # whoever takes the results stopped
                future.cancel()


def try_to_read(read: Callable[[Task], Read], task: Task) -> Read | VolumeError:
    try:
        return read(task)
    except VolumeError as error:
        return error
    except MemoryError:
        return VolumeError(
            "the scan does not fit into memory", cure="Read fewer scans ahead, or choose a coarser spacing."
        )


def in_batches(items: Iterable[Read], size: int) -> Iterator[list[Read]]:
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        yield some


def save_features(features: dict[str, torch.Tensor], file: Path) -> None:
    """Whole or not at all."""
    with written_whole(file) as partial:
        if file.suffix == ".npz":
            with partial.open("wb") as stream:
                np.savez(stream, **{name: tensor.numpy() for name, tensor in features.items()})  # pyright: ignore[reportArgumentType]
        else:
            save_file(features, partial)


def read_features(file: Path) -> dict[str, torch.Tensor]:
    """What `save_features` wrote."""
    if file.suffix != ".npz":
        return load_file(file)
    with np.load(file) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def embed_scan(
    model: CTFMModel | CTFMVisionModel,
    processor: CTFMImageProcessor,
    scan: Path | Volume,
    series_uid: str | None,
    spacing: str | None,
    dense: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One scan's features and its facts for the manifest."""
    inputs = processor.preprocess(scan, spacing=spacing, series_uid=series_uid)
    return encode_inputs(model, [inputs], processor, dense)[0]


@torch.inference_mode()
def encode_inputs(
    model: CTFMModel | CTFMVisionModel,
    scans: Sequence[CTFMBatchFeature],
    processor: CTFMImageProcessor,
    dense: bool,
) -> list[tuple[dict[str, torch.Tensor], dict[str, str]]]:
    """Features and facts of scans, which go through the model as one batch."""
    vision = model.vision_model if isinstance(model, CTFMModel) else model
    batch = collate_scans(scans)
    tensors = {key: value.to(model.device) for key, value in batch.items()}
    output = vision(**tensors, output_dense_features=dense)
    joint = model.visual_projection(output.pooler_output) if isinstance(model, CTFMModel) else None
    encoded = []
    for row, (geometry, volume) in enumerate(zip(batch.geometry, batch.volumes, strict=True)):
        crops = math.prod(geometry.crop_grid)  # what follows is padding of the batch
        features = {"scan_features": output.pooler_output[row], "crop_embeds": output.crop_embeds[row, :crops]}
        if joint is not None:
            features["image_embeds"] = torch.nn.functional.normalize(joint, dim=-1)[row]
        if dense:
            features["dense_features"] = output.dense_features[row, :crops]
        facts = {"outputs": " ".join(features)}
        # numpy has no bfloat16, so files hold float32 whatever the model computes in
        features = {key: value.float() for key, value in features.items()}
        features["crop_grid"] = torch.tensor(geometry.crop_grid)
        features["crop_size"] = torch.tensor(processor.crop_size)
        features["grid_affine"] = torch.from_numpy(geometry.grid_affine)
        facts |= {
            "shape": "x".join(map(str, volume.hu.shape)),
            "spacing_mm": "x".join(f"{size:.4g}" for size in volume.spacing),
            "crop_grid": "x".join(map(str, geometry.crop_grid)),
            "note": " ".join(volume.warnings),
        }
        # A copy: a view would keep the whole batch, and safetensors refuses tensors that share memory.
        encoded.append(({key: value.cpu().contiguous().clone() for key, value in features.items()}, facts))
    return encoded


def weight_files(model_id: str) -> list[tuple[str, int]]:
    """Which weights lie in a folder now; of the Hub, the model's name says which."""
    files = [*Path(model_id).glob("*.safetensors"), *Path(model_id).glob("*config.json")]
    return [(file.name, file.stat().st_mtime_ns) for file in sorted(files)]


def fingerprint(scan: Path, series_uid: str | None, settings: tuple) -> str:
    """Names a scan's features by its place, size and time and by how they were made, so that nothing of its name shows."""
    files = sorted(scan.rglob("*")) if scan.is_dir() else [scan]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    facts = json.dumps([str(scan.resolve()), stats, series_uid, settings], default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:20]


class Manifest:
    """`manifest.csv`, one row a scan. Rows are appended as scans end, and a later row replaces an earlier one.

    The manifest of all takes over what parts did (`manifest-00000-of-00008.csv`), so the same command without a rank ends their
    work: it does what they left and writes the tables.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, str], dict[str, str]] = {}
        parts = sorted(path.parent.glob("manifest-*-of-*.csv")) if path.name == "manifest.csv" else []
        for source in (*parts, path):
            self.read(source)
        self.tidy()

    def read(self, source: Path) -> None:
        if not source.is_file():
            return
        with self._open(source, "r") as file:
            for row in csv.DictReader(file):
                whole = list(row) == MANIFEST_FIELDS and None not in row.values()  # else torn, by a run that was killed
                if whole:
                    self.rows[row["scan"], row["series"]] = row

    @staticmethod
    def _open(path: Path, mode: str) -> TextIO:
        """A file name need not be UTF-8."""
        file = path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
        assert isinstance(file, TextIOWrapper)
        return file

    def is_done(self, scan: Path, series_uid: str | None, features: str) -> bool:
        row = self.rows.get((str(scan), series_uid or ""), {})
        return row.get("status") == "done" and row.get("features") == features

    def add(self, row: Mapping[str, object]) -> None:
        full = {name: str(row.get(name, "")) for name in MANIFEST_FIELDS}
        self.rows[full["scan"], full["series"]] = full
        with self._open(self.path, "a") as file:
            csv.DictWriter(file, MANIFEST_FIELDS).writerow(full)

    def write_parquet(self, out: Path) -> None:
        """features.parquet, which `datasets.load_dataset` opens: a row for every scan that has features, `scan_features` and
        `image_embeds` as lists of float32."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            print("ctfm: features.parquet is left out; `pip install pyarrow` and run again for it.", file=sys.stderr)
            return
        vector, text = pa.list_(pa.float32()), pa.string()
        fields = [(name, text) for name in ("scan", "series", "model", "features")]
        schema = pa.schema([*fields, *((name, vector) for name in VECTORS)])
        done = (row for row in self.rows.values() if row["status"] == "done" and (out / row["features"]).is_file())
        with written_whole(out / "features.parquet") as partial, pq.ParquetWriter(partial, schema) as writer:
            for some in in_batches(done, PARQUET_ROWS):
                rows = []
                for row in some:
                    tensors = read_features(out / row["features"])
                    # A file name need not be UTF-8, and Parquet's text must be.
                    facts = {name: row[name].encode(errors="replace").decode() for name, _ in fields}
                    rows.append(facts | {name: tensors[name].float().numpy() for name in VECTORS if name in tensors})
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))

    def tidy(self) -> None:
        with written_whole(self.path) as partial, self._open(partial, "w") as file:
            writer = csv.DictWriter(file, MANIFEST_FIELDS)
            writer.writeheader()
            writer.writerows(self.rows.values())


def load(model_id: str) -> tuple[CTFMModel | CTFMVisionModel, CTFMImageProcessor, str]:
    """A checkpoint from a folder or the Hub; "untrained" is the architecture with random weights of seed 0.

    Only what was trained is loaded: a checkpoint that was not saved as a `CTFMModel` has no joint space of scans and texts, and
    gives its scan encoder.

    Returns:
        Model in float32, image processor, and the model's name; of a Hub model with its commit.

    Raises:
        OSError: there is no such checkpoint, it is none of CTFM, or it lacks weights.
    """
    if model_id == UNTRAINED:
        print(
            f"ctfm: --model {UNTRAINED}: the weights are RANDOM (seed 0) and the features mean nothing",
            file=sys.stderr,
        )
        torch.manual_seed(0)
        config = CTFMVisionConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=2, layerscale_value=0.3)
        return CTFMVisionModel(config).eval(), CTFMImageProcessor(), UNTRAINED
    try:
        place = Path(str(cached_file(model_id, "config.json"))).parent  # of a Hub model snapshots/COMMIT
        config = AutoConfig.from_pretrained(place)
        if config.model_type not in ("ctfm", "ctfm_vision"):
            raise OSError(f"its model_type is {config.model_type!r}, and CTFM's are 'ctfm' and 'ctfm_vision'")
        revision = "main" if Path(model_id).is_dir() else place.name
        model_class: Any = CTFMModel if "CTFMModel" in (config.architectures or ()) else CTFMVisionModel
        model = load_complete(model_class, model_id, revision=revision, dtype=torch.float32)
        processor = CTFMImageProcessor.from_pretrained(model_id, revision=revision)
    except (OSError, ValueError) as error:
        raise OSError(f"no checkpoint {model_id}: {str(error).splitlines()[0]}") from error
    return model.eval(), processor, model_id if Path(model_id).is_dir() else f"{model_id}@{revision}"


def check_model_is_there(model_id: str) -> str:
    """argparse passes a default through here where the option was left out; a package from an index brings no checkpoint."""
    if model_id == str(DEFAULT_CHECKPOINT) and not DEFAULT_CHECKPOINT.is_dir():
        raise argparse.ArgumentTypeError(
            "this installation has no checkpoint of its own. Give a folder, such as a clone's checkpoints/default, or a Hub id."
        )
    return model_id


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    own = " (%(default)s)" if DEFAULT_CHECKPOINT.is_dir() else ""
    parser.add_argument(
        "--model", type=check_model_is_there, default=str(DEFAULT_CHECKPOINT), help=f"checkpoint folder or Hub id{own}"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--spacing`, of every command that runs a model on scans."""
    add_model_argument(parser)
    parser.add_argument("--spacing", choices=list(SPACING_PRESETS), help="instead of the checkpoint's own")


def add_scans_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scans", type=Path, nargs="+", metavar="SCAN", help="DICOM folder, zip, NIfTI, ...; or a folder of them"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Of every command that lets the user choose it: see `resolve_device`."""
    parser.add_argument("--device", help="of the model, such as cuda:1; an accelerator where there is one")


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help='of the scan encoder: "auto" is the fastest here that keeps features within a cosine of 0.999 (%(default)s)',
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm embed",
        description="Features of scans, one file each, a manifest and one table, features.parquet. Done scans are kept.",
    )
    add_scans_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the features and manifest.csv")
    parser.add_argument("--dense", action="store_true", help="also the features of every patch")
    parser.add_argument("--npz", action="store_true", help="NumPy's files instead of safetensors")
    add_device_argument(parser)
    add_precision_argument(parser)
    parser.add_argument("--batch", type=int, default=1, help="scans that go through the model together (%(default)s)")
    parser.add_argument("--readers", type=int, default=2, help="scans that are read ahead of the model (%(default)s)")
    parser.add_argument("--rank", type=int, help="of this process, where --world-size of them share the work")
    parser.add_argument("--world-size", type=int, help="how many processes write into --out")
    add_model_arguments(parser)
    given = parser.parse_args(arguments)
    if (given.rank is None) != (given.world_size is None):
        parser.error("--rank and --world-size go together")
    try:
        part = None if given.rank is None else Part(rank=given.rank, world_size=given.world_size)
    except ValueError as error:
        parser.error(str(error))
    if given.batch < 1 or given.readers < 0:
        parser.error(f"--batch {given.batch} must be 1 or more, and --readers {given.readers} 0 or more")
    return embed(
        given.scans,
        given.out,
        given.model,
        given.spacing,
        given.dense,
        device=given.device,
        precision=given.precision,
        batch=given.batch,
        readers=given.readers,
        as_npz=given.npz,
        part=part,
    )
