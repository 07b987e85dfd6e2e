"""Sentences of a document -> what rules say about the items that no label of the model speaks for.

Title, abstract, background and declared interests follow from how a report is laid out. `evaluate.py` measures the rules of
title, abstract and interests on the articles of SPIRIT-CONSORT-TM; nobody annotated the background.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .documents import Sentence
from .processing_trialreport import section_kind
from .study import DESIGNS

_RANDOMISED = re.compile(r"\brandom(i[sz]ed|ly|i[sz]ation)?\b", re.IGNORECASE)
_INTERESTS = re.compile(
    r"\b(competing|conflicts? of|conflicting|financial) (financial )?interests?\b"
    r"|\bdeclar\w+ (of |that )?(no |any )?interests?\b"
    r"|\bfinancial disclosures?\b|\bnothing to disclose\b|^disclosures?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class RuleFinding:
    """`lacking` names what the item asks for beside what is there."""

    evidence: tuple[Sentence, ...] = ()
    is_stated: bool = False
    lacking: tuple[str, ...] = ()


def _under(kind: str, sentences: Sequence[Sentence]) -> list[Sentence]:
    return [sentence for sentence in sentences if section_kind(sentence.section) == kind]


def _prose(sentences: Sequence[Sentence]) -> tuple[Sentence, ...]:
    """Without the headings, which are sentences, too."""
    return tuple(sentence for sentence in sentences if sentence.text not in sentence.section)


def title_is_randomised(sentences: Sequence[Sentence]) -> RuleFinding:
    """1a: the title says that the trial is randomised."""
    found = tuple(sentence for sentence in _under("title", sentences) if _RANDOMISED.search(sentence.text))
    return RuleFinding(evidence=found, is_stated=bool(found))


def abstract_is_structured(sentences: Sequence[Sentence]) -> RuleFinding:
    """1b: the abstract has headings of at least three of background, methods, results and conclusions."""
    abstract = _under("abstract", sentences)
    headers = {section_kind([sentence.section[-1]]) for sentence in abstract if len(sentence.section) > 1}
    is_structured = len(headers & {"introduction", "methods", "results", "discussion"}) >= 3
    lacking = ("headings in the abstract",) if abstract and not is_structured else ()
    return RuleFinding(evidence=_prose(abstract)[:2], is_stated=is_structured, lacking=lacking)


def introduction_gives_background(sentences: Sequence[Sentence]) -> RuleFinding:
    """2a: an introduction of at least three sentences."""
    introduction = _prose(_under("introduction", sentences))
    return RuleFinding(evidence=introduction[:2], is_stated=len(introduction) >= 3)


def interests_are_declared(sentences: Sequence[Sentence]) -> RuleFinding:
    """SPIRIT 28: competing interests are declared, under such a heading or in such words."""
    found = [s for s in sentences if any(_INTERESTS.search(text) for text in (s.text, *s.section[-1:]))]
    return RuleFinding(evidence=_prose(found)[:2], is_stated=bool(_prose(found)))


def title_names_design(design: str, sentences: Sequence[Sentence]) -> RuleFinding:
    """1a of an extension: the title names the design."""
    pattern = DESIGNS[design]
    found = tuple(sentence for sentence in _under("title", sentences) if pattern.search(sentence.text))
    return RuleFinding(evidence=found, is_stated=bool(found))


# The names by which files of checklists call them.
RULES: dict[str, Callable[[Sequence[Sentence]], RuleFinding]] = {
    "title_is_randomised": title_is_randomised,
    "abstract_is_structured": abstract_is_structured,
    "introduction_gives_background": introduction_gives_background,
    "interests_are_declared": interests_are_declared,
    "title_names_cluster": partial(title_names_design, "cluster"),
    "title_names_crossover": partial(title_names_design, "crossover"),
    "title_names_non_inferiority": partial(title_names_design, "non-inferiority"),
    "title_names_pilot": partial(title_names_design, "pilot"),
}
