"""Sentences of a document -> what kind of study, text and design it is, from its own words.

The checklists are for randomised trials. What says of itself that it is something else is not held against them unless the user
says otherwise (`check(path, is_trial=True)`). A statement about other people's studies ("a systematic review found") decides
nothing: the title decides first, then what the text says of itself.
"""

# ruff: noqa: E501 -- a pattern is read more easily in one piece

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .documents import Sentence
from .processing_trialreport import section_kind


def _compiled(rows: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in rows.items()}


# In a title these decide even where it says "randomised": a review of randomised trials is none.
_NEVER_A_TRIAL = _compiled({
    "a systematic review or meta-analysis": r"\b((systematic|scoping|narrative|umbrella|literature|rapid|cochrane|integrative) (literature )?reviews?|meta-?analys[ei]s|meta-?regression)\b",
    "a secondary analysis": r"\b(secondary|post[- ]?hoc|ancillary|pooled|exploratory|subgroup|mediation) (\w+ )?analys[ei]s\b|\b(re-?analysis|substudy) of\b",
    "a non-randomised study": r"\bnon-? ?randomi[sz]ed\b|\bquasi-?(randomi[sz]ed|experiment\w*)\b|\b(single|one)[- ](arm|group) (\w+ ){0,3}(trial|study)\b|\bbefore[- ](and[- ])?after (study|trial)\b|\buncontrolled (\w+ )?(trial|study)\b",
    "a Mendelian randomisation study": r"\bmendelian randomi[sz]ation\b",
    "a study in animals or cells": r"\b(mice|mouse|murine|rats?|rabbits?|zebrafish|piglets?|dogs|sheep|in vitro|animal (model|study))\b",
})  # fmt: skip
# These decide where the title does not say "randomised": a randomised trial may be nested in a cohort.
_NO_TRIAL = _compiled({
    "a cohort study": r"\bcohort (study|analysis|profile)\b|\b(prospective|retrospective) cohort\b|\blongitudinal (\w+ )?study\b",
    "a case-control study": r"\bcase[- ]control(led)? (study|analysis)\b",
    "a cross-sectional study": r"\bcross-?sectional (\w+ )?(study|survey|analysis)\b",
    "a case report or series": r"\bcase (reports?|series)\b",
    "an observational study": r"\b(observational|registry[- ]based|retrospective|ecological) (\w+ )?(study|analysis|review)\b|\bchart review\b",
    "a qualitative study or survey": r"\bqualitative (\w+ )?study\b|\b(a|an|national|online|questionnaire) (\w+ )?survey\b|\bfocus groups\b",
    "a study of diagnosis or prognosis": r"\bdiagnostic accuracy\b|\bprediction model\b|\bvalidation study\b",
    "a review or guideline": r"\b(a|an) (\w+ )?review$|\breview of the literature\b|\b(clinical )?practice guidelines?$|\bconsensus statement\b",
})  # fmt: skip
# "This was a ...", "we did a ...": what a text says of itself.
_OF_ITSELF = re.compile(
    r"\b(this|ours?|the (present|current)) (\w+ )?(is|was|study|trial|review|analysis|article|paper)\b"
    r"|\bwe (\w+ )?(did|conducted|performed|carried out|undertook|present|report|describe|followed|used|designed)\b"
    r"|\bstudy design\b|\bthe study (is|was)\b|\bdesigned as\b",
    re.IGNORECASE,
)
_NOT_RANDOMISED = re.compile(
    r"\b(participants|patients|subjects|groups|women|men|children|adults|people|allocation|assignment|treatment|study|trial)\b[^.;]{0,40}"
    r"\b(was|were|is|are) not (randomi[sz]ed|randomly|at random)\b",
    re.IGNORECASE,
)
_ANIMALS = re.compile(r"\b(wistar|sprague[- ]dawley|c57bl|balb/c)|\b(mice|rats|rabbits) were\b", re.IGNORECASE)
_RANDOMISED = re.compile(
    r"(?<!non)(?<!non-)(?<!non )(?<!not )(?<!quasi-)\brandom(i[sz]ed|i[sz]ation|ly)\b", re.IGNORECASE
)
_ASSIGNED = re.compile(
    r"(?<!not )\b(randomly|random) (\w+ )?(assign|allocat|divid|select)\w*|\b(assigned|allocated|divided) (\w+ ){0,2}(randomly|at random|by random)"
    r"|\b(were|was|will be|are|be|being|we|who|and|\d+) (then |also |equally |individually )?randomi[sz]ed?\b(?! (controlled |clinical )?(trial|stud))"
    r"|\brandomi[sz]ation (was|were|will|list|sequence|code|schedule|ratio)\b|\bafter randomi[sz]ation\b",
    re.IGNORECASE,
)
_TRIAL = re.compile(r"\brandomi[sz]ed\b[^.;]{0,80}\b(trial|study|design)\b", re.IGNORECASE)

