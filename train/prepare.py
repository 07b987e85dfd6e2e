"""Scans and reports -> shards + manifest + fingerprint, once, offline.

    ctfm prepare ct-rate DOWNLOADED PREPARED --num-workers 64

Layouts: folder, csv, ct-rate, merlin, inspect, nlst, rad-chestct (see layouts.py). PREPARED may be shared as the scans may:
it holds voxels, geometry, reports, labels and keyed hashes, and no name, number, date, path or UID. What links it to the scans
lies in PREPARED-private (the key of the hashes, which file each scan was) and stays with you.

- Scans are planned in a fixed order and cut into shards of `scans_per_shard`. A shard is written by one process and counts
  when its part file exists, so a killed run goes on with the shards that are missing and ends with the same bytes.
- A scan that cannot be read safely is a row in refusals.csv; nothing takes its place.
- A reader that takes its process down with it is found by reading the shards it was in again, one scan a process.
"""

import argparse
import csv
import hashlib
import io
import json
import multiprocessing
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ..volume_ctfm import AIR_HU, GeometryError, NotCTError, Volume, VolumeError, read_segmentation, read_volume
from ..volume_scan_ctfm import ScanWarning
from ..whole_files import written_whole
from .layouts import LAYOUTS, ScanSource, StatedFacts
from .shards import BLOCK, ShardWriter, shard_name, write_manifest

FORMAT = 2  # of a prepared folder; another number means that its shards are written anew
BODY_HU = -300  # denser than lung and fat's darkest edge: the box around it is where crops are taken
HISTOGRAM_HU = (-1024, 3072)  # the 12 bits of a CT scanner
PERCENTILES = (0.5, 5, 25, 50, 75, 95, 99.5)
PLACES = 8  # of each finding: where crops are taken that must hold one
SPACING_TOLERANCE = 0.02  # CT-RATE's tables are rounded to 3 digits; a wrong spacing is off by far more
RAD_CHESTCT_MM = 0.8
# Codes of the reader's warnings that leave the values unfit for training.
NO_INTERCEPT, TWICE, WINDOWED = "no_intercept", "rescaled_twice", "windowed"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How scans become shards.

    Args:
        layout: a name of `LAYOUTS`; source: its folder or table; out: the prepared folder; private: what links both.
        scans_per_shard: 32 scans of 512 x 512 x 300 at 40 % are 2 GB: few files, and little to redo after a kill.
        all_reconstructions: keep every reconstruction of a scan, not one.
        num_workers: processes; 0 works in this one.
    """

    layout: str
    source: Path
    out: Path
    private: Path
    scans_per_shard: int = 32
    all_reconstructions: bool = False
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to write."""

    number: int
    sources: tuple[ScanSource, ...]
    plan: str
    out: Path
    key: bytes
    structures: dict[int, str]  # names of segmentations' labels
    fatal: frozenset[str] = frozenset()  # names of sources that took a process down


