"""Folder of studies -> which to look at first: `ctfm worklist`.

    ctfm worklist studies/ --out worklist/
    ctfm worklist inbox/ --out worklist/ --watch 60        looks again every 60 s, until Ctrl-C
    ctfm worklist dicomweb://localhost:8042/dicom-web --out worklist/        reads the server's CT series into DIR/incoming

Every study stands once, by its longest series of the thinnest slices, in one of five groups: "present" (the checkpoint says
that a finding is there), "not sure", "absent", "unlike" (like no scan that the checkpoint was trained on, so nothing is said
about its findings; where gate.safetensors lies beside the weights), "failed" (could not be read). Groups are ranked by the
largest probability. A thumbnail goes through the place of the likeliest finding that is not absent, whose map lies over it in
red. DIR/worklist.csv and worklist.json name the files; DIR/index.html shows numbers and thumbnails and names
nothing. What was done is not done again, whenever the command ends. Research only: not for any decision about a patient.
"""

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .drawing_ctfm import HAS_PILLOW, INTENSITY_WINDOWS, draw_planes
from .embedding import add_device_argument, add_model_arguments, fingerprint, read_ahead, resolve_device, weight_files
from .grading import Graded, Grader
from .image_processing_ctfm import CTFMBatchFeature, CTFMImageProcessor
from .image_quality import ImageQuality, measure_quality
from .volume_ctfm import Volume, VolumeError, read_volume
from .volume_studies_ctfm import Found, find_studies
from .whole_files import write_json, written_whole
from .worklist_page import write_page

if TYPE_CHECKING:
    from PIL import Image

GROUPS = ("present", "not sure", "absent", "unlike", "failed")
THUMBNAIL_PIXELS = 140
HEAT_OPACITY = 0.6  # of a map at its strongest place
DRAWN_VOXELS = 256  # along an axis: a thumbnail shows no more
COLUMNS = (
    *("rank", "group", "key", "scan", "series", "other_series", "finding", "probability", "low", "high", "verdict"),
    *("distance", "noise_hu", "cut_slices", "metal_ml", "length_mm", "spacing_mm", "repairs", "problem"),
)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a reader thread makes of a study."""

    inputs: CTFMBatchFeature
    quality: ImageQuality
    small: Volume  # what its thumbnail shows


class Worklist:
    """One folder with its results; the model is loaded once.

    Raises:
        OSError: no such checkpoint, or Pillow is missing.
    """

    def __init__(self, out: Path, model_id: str, spacing: str | None, findings: Sequence[str], device: str | None):
        if not HAS_PILLOW:
            raise OSError("The page needs Pillow, which is not installed: pip install Pillow")
        self.out, self.spacing = out, spacing
        self.grader = Grader(model_id, findings, resolve_device(device))
        self.settings = (self.grader.name, weight_files(model_id), spacing, self.grader.findings)
        for folder in (out / "studies", out / "thumbnails"):
            folder.mkdir(parents=True, exist_ok=True)

    def key(self, study: Sequence[Found]) -> str:
        """Names a study by its place, size and time, so that nothing of its name shows."""
        return fingerprint(*study[0], self.settings)

    def work(self, studies: Sequence[Sequence[Found]], num_readers: int) -> list[dict[str, Any]]:
        """Every study's row, in any order; what was done before is taken from `out`."""
        keys = {self.key(study): study for study in studies}
        missing = [key for key in keys if not self.file(key).is_file()]

        def read(key: str) -> Read:
            volume = read_volume(*keys[key][0])
            inputs = self.grader.processor.preprocess(volume, spacing=self.spacing)
            return Read(inputs=inputs, quality=measure_quality(volume), small=shrink_volume(volume))

        start = time.perf_counter()
        bar = tqdm(
            read_ahead(missing, read, num_readers), total=len(missing), desc="worklist", unit="study", disable=None
        )
        for key, found in bar:
            self.write(key, found)
        if missing:
            seconds = time.perf_counter() - start
            print(f"{len(missing)} studies in {seconds:.0f} s, {3600 * len(missing) / seconds:.0f} an hour")
        rows = []
        for key, study in keys.items():
            (scan, series), facts = study[0], json.loads(self.file(key).read_text())
            rows.append({"scan": str(scan), "series": series or "", "other_series": len(study) - 1} | facts)
        return rows

    def file(self, key: str) -> Path:
        return self.out / "studies" / f"{key}.json"

    def write(self, key: str, found: Read | VolumeError) -> None:
        """One study's result, whole or not at all; its thumbnail comes first, so that no result lacks one."""
        if isinstance(found, VolumeError):
            # On the page stand problem and cure; value and file, which may name something, stand in the table.
            facts = {
                "key": key,
                "group": "failed",
                "problem": str(found),
                "shown": f"{found.problem}. {found.cure}".strip(),
            }
        else:
            graded = self.grader.grade(found.inputs)
            facts = {"key": key, "group": group_of(graded), "quality": asdict(found.quality)}
            shown = None if facts["group"] == "unlike" else graded
            picture = draw_thumbnail(found.small, shown, found.inputs, self.grader.processor)
            picture.save(self.out / "thumbnails" / f"{key}.png")
            far = graded.distance
            facts["distance"] = (
                round(far, 3) if far is not None and math.isfinite(far) else None
            )  # JSON knows no infinity
            facts["findings"] = [] if facts["group"] == "unlike" else list(graded.findings)
        write_json(self.file(key), facts)


