"""Report -> for every checklist item: reported, partly reported, not found or not applicable, with its evidence.

`check(path)` and `label(sentences, sections)` are the Python interface; `command.py` is the command line. The checker finds
statements. It does not judge whether they are true, and it is wrong as often as the figures beside every verdict say. Nothing
leaves the machine.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from .checklist import ABSTRACTS_NOT_CHECKED, CONSORT, CONSORT_ABSTRACTS, SPIRIT, SPIRIT_NOT_CHECKED, Item
from .documents import READERS, Document, DocumentError, Sentence, read_document
from .elements import elements_of, find_element
from .modeling_trialreport import TrialReportForSentenceLabels
from .processing_trialreport import TrialReportProcessor, section_kind
from .study import EXTENSIONS, Study, recognise

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
MAX_EVIDENCE = 6
STATUSES = ("reported", "partly reported", "not found", "not applicable")
UNSURE = "unsure: its probability is below one half, so look yourself"


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


@dataclass(frozen=True, kw_only=True)
class ElementVerdict:
    """Whether a pattern found an element. `error_rates` only where a corpus annotates it."""

    name: str
    found: bool
    sentence: int | None = None
    error_rates: ErrorRates | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the checker says about an item. `probability` is that of the statement being there, calibrated; None for rules."""

    item: Item
    status: str
    probability: float | None
    evidence: tuple[Sentence, ...] = ()
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
    def is_unsure(self) -> bool:
        """Thresholds serve precision and recall of all reports together, so a verdict may be the less probable one."""
        return self.confidence is not None and self.confidence < 0.5

    @property
    def missing_elements(self) -> tuple[str, ...]:
        return tuple(element.name for element in self.elements if not element.found)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check` found. `labels`: item numbers of each sentence of `document`; `study`: what the text was taken for."""

    document: Document
    checklist: str
    verdicts: tuple[Verdict, ...]
    labels: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()
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
            "`checkpoint`, the folder of a trained model (ctfm.reporting.crossfold)."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    settings = json.loads((folder / "processor_config.json").read_text())
    sizes = {name: settings[name] for name in ("window_tokens", "sentence_tokens", "header_tokens") if name in settings}
    model = load_complete(folder, torch.float32).eval()
    calibration = json.loads((folder / "calibration.json").read_text())
    return Labeller(model=model, processor=TrialReportProcessor(tokenizer, **sizes), calibration=calibration)


# ---- sentences ----


CHECKLISTS: dict[str, tuple[Item, ...]] = {
    "consort": CONSORT,
    "consort-2025": tuple(replace(item, number=item.consort_2025) for item in CONSORT if item.consort_2025),
    "spirit": SPIRIT,
}


def label(
    sentences: Sequence[str],
    sections: Sequence[Sequence[str]] | None = None,
    checklist: str = "consort",
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
) -> list[list[str]]:
    """The items of a checklist that each sentence states, in the checklist's own numbers and order.

    Items that are decided by rule for a whole report (1a, 1b and 2a of CONSORT 2010, 28 of SPIRIT 2013) label no sentence.

    Args:
        sentences: consecutive sentences of one report or protocol, in order.
        sections: for every sentence its path of headers, outermost first; None where there are no headers.
        checklist: `"consort"` (CONSORT 2010), `"consort-2025"` or `"spirit"` (SPIRIT 2013).

    Raises:
        ValueError: an unknown checklist, no sentence, or another number of sections than of sentences.

    Example:
        label(["Assessors were unaware of the allocation."], [["Methods", "Masking"]])
        label(["The list is kept by the pharmacy."], [["Methods", "Allocation"]], checklist="spirit")
    """
    items = _items_of(checklist)
    labeller = load_labeller(checkpoint)
    sections = sections if sections is not None else [[] for _ in sentences]
    probabilities, _ = labeller.probabilities(sentences, sections)
    return [list(numbers) for numbers in _labels(labeller, probabilities, items)]


def _items_of(checklist: str) -> tuple[Item, ...]:
    if checklist not in CHECKLISTS:
        raise ValueError(f'checklist "{checklist}" must be one of {", ".join(CHECKLISTS)}.')
    return CHECKLISTS[checklist]


def _labels(labeller: Labeller, probabilities: torch.Tensor, items: Sequence[Item]) -> list[tuple[str, ...]]:
    columns = {name: number for number, name in enumerate(labeller.names)}
    asked = [
        (item.number, [(columns[name], labeller.calibration[name]["sentence_threshold"]) for name in item.labels])
        for item in items
    ]
    return [
        # Several items of CONSORT 2010 are one of CONSORT 2025, whose number is then given once.
        tuple(dict.fromkeys(number for number, own in asked if any(row[column] >= least for column, least in own)))
        for row in probabilities.tolist()
    ]


# ---- items ----


def calibrate(probability: float, calibration: dict) -> float:
    """Platt scaling of an article's highest sentence, fitted on articles that the model had not seen."""
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    logit = torch.logit(torch.tensor(clipped)).item()
    return torch.sigmoid(torch.tensor(calibration["slope"] * logit + calibration["offset"])).item()


def _by_rule(item: Item, document: Document, labeller: Labeller) -> Verdict:
    assert item.rule is not None
    found = item.rule(document.sentences)
    measured = labeller.calibration.get(f"rule:{item.rule.__name__}")
    return Verdict(
        item=item,
        status="reported" if found.is_stated else "partly reported" if found.lacking else "not found",
        probability=None,
        evidence=found.evidence,
        elements=tuple(ElementVerdict(name=name, found=False) for name in found.lacking),
        error_rates=ErrorRates.of(measured) if measured else None,
    )


def _by_model(item: Item, document: Document, probabilities: torch.Tensor, labeller: Labeller, text: str) -> Verdict:
    numbers = {name: number for number, name in enumerate(labeller.names)}
    found: dict[int, float] = {}
    highest, decided, best = 0.0, False, labeller.calibration[item.labels[0]]
    for name in item.labels:
        calibration = labeller.calibration[name]
        column = probabilities[:, numbers[name]]
        calibrated = calibrate(column.max().item(), calibration)
        if calibrated >= highest:
            highest, best = calibrated, calibration
        decided |= column.max().item() >= calibration["article_threshold"]
        threshold = min(calibration["article_threshold"], calibration["sentence_threshold"])
        for row in (column >= threshold).nonzero().flatten().tolist():
            found[row] = max(found.get(row, 0.0), column[row].item())
    headings = {row for row in found if document.sentences[row].text in document.sentences[row].section[-1:]}
    candidates = set(found) - headings or headings  # a heading announces a statement; it is one only for want of better
    rows = sorted(sorted(candidates, key=lambda row: -found[row])[:MAX_EVIDENCE]) if decided else []
    evidence = tuple(document.sentences[row] for row in rows)
    rates = ErrorRates.of(labeller.calibration[item.rates] if item.rates else best)
    if not decided:
        conditional = item.trace is not None and not re.search(item.trace, text, re.IGNORECASE)
        if conditional:
            note = f"asked for only if {item.only_if}; no sign of that was found"
        else:
            note = UNSURE if highest > 0.5 else ""
        return Verdict(
            item=item,
            status="not applicable" if conditional else "not found",
            probability=highest,
            error_rates=rates,
            note=note,
        )
    elements = tuple(_elements(item, evidence, document, labeller.calibration))
    partly = any(not element.found for element in elements)
    return Verdict(
        item=item,
        status="partly reported" if partly else "reported",
        probability=highest,
        evidence=evidence,
        elements=elements,
        error_rates=rates,
        note=UNSURE if highest < 0.5 else "",
    )


def _elements(item: Item, evidence: Sequence[Sentence], document: Document, calibration: dict) -> list[ElementVerdict]:
    home = [
        sentence
        for sentence in document.sentences
        if section_kind(sentence.section) in item.parts and sentence not in evidence
    ]
    verdicts = []
    for element in (element for key in item.elements for element in elements_of(key)):
        found = find_element(element, [s.text for s in evidence], [s.text for s in home])
        if found is not None:
            where = next((s.number for s in (*evidence, *home) if element.pattern.search(s.text)), None)
            measured = calibration.get(f"element:{element.key}")
            rates = ErrorRates.of(measured) if measured else None
            verdicts.append(ElementVerdict(name=element.name, found=found, sentence=where, error_rates=rates))
    return verdicts


def check_document(
    document: Document,
    protocol: bool | None = None,
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    is_trial: bool | None = None,
) -> Report:
    """Checks a document that is already read; the arguments are those of `check`."""
    study = recognise(document.sentences)
    if is_trial is not None:
        study = replace(study, is_trial=is_trial, kind="a randomised trial" if is_trial else study.kind)
    if protocol is not None:
        study = replace(study, is_protocol=protocol, is_abstract=False)
    protocol = study.is_protocol
    if protocol:
        name, items = "SPIRIT 2013", SPIRIT
    elif study.is_abstract:
        name, items = "CONSORT for abstracts", CONSORT_ABSTRACTS
    else:
        name, items = "CONSORT 2010", CONSORT
    if not study.is_trial:
        return Report(
            document=document,
            checklist=name,
            verdicts=(),
            labels=tuple(() for _ in document.sentences),
            warnings=(study.description, _OVERRULE, *document.warnings),
            study=study,
        )
    labeller = load_labeller(checkpoint)
    texts = [sentence.text for sentence in document.sentences]
    probabilities, num_cut = labeller.probabilities(texts, [sentence.section for sentence in document.sentences])
    text = " ".join(texts)
    verdicts = tuple(
        _by_rule(item, document, labeller)
        if item.rule is not None
        else _by_model(item, document, probabilities, labeller, text)
        for item in items
    )
    if study.is_abstract:
        # Probabilities and error rates were measured on whole articles; of an abstract alone nobody measured them.
        verdicts = tuple(replace(verdict, probability=None, error_rates=None, note="") for verdict in verdicts)
    return Report(
        document=document,
        checklist=name,
        verdicts=verdicts,
        labels=tuple(_labels(labeller, probabilities, items)),
        warnings=(*document.warnings, *_warnings(document, study, num_cut)),
        study=study,
    )


_OVERRULE = "If it is a randomised trial all the same, pass --trial (in Python, is_trial=True)."


def _warnings(document: Document, study: Study, num_cut: int) -> list[str]:
    protocol = study.is_protocol
    warnings = [study.description]
    names = ", ".join(EXTENSIONS[design] for design in study.designs if design in EXTENSIONS)
    if names:
        warnings.append(f"The items that CONSORT's extension asks for beside these are not checked: {names}.")
    if study.is_abstract:
        return [
            *warnings,
            f"Only an abstract: items of CONSORT for abstracts on {', '.join(ABSTRACTS_NOT_CHECKED)} are not checked, and how "
            "often verdicts on an abstract alone are right was not measured.",
        ]
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
    if protocol:
        warnings += [
            f"SPIRIT items {', '.join(SPIRIT_NOT_CHECKED)} are not checked: too few annotations, or none.",
        ]
    return warnings


def check(
    path: str | Path,
    protocol: bool | None = None,
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    is_trial: bool | None = None,
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

    Raises:
        DocumentError: the file cannot be read as an English report; the message says why and what to do.

    Example:
        report = check("draft.docx")
        print([verdict.item.number for verdict in report.verdicts if verdict.status == "not found"])
    """
    return check_document(read_document(path), protocol, checkpoint, is_trial)


def check_folder(
    folder: str | Path, protocol: bool | None = None, is_trial: bool | None = None
) -> tuple[list[Report], list[str]]:
    """Checks every readable file of a folder; what could not be read comes back as messages."""
    reports, problems = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in READERS:
            try:
                reports.append(check(path, protocol, is_trial=is_trial))
            except DocumentError as error:
                problems.append(str(error))
    return reports, problems


def summarise(reports: Sequence[Report]) -> list[tuple[Item, Counter]]:
    """How often every item has every status over reports on one checklist, the most often missing first."""
    checked = [report.verdicts for report in reports if report.verdicts]
    rows = [
        (verdicts[0].item, Counter(verdict.status for verdict in verdicts)) for verdicts in zip(*checked, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row[1]["not found"], -row[1]["partly reported"]))