# --- the run -------------------------------------------------------------------------------------------------------------


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Prepares a data set, or goes on preparing it, and returns its fingerprint.

    Raises:
        ValueError: there is no scan in the source.
    """
    for folder in (config.out / "shards", config.out / "parts", config.private):
        folder.mkdir(parents=True, exist_ok=True)
    config.private.chmod(0o700)
    key = load_key(config.private / "key")
    sources, passed_over = choose_sources(LAYOUTS[config.layout](config.source), config.all_reconstructions)
    if not sources and not passed_over:
        raise ValueError(f"There is no scan in {config.source} laid out as {config.layout}.")
    write_links(config.private / "sources.csv", [*sources, *(source for source, _ in passed_over)], key)
    tasks = plan_tasks(sources, config, key)
    remove_stale_shards(config.out, len(tasks))
    missing = [task for task in tasks if not is_done(task)]
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), unit="shard", disable=None) as bar:
        for _ in run_tasks(missing, config.num_workers):
            bar.update()
    write_text(config.out / "structures.json", json.dumps(read_structures(config.source)))
    return finish(config.out, len(tasks), passed_over, key)


def choose_sources(
    found: Sequence[ScanSource], all_reconstructions: bool
) -> tuple[list[ScanSource], list[tuple[ScanSource, str]]]:
    """What to read, in order, and what not, with the reason."""
    passed_over = [(source, source.refused) for source in found if source.refused]
    found = [source for source in found if not source.refused]
    best: dict[str, ScanSource] = {}
    for source in found:
        kept = best.get(source.group)
        if kept is None or source.preference > kept.preference:
            best[source.group] = source
    chosen = []
    for source in found:
        if all_reconstructions or not source.group or best[source.group] is source:
            chosen.append(source)
        else:
            passed_over.append((source, "another reconstruction of the same scan is taken"))
    return chosen, passed_over


def plan_tasks(sources: Sequence[ScanSource], config: PrepareConfig, key: bytes) -> list[Task]:
    tasks, structures = [], read_structures(config.source)
    for number, start in enumerate(range(0, len(sources), config.scans_per_shard)):
        some = tuple(sources[start : start + config.scans_per_shard])
        facts = [
            (asdict(source) | {"path": "", "segmentation": ""}, _stamp(source.path), _stamp(source.segmentation))
            for source in some
        ]
        plan = keyed_hash(key, json.dumps([FORMAT, BLOCK, structures, facts]).encode())
        tasks.append(Task(number=number, sources=some, plan=plan, out=config.out, key=key, structures=structures))
    return tasks


def read_structures(source: Path) -> dict[int, str]:
    """structures.json beside a table: label -> name."""
    path = source.with_name("structures.json")
    return {int(label): name for label, name in json.loads(path.read_text()).items()} if path.is_file() else {}


def _stamp(path: Path | None) -> tuple[int, int]:
    """Size and time of a file: a corrected file is read again. A folder is known by its name."""
    if path is None or not path.is_file():
        return (0, 0)
    facts = path.stat()
    return (facts.st_size, facts.st_mtime_ns)


def is_done(task: Task) -> bool:
    part = task.out / part_name(task.number)
    return part.is_file() and json.loads(part.read_text())["plan"] == task.plan


def run_tasks(tasks: Sequence[Task], num_workers: int) -> Iterator[int]:
    """Writes shards and yields their numbers, in any order."""
    if num_workers == 0:
        yield from map(write_shard, tasks)
        return
    left = {task.number: task for task in tasks}
    try:
        with ProcessPoolExecutor(num_workers, mp_context=start_processes()) as pool:
            for done in as_completed([pool.submit(write_shard, task) for task in tasks]):
                left.pop(number := done.result())
                yield number
    except BrokenProcessPool:
        open_tasks = [task for task in left.values() if not is_done(task)]
        started = {task.number for task in open_tasks if reading_mark(task).is_file()}
        yield from (task.number for task in left.values() if task not in open_tasks)
        for task in open_tasks:
            if task.number in started:
                yield write_shard_apart(task)
        yield from run_tasks([task for task in open_tasks if task.number not in started], num_workers)


def write_shard_apart(task: Task) -> int:
    """Writes a shard in a process of its own, leaving out one more scan each time that one takes the process down."""
    while True:
        try:
            with ProcessPoolExecutor(1, mp_context=start_processes()) as pool:
                return pool.submit(write_shard, task).result()
        except BrokenProcessPool:
            index = int(reading_mark(task).read_text())
            task = replace(task, fatal=task.fatal | {task.sources[index].name})


def start_processes() -> BaseContext:
    """Workers are forked from a process that has imported what takes long and runs no thread."""
    context = multiprocessing.get_context("forkserver")
    # Not this module: as `python -m` runs it, workers run it again under the name __mp_main__, and runpy warns of one that is
    # in sys.modules already.
    context.set_forkserver_preload(["ctfm.volume_ctfm", "ctfm.train.layouts", "ctfm.train.shards"])
    return context


def reading_mark(task: Task) -> Path:
    """Holds the index of the source that is being read."""
    return task.out / "parts" / f"{task.number:06d}.reading"


def part_name(number: int) -> str:
    return f"parts/{number:06d}.json"


def remove_stale_shards(out: Path, num_shards: int) -> None:
    """Takes away what an earlier run left that no shard of this one will replace."""
    for path in [*out.glob("shards/*"), *out.glob("parts/*")]:
        if path.suffix in (".partial", ".reading") or int(path.stem) >= num_shards:
            path.unlink()


# --- one shard -----------------------------------------------------------------------------------------------------------


def write_shard(task: Task) -> int:
    """Reads a task's scans into its shard; the part file, written last, says that the shard is whole."""
    scans, refusals = [], []
    histogram = np.zeros(HISTOGRAM_HU[1] - HISTOGRAM_HU[0], np.int64)
    with ShardWriter(task.out / shard_name(task.number)) as writer:
        for index, source in enumerate(task.sources):
            scan_id = keyed_hash(task.key, source.name.encode())
            reading_mark(task).write_text(str(index))
            try:
                if source.name in task.fatal:
                    raise VolumeError("its reader ended the process")
                volume, repairs = read_source(source)
                segmentation = read_segmentation(source.segmentation, volume) if source.segmentation else None
            except VolumeError as error:
                refusals.append({"scan_id": scan_id, "kind": type(error).__name__, "reason": error.problem})
                continue
            except (OSError, MemoryError) as error:
                reason = getattr(error, "strerror", None) or "out of memory"
                refusals.append({"scan_id": scan_id, "kind": type(error).__name__, "reason": reason})
                continue
            row = writer.add(scan_id, volume.hu, segmentation=segmentation)
            facts = describe(source, scan_id, task, volume, repairs)
            places = find_places(segmentation, task.structures, source.labels)
            scans.append(facts | {"places": places, "shard": task.number, "row": row})
            histogram += count_hu(volume.hu)
    part = {"plan": task.plan, "scans": scans, "refusals": refusals, "histogram": histogram.tolist()}
    write_text(task.out / part_name(task.number), json.dumps(part))
    reading_mark(task).unlink(missing_ok=True)
    return task.number