def group_of(graded: Graded) -> str:
    """Without calibration nothing is sure or unsure, and a study stands among "present" by its score."""
    if graded.distance is not None and graded.distance > 1:
        return "unlike"
    verdicts = {finding.get("verdict", "present") for finding in graded.findings}
    return next(verdict for verdict in GROUPS if verdict in verdicts)


def shrink_volume(volume: Volume) -> Volume:
    """Every so many voxels of it, as many as a thumbnail shows."""
    steps = [max(1, size // DRAWN_VOXELS) for size in volume.hu.shape]
    small = volume.hu[:: steps[0], :: steps[1], :: steps[2]]
    return replace(volume, hu=np.ascontiguousarray(small), affine=volume.affine @ np.diag([*steps, 1.0]))


def draw_thumbnail(
    small: Volume, graded: Graded | None, inputs: CTFMBatchFeature, processor: CTFMImageProcessor
) -> "Image.Image":
    """Three planes of `shrink_volume`: through the place of the finding whose map `graded` holds, with the map in red; through
    the middle of the scan where there is none."""
    if graded is None or graded.heat is None:
        return draw_planes(small, height=THUMBNAIL_PIXELS)
    (geometry,) = inputs.geometry
    steps = np.rint(np.linalg.norm(small.affine[:3, :3], axis=0) / np.linalg.norm(geometry.affine[:3, :3], axis=0))
    on_small = replace(
        geometry,
        shape=small.hu.shape,
        affine=small.affine,
        offset=tuple(np.array(geometry.offset) / steps),
        step=tuple(np.array(geometry.step) / steps),
    )
    (heat,) = processor.to_patient_space(graded.heat[None], SimpleNamespace(geometry=(on_small,)))  # type: ignore[arg-type]
    place = next(finding["place_mm"] for finding in graded.findings if "place_mm" in finding)
    voxel = np.linalg.solve(small.affine, [*place, 1.0])[:3]
    centre = np.rint(voxel).astype(int).clip(0, np.array(small.hu.shape) - 1)
    low, high = INTENSITY_WINDOWS["mediastinum"]
    grey = ((small.hu - low) / (high - low)).clip(0, 1) * (1 - heat * HEAT_OPACITY)
    red, others = grey + heat * HEAT_OPACITY, grey
    return draw_planes(
        small, colours=(red, others, others), opacity=1.0, centre=tuple(centre.tolist()), height=THUMBNAIL_PIXELS
    )


def rank(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By group, then the largest probability, then the key: the same whatever order studies were found or finished in."""

    def urgency(row: dict[str, Any]) -> tuple:
        scores = [finding.get("probability", finding["score"]) for finding in row.get("findings", ())]
        return GROUPS.index(row["group"]), -max(scores, default=0.0), row["key"]

    return [{"rank": number} | row for number, row in enumerate(sorted(rows, key=urgency), 1)]


def write_list(out: Path, rows: Sequence[dict[str, Any]], model: str) -> None:
    """worklist.json, worklist.csv and index.html, each whole or not at all."""
    write_json(out / "worklist.json", {"model": model, "studies": rows})
    with (
        written_whole(out / "worklist.csv") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        for row in rows:
            top = {}
            if row.get("findings"):
                first = row["findings"][0]
                low, high = first.get("interval", ("", ""))
                top = {"finding": first["label"], "probability": first.get("probability", first["score"])}
                top |= {"low": low, "high": high, "verdict": first.get("verdict", "not calibrated")}
            quality = dict(row.get("quality", {}))
            quality["repairs"] = " ".join(quality.get("repairs", ()))
            writer.writerow(row | quality | top)
    write_page(out / "index.html", rows, model)


def watch(
    find: Callable[[], Path],
    worklist: Worklist,
    num_readers: int,
    wait: Callable[[], bool],
    say: Callable[[str], None] = print,
) -> int:
    """Looks for studies in the folder that `find` gives again and again until `wait` says False. A study that is still
    arriving changes between two looks, and only what stayed as it was is worked, so a new one appears in the list at the
    second look. Where `find` raises an OSError, as a server that is down does, it says so and looks again later."""
    rows: list[dict[str, Any]] = []
    before: set[str] | None = None
    while True:
        try:
            studies = {worklist.key(study): study for study in find_studies(find())}
        except OSError as error:
            say(f"ctfm: {error}")
        else:
            if before is not None:
                stayed = [study for key, study in studies.items() if key in before]
                rows = rank(worklist.work(stayed, num_readers))
                write_list(worklist.out, rows, worklist.grader.name)
                say(summary(rows))
            before = set(studies)
        if not wait():
            return exit_code(rows)


def exit_code(rows: Sequence[dict[str, Any]]) -> int:
    return 1 if any(row["group"] == "failed" for row in rows) else 0


def summary(rows: Sequence[dict[str, Any]]) -> str:
    counts = {group: sum(row["group"] == group for row in rows) for group in GROUPS}
    return f"{len(rows)} studies: " + ", ".join(f"{count} {group}" for group, count in counts.items())


def main(
    arguments: Sequence[str] | None = None, fetch: Callable[[str, Path], Path] = lambda source, _: Path(source)
) -> int:
    """
    Args:
        fetch: what was given and a folder for what a server sends -> the folder of studies.
    """
    parser = argparse.ArgumentParser(
        prog="ctfm worklist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of studies, or dicomweb://HOST:PORT/PATH")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the list and its page")
    parser.add_argument("--findings", nargs="+", default=[], metavar="FINDING", help="rank by these, not by all")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look for studies again, so often")
    parser.add_argument("--readers", type=int, default=2, help="scans that are read ahead of the model (%(default)s)")
    add_device_argument(parser)
    add_model_arguments(parser)
    given = parser.parse_args(arguments)

    def find() -> Path:
        folder = fetch(given.folder, given.out / "incoming")
        if not folder.is_dir():
            raise VolumeError("no such folder", value=folder.name, cure="Give a folder of studies.")
        return folder

    if given.watch is not None:
        if "://" not in given.folder:
            find()  # refused before the model is loaded
        worklist = Worklist(given.out, given.model, given.spacing, given.findings, given.device)

        def wait() -> bool:
            time.sleep(given.watch)
            return True

        try:
            return watch(find, worklist, given.readers, wait)
        except KeyboardInterrupt:
            return 0
    folder = find()
    studies = find_studies(folder)
    if not studies:
        raise VolumeError("there is no study", value=folder.name, cure="Give a folder that holds CT scans.")
    worklist = Worklist(given.out, given.model, given.spacing, given.findings, given.device)
    rows = rank(worklist.work(studies, given.readers))
    write_list(given.out, rows, worklist.grader.name)
    print(f"{summary(rows)}; see {given.out / 'index.html'}")
    for row in rows:
        if row["group"] == "failed":
            print(f"ctfm: {row['scan']}: {row['problem']}", file=sys.stderr)
    return exit_code(rows)
