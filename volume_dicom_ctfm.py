"""DICOM files -> the one CT stack among them -> `Scan`.

- Slices are ordered by position along their normal. Identical duplicates are dropped, different ones refused. A hole of up
  to `MAX_GAP_STEPS` slice distances and `MAX_GAP_MM` is filled by linear interpolation from the true positions, a larger
  one refused, unless the thickness of the slices or the distance that they state explains it.
- Which stack is read, and when the caller must choose: `volume_dicom_stack_ctfm.py`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .volume_dicom_header_ctfm import HAS_PYDICOM, NO_PLACE, Slice, quiet_pydicom, read_header
from .volume_dicom_pixels_ctfm import DEFLATED, LOSSY, SYNTAX_NAMES, read_stored, to_hounsfield
from .volume_dicom_stack_ctfm import (
    SAME_POSITION_MM,
    Stack,
    choose_stack,
    group_slices,
    names_contrast,
    places_along_normal,
)
from .volume_scan_ctfm import (
    MAX_SPACING_MM,
    MIN_SPACING_MM,
    AmbiguousSeriesError,
    GeometryError,
    HounsfieldStack,
    NotCTError,
    Scan,
    ScanWarning,
    UnsupportedFormatError,
    VolumeError,
    VolumeSource,
    check_shape,
)

MAX_GAP_STEPS = 3.0
MAX_GAP_MM = 15.0
MIN_ALTERNATION = 0.8  # how much less every other slice differs than the next: 1.35 to 1.85 in real scans, 1 in noise
REGULAR_TOLERANCE = 0.1  # of the slice distance: positions are often rounded to a tenth of a millimetre
MIN_TILT_DEGREES = 0.5
MAX_HEADER_BYTES = 2**18  # in which a damaged file is searched for the series that it names


def list_dicom_stacks(source: str, kinds: dict[Path, str]) -> list[Stack]:
    """Every stack of slices in these files, the unusable ones with their reason."""
    with quiet_pydicom:
        stacks, _, _, unreadable = _find_stacks(source, kinds)
        usable = [stack for stack in stacks if not stack.info.left_out_because]
        _check_unreadable(unreadable, usable, Counter())
    return stacks


def read_dicom(source: str, kinds: dict[Path, str], series_uid: str | None) -> Scan:
    """Reads the one stack that is a CT volume, or the one that `series_uid` names.

    Args:
        source: what errors call the source.
        kinds: every file of the source, and what `tell_kind` says it is.
    """
    with quiet_pydicom:
        stacks, left_out, num_patients, unreadable = _find_stacks(source, kinds)
        if unreadable and all(stack.info.left_out_because for stack in stacks):
            raise next(iter(unreadable.values()))
        stack = choose_stack(stacks, left_out, num_patients, series_uid, source)
        _check_unreadable(unreadable, [stack], left_out)
        counted = {(one.pixels.path, one.frame) for one in stack.slices}
        for other in stacks:
            if other.info.left_out_because == NO_PLACE and other.slices[0].series == stack.slices[0].series:
                raise GeometryError(
                    f"a slice of the series has {NO_PLACE}",
                    file=other.slices[0].pixels.path.name,
                    cure="Export it again.",
                )
            is_same = other.slices[0].series == stack.slices[0].series
            told_apart = "other acquisition of the same series" if is_same else "other series"
            rest = {(one.pixels.path, one.frame) for one in other.slices} - counted
            counted |= rest
            left_out[other.info.left_out_because or told_apart] += len(rest)
        left_out = +left_out  # without those that count nothing
        return _read_stack(stack, left_out)


def list_planes(source: str, kinds: dict[Path, str], series_uid: str | None) -> list[tuple[Slice, int]]:
    """The slices of the stack that `read_dicom` reads, one for each place along the stack, and on which plane of `Scan.hu` each
    lies: the nearest, where planes were resampled. For objects that refer to them."""
    with quiet_pydicom:
        stacks, left_out, num_patients, _ = _find_stacks(source, kinds)
        slices = choose_stack(stacks, left_out, num_patients, series_uid, source).slices
    slots, places = _slots(slices)
    planes = np.arange(len(places))
    if not _is_regular(places):
        planes = np.rint(places / _usual_step(places)).astype(int)
    return [(slices[slots.index(slot)], int(plane)) for slot, plane in enumerate(planes)]


def read_slice(path: Path) -> np.ndarray:
    """One DICOM image in Hounsfield units, `(rows, columns)` as stored, without a volume's checks; padding becomes air."""
    with quiet_pydicom:
        found = read_header(path)
        if isinstance(found, str) or found[0].reason:
            raise NotCTError("no CT slice", file=path.name, value=found if isinstance(found, str) else found[0].reason)
        return _to_hounsfield(next(read_stored(found[0].pixels)), found[0])[0]


