"""Predictions of `build.py` -> what the checker needs beside the weights: thresholds, probabilities, and how often it is right.

Protocols and reports are calibrated apart: what one seldom says, the other always does. An item's score is the highest
sentence of any of its labels. One slope and an offset an item, with a ridge penalty, are fitted on articles whose labels the
sentence layers had not seen. Items that rest on CONSORT-TM's labels are then counted by leaving each fold out in turn; items on
labels of SPIRIT-CONSORT-TM on its validation articles, which neither the encoder nor anything else was trained on: there a
slope and an offset for all items are fitted once more, on nine pairs for the tenth, since the encoder had seen the others.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checklist import Element, checklist_keys, load_checklist
from .corpora import Article, load_spirit, load_spirit_articles
from .documents import Sentence
from .evaluate import Predictions
from .rules import RULES

KINDS = {"report": "Results", "protocol": "Protocol"}
MIN_ELEMENT_RIGHT, MIN_ELEMENT_CALLED = 0.8, 5
# The item of SPIRIT-CONSORT-TM that a rule decides, and the kind of article that checklists ask for it.
RULE_ITEMS = {
    "title_is_randomised": ("1a_Title_Randomized", "Results"),
    "abstract_is_structured": ("2_Abstract_structured", "Results"),
    "interests_are_declared": ("28_Financial_interests", "Protocol"),
}

Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Articles of one kind: the score of every item, as a logit, and whether the article reports it; `(a, i)`."""

    logits: Matrix
    there: Flags
    groups: NDArray[np.int64]


