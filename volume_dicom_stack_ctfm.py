"""`Slice`s -> stacks that belong together, and the one stack to read. Nothing is merged that the headers tell apart.

- A stack has one patient, study, series, frame of reference, orientation, size, pixel spacing and kernel. Slices that
  overlap are split by acquisition, time, contrast, energy, ...; `uid#2` names the second stack of a series. Acquisitions
  that share no more than the slices where they meet may be one scan: `uid#whole` is a choice beside them.
- A stack is usable when it is CT in Hounsfield units with at least two positions. Localizers, secondary captures, colour,
  maps that are not in HU and other modalities never are. Reformats (MPR, MIP, ...) and stacks under `SHORT_STACK` slices
  are used only where nothing better is there. If more than one stack remains, the caller must choose.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .volume_dicom_header_ctfm import ACQUISITION_TAGS, COLLISION_TAGS, IMAGE_TIME_NAMES, NO_PLACE, START_NAMES, Slice
from .volume_scan_ctfm import AmbiguousSeriesError, GeometryError, NotCTError, SeriesInfo, VolumeError

SHORT_STACK = 5  # bolus tracking and test slices come as series of a few
SAME_POSITION_MM = 0.01  # positions are decimal texts of 16 characters, which archives round
MAX_STACKS = 500
MAX_SHARED_SLICES = 3
WHOLE = "#whole"
# Acquisitions that differ in one of these are other images of the patient, and no parts of one scan.
PHYSICAL_TAGS = (
    "temporal position",
    "temporal index",
    "contrast",
    "energy",
    "echo time",
    "cardiac phase",
    "cardiac delay",
)
PHYSICAL_TAGS += ("cardiac time before R", "respiratory phase", "respiratory delay", "trigger delay", "slice thickness")
PHYSICAL_TAGS += ("filter", "image type", "frame type")
SINGLE_SLICE = "single slice"
ONE_POSITION = "slice at the position of all others"
NO_FRAME_POSITIONS = "frame of a multi-frame file without functional groups, which has one position for all"
NO_EXTENT = (SINGLE_SLICE, ONE_POSITION, NO_FRAME_POSITIONS)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices that belong together, ordered along their normal."""

    slices: tuple[Slice, ...]
    series_uid: str
    info: SeriesInfo

    @property
    def is_reformat(self) -> bool:
        return self.slices[0].is_reformat

    @property
    def is_whole(self) -> bool:
        """Several acquisitions, read as the one scan that they may be."""
        return self.series_uid.endswith(WHOLE)


def group_slices(slices: list[Slice], patients: dict[str, int]) -> list[Stack]:
    series: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for one in slices:
        series[one.series, one.patient, one.study].append(one)
    by_uid: dict[str, list[list[Slice]]] = defaultdict(list)
    wholes: dict[str, list[list[Slice]]] = defaultdict(list)
    for key in sorted(series, key=lambda key: (key[0], patients[key[1]], key[2])):
        groups, joined = _split(series[key])
        by_uid[key[0]] += groups
        wholes[key[0]] += joined
    stacks = []
    for uid, groups in by_uid.items():
        reasons = [_unusable(group) for group in groups]
        usable = reasons.count("")
        number = 0
        for group, reason in zip(groups, reasons, strict=True):
            number += not reason
            name = f"{uid}#{number}" if usable > 1 and not reason else uid
            stacks.append(_to_stack(group, name, reason, patients))
        for number, group in enumerate(wholes[uid], 1):
            prefix = f"{uid}#{number}" if len(wholes[uid]) > 1 else uid
            stacks.append(_to_stack(group, prefix + WHOLE, "", patients))
    return stacks


def _to_stack(group: list[Slice], name: str, reason: str, patients: dict[str, int]) -> Stack:
    ordered = tuple(_by_position(group))
    info = _series_info(ordered, name, f"patient {patients[group[0].patient]}", reason)
    return Stack(slices=ordered, series_uid=name, info=info)


