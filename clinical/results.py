"""What is said of a scan, whatever it is written as: findings, structures, the gate's answer and the limits of use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..grading import Graded
from .source import NOTICE

UNVERIFIED = "Made by a program. No physician has verified it, and nothing follows from what it does not name."
UNLIKE = "The scan is unlike those that the model was trained on, so no finding is reported."
UNKNOWN_GATE = "Whether the scan is like those that the model was trained on is not known."


@dataclass(frozen=True, kw_only=True)
class Results:
    """
    findings: as `Graded` has them; none where the scan is unlike those of the training.
    gate: "like", "unlike" or "unknown"; distance: 1 at the edge of what is like, None where it is not known.
    structures: as `segmentation.measure_structures` gives them.
    warnings: what the reader repaired or suspects.
    """

    findings: tuple[Mapping[str, Any], ...]
    gate: str
    distance: float | None
    structures: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    caveats: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        about_gate = {"like": (), "unlike": (UNLIKE,), "unknown": (UNKNOWN_GATE,)}[self.gate]
        object.__setattr__(self, "caveats", (NOTICE, UNVERIFIED, *about_gate, *map(str, self.warnings)))


def collect_results(
    graded: Graded, structures: Sequence[Mapping[str, Any]] = (), warnings: Sequence[str] = ()
) -> Results:
    """The same verdict about likeness as the worklist's."""
    far = graded.distance
    gate = "unknown" if far is None else "unlike" if far > 1 else "like"
    return Results(
        findings=() if gate == "unlike" else graded.findings,
        gate=gate,
        distance=far if far is not None and math.isfinite(far) else None,
        structures=tuple(structures),
        warnings=tuple(warnings),
    )
