"""Scan -> what is in it, what was checked and repaired: `ctfm inspect`. Needs neither torch nor transformers."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .volume_ctfm import Volume, read_volume


def describe(volume: Volume) -> dict[str, object]:
    """What is in a volume, as plain JSON values without identifiers."""
    low, middle, high = (round(float(q), 1) for q in np.percentile(volume.hu[::2, ::4, ::4], (1, 50, 99)))
    return {
        "shape": list(volume.hu.shape),
        "spacing_mm": [round(size, 4) for size in volume.spacing],
        "size_mm": [round(size * count, 1) for size, count in zip(volume.spacing, volume.hu.shape, strict=True)],
        "orientation_on_disk": volume.orientation,
        "affine": volume.affine.round(6).tolist(),
        "hu": {
            "type": str(volume.hu.dtype),
            "min": float(volume.hu.min()),
            "p01": low,
            "median": middle,
            "p99": high,
            "max": float(volume.hu.max()),
        },
        "source": dataclasses.asdict(volume.source),
        "warnings": list(volume.warnings),
    }


def format_facts(facts: dict) -> str:
    source, hu = facts["source"], facts["hu"]
    by = " x ".join
    lines = [
        f"source       {source['kind']}, {source['num_files']} files, orientation on disk {facts['orientation_on_disk']}",
        f"geometry     {by(map(str, facts['shape']))} voxels of {by(f'{s:.3g}' for s in facts['spacing_mm'])} mm "
        "(depth, height, width)",
        f"HU           {hu['min']:g} to {hu['max']:g}, 1 % {hu['p01']:g}, median {hu['median']:g}, 99 % {hu['p99']:g}",
    ]
    acquisition = [
        ("manufacturer", source["manufacturer"]),
        ("kernel", source["kernel"]),
        ("slice thickness", source["slice_thickness_mm"] and f"{source['slice_thickness_mm']:g} mm"),
        ("kVp", source["kvp"] and f"{source['kvp']:g}"),
        ("contrast", {True: "yes", False: "no", None: ""}[source["contrast"]]),
        ("stored as", source["stored_type"]),
    ]
    known = ", ".join(f"{name} {value}" for name, value in acquisition if value)
    lines += [f"acquisition  {known}"] if known else []
    lines += [f"left out     {count} x {reason}" for reason, count in source["left_out"].items()]
    lines += [f"checked      {check}" for check in source["checks"]]
    lines += [f"WARNING      {warning}" for warning in facts["warnings"]] or ["warnings     none"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm inspect", description="What is in a scan, what was checked and what was repaired."
    )
    parser.add_argument("scan", type=Path, help="DICOM folder, zip, NIfTI, MetaImage or NRRD")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--series", help="UID of the series to read, where there are several")
    given = parser.parse_args(arguments)
    facts = describe(read_volume(given.scan, given.series))
    print(json.dumps(facts, indent=2) if given.json else format_facts(facts))
    return 0
