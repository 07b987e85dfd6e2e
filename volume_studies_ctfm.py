"""Folder of studies -> the scans in it, each as the path and the series that `read_volume` takes, alone or by study."""

import os
from collections import defaultdict
from pathlib import Path

from .volume_archive_ctfm import NOT_FETCHED, tell_kind, walk_files
from .volume_ctfm import RASTERS, list_series
from .volume_dicom_ctfm import list_dicom_stacks
from .volume_dicom_stack_ctfm import NO_EXTENT, WHOLE, Stack
from .volume_scan_ctfm import VolumeError

ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".zip")  # of what is a scan though it may be damaged


Found = tuple[Path, str | None]


def find_scans(root: Path) -> list[Found]:
    """Every scan under a folder: each volume file and zip is one, and so is each CT series.

    A series is one scan wherever its slices lie: where they lie in several folders, it is one of the folder that holds
    these. What is no CT volume is passed over, as `read_volume` leaves it out, unless there is nothing else; what cannot
    be read is passed on, so that the reader says why.

    Returns:
        `(path, series_uid)`, by path; `series_uid` is None where the folder holds no other series.
    """
    return sorted((scan for study in find_studies(root) for scan in study), key=lambda scan: (scan[0], scan[1] or ""))


def find_studies(root: Path) -> list[list[Found]]:
    """What `find_scans` finds, by study: series of one patient and one Study Instance UID are one study, and what is no
    DICOM series is one by itself. Of several series, that which goes furthest along the body comes first, and of those
    as long as it that with the thinner slices; studies are in the order of their first path."""
    scans: list[Found] = []
    lengths: dict[tuple[Path, str], tuple[float, float]] = {}
    homes: dict[tuple[str, str, str], dict[Path, list[str]]] = defaultdict(dict)  # series -> folder -> its stacks there
    damaged: set[Path] = set()
    for folder, files, num_unopened in walk_files(root, lambda error: damaged.add(Path(error.filename).parent)):
        kinds = {file: _kind(file) for file in files if not file.name.startswith(".")}
        if num_unopened or NOT_FETCHED in kinds.values():
            damaged.add(folder)
        whole = [
            file for file, kind in kinds.items() if kind in (*RASTERS, "zip") or file.name.lower().endswith(ENDINGS)
        ]
        scans += [(file, None) for file in whole]
        slices = {file: kind for file, kind in kinds.items() if kind == "dicom"}
        for stack in _stacks(slices, folder, damaged):
            if stack.info.left_out_because in ("", *NO_EXTENT) and not stack.is_whole:  # its parts are listed
                first = stack.slices[0]
                names = homes[first.patient, first.study, first.series].setdefault(folder, [])
                names += [] if stack.info.left_out_because else [stack.series_uid]
                thickness = stack.info.spacing[0]
                lengths[folder, stack.series_uid] = (-round(thickness * stack.info.shape[0]), thickness)
    studies = {
        (folder, name): key[:2] for key, folders in homes.items() for folder, name in _places(key[2], folders, damaged)
    }
    series = set(studies)
    alone = {folder for folder, _ in series if sum(other.is_relative_to(folder) for other, _ in series) == 1}
    scans += [(folder, None) for folder in damaged]
    if not scans and not series and homes:
        scans = [(root, None)]
    by_study: dict[tuple[str, str], list[tuple[Path, str]]] = defaultdict(list)
    for place in sorted(series, key=lambda place: (lengths.get(place, (0.0, 0.0)), place)):
        by_study[studies[place]].append(place)
    found = [[(folder, None if folder in alone else name) for folder, name in group] for group in by_study.values()]
    return sorted([*found, *([scan] for scan in scans)], key=lambda study: (study[0][0], study[0][1] or ""))


def _kind(file: Path) -> str:
    try:
        return tell_kind(file)
    except OSError:
        return "dicom"  # it may be one, and then its series is not whole


def _stacks(slices: dict[Path, str], folder: Path, damaged: set[Path]) -> list[Stack]:
    """The stacks in one folder; of a damaged one at least which series it has a part of."""
    if not slices:
        return []
    try:
        return list_dicom_stacks("", slices)
    except VolumeError:
        damaged.add(folder)
        return [stack for file in slices if len(slices) > 1 for stack in _stacks({file: "dicom"}, folder, damaged)]


def _places(uid: str, folders: dict[Path, list[str]], damaged: set[Path]) -> list[tuple[Path, str]]:
    """Where one series is read from, and under which names."""
    if len(folders) == 1 or not uid:
        return [(folder, name) for folder, names in folders.items() for name in names if folder not in damaged]
    top = Path(os.path.commonpath(folders))
    try:
        usable = [info.series_uid for info in list_series(top) if not info.left_out_because]
        found = [name for name in usable if not name.endswith(WHOLE)]
    except VolumeError:
        return [(top, uid)]
    return [(top, name) for name in found if name.partition("#")[0] == uid]