def _check_unreadable(unreadable: dict[Path, VolumeError], stacks: list[Stack], left_out: Counter[str]) -> None:
    """Leaves out files that cannot be read beside whole stacks. One that names the series of a stack, or that may be what a
    stack with a gap misses, is an error."""
    if unreadable and not stacks:
        raise next(iter(unreadable.values()))
    uids = [stack.slices[0].series.encode("latin-1") for stack in stacks]
    is_whole = all(_is_regular(_slots(stack.slices)[1]) for stack in stacks)
    for path, error in unreadable.items():
        with path.open("rb") as file:
            head = file.read(MAX_HEADER_BYTES)
        if not is_whole or any(uid in head for uid in uids) or DEFLATED.encode() in head:
            raise error
        left_out["DICOM file that cannot be read"] += 1


def _find_stacks(source: str, kinds: dict[Path, str]) -> tuple[list[Stack], Counter[str], int, dict[Path, VolumeError]]:
    if not HAS_PYDICOM:
        raise UnsupportedFormatError(
            "reading DICOM needs pydicom", file=source, cure="Install it with pip install pydicom python-gdcm."
        )
    left_out: Counter[str] = Counter()
    slices: list[Slice] = []
    patients: dict[str, int] = {}
    unreadable: dict[Path, VolumeError] = {}
    for path, kind in kinds.items():
        if kind != "dicom":
            left_out[kind if kind.endswith("file") else f"{kind} file"] += 1
            continue
        try:
            found = read_header(path)
        except VolumeError as error:
            error.__traceback__ = error.__context__ = None  # their frames hold what was read of the file
            unreadable[path] = error
            continue
        if isinstance(found, str):
            left_out[found] += 1
            continue
        for one in found:
            patients.setdefault(one.patient, len(patients) + 1)
        slices += found
    return group_slices(slices, patients), left_out, len(patients), unreadable


# --- one stack -> Scan -----------------------------------------------------------------------------------------------------


def _read_stack(stack: Stack, left_out: Counter[str]) -> Scan:
    warnings = [
        ScanWarning("left_out", f"{count} files were left out: {reason}.") for reason, count in sorted(left_out.items())
    ]
    slices = stack.slices
    slots, places = _slots(slices)
    check_shape((len(places), slices[0].pixels.rows, slices[0].pixels.columns), slices[0].pixels.path.name)
    affine = _stack_affine(slices, slots, places)
    by_plane = [slices[slots.index(slot)] for slot in range(len(places))]
    _check_gaps(places, by_plane)
    hu = _read_hounsfield(stack, slots, len(places), warnings)
    _check_alternation(hu)
    num_duplicates = len(slices) - len(places)
    if num_duplicates and not stack.is_whole:
        warnings.append(
            ScanWarning(
                "duplicate_slices",
                f"{num_duplicates} slices were there twice, with identical voxels; one of each was kept.",
            )
        )
    missing = [one for one in slices if one.facts["rescale"] == "missing"]
    if 0 < len(missing) < len(slices):
        raise NotCTError(
            "slices of one series with and without rescale slope and intercept",
            file=missing[0].pixels.path.name,
            value=f"{len(missing)} of {len(slices)} without",
            cure="Export the series again.",
        )
    if missing:
        warnings.append(
            ScanWarning("no_rescale", "The header gives no rescale slope and intercept; 1 and 0 were assumed.")
        )
    warnings += _suspicions(slices[0])
    warnings += _missing_by_spacing(places, by_plane)
    hu, affine, resampled = _fill_gaps(hu, affine, places, warnings)
    return Scan(
        hu=hu,
        affine=affine,
        warnings=tuple(warnings),
        source=_describe_source(slices, len(places), left_out, num_duplicates),
        resampled=resampled,
    )