def item_keys(corpus: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of labels that some item of a checklist rests on, and every label alone; of one corpus."""
    sets: set[tuple[str, ...]] = {(name,) for name in names}
    for key in checklist_keys():
        for item in load_checklist(key).items:
            if item.labels:
                sets.add(item.labels)
    return sorted(labels for labels in sets if labels[0].startswith(f"{corpus}:"))


def score_items(
    articles: Sequence[Article],
    predictions: Predictions,
    names: Sequence[str],
    keys: Sequence[tuple[str, ...]],
    reported: dict[str, frozenset[str]],
) -> Scored:
    columns = [[list(names).index(label) for label in labels] for labels in keys]
    highest = np.stack([predictions[article.pmcid].astype(float).max(0) for article in articles]).clip(1e-6, 1 - 1e-6)
    scores = np.stack([highest[:, own].max(1) for own in columns], 1)
    there = [
        [any(label.partition(":")[2] in reported[article.pmcid] for label in labels) for labels in keys]
        for article in articles
    ]
    return Scored(
        logits=np.log(scores / (1 - scores)),
        there=np.asarray(there),
        groups=np.asarray([article.fold if article.fold is not None else article.pair for article in articles]),
    )


def fit(scored: Scored) -> tuple[float, Matrix]:
    """One slope, and an offset an item."""
    from sklearn.linear_model import LogisticRegression

    count = scored.logits.shape[1]
    one_hot = np.tile(np.eye(count), (len(scored.logits), 1))
    inputs = np.hstack([scored.logits.reshape(-1, 1), one_hot])
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(inputs, scored.there.ravel())
    return float(fitted.coef_[0, 0]), fitted.intercept_[0] + fitted.coef_[0, 1:]


def apply(logits: Matrix, slope: float, offsets: Matrix) -> Matrix:
    return 1 / (1 + np.exp(-(slope * logits + offsets)))


def leave_out(scored: Scored) -> Matrix:
    """The probability of every item in every article, fitted on the other groups."""
    found = np.zeros_like(scored.logits)
    for group in np.unique(scored.groups):
        out = scored.groups == group
        others = Scored(logits=scored.logits[~out], there=scored.there[~out], groups=scored.groups[~out])
        found[out] = apply(scored.logits[out], *fit(others))
    return found


def fit_correction(probability: Matrix, there: Flags) -> tuple[float, float]:
    """A slope and an offset for all items, on logits: what was tuned on articles that the encoder had seen is too sure."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(to_logits(probability).reshape(-1, 1), there.ravel())
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def correct_left_out(probability: Matrix, scored: Scored) -> Matrix:
    """Every article's probabilities with the correction that the other groups call for."""
    corrected = np.zeros_like(probability)
    for group in np.unique(scored.groups):
        out = scored.groups == group
        slope, offset = fit_correction(probability[~out], scored.there[~out])
        corrected[out] = apply(to_logits(probability[out]), slope, np.asarray(offset))
    return corrected


def to_logits(probability: Matrix) -> Matrix:
    clipped = probability.clip(1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def count_verdicts(there: Flags, said: Flags) -> dict[str, int]:
    """How often an item was called reported and missing over articles, and how often rightly."""
    return {
        "called_reported": int(said.sum()),
        "called_reported_rightly": int((there & said).sum()),
        "called_missing": int((~said).sum()),
        "called_missing_rightly": int((~there & ~said).sum()),
    }


def calibration_error(confidence: Matrix, right: Flags) -> float:
    """Mean distance, weighted by their numbers, between confidence and share right in ten equal bins."""
    if not len(confidence):
        return 0.0
    bins = np.minimum((confidence * 10).astype(int), 9)
    return float(
        sum(abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    )


def quality(probability: Matrix, there: Flags) -> dict[str, Any]:
    """How right verdicts are, and how right they say they are, over items and articles."""
    said = probability >= 0.5
    figures: dict[str, Any] = {"verdicts": int(said.size), "brier": float(((probability - there) ** 2).mean())}
    for name, own, right, confidence in (
        ("reported", said, there, probability),
        ("not found", ~said, ~there, 1 - probability),
    ):
        figures[name] = {
            "count": int(own.sum()),
            "right": int(right[own].sum()),
            "mean_confidence": float(confidence[own].mean()) if own.any() else 0.0,
            "calibration_error": calibration_error(confidence[own], right[own]),
        }
    return figures


def rule_table(data: Path) -> dict[str, dict[str, int]]:
    """Error rates of the rules of `rules.py` over SPIRIT-CONSORT-TM's articles, on which they were not tuned."""
    reported = load_spirit_articles(data)
    table = {}
    for name, (item, kind) in RULE_ITEMS.items():
        articles = [article for article in load_spirit(data) if article.kind == kind]
        said = [RULES[name](as_sentences(article)).is_stated for article in articles]
        there = [item in reported[article.pmcid] for article in articles]
        table[name] = count_verdicts(np.asarray(there), np.asarray(said))
    return table


def as_sentences(article: Article) -> list[Sentence]:
    pairs = zip(article.sentences, article.sections, strict=True)
    return [Sentence(number=number, text=text, section=section) for number, (text, section) in enumerate(pairs, 1)]


def element_groups() -> list[tuple[frozenset[str], tuple[Element, ...]]]:
    """Elements that stand together in an item, with the labels that say that an article reports the item."""
    groups = {}
    for key in checklist_keys():
        for item in load_checklist(key).items:
            own = frozenset(label for label in item.labels if label.startswith("spirit:"))
            labels = own | {element.label for element in item.elements}
            for element in item.elements:
                groups.setdefault(element.label, (labels, element))
    return [(labels, (element,)) for labels, element in groups.values()]


def element_table(
    articles: Sequence[Article], probability: dict[str, dict[str, float]], reported: dict[str, frozenset[str]]
) -> dict[str, dict[str, int]]:
    """Error rates of elements, by label, in articles that report something of their item according to the annotators."""
    table = {}
    for labels, (element,) in element_groups():
        there, said = [], []
        for article in articles:
            own = reported[article.pmcid]
            asked = element.only_if is None or any(re.search(element.only_if, s, re.I) for s in article.sentences)
            if asked and any(label.removeprefix("spirit:") in own for label in labels):
                there.append(element.label.removeprefix("spirit:") in own)
                said.append(probability[article.pmcid][element.label] >= 0.5)
        table[element.label] = count_verdicts(np.asarray(there, dtype=bool), np.asarray(said, dtype=bool))
    return table


def is_kept(rates: dict[str, int]) -> bool:
    """An element is spoken of only if its absence was called rightly in eight of ten articles, and called at all."""
    called = rates["called_missing"]
    return called >= MIN_ELEMENT_CALLED and rates["called_missing_rightly"] >= MIN_ELEMENT_RIGHT * called
