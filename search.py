"""An index and a text, a scan or a region of one -> the scans that are most like it: `ctfm search`.

    ctfm search INDEX --text "Large left pleural effusion."
    ctfm search INDEX --scan study.zip
    ctfm search INDEX --scan study.zip --region 20:60,100:180,90:200     voxels along depth, height and width of the scan

What is alike for the model is not the same diagnosis. Research only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .embedding import embed_scan, load
from .image_processing_ctfm import CTFMImageProcessor
from .modeling_ctfm import CTFMModel, CTFMVisionModel
from .processing_ctfm import CTFMProcessor
from .vector_index import CROPS, VectorIndex, VectorIndexError, open_index
from .volume_ctfm import Volume, VolumeError, read_volume

SMALLEST_SIDE = 2  # voxels of a region


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A scan that was found; centre_mm (RAS+) of the crop in it, where a region was asked for."""

    score: float
    scan: str
    series: str
    centre_mm: tuple[float, float, float] | None = None


def search_text(index: VectorIndex, model: CTFMModel, processor: CTFMProcessor, text: str, top: int) -> list[Hit]:
    """Scans that a text describes, by the cosine of both embeddings."""
    words = processor(text=text).to(model.device)
    with torch.inference_mode():
        embeds = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    assert embeds is not None
    return hits_of(index, "image_embeds", embeds.float().cpu().numpy(), top)


def search_scan(
    index: VectorIndex, model: CTFMModel | CTFMVisionModel, processor: CTFMImageProcessor, volume: Volume, top: int
) -> list[Hit]:
    """Scans like a scan, by the cosine of their centred features."""
    features, _ = embed_scan(model, processor, volume, None, None, dense=False)
    return hits_of(index, "scan_features", features["scan_features"][None].numpy(), top)


def search_region(
    index: VectorIndex,
    model: CTFMModel | CTFMVisionModel,
    processor: CTFMImageProcessor,
    volume: Volume,
    region: tuple[slice, slice, slice],
    top: int,
) -> list[Hit]:
    """Regions like a region: crops of other scans, the best of each scan.

    The region is widened to the size of a crop around its middle, as far as the scan goes, so that it is seen as the crops of
    the index are; a larger one becomes several crops, of which the best match counts.
    """
    spacing = volume.spacing if isinstance(processor.spacing, str) else processor.spacing
    part = widen(region, volume, processor.crop_size, spacing)
    affine = volume.affine.copy()
    affine[:, 3] = volume.affine @ [*(float(axis.start) for axis in part), 1.0]
    cut = replace(volume, hu=np.ascontiguousarray(volume.hu[part]), affine=affine)
    features, _ = embed_scan(model, processor, cut, None, None, dense=False)
    return hits_of(index, CROPS, features["crop_embeds"].mean(1).numpy(), top)