def read_source(source: ScanSource) -> tuple[Volume, list[str]]:
    """Reads a scan, as int16, and settles what its table says against what its file says.

    Returns:
        The volume and the names of the repairs.

    Raises:
        VolumeError: what cannot be read safely, or where file and table contradict each other.
    """
    scan = read_rad_chestct(source.path) if source.path.suffix == ".npz" else source.path
    volume = read_volume(scan, source.series_uid)
    volume, repairs = resolve_stated_values(volume, source.stated)
    volume, more = resolve_stated_spacing(volume, source.stated)
    repairs += more
    if volume.hu.dtype != np.int16:
        rounded = np.clip(np.rint(volume.hu), -32768, 32767).astype(np.int16)
        volume, repairs = replace(volume, hu=rounded), [*repairs, "values_rounded"]
    return volume, repairs


def read_rad_chestct(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """RAD-ChestCT's array of HU and its affine: 0.8 mm along each axis, running from head to feet, from front to back and
    from the patient's right to the left (rachellea/ct-volume-preprocessing; the axis names of its extrema tables)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            hu = file["ct"]
    except (ValueError, KeyError, BadZipFile) as error:
        raise VolumeError(
            "the file is no scan of RAD-ChestCT",
            value=str(error),
            cure='It must be an .npz with the array "ct".',
        ) from error
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = -RAD_CHESTCT_MM
    affine[3, 3] = 1
    return hu, affine


def resolve_stated_values(volume: Volume, stated: StatedFacts) -> tuple[Volume, list[str]]:
    """Applies a rescale that a file never went through, undoes one that it went through twice, and looks again."""
    problem = find_problem(volume)
    if problem is None:
        return volume, []
    slope, intercept = 1.0 if stated.slope is None else stated.slope, stated.intercept
    if intercept is None or problem.code == WINDOWED:
        raise NotCTError(f"the values are no Hounsfield units: {problem}", cure="State the rescale in a table.")
    hu = volume.hu.astype(np.float32)
    hu = hu * slope + intercept if problem.code == NO_INTERCEPT else (hu - intercept) / slope
    whole = np.rint(hu)
    settled = read_volume((whole.astype(np.int16) if np.abs(whole).max() < 32768 else whole, volume.affine))
    if find_problem(settled) or np.abs(hu - whole).max() > 0.01:
        raise NotCTError("the values are no Hounsfield units, and the stated rescale does not mend them: " + problem)
    repair = "rescale_applied" if problem.code == NO_INTERCEPT else "rescale_undone"
    return replace(settled, source=volume.source, warnings=()), [repair]


def find_problem(volume: Volume) -> ScanWarning | None:
    """The first of the reader's warnings about values that leaves them unfit for training."""
    return next((w for code in (WINDOWED, NO_INTERCEPT, TWICE) for w in volume.warnings if w.code == code), None)


def resolve_stated_spacing(volume: Volume, stated: StatedFacts) -> tuple[Volume, list[str]]:
    """Takes the table's spacing where the file has none (1 x 1 x 1); elsewhere both must agree, or the file be a corrected
    one."""
    if stated.spacing is None or np.allclose(volume.spacing, stated.spacing, rtol=SPACING_TOLERANCE):
        return volume, []
    if stated.header_is_right:
        return volume, ["stated_spacing_ignored"]
    if not np.allclose(volume.spacing, 1.0, atol=1e-3):
        raise GeometryError("file and table state different spacings", value=(volume.spacing, stated.spacing))
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array(stated.spacing) / np.array(volume.spacing)
    return replace(volume, affine=affine), ["spacing_from_table"]


def describe(source: ScanSource, scan_id: str, task: Task, volume: Volume, repairs: list[str]) -> dict[str, Any]:
    """A scan's row of the manifest, as plain JSON values, short of its place."""
    start, stop = find_body(volume.hu)
    shape = np.array(volume.hu.shape, "<i4").tobytes()
    words = " ".join(source.report.split()).lower()
    return {
        "scan_id": scan_id,
        "shape": list(volume.hu.shape),
        "spacing": list(volume.spacing),
        "affine": volume.affine.ravel().tolist(),
        "body_start": start,
        "body_stop": stop,
        "patient": keyed_hash(task.key, b"patient " + source.patient.encode()),
        "region": source.region or volume.source.body_part.lower(),
        "split": source.split,
        "report": source.report,
        "report_key": keyed_hash(task.key, b"report " + words.encode()) if words else "",
        "labels": json.dumps(source.labels),
        "content": keyed_hash(task.key, shape + volume.hu.astype("<i2", copy=False).tobytes()),
        "repairs": repairs,
        "warnings": list(volume.warnings),
    }


def find_places(segmentation: np.ndarray | None, structures: dict[int, str], labels: dict[str, float]) -> str:
    """Voxels of each finding, evenly among all that it has, as JSON; a finding is a structure that the table has a label
    for. Empty without a segmentation."""
    if segmentation is None:
        return ""
    places = {}
    for number in np.unique(segmentation).tolist():
        name = structures.get(number, "")
        if name in labels:
            voxels = np.argwhere(segmentation == number)
            places[name] = voxels[np.linspace(0, len(voxels) - 1, min(PLACES, len(voxels))).astype(int)].tolist()
    return json.dumps(places)


def find_body(hu: np.ndarray) -> tuple[list[int], list[int]]:
    """The box of what is denser than `BODY_HU`; all of the scan where nothing is."""
    plane = hu.max(axis=0)
    brightest = (hu.max(axis=(1, 2)), plane.max(axis=1), plane.max(axis=0))
    start, stop = [], []
    for values in brightest:
        inside = np.flatnonzero(values > BODY_HU)
        start.append(int(inside[0]) if len(inside) else 0)
        stop.append(int(inside[-1]) + 1 if len(inside) else len(values))
    return start, stop


def count_hu(hu: np.ndarray) -> np.ndarray:
    """How often each HU is found in every fourth voxel along each axis; beyond the 12 bits counts as their ends."""
    low, high = HISTOGRAM_HU
    sample = np.clip(hu[::4, ::4, ::4], low, high - 1).ravel().astype(np.int64) - low
    return np.bincount(sample, minlength=high - low)


# --- the end -------------------------------------------------------------------------------------------------------------


def finish(out: Path, num_shards: int, passed_over: list[tuple[ScanSource, str]], key: bytes) -> dict[str, Any]:
    """Parts -> manifest.arrow, tables, refusals.csv and fingerprint.json."""
    scans: list[dict] = []
    refusals = [
        {"scan_id": keyed_hash(key, source.name.encode()), "kind": "PassedOver", "reason": reason}
        for source, reason in passed_over
    ]
    histogram = np.zeros(HISTOGRAM_HU[1] - HISTOGRAM_HU[0], np.int64)
    seen: set[str] = set()
    for number in range(num_shards):
        part = json.loads((out / part_name(number)).read_text())
        refusals += part["refusals"]
        histogram += np.array(part["histogram"])
        for scan in part["scans"]:
            if scan["content"] in seen:
                reason = "the same voxels as another scan"
                refusals.append({"scan_id": scan["scan_id"], "kind": "Duplicate", "reason": reason})
            else:
                seen.add(scan["content"])
                scans.append(scan)
    write_manifest(out / "manifest.arrow", scans)
    from .tables import write_tables  # imports datasets, which workers need not wait for

    write_tables(out, scans, [json.loads(scan["labels"]) for scan in scans])
    text = io.StringIO()
    table = csv.DictWriter(text, ["scan_id", "kind", "reason"], lineterminator="\n")
    table.writeheader()
    table.writerows(refusals)
    write_text(out / "refusals.csv", text.getvalue())
    fingerprint = summarize(out, scans, refusals, histogram)
    write_text(out / "fingerprint.json", json.dumps(fingerprint, indent=2) + "\n")
    return fingerprint


def summarize(out: Path, scans: list[dict], refusals: list[dict], histogram: np.ndarray) -> dict[str, Any]:
    reports = Counter(scan["report_key"] for scan in scans if scan["report_key"])
    spacing = np.array([scan["spacing"] for scan in scans]).reshape(-1, 3)
    shape = np.array([scan["shape"] for scan in scans]).reshape(-1, 3)
    voxels = int(shape.prod(axis=1, dtype=np.int64).sum())
    size = sum(path.stat().st_size for path in out.glob("shards/*.arrow"))
    share = np.cumsum(histogram) / max(1, histogram.sum())
    return {
        "format": FORMAT,
        "num_scans": len(scans),
        "num_patients": len({scan["patient"] for scan in scans}),
        "num_reports": sum(reports.values()),
        "num_repeated_reports": sum(count - 1 for count in reports.values()),
        "num_segmentations": sum(bool(scan["places"]) for scan in scans),
        "num_voxels": voxels,
        "shard_bytes": size,
        "shard_bytes_per_int16_byte": round(size / max(1, 2 * voxels), 4),
        "regions": dict(sorted(Counter(scan["region"] for scan in scans).items())),
        "splits": dict(sorted(Counter(scan["split"] for scan in scans).items())),
        "spacing_mm": _quantiles(spacing),
        "shape": _quantiles(shape),
        "hu": {str(p): int(np.searchsorted(share, p / 100)) + HISTOGRAM_HU[0] for p in PERCENTILES},
        "air_hu": AIR_HU,
        "repairs": dict(sorted(Counter(name for scan in scans for name in scan["repairs"]).items())),
        "refused": dict(sorted(Counter(f"{row['kind']}: {row['reason']}" for row in refusals).items())),
    }


def _quantiles(values: np.ndarray) -> dict[str, list[float]]:
    """Least, quarter, middle, three quarters and most along each axis."""
    if not len(values):
        return {}
    table = np.quantile(values, (0, 0.25, 0.5, 0.75, 1), axis=0).T
    return {axis: [round(float(v), 4) for v in row] for axis, row in zip(("d", "h", "w"), table, strict=True)}


def keyed_hash(key: bytes, data: bytes) -> str:
    """Without the key, nobody finds out a name or a number by trying them all."""
    return hashlib.blake2b(data, key=key, digest_size=10).hexdigest()


def load_key(path: Path) -> bytes:
    if not path.is_file():
        write_text(path, secrets.token_hex(32))
        path.chmod(0o600)
    return bytes.fromhex(path.read_text())


def write_links(path: Path, sources: Iterable[ScanSource], key: bytes) -> None:
    """The table that leads from a scan's id back to its file, for the owner of the scans."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scan_id", "path", "series_uid"])
    for source in sources:
        table.writerow([keyed_hash(key, source.name.encode()), source.path, source.series_uid or ""])
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", choices=list(LAYOUTS))
    parser.add_argument("source", type=Path, help="the folder, or the table of layout csv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--private", type=Path, help="key and links to the files (default: OUT-private)")
    parser.add_argument("--scans-per-shard", type=int, default=PrepareConfig.scans_per_shard)
    parser.add_argument("--all-reconstructions", action="store_true")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count())
    given = vars(parser.parse_args(arguments))
    given["private"] = given["private"] or given["out"].with_name(given["out"].name + "-private")
    fingerprint = prepare(PrepareConfig(**given))
    refused = sum(fingerprint["refused"].values())
    print(f"{fingerprint['num_scans']} scans prepared, {refused} left out (refusals.csv, fingerprint.json)")
    return 0