def _unusable(group: list[Slice]) -> str:
    if group[0].reason:
        return group[0].reason
    places = np.sort([np.dot(one.position, group[0].normal) for one in group])
    if places[-1] - places[0] > SAME_POSITION_MM:
        return ""
    if len(group) == 1:
        return SINGLE_SLICE
    return ONE_POSITION if all(one.has_own_place for one in group) else NO_FRAME_POSITIONS


def _split(slices: list[Slice]) -> tuple[list[list[Slice]], list[list[Slice]]]:
    """The stacks of one series, and those that several of them may be parts of."""
    hard: dict[tuple, list[list[Slice]]] = defaultdict(list)
    num_frames_of_reference = len({one.frame_of_reference for one in slices})
    stated = num_frames_of_reference <= len(slices) // 2  # some anonymisers give every slice its own
    kernels = {one.kernel for one in slices if one.kernel}  # a slice that names none belongs to the only one
    for one in slices:
        pixels = one.pixels
        key = (
            one.reason,
            one.is_reformat,
            one.frame_of_reference if stated else "",
            pixels.rows,
            pixels.columns,
            one.kernel if len(kernels) > 1 else "",
        )
        for group in hard[key]:
            if _looks_alike(group[0], one):
                group.append(one)
                break
        else:
            hard[key].append([one])
        if len(hard[key]) > MAX_STACKS:
            raise GeometryError(f"more than {MAX_STACKS} orientations or pixel spacings in one series")
    groups = [group for alike in hard.values() for group in alike]
    parts = [[group] if group[0].reason else _split_acquisitions(group) for group in groups]
    joined = [list(itertools.chain(*found)) for found in parts if _are_parts_of_one(found)]
    return list(itertools.chain(*parts)), joined


def _are_parts_of_one(parts: list[list[Slice]]) -> bool:
    """Whether each acquisition begins where the one before ends, with no more than `MAX_SHARED_SLICES` places in common."""
    if len(parts) < 2 or any(len({one.marks[name] for part in parts for one in part}) > 1 for name in PHYSICAL_TAGS):
        return False
    normal = parts[0][0].normal
    places = sorted((sorted(set(_places_along(part, normal))) for part in parts), key=lambda part: part[0])
    for before, after in itertools.pairwise(places):
        shared = [place for place in before if place >= after[0]]
        is_short = len(shared) <= min(MAX_SHARED_SLICES, len(before) - 1, len(after) - 1)
        if not is_short or shared != after[: len(shared)] or after[-1] <= before[-1]:
            return False
    return True


def _looks_alike(first: Slice, other: Slice) -> bool:
    turned = max(abs(a - b) for a, b in zip(first.orientation, other.orientation, strict=True))
    scaled = max(abs(a / b - 1) for a, b in zip(first.pixel_spacing, other.pixel_spacing, strict=True))
    return turned < 0.005 and scaled < 0.001  # what rounding on export does to slices of one scan


def _split_acquisitions(group: list[Slice]) -> list[list[Slice]]:
    places = places_along_normal(group)
    collides = len(np.unique(places)) < len(group)
    # What the scanner numbered goes before times, and times of scanning before those that a reconstruction or export writes.
    parts = (
        _split_by_value(group, places, ACQUISITION_TAGS)
        or _split_passes(group, places, START_NAMES, collides)
        or _split_by_value(group, places, COLLISION_TAGS if collides else START_NAMES)
        or _split_passes(group, places, IMAGE_TIME_NAMES if collides else (), collides)
    )
    if not parts:
        return [group]
    return [split for part in parts for split in _split_acquisitions([group[index] for index in part])]


def _split_by_value(group: list[Slice], places: np.ndarray, names: Iterable[str]) -> list[list[int]]:
    """The first of these tags by whose values the slices fall into several stacks."""
    for name in names:
        parts: dict[bytes, list[int]] = defaultdict(list)
        for index, one in enumerate(group):
            parts[one.marks[name]].append(index)
        found = [parts[value] for value in sorted(parts)]
        if _are_acquisitions(found, places):
            return found
    return []


def places_along_normal(group: Sequence[Slice]) -> np.ndarray:
    """Place along the normal, in whole hundredths of a millimetre."""
    return _places_along(group, group[0].normal)