def _suspicions(one: Slice) -> list[ScanWarning]:
    said = []
    if one.facts["rescale_type"] == "HU_MOD":
        said.append(ScanWarning("modified_hu", "The header says modified Hounsfield units (HU_MOD)."))
    elif one.facts["modified"]:
        said.append(
            ScanWarning(
                "modified_image",
                f"A material was removed or highlighted in the image ({one.facts['modified']}): where it was, values are not "
                "measured.",
            )
        )
    if one.facts["named_map"]:
        said.append(
            ScanWarning(
                "named_as_map",
                f'The series description says "{one.facts["named_map"]}", though the header says Hounsfield units: this '
                "may be a map in another unit.",
            )
        )
    if one.facts["lossy"] == "01" or one.pixels.transfer_syntax in LOSSY:
        said.append(ScanWarning("lossy", "The pixels were compressed with loss."))
    tilt = _float(one.facts["tilt"])
    if tilt is not None and abs(tilt) > MIN_TILT_DEGREES and np.abs(one.normal).max() > math.cos(math.radians(0.5)):
        said.append(
            ScanWarning(
                "tilt_in_header_only",
                f"The header says a gantry tilt of {tilt:g} degrees, but its slices stand upright; positions were trusted.",
            )
        )
    return said


def _slots(slices: tuple[Slice, ...]) -> tuple[list[int], np.ndarray]:
    """Which plane each slice fills, and where the planes lie along the stack (mm, from the first)."""
    along = places_along_normal(slices)
    steps = np.abs(np.diff(along))
    slots = np.concatenate([[0], np.cumsum(steps > 0)]).tolist()
    exact = np.array([one.position for one in slices]) @ slices[0].normal
    first = [slots.index(slot) for slot in range(slots[-1] + 1)]
    return slots, np.abs(exact[first] - exact[0])