def widen(
    region: Sequence[slice], volume: Volume, crop_size: Sequence[int], spacing: Sequence[float]
) -> tuple[slice, slice, slice]:
    wide = []
    for axis, chosen in enumerate(region):
        size, wanted = volume.hu.shape[axis], int(crop_size[axis] * spacing[axis] / volume.spacing[axis])
        length = min(size, max(chosen.stop - chosen.start, wanted))
        start = min(max(0, (chosen.start + chosen.stop - length) // 2), size - length)
        wide.append(slice(start, start + length))
    return wide[0], wide[1], wide[2]


def hits_of(index: VectorIndex, kind: str, vectors: np.ndarray, top: int) -> list[Hit]:
    """The best place of each of the `top` scans. Crops lie many in a scan, so more are asked for until enough scans are
    among them."""
    wanted, total = top, index.indices[kind].ntotal if kind in index.indices else 0
    while True:
        scores, rows = index.nearest(kind, vectors, wanted)
        best: dict[int, Hit] = {}
        for score, row in sorted(zip(scores.ravel().tolist(), rows.ravel().tolist(), strict=True), reverse=True):
            if row < 0:  # of lists that hold fewer than were asked for
                continue
            place = index.crops[row] if kind == CROPS and index.crops else {"scan": row}
            scan = index.scans[place["scan"]]
            centre = tuple(place["centre_mm"]) if "centre_mm" in place else None
            best.setdefault(place["scan"], Hit(score=score, scan=scan["scan"], series=scan["series"], centre_mm=centre))
        if len(best) >= top or wanted >= total:
            return list(best.values())[:top]
        wanted = min(total, 4 * wanted)


def read_region(text: str, volume: Volume) -> tuple[slice, slice, slice]:
    """
    Raises:
        VolumeError: it is not three ranges inside the scan.

    Example:
        >>> read_region("0:4,2:8,0:8", read_volume((np.random.default_rng(0).normal(0, 300, (8, 8, 8)), np.eye(4))))
        (slice(0, 4, None), slice(2, 8, None), slice(0, 8, None))
    """
    cure = f"Give voxels along depth, height and width of {volume.hu.shape}, such as 0:20,100:180,90:200."
    try:
        ends = [tuple(int(end) for end in part.split(":")) for part in text.split(",")]
    except ValueError:
        raise VolumeError("no region", value=text, cure=cure) from None
    fits = len(ends) == 3 and all(
        len(pair) == 2 and 0 <= pair[0] <= pair[1] - SMALLEST_SIDE and pair[1] <= size
        for pair, size in zip(ends, volume.hu.shape, strict=True)
    )
    if not fits:
        raise VolumeError("the region is not inside the scan", value=text, cure=cure)
    return slice(*ends[0]), slice(*ends[1]), slice(*ends[2])


def ask(given: argparse.Namespace) -> list[Hit]:
    index = open_index(given.index)
    model_id = given.model or index.model.partition("@")[0]
    model, processor, name = load(model_id)
    if given.model is None and name != index.model:
        raise VectorIndexError(
            f"The index was made with {index.model}, and the Hub has {name} now. Embed and index again, or pass --model with a "
            "folder that holds the former."
        )
    if given.text is not None:
        if not isinstance(model, CTFMModel):
            raise VectorIndexError(f"{name} has no joint space of scans and texts; search with --scan.")
        if not given.text.strip():
            raise VectorIndexError('--text is empty; give a sentence, such as "Large left pleural effusion."')
        return search_text(index, model, CTFMProcessor.from_pretrained(model_id), given.text, given.top)
    volume = read_volume(given.scan, given.series)
    if given.region is None:
        return search_scan(index, model, processor, volume, given.top)
    return search_region(index, model, processor, volume, read_region(given.region, volume), given.top)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="what `ctfm index --out` wrote")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", help="what a report would say")
    asked.add_argument("--scan", type=Path, help="DICOM folder, zip, NIfTI, ...")
    parser.add_argument("--series", help="which series of --scan, where there are several")
    parser.add_argument("--region", metavar="BOX", help="voxels of --scan, D0:D1,H0:H1,W0:W1")
    parser.add_argument("--top", type=int, default=10, help="how many scans (%(default)s)")
    parser.add_argument("--model", help="where the checkpoint of the index lies now, if it was moved")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error(f"--top {given.top} must be 1 or more")
    if given.region is not None and given.scan is None:
        parser.error("--region is of a scan; give --scan")
    try:
        hits = ask(given)
    except VectorIndexError as error:
        print(f"ctfm: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps([vars(hit) for hit in hits], indent=1))
        return 0
    for number, hit in enumerate(hits, 1):
        place = "" if hit.centre_mm is None else "  at " + ", ".join(f"{mm:.0f}" for mm in hit.centre_mm) + " mm RAS"
        print(f"{number:3}  {hit.score:.3f}  {hit.scan}{' ' + hit.series if hit.series else ''}{place}")
    return 0