def _places_along(group: Sequence[Slice], normal: np.ndarray) -> np.ndarray:
    return np.round(np.array([one.position for one in group]) @ normal / SAME_POSITION_MM).astype(np.int64)


def _are_acquisitions(parts: list[list[int]], places: np.ndarray) -> bool:
    """Several stacks, each more than a slice thick, that overlap. Those which only follow each other are one scan in steps."""
    if len(parts) < 2 or any(len(np.unique(places[part])) < 2 for part in parts):
        return False
    ranges = sorted((int(places[part].min()), int(places[part].max())) for part in parts)
    return any(second[0] <= first[1] for first, second in itertools.pairwise(ranges))


def _split_passes(group: list[Slice], places: np.ndarray, names: Iterable[str], collides: bool) -> list[list[int]]:
    """Slices in order of one of these times: a new pass begins where a place comes again or, if none ever does, where the
    table turns back. Empty where that does not explain them."""
    for name in names:
        times = [one.marks[name].strip(b"\0 ") for one in group]
        # DICOM times, HHMMSS.FFFFFF and YYYYMMDDHHMMSS.FFFFFF, order as numbers; one with a time zone is left to other tags.
        if not all(time.replace(b".", b"", 1).isdigit() for time in times) or len(set(times)) < 2:
            continue
        ordered = sorted(range(len(group)), key=lambda index: (float(times[index]), int(places[index])))
        passes = _repeats(ordered, places) if collides else _turns(ordered, places, times)
        if min(len(one) for one in passes) >= max(3, len(passes[0]) // 2) and _are_acquisitions(passes, places):
            return passes
    return []


def _repeats(ordered: list[int], places: np.ndarray) -> list[list[int]]:
    passes: list[list[int]] = [[]]
    seen: set[int] = set()
    for index in ordered:
        if int(places[index]) in seen:
            passes.append([])
            seen = set()
        passes[-1].append(index)
        seen.add(int(places[index]))
    return passes


def _turns(ordered: list[int], places: np.ndarray, times: list[bytes]) -> list[list[int]]:
    """Slices of one time were taken together and count as one place, their middle. Where the table turned before a pass was
    over or after the next had begun, the pauses say."""
    blocks = [list(block) for _, block in itertools.groupby(ordered, key=lambda index: times[index])]
    moments = [float(times[block[0]]) for block in blocks]
    middles = [float(places[block].mean()) for block in blocks]
    passes: list[list[int]] = [list(blocks[0])]
    direction = 0.0
    for number in range(1, len(blocks)):
        step = float(np.sign(middles[number] - middles[number - 1]))
        if step * direction < 0:
            passes.append([])
            direction = 0.0
            if moments[number - 1] - moments[number - 2] > moments[number] - moments[number - 1]:
                del passes[-2][-len(blocks[number - 1]) :]
                passes[-1] += blocks[number - 1]
                direction = step
        else:
            direction = step
        passes[-1] += blocks[number]
    return passes


def _by_position(group: Sequence[Slice]) -> list[Slice]:
    """Along the normal; frames of one file keep their order on disk where it runs strictly the other way."""
    places = places_along_normal(group)
    ordered = [group[index] for index in np.argsort(places, kind="stable")]
    frames = [one.frame for one in ordered]
    one_file = all(one.pixels.path == ordered[0].pixels.path for one in ordered)
    if one_file and len(frames) > 1 and all(a > b for a, b in itertools.pairwise(frames)):
        return ordered[::-1]
    return ordered


def _series_info(ordered: tuple[Slice, ...], name: str, patient: str, reason: str) -> SeriesInfo:
    first, last = ordered[0], ordered[-1]
    places = np.unique(places_along_normal(ordered))
    extent = (places[-1] - places[0]) * SAME_POSITION_MM
    plane = ("sagittal", "coronal", "axial")[int(np.abs(first.normal).argmax())]
    return SeriesInfo(
        series_uid=name,
        patient=patient,
        shape=(len(places), first.pixels.rows, first.pixels.columns),
        spacing=(round(float(extent / max(1, len(places) - 1)), 4), *first.pixel_spacing),
        plane=plane,
        kernel=max(one.kernel for one in ordered),  # one, and perhaps slices that name none
        contrast=names_contrast(first if first.marks["contrast"] else last),
        left_out_because=reason,
        phase=first.facts["phase"],
    )


def names_contrast(one: Slice) -> bool | None:
    agent = one.marks["contrast"].strip(b"\0 ").upper()
    return None if not agent else agent not in (b"NO", b"NONE", b"N")


# --- stacks -> one stack ---------------------------------------------------------------------------------------------------


def choose_stack(
    stacks: list[Stack], left_out: Counter[str], num_patients: int, series_uid: str | None, file: str
) -> Stack:
    usable = [stack for stack in stacks if not stack.info.left_out_because]
    if series_uid is not None:
        return _choose_named(stacks, usable, series_uid, file)
    if not usable:
        raise _no_volume(stacks, left_out, file)
    choices = tuple(stack.info for stack in usable)
    if num_patients > 1:
        raise AmbiguousSeriesError(
            f"scans of {num_patients} patients",
            choices=choices,
            file=file,
            cure="Pass series_uid, or one patient's folder.",
        )
    best = _best(usable)
    if len(best) > 1:
        raise AmbiguousSeriesError(
            f"{len(best)} CT series or acquisitions", choices=choices, file=file, cure="Pass series_uid, one of:"
        )
    return best[0]


def _choose_named(stacks: list[Stack], usable: list[Stack], series_uid: str, file: str) -> Stack:
    exact = [stack for stack in usable if stack.series_uid == series_uid]
    if exact:
        return exact[0]
    inside = [stack for stack in usable if stack.slices[0].series == series_uid]
    best = _best(inside)
    if len(best) == 1 and len({stack.slices[0].patient for stack in inside}) == 1:
        return best[0]
    if inside:
        raise AmbiguousSeriesError(
            f"the series holds {len(inside)} acquisitions",
            choices=tuple(stack.info for stack in inside),
            file=file,
            cure="Pass series_uid, one of:",
        )
    for stack in stacks:
        if stack.slices[0].series == series_uid:
            raise NotCTError("the series is no CT volume", file=file, value=stack.info.left_out_because)
    raise AmbiguousSeriesError(
        "no such series",
        choices=tuple(stack.info for stack in usable),
        file=file,
        cure="Pass series_uid, one of:" if usable else "",
    )


def _best(usable: list[Stack]) -> list[Stack]:
    """Original stacks before reformats, and long ones before short ones."""
    originals = [stack for stack in usable if not stack.is_reformat] or usable
    return [stack for stack in originals if stack.info.shape[0] >= SHORT_STACK] or originals


def _no_volume(stacks: list[Stack], left_out: Counter[str], file: str) -> VolumeError:
    reasons = Counter(left_out)
    for stack in stacks:
        reasons[stack.info.left_out_because] += len(stack.slices)
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if reasons[NO_PLACE]:
        return GeometryError(
            f"slices have {NO_PLACE}", file=file, value=found, cure="Export the original series again."
        )
    if reasons[NO_FRAME_POSITIONS]:
        return GeometryError(
            "a multi-frame file without functional groups says where one frame lies and not where the others do",
            file=file,
            value=f"{reasons[NO_FRAME_POSITIONS]} frames",
            cure="Export it as enhanced CT or as single slices.",
        )
    if reasons[ONE_POSITION]:
        return GeometryError(
            "all slices have the same position",
            file=file,
            value=f"{reasons[ONE_POSITION]} slices",
            cure="Export the original series again: where each slice lies was lost.",
        )
    num_series = len({stack.slices[0].series for stack in stacks if stack.info.left_out_because == SINGLE_SLICE})
    if num_series > 1:
        return GeometryError(
            f"{num_series} series of one slice each",
            file=file,
            value=found,
            cure="Pass the original series; a converter may have given every slice its own SeriesInstanceUID.",
        )
    if reasons[SINGLE_SLICE]:
        return GeometryError("one slice is no volume", file=file, value=found, cure="Pass the whole series.")
    return NotCTError("no CT volume", file=file, value=found, cure="Pass a CT series in Hounsfield units.")
