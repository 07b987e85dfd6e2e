"""Protocol file -> everything that an evaluation's numbers depend on beside model and scans: population, splits, prompts.

Protocols are JSON in protocols/, with a version that rises with any change: numbers of two versions are not compared.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

PROTOCOLS = Path(__file__).parent / "protocols"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """How a finding is said to be there and not to be: `{finding}` and `{Finding}` are filled in, with `names` where given.
    The texts of one side are encoded one by one and their unit vectors averaged."""

    present: tuple[str, ...]
    absent: tuple[str, ...]
    names: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Which parts of a report ask for its scan ("report" is findings and impression), which of equal texts count, the ranks
    to look at, and the pools, as in Merlin's table."""

    texts: tuple[str, ...]
    repeated_reports: str
    at: tuple[int, ...]
    pools: tuple[int, ...]
    pool_repeats: int


@dataclass(frozen=True, kw_only=True)
class Laterality:
    """Prompts that differ in the side alone, for findings that lie on one side."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """The pointing game (Zhang et al. 2016): the largest value of a finding's heat map lies on it, or this near to it along
    every axis. Half the width of a patch asks whether the patch chosen holds a voxel of the finding."""

    findings: tuple[str, ...]
    tolerance_mm: float


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """See the files.

    Args:
        layout: of `layouts.py`, when the source is no prepared folder.
        reconstructions: of one scan: "first" by name, "best" as its layout prefers, or "all".
        expected_test_scans: of the population that publications use; another number is said beside the results.
        splits: which split of the source takes which part: "train" trains probes, on "validation" hyperparameters, calibration
            and thresholds are chosen, "test" is reported. "*" is every scan; where nothing is named for "validation", a fifth
            of the patients of "train" takes its part.
        findings: None for every label of the source.
        prompts: by name; "pair" is what the zero-shot pipeline says.
    """

    name: str
    version: int
    about: str
    layout: str
    reconstructions: Literal["first", "best", "all"]
    takes_what_the_publisher_left_out: bool
    expected_test_scans: int | None
    splits: dict[str, str]
    findings: tuple[str, ...] | None
    prompts: dict[str, PromptSet]
    retrieval: Retrieval | None
    laterality: Laterality | None
    localisation: Localisation | None
    resamples: int
    seed: int


def load_protocol(name: str) -> Protocol:
    """A protocol by name, or from a file of one's own.

    Raises:
        ValueError: there is none of that name.
    """
    path = Path(name) if name.endswith(".json") else PROTOCOLS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROTOCOLS.glob("*.json")))
        raise ValueError(f'There is no protocol "{name}"; there are {known}, or give the path of a .json file.')
    facts: dict[str, Any] = json.loads(path.read_text())
    for part, kind in (("retrieval", Retrieval), ("laterality", Laterality), ("localisation", Localisation)):
        facts[part] = kind(**frozen(facts[part])) if facts[part] else None
    prompts: dict[str, dict[str, Any]] = facts["prompts"]
    facts["prompts"] = {key: PromptSet(names=sides.pop("names", {}), **frozen(sides)) for key, sides in prompts.items()}
    return Protocol(**frozen(facts))


def frozen(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def say(templates: Sequence[str], finding: str, names: dict[str, str]) -> list[str]:
    """Fills a finding into templates.

    >>> say(["{Finding}.", "No {finding}."], "Pleural effusion", {})
    ['Pleural effusion.', 'No pleural effusion.']
    """
    name = names.get(finding, finding).replace("_", " ")
    starts_like_a_word = name[1:2].islower()
    lower = name[0].lower() + name[1:] if starts_like_a_word else name
    return [text.format(finding=lower, Finding=name[0].upper() + name[1:]) for text in templates]


PAIR = PromptSet(present=("{Finding}.",), absent=("No {finding}.",), names={})  # what the zero-shot pipeline says


def finding_directions(
    embed: Callable[[Sequence[str]], np.ndarray], prompts: PromptSet, findings: Sequence[str]
) -> np.ndarray:
    """`(findings, e)`: the averaged present texts minus the averaged absent ones, whose score is the logit of present against
    absent. `embed` makes unit vectors `(texts, e)`."""
    sides = [
        [average(embed(say(said, name, prompts.names))) for said in (prompts.present, prompts.absent)]
        for name in findings
    ]
    return np.array([present - absent for present, absent in sides])


def average(embeds: np.ndarray) -> np.ndarray:
    """Unit vectors `(texts, e)` -> one unit vector `(e,)`."""
    middle = embeds.mean(0)
    return middle / max(float(np.linalg.norm(middle)), 1e-12)