DESIGNS = _compiled({
    "cluster": r"\bclusters?[- ](\w+[- ])?(randomi[sz]ed|trial|design|controlled)|\brandomi[sz]\w+ (by|at the level of|of) (the )?clusters?\b|\bstepped[- ]wedge\b",
    "crossover": r"\bcross-?over (\w+[- ]){0,4}(trial|design|study)\b|\b(trial|design|study) with (a )?cross-?over\b",
    "non-inferiority": r"\b(non-?inferiority|equivalence) (\w+[- ]){0,4}(trial|design|study|margin)\b",
    "pilot": r"\b(pilot|feasibility) (\w+[- ]){0,5}(trial|study)\b",
    "factorial": r"\bfactorial\b",
    "parallel": r"\bparallel[- ](\w+[- ])?(group|arm|trial|design)|\bin parallel groups\b",
})  # fmt: skip
_OTHERS = re.compile(
    r"\b(previous|earlier|prior|past|other|published|our pilot|in a pilot|from a pilot)\b|\bet al\b", re.IGNORECASE
)
_PLANNED = re.compile(r"\bwill (\w+ )?(be|have|receive|undergo|use|include|complete|collect|assess)\b", re.IGNORECASE)
_PROTOCOL_TITLE = re.compile(
    r"\bprotocol (for|of)\b|\b(study|trial|research) protocol\b|\bprotocol$|^protocol\b|\brationale and (study )?design\b|\bdesign and (rationale|methods)\b"
    r"|\b(study|trial) design of\b|: (study )?design of\b|\bmethodological description of\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """`kind` is `"a randomised trial"`, or what it is instead, with the sentence that says so."""

    kind: str
    is_trial: bool
    is_protocol: bool
    is_abstract: bool
    designs: tuple[str, ...] = ()
    sentence: Sentence | None = None

    @property
    def description(self) -> str:
        """One sentence for readers."""
        if self.is_trial:
            text = "abstract" if self.is_abstract else "protocol" if self.is_protocol else "report"
            designs = f" ({', '.join(self.designs)})" if self.designs else ""
            return f"Taken for the {text} of a randomised trial{designs}."
        said = f' It says: "{self.sentence.text[:200]}"' if self.sentence else " No sentence mentions randomisation."
        return f"This looks like {self.kind}, not a randomised trial, so nothing was checked.{said}"


def recognise(sentences: Sequence[Sentence]) -> Study:
    """What kind of study and text a document is.

    Example:
        >>> recognise([Sentence(number=1, text="Walking: a cohort study", section=("Title",))]).kind
        'a cohort study'
    """
    titles = [s for s in sentences if section_kind(s.section) == "title"]
    own = [s for s in sentences if section_kind(s.section) in ("abstract", "methods", "other") and s not in titles]
    kind, sentence = _other_kind(sentences, titles, own)
    return Study(
        kind=kind or "a randomised trial",
        is_trial=kind is None,
        is_protocol=_is_protocol(sentences, titles),
        is_abstract=_is_abstract(sentences, titles),
        designs=_designs(titles, own),
        sentence=sentence,
    )


def _other_kind(
    sentences: Sequence[Sentence], titles: Sequence[Sentence], own: Sequence[Sentence]
) -> tuple[str | None, Sentence | None]:
    for title in titles:
        says_randomised = bool(_RANDOMISED.search(title.text))
        for kind, pattern in (*_NEVER_A_TRIAL.items(), *(() if says_randomised else _NO_TRIAL.items())):
            if pattern.search(title.text):
                return kind, title
    animals = [s for s in own if _ANIMALS.search(s.text)]
    if len(animals) >= 2:
        return "a study in animals or cells", animals[0]
    if any(_RANDOMISED.search(title.text) for title in titles):
        return None, None
    if any(_ASSIGNED.search(s.text) or (_TRIAL.search(s.text) and _OF_ITSELF.search(s.text)) for s in own):
        return None, None
    for sentence in own:
        if _NOT_RANDOMISED.search(sentence.text):
            return "a non-randomised study", sentence
    for sentence in own:
        if _OF_ITSELF.search(sentence.text):
            for kind, pattern in (*_NEVER_A_TRIAL.items(), *_NO_TRIAL.items()):
                if pattern.search(sentence.text):
                    return kind, sentence
    if len(sentences) >= 40 and not any(re.search(r"\brandom", s.text, re.IGNORECASE) for s in sentences):
        return "something else", None
    return None, None


def _is_protocol(sentences: Sequence[Sentence], titles: Sequence[Sentence]) -> bool:
    if any(_PROTOCOL_TITLE.search(title.text) for title in titles):
        return True
    methods = [s for s in sentences if section_kind(s.section) in ("methods", "other")]
    planned = sum(bool(_PLANNED.search(s.text)) for s in methods)
    has_results = any(section_kind(s.section) == "results" for s in sentences)
    return not has_results and planned >= 5 and planned > 0.2 * len(methods)


def _is_abstract(sentences: Sequence[Sentence], titles: Sequence[Sentence]) -> bool:
    """No heading but those of an abstract, and no more sentences than one has."""
    text = [s for s in sentences if s not in titles]
    if not text or len(text) > 30:
        return False
    if any(section_kind(s.section) == "abstract" for s in text):
        return all(section_kind(s.section) in ("abstract", "back matter") for s in text)
    # Without a heading "Abstract": no headings at all, or methods and results side by side.
    headings = [s for s in text if s.text in s.section[-1:]]
    is_flat = all(len(s.section) <= 1 for s in text)
    is_whole = {"methods", "results"} <= {section_kind(s.section) for s in headings}
    return len(text) >= 3 and sum(len(s.text.split()) for s in text) < 500 and is_flat and (is_whole or not headings)


def _designs(titles: Sequence[Sentence], own: Sequence[Sentence]) -> tuple[str, ...]:
    said = [s.text for s in titles]
    said += [s.text for s in own if _OF_ITSELF.search(s.text) and not _OTHERS.search(s.text)]
    return tuple(name for name, pattern in DESIGNS.items() if any(pattern.search(text) for text in said))
