"""A protocol and its results report -> the planned outcomes, each with the nearest outcome that was reported, and what changed.

Words are compared, not meanings, so every row is to be read by a person.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .check import Report
from .documents import Sentence

_COMMON = frozenset(
    ("primary", "secondary", "outcome", "outcomes", "measure", "measures", "assessed", "measured", "defined", "baseline",
     "weeks", "months", "after", "from", "with", "will", "were", "that", "using", "between", "endpoint", "study", "rated",
     "scale", "number")
)  # fmt: skip
_OUTCOME = re.compile(
    r"\b(primary|secondary|main|other)\b.{0,40}\b(outcome|end[ -]?point|measure|variable)", re.IGNORECASE
)
_TIME = re.compile(  # "12 weeks", "6, 12 and at 24 weeks", "week 12"
    r"\b(?P<counts>\d+(?:,? (?:and |or |to )?(?:at )?\d+)*)[- ](?P<unit>day|week|month|year)s?\b"
    r"|\b(?P<unit2>day|week|month|year)s? (?P<counts2>\d+(?:,? (?:and |or |to )?\d+)*)\b"
)
LEAST_SHARED_WORDS = 2


@dataclass(frozen=True, kw_only=True)
class OutcomeMatch:
    """A sentence of the protocol that defines outcomes, the nearest one of the report if any is near, and what differs."""

    protocol: Sentence
    report: Sentence | None
    shared_words: tuple[str, ...]
    changes: tuple[str, ...] = ()


def compare_outcomes(protocol: Report, report: Report) -> list[OutcomeMatch]:
    """Outcomes that a protocol defines and its report may have left out or changed.

    `protocol` was checked against SPIRIT, `report` against CONSORT. Fewer than two shared content words is no match.
    """
    reported = [(sentence, _content_words(sentence.text)) for sentence in _labelled(report, "6a")]
    matches = []
    for sentence in _outcome_sentences(protocol):
        words = _content_words(sentence.text)
        nearest, shared = None, frozenset()
        for other, other_words in reported:
            if len(words & other_words) > len(shared):
                nearest, shared = other, words & other_words
        if len(shared) < min(LEAST_SHARED_WORDS, max(1, len(words))):
            nearest = None
        changes = describe_changes(sentence.text, nearest.text) if nearest else ()
        matches.append(
            OutcomeMatch(protocol=sentence, report=nearest, shared_words=tuple(sorted(shared)), changes=changes)
        )
    return matches


def describe_changes(planned: str, reported: str) -> tuple[str, ...]:
    """What differs between two sentences about one outcome: its rank, and its time points.

    Example:
        >>> describe_changes("The primary outcome is pain.", "A secondary outcome was pain at 12 weeks.")
        ('primary in the protocol, secondary in the report',)
    """
    changes = []
    ranks = [_rank(planned), _rank(reported)]
    if None not in ranks and ranks[0] != ranks[1]:
        changes.append(f"{ranks[0]} in the protocol, {ranks[1]} in the report")
    before, after = _times(planned), _times(reported)
    if before and after:
        changes += [f"{time} is in the protocol only" for time in before if time not in after]
        changes += [f"{time} is in the report only" for time in after if time not in before]
    return tuple(changes)


def _rank(text: str) -> str | None:
    found = {word for word in ("primary", "secondary") if re.search(rf"\b{word}\b", text, re.IGNORECASE)}
    return found.pop() if len(found) == 1 else None


def _times(text: str) -> list[str]:
    times = []
    for found in _TIME.finditer(text.lower()):
        counts, unit = found["counts"] or found["counts2"], found["unit"] or found["unit2"]
        times += [f"{count} {unit}{'' if count == '1' else 's'}" for count in re.findall(r"\d+", counts)]
    return list(dict.fromkeys(times))


def _labelled(report: Report, label: str) -> list[Sentence]:
    pairs = zip(report.document.sentences, report.labels, strict=True)
    return [sentence for sentence, labels in pairs if label in labels]


def _outcome_sentences(protocol: Report) -> Sequence[Sentence]:
    sentences = _labelled(protocol, "12")
    return [s for s in sentences if _OUTCOME.search(s.text) and s.text not in s.section]


def _content_words(text: str) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in _COMMON)
