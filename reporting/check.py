"""Report -> for every checklist item: reported, partly reported, not found, look here, not applicable or not checked.

`check(path)` and `label(sentences, sections)` are the Python interface; `command.py` is the command line. The checker finds
statements. It does not judge whether they are true, and it is wrong as often as the figures beside every verdict say. Nothing
leaves the machine.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from .checklist import Checklist, Item, extension_of, load_checklist
from .documents import READERS, Document, DocumentError, Sentence, read_document
from .modeling_trialreport import TrialReportForSentenceLabels
from .processing_trialreport import TrialReportProcessor, section_kind
from .rules import RULES
from .study import Study, recognise

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
MAX_EVIDENCE = 6
MAX_NEAREST = 3
STATUSES = ("reported", "partly reported", "not found", "look here", "not applicable", "not checked")
# "Not found" is said where it was right six times in ten or more, on at least so many articles; else "look here".
MIN_RIGHT, MIN_CALLED = 0.6, 5
MIN_ELEMENT_RIGHT = 0.8


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """How often an item was called reported and missing on articles that the model had not seen, and how often rightly."""

    called_reported: int
    called_reported_rightly: int
    called_missing: int
    called_missing_rightly: int

    @classmethod
    def of(cls, calibration: dict) -> "ErrorRates":
        return cls(**{field.name: calibration[field.name] for field in fields(cls)})

    def is_right_when_missing(self, share: float) -> bool:
        return self.called_missing < MIN_CALLED or self.called_missing_rightly >= share * self.called_missing


@dataclass(frozen=True, kw_only=True)
class ElementVerdict:
    """Whether a sentence of the report states an element of an item; only of elements whose absence is called rightly."""

    name: str
    found: bool
    sentence: int | None = None
    error_rates: ErrorRates | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the checker says about an item. `probability` is that of the statement being there, calibrated; None for rules.

    `nearest` are the sentences that come nearest to an item that was not found.
    """

    item: Item
    status: str
    probability: float | None
    evidence: tuple[Sentence, ...] = ()
    nearest: tuple[Sentence, ...] = ()
    elements: tuple[ElementVerdict, ...] = ()
    error_rates: ErrorRates | None = None
    note: str = ""

    @property
    def confidence(self) -> float | None:
        """The calibrated probability of the verdict itself; None for rules."""
        if self.probability is None or self.status in ("reported", "partly reported"):
            return self.probability
        return 1 - self.probability

    @property
    def needs_a_look(self) -> bool:
        """Whether a person should read first: unsure, missing, or lacking an element."""
        return self.status in ("look here", "not found", "partly reported")

    @property
    def missing_elements(self) -> tuple[str, ...]:
        return tuple(element.name for element in self.elements if not element.found)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check` found. `labels`: item numbers of each sentence of `document`; `study`: what the text was taken for.

    `extensions` are the lists whose items follow those of `checklist`.
    """

    document: Document
    checklist: str
    verdicts: tuple[Verdict, ...]
    labels: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    study: Study

    def count(self, status: str) -> int:
        return sum(verdict.status == status for verdict in self.verdicts)


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """Model, processor, and the calibration that was measured with them."""

    model: TrialReportForSentenceLabels
    processor: TrialReportProcessor
    calibration: dict

    @property
    def names(self) -> list[str]:
        labels = {int(number): str(name) for number, name in (self.model.config.id2label or {}).items()}
        return [labels[number] for number in range(len(labels))]

    @torch.inference_mode()
    def probabilities(self, sentences: Sequence[str], sections: Sequence[Sequence[str]]) -> tuple[torch.Tensor, int]:
        """`(s, l)`: the model's own figures, before calibration; and how many sentences were too long to be read whole."""
        batch = self.processor([list(sentences)], [[list(section) for section in sections]])
        inputs = {name: batch[name] for name in self.processor.model_input_names}
        return self.model(**inputs).logits[0].float().sigmoid(), batch["cut_sentences"]


def load_complete(folder: Path, dtype: torch.dtype) -> TrialReportForSentenceLabels:
    """The model of a folder. `from_pretrained` alone draws at random what a file lacks.

    Raises:
        OSError: weights are missing.
    """
    loaded: Any = TrialReportForSentenceLabels.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise OSError(f"{folder} lacks {len(missing)} weights, {missing[0]} for one. Save or download it again.")
    return model


@cache
def load_labeller(checkpoint: str | Path = DEFAULT_CHECKPOINT) -> Labeller:
    """Loads a checkpoint once; nothing is downloaded."""
    folder = Path(checkpoint)
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors. A wheel brings no weights: run pip install --editable in a clone, or pass "
            "`checkpoint`, the folder of a trained model (ctfm.reporting.build)."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    settings = json.loads((folder / "processor_config.json").read_text())
    names = ("window_tokens", "sentence_tokens", "header_tokens", "lexical_buckets")
    sizes = {name: settings[name] for name in names if name in settings}
    model = load_complete(folder, torch.float32).eval()
    calibration = json.loads((folder / "calibration.json").read_text())
    return Labeller(model=model, processor=TrialReportProcessor(tokenizer, **sizes), calibration=calibration)


# ---- sentences ----


def label(
    sentences: Sequence[str],
    sections: Sequence[Sequence[str]] | None = None,
    checklist: str = "consort",
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
) -> list[list[str]]:
    """The items of a checklist that each sentence states, in the checklist's own numbers and order.

    Items that a rule decides for a whole report (1a, 1b and 2a of CONSORT 2010, 28 of SPIRIT 2013) label no sentence.

    Args:
        sentences: consecutive sentences of one report or protocol, in order.
        sections: for every sentence its path of headers, outermost first; None where there are no headers.
        checklist: the name of a file in `checklists/`: `"consort"` (CONSORT 2010), `"consort-2025"`, `"spirit"` (SPIRIT 2013),
            `"spirit-2025"`, `"abstracts"`, ...

    Raises:
        ValueError: an unknown checklist, no sentence, or another number of sections than of sentences.

    Example:
        label(["Assessors were unaware of the allocation."], [["Methods", "Masking"]])
        label(["The list is kept by the pharmacy."], [["Methods", "Allocation"]], checklist="spirit")
    """
    items = load_checklist(checklist).items
    labeller = load_labeller(checkpoint)
    sections = sections if sections is not None else [[] for _ in sentences]
    probabilities, _ = labeller.probabilities(sentences, sections)
    return [list(numbers) for numbers in _labels(labeller, probabilities, items)]


def _labels(labeller: Labeller, probabilities: torch.Tensor, items: Sequence[Item]) -> list[tuple[str, ...]]:
    columns = {name: number for number, name in enumerate(labeller.names)}
    thresholds = labeller.calibration["sentence_thresholds"]
    asked = [(item.number, [(columns[name], thresholds[name]) for name in item.labels]) for item in items]
    return [
        tuple(number for number, own in asked if any(row[column] >= least for column, least in own))
        for row in probabilities.tolist()
    ]


# ---- items ----


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A document as the model read it. `kind` is the row of the calibration: reports and protocols have their own."""

    document: Document
    probabilities: torch.Tensor
    labeller: Labeller
    kind: str

    def columns(self, labels: Sequence[str]) -> torch.Tensor:
        """`(s, len(labels))`"""
        names = self.labeller.names
        return self.probabilities[:, [names.index(name) for name in labels]]

    def nearest(self, labels: Sequence[str], count: int) -> tuple[Sentence, ...]:
        """The sentences most like those of an item, in the order of the text; headings announce, so they come last."""
        scores = self.columns(labels).max(1).values.tolist()
        rows = list(zip(self.document.sentences, scores, strict=True))
        rows.sort(key=lambda row: (row[0].text in row[0].section[-1:], -row[1]))
        return tuple(sorted((sentence for sentence, _ in rows[:count]), key=lambda s: s.number))

    def calibrated(self, labels: Sequence[str]) -> tuple[float, ErrorRates | None]:
        """The probability that the text states what any of the labels stands for, and how often such calls were right."""
        items = self.labeller.calibration["items"]
        row = items.get(" | ".join(labels), {})
        if not row:
            return max(self.calibrated([name])[0] for name in labels), None
        own = row.get(self.kind) or next(iter(row.values()))
        return calibrate(self.columns(labels).max().item(), own), ErrorRates.of(own)


def calibrate(probability: float, calibration: dict) -> float:
    """Platt scaling of an article's highest sentence, fitted on articles that the model had not seen."""
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    logit = math.log(clipped / (1 - clipped))
    return 1 / (1 + math.exp(-(calibration["slope"] * logit + calibration["offset"])))


def _verdict(item: Item, reading: _Reading, text: str) -> Verdict:
    if item.rule is not None:
        return _by_rule(item, reading)
    if not item.labels:
        near = reading.nearest(item.near, MAX_NEAREST) if item.near else ()
        return Verdict(item=item, status="not checked", probability=None, nearest=near)
    return _by_model(item, reading, text)


def _by_rule(item: Item, reading: _Reading) -> Verdict:
    assert item.rule is not None
    found = RULES[item.rule](reading.document.sentences)
    measured = reading.labeller.calibration["rules"].get(item.rule)
    rates = ErrorRates.of(measured) if measured else None
    absent = "look here" if rates and not rates.is_right_when_missing(MIN_RIGHT) else "not found"
    return Verdict(
        item=item,
        status="reported" if found.is_stated else "partly reported" if found.lacking else absent,
        probability=None,
        evidence=found.evidence,
        elements=tuple(ElementVerdict(name=name, found=False) for name in found.lacking),
        error_rates=rates,
    )


def _by_model(item: Item, reading: _Reading, text: str) -> Verdict:
    probability, rates = reading.calibrated(item.labels)
    if probability < 0.5:
        nearest = reading.nearest(item.labels, MAX_NEAREST)
        status, note = "not found", ""
        if item.trace is not None and not re.search(item.trace, text, re.IGNORECASE):
            status, note = "not applicable", f"asked for only if {item.only_if}; no sign of that was found"
        elif 1 - probability < MIN_RIGHT or (rates and not rates.is_right_when_missing(MIN_RIGHT)):
            status, note = "look here", "not found, but such a verdict is often wrong: read the nearest sentences"
        return Verdict(item=item, status=status, probability=probability, nearest=nearest, error_rates=rates, note=note)
    evidence = _evidence(item, reading)
    elements = tuple(_elements(item, evidence, reading))
    return Verdict(
        item=item,
        status="reported" if all(element.found for element in elements) else "partly reported",
        probability=probability,
        evidence=evidence,
        elements=elements,
        error_rates=rates,
    )


def _evidence(item: Item, reading: _Reading) -> tuple[Sentence, ...]:
    """The sentences that carry a label of the item, or the one that comes nearest, in the order of the text."""
    thresholds = [reading.labeller.calibration["sentence_thresholds"][name] for name in item.labels]
    columns = reading.columns(item.labels)
    marked = (columns >= torch.tensor(thresholds)).any(1).tolist()
    scores = columns.max(1).values.tolist()
    score_of = {s.number: score for s, score in zip(reading.document.sentences, scores, strict=True)}
    found = [s for s, is_marked in zip(reading.document.sentences, marked, strict=True) if is_marked]
    # A heading announces a statement; it is one only for want of better.
    found = [s for s in found if s.text not in s.section[-1:]] or found
    if not found:
        return reading.nearest(item.labels, 1)
    best = sorted(found, key=lambda s: -score_of[s.number])[:MAX_EVIDENCE]
    return tuple(sorted(best, key=lambda s: s.number))


def _elements(item: Item, evidence: Sequence[Sentence], reading: _Reading) -> list[ElementVerdict]:
    verdicts = []
    for element in item.elements:
        measured = reading.labeller.calibration["elements"].get(element.label)
        if measured is None:
            continue  # nobody measured it well enough: nothing is said
        if element.only_if and not any(re.search(element.only_if, s.text, re.IGNORECASE) for s in evidence):
            continue
        found = reading.calibrated([element.label])[0] >= 0.5
        where = reading.nearest([element.label], 1)[0].number if found else None
        verdicts.append(
            ElementVerdict(name=element.name, found=found, sentence=where, error_rates=ErrorRates.of(measured))
        )
    return verdicts


# ---- reports ----


def _choose(study: Study, key: str | None) -> tuple[Checklist, tuple[Checklist, ...]]:
    """The list that a text is held against, and the extensions for its design."""
    if key is None:
        key = "spirit" if study.is_protocol else "abstracts" if study.is_abstract else "consort"
        own = load_checklist(key)
        found = [extension_of(design) for design in study.designs] if own.text == "report" else []
        return own, tuple(extension for extension in found if extension is not None)
    own = load_checklist(key)
    return (load_checklist("consort"), (own,)) if own.design else (own, ())


def check_document(
    document: Document,
    protocol: bool | None = None,
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    is_trial: bool | None = None,
    checklist: str | None = None,
) -> Report:
    """Checks a document that is already read; the arguments are those of `check`."""
    study = recognise(document.sentences)
    if is_trial is not None:
        study = replace(study, is_trial=is_trial, kind="a randomised trial" if is_trial else study.kind)
    if protocol is not None:
        study = replace(study, is_protocol=protocol, is_abstract=False)
    own, extensions = _choose(study, checklist)
    if checklist is not None:
        if protocol is not None and protocol != (own.text == "protocol"):
            raise ValueError(f'checklist "{checklist}" is for a {own.text}; leave out protocol={protocol}.')
        study = replace(study, is_protocol=own.text == "protocol", is_abstract=own.text == "abstract")
    if not study.is_trial:
        return Report(
            document=document,
            checklist=own.name,
            verdicts=(),
            labels=tuple(() for _ in document.sentences),
            warnings=(study.description, _OVERRULE, *document.warnings),
            study=study,
        )
    labeller = load_labeller(checkpoint)
    texts = [sentence.text for sentence in document.sentences]
    probabilities, num_cut = labeller.probabilities(texts, [sentence.section for sentence in document.sentences])
    kind = "protocol" if study.is_protocol else "report"
    reading = _Reading(document=document, probabilities=probabilities, labeller=labeller, kind=kind)
    text = " ".join(texts)
    items = [item for chosen in (own, *extensions) for item in chosen.items]
    verdicts = tuple(_verdict(item, reading, text) for item in items)
    if study.is_abstract:
        # Probabilities and error rates were measured on whole articles; of an abstract alone nobody measured them.
        verdicts = tuple(replace(verdict, probability=None, error_rates=None, note="") for verdict in verdicts)
    return Report(
        document=document,
        checklist=own.name,
        verdicts=verdicts,
        labels=tuple(_labels(labeller, probabilities, own.items)),
        warnings=(*document.warnings, *_warnings(document, study, num_cut, (own, *extensions))),
        extensions=tuple(extension.name for extension in extensions),
        study=study,
    )


_OVERRULE = "If it is a randomised trial all the same, pass --trial (in Python, is_trial=True)."


def _warnings(document: Document, study: Study, num_cut: int, checklists: Sequence[Checklist]) -> list[str]:
    protocol = study.is_protocol
    warnings = [study.description]
    warnings += [
        f"{chosen.name}: {len(chosen.not_checked)} of {len(chosen.items)} items are not checked, since nothing here "
        f"answers them: {', '.join(chosen.not_checked)}."
        for chosen in checklists
        if chosen.not_checked
    ]
    if study.is_abstract:
        return [*warnings, "Only an abstract: how often verdicts on an abstract alone are right was not measured."]
    kinds = {section_kind(sentence.section) for sentence in document.sentences}
    absent = [
        kind for kind in (("methods",) if protocol else ("methods", "results", "discussion")) if kind not in kinds
    ]
    if absent:
        warnings.append(f"No section was recognised as {', '.join(absent)}; items that belong there may be missed.")
    if not protocol and re.search(r"\bprotocol\b", document.title, re.IGNORECASE):
        warnings.append(
            'The title says "protocol": check it against SPIRIT with --protocol (in Python, protocol=True).'
        )
    if num_cut:
        warnings.append(f"Sentences too long to be read to their end: {num_cut}.")
    return warnings


def check(
    path: str | Path,
    protocol: bool | None = None,
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    is_trial: bool | None = None,
    checklist: str | None = None,
) -> Report:
    """Reads a report of a randomised trial and says what it leaves out.

    What says of itself that it is no randomised trial gets no verdict: `Report.study` says what it was taken for, and
    `Report.verdicts` is empty.

    Args:
        path: the file.
        protocol: True checks against SPIRIT 2013, False against CONSORT 2010; None recognises a protocol, a report or an
            abstract from the text.
        checkpoint: the folder of the model.
        is_trial: True checks it as a randomised trial whatever it says; None recognises that from its text.
        checklist: a file of `checklists/` by its name, which then decides what the text is taken for; an extension
            (`"cluster"`, `"harms"`, ...) follows the items of CONSORT 2010. None takes what the text calls for.

    Raises:
        DocumentError: the file cannot be read as an English report; the message says why and what to do.
        ValueError: an unknown checklist, or one for another kind of text than `protocol` says.

    Example:
        report = check("draft.docx")
        print([verdict.item.number for verdict in report.verdicts if verdict.status == "not found"])
    """
    return check_document(read_document(path), protocol, checkpoint, is_trial, checklist)


def check_folder(
    folder: str | Path, protocol: bool | None = None, is_trial: bool | None = None, checklist: str | None = None
) -> tuple[list[Report], list[str]]:
    """Checks every readable file of a folder; what could not be read comes back as messages."""
    reports, problems = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in READERS:
            try:
                reports.append(check(path, protocol, is_trial=is_trial, checklist=checklist))
            except DocumentError as error:
                problems.append(str(error))
    return reports, problems


def summarise(reports: Sequence[Report]) -> list[tuple[Item, Counter]]:
    """How often every item has every status over reports on one checklist, the most often missing first."""
    checked = [report.verdicts for report in reports if report.verdicts]
    rows: dict[tuple[str, str], tuple[Item, Counter]] = {}
    for verdict in (verdict for verdicts in checked for verdict in verdicts):
        key = (verdict.item.part, verdict.item.number)
        rows.setdefault(key, (verdict.item, Counter()))[1][verdict.status] += 1
    return sorted(
        rows.values(), key=lambda row: (-row[1]["not found"], -row[1]["look here"], -row[1]["partly reported"])
    )