def _stack_affine(slices: tuple[Slice, ...], slots: list[int], places: np.ndarray) -> np.ndarray:
    """(slice, row, column, 1) -> RAS mm for planes at equal steps from the first to the last; slices must lie on a line."""
    first = slices[0]
    positions = np.array([one.position for one in slices])
    line = positions[-1] - positions[0]
    expected = positions[0] + np.outer(places[slots] / places[-1], line)
    aside = float(np.abs(positions - expected).max())
    # Of a tilted gantry the line is oblique to the slices and still straight; positions are rounded by up to half a pixel.
    if aside > max(0.5 * min(first.pixel_spacing), 2 * SAME_POSITION_MM):
        raise GeometryError("the slices do not lie on a straight line", value=f"one is {aside:.2f} mm aside")
    if abs(first.normal @ line) < 0.7 * np.linalg.norm(line):
        raise GeometryError("the stack leans more than 45 degrees from its slices' normal")
    affine = np.eye(4)
    affine[:3, 0] = line / (len(places) - 1)
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_spacing[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.pixel_spacing[1]
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _is_regular(places: np.ndarray) -> bool:
    step = places[-1] / (len(places) - 1)
    return bool(np.abs(places - step * np.arange(len(places))).max() <= REGULAR_TOLERANCE * step)


def _usual_step(places: np.ndarray) -> float:
    """The slice distance: the smaller one where two are common, so that nothing is lost."""
    return float(np.quantile(np.diff(places), 0.2, method="lower"))


def _check_gaps(places: np.ndarray, slices: list[Slice]) -> None:
    steps = np.diff(places)
    step = _usual_step(places)
    if step > MAX_SPACING_MM:
        raise GeometryError("implausible slice distance", value=f"{step:g} mm")
    if _is_regular(places):
        return
    unexplained = steps[~_is_explained(steps, slices)]
    widest = float(unexplained.max(initial=0.0))
    if widest > MAX_GAP_STEPS * step * 1.05 or widest > max(MAX_GAP_MM, step * 1.05):
        raise GeometryError(
            "slices are missing",
            value=f"a hole of {widest:.1f} mm between slices {step:.2f} mm apart",
            cure=f"Holes up to {MAX_GAP_STEPS:g} slice distances and {MAX_GAP_MM:g} mm are filled; send the series again.",
        )


def _is_explained(steps: np.ndarray, slices: list[Slice]) -> np.ndarray:
    """For each step whether a protocol made it: slices as thick as the step is wide, or which state it as their distance,
    where thickness changes along the scan or the step comes again. One wide step between slices like all others is a gap."""
    thickness, spacing = (
        np.array([_float(one.facts[name]) or 0.0 for one in slices]) for name in ("thickness", "spacing")
    )
    covered = steps <= 1.1 * np.maximum(thickness[:-1], thickness[1:])
    stated = np.minimum(np.abs(spacing[:-1] - steps), np.abs(spacing[1:] - steps)) <= REGULAR_TOLERANCE * steps
    same = np.abs(np.diff(steps)) <= REGULAR_TOLERANCE * steps[1:]
    is_run = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    changes = thickness.max() > 1.1 * thickness.min()
    return (covered | stated) & (is_run | changes)


def _missing_by_spacing(places: np.ndarray, slices: list[Slice]) -> list[ScanWarning]:
    """Equal steps that are a multiple of the distance which the header states."""
    spacing = _float(slices[0].facts["spacing"])
    step = places[-1] / (len(places) - 1)
    if spacing is None or spacing < MIN_SPACING_MM or not _is_regular(places):
        return []
    times = round(step / spacing)
    if times < 2 or abs(step / spacing - times) > REGULAR_TOLERANCE:
        return []
    which = "every second slice is" if times == 2 else f"{times - 1} of {times} slices are"
    return [
        ScanWarning(
            "missing_by_spacing",
            f"The header says that slices lie {spacing:g} mm apart, but they lie {step:.2f} mm apart: probably "
            f"{which} missing.",
        )
    ]


def _check_alternation(hu: np.ndarray) -> None:
    """Refuses two interleaved acquisitions whose headers do not distinguish them."""
    if len(hu) < 8:
        return
    sample = hu[:, ::4, ::4].astype(np.float32).clip(-1024, 1024)
    following, alternate = (float(np.abs(sample[step:] - sample[:-step]).mean()) for step in (1, 2))
    if alternate < MIN_ALTERNATION * following:
        raise AmbiguousSeriesError(
            "slices resemble the next but one more than their neighbours: two interleaved acquisitions, and nothing in "
            "their headers tells them apart",
            value=f"{following:.0f} HU from slice to slice, {alternate:.0f} to the one after",
            cure="Pass one acquisition only.",
        )


def _fill_gaps(
    hu: np.ndarray, affine: np.ndarray, places: np.ndarray, warnings: list[ScanWarning]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Linear interpolation between the true positions onto equal steps, where they are not equal."""
    if _is_regular(places):
        return hu, affine, False
    step = _usual_step(places)
    count = math.floor(places[-1] / step + 1e-3) + 1
    check_shape((count, *hu.shape[1:]), "")
    out = np.empty((count, *hu.shape[1:]), hu.dtype)
    for index in range(count):
        place = index * step
        above = int(np.clip(np.searchsorted(places, place), 1, len(places) - 1))
        part = float(np.clip((place - places[above - 1]) / (places[above] - places[above - 1]), 0, 1))
        plane = (1 - part) * hu[above - 1] + part * hu[above]
        out[index] = np.rint(plane) if hu.dtype == np.int16 else plane
    affine = affine.copy()
    affine[:3, 0] *= step * (len(places) - 1) / places[-1]
    steps = np.diff(places)
    warnings.append(
        ScanWarning(
            "uneven_slices",
            f"Slices are {steps.min():.2f} to {steps.max():.2f} mm apart (missing slices or a changing distance); they were "
            f"resampled to {step:.2f} mm from their true positions.",
        )
    )
    return out, affine, True


def _read_hounsfield(stack: Stack, slots: list[int], num_planes: int, warnings: list[ScanWarning]) -> np.ndarray:
    slices = stack.slices
    first = slices[0].pixels
    hounsfield = HounsfieldStack((num_planes, first.rows, first.columns))
    filled = [False] * num_planes
    padded = num_different = 0
    for one, slot, hu, num_padded in _decode(slices, slots):
        if filled[slot]:
            if np.array_equal(hounsfield.array[slot], hu.astype(hounsfield.array.dtype)):
                continue
            if not stack.is_whole:
                raise AmbiguousSeriesError(
                    "two different slices lie on the same place, and nothing in their headers tells them apart",
                    file=one.pixels.path.name,
                    value=f"{len(slices)} slices on {num_planes} places",
                    cure="Pass one acquisition only.",
                )
            num_different += 1
            continue
        hounsfield.put(slot, hu[None])
        filled[slot] = True
        padded += num_padded
    if padded:
        warnings.append(
            ScanWarning("padding", f"{padded} voxels carried the padding value of the header and became air.")
        )
    if stack.is_whole:
        identical = len(slices) - num_planes - num_different
        warnings.append(
            ScanWarning(
                "joined_acquisitions",
                f"Several acquisitions were read as one scan; of {len(slices) - num_planes} slices that two of them share "
                f"({identical} identical, {num_different} different), the first was kept.",
            )
        )
    return hounsfield.array


def _decode(slices: tuple[Slice, ...], slots: list[int]) -> Iterator[tuple[Slice, int, np.ndarray, int]]:
    """Every slice in Hounsfield units, read and decoded in two threads, a file at a time."""
    wanted: dict[Path, dict[int, tuple[Slice, int]]] = defaultdict(dict)
    for one, slot in zip(slices, slots, strict=True):
        wanted[one.pixels.path][one.frame] = (one, slot)

    def decode_file(path: Path) -> Iterator[tuple[Slice, int, np.ndarray, int]]:
        frames = wanted[path]
        layout = next(iter(frames.values()))[0].pixels
        for frame, stored in enumerate(read_stored(layout)):
            if frame in frames:
                one, slot = frames[frame]
                yield one, slot, *_to_hounsfield(stored, one)

    if len(wanted) == 1:
        yield from decode_file(next(iter(wanted)))
        return
    with ThreadPoolExecutor(max_workers=2) as pool:
        paths = list(wanted)
        for start in range(0, len(paths), 32):  # a bounded number of decoded slices at a time
            for decoded in pool.map(lambda path: list(decode_file(path)), paths[start : start + 32]):
                yield from decoded


def _to_hounsfield(stored: np.ndarray, one: Slice) -> tuple[np.ndarray, int]:
    """A padding value that would be tissue counts as padding only where it fills the corners."""
    padding = one.pixels.padding
    if padding is not None:
        in_hu = [value * one.slope + one.intercept for value in padding]
        corners = stored[[0, 0, -1, -1], [0, -1, 0, -1]]
        outside = (corners >= padding[0]) & (corners <= padding[1])
        # Some exports name a padding value that tissue has too, 0 for one.
        if not (max(in_hu) < -900 or min(in_hu) > 3000) and not outside.all():
            padding = None
    num_padded = 0
    if padding is not None:
        num_padded = int(np.count_nonzero((stored >= padding[0]) & (stored <= padding[1])))
    return to_hounsfield(stored, one.slope, one.intercept, padding if num_padded else None), num_padded


def _describe_source(
    slices: tuple[Slice, ...], num_slices: int, left_out: Counter[str], num_duplicates: int
) -> VolumeSource:
    first = slices[0]
    rescales = sorted({(one.slope, one.intercept) for one in slices})
    rescale = f"slope {rescales[0][0]:g}, intercept {rescales[0][1]:g}" if len(rescales) == 1 else "differs by slice"
    left = dict(left_out) | ({"duplicate slice": num_duplicates} if num_duplicates else {})
    return VolumeSource(
        kind="dicom",
        num_files=len({one.pixels.path for one in slices}),
        num_slices=num_slices,
        left_out=left,
        stored_type=f"{'int' if first.pixels.signed else 'uint'}{first.pixels.bits_stored}",
        transfer_syntax=SYNTAX_NAMES.get(first.pixels.transfer_syntax, ""),
        rescale=rescale,
        manufacturer=first.facts["manufacturer"],
        kernel=max(one.kernel for one in slices),
        slice_thickness_mm=_float(first.facts["thickness"]),
        kvp=_float(first.facts["kvp"]),
        contrast=names_contrast(first),
        patient_position=first.facts["patient_position"],
        body_part=first.facts["body_part"],
        image_type=first.facts["image_type"],
        gantry_tilt_degrees=_float(first.facts["tilt"]),
        checks=("one patient and one acquisition", "slices ordered by position", "rescale applied slice by slice"),
    )


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
