"""Report -> for every checklist item: reported, partly reported, not found or not applicable, with its evidence.

    ctfm report-check FILE [--protocol] [--html out.html] [--markdown out.md] [--json out.json] [--csv out.csv]

The checker finds statements. It does not judge whether they are true, and it is wrong as often as the figures beside every
verdict say. Nothing leaves the machine.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer

from .checklist import CONSORT, SPIRIT, SPIRIT_NOT_CHECKED, Item
from .documents import READERS, Document, DocumentError, Sentence, read_document
from .elements import elements_of, find_element
from .modeling_trialreport import TrialReportForSentenceLabels
from .processing_trialreport import TrialReportProcessor, section_kind

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
MAX_EVIDENCE = 6
STATUSES = ("reported", "partly reported", "not found", "not applicable")


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """How an item's verdicts did on the articles of the other folds: shares, and how many articles they rest on."""

    precision: float
    recall: float
    missing_precision: float | None
    articles: int


@dataclass(frozen=True, kw_only=True)
class ElementVerdict:
    name: str
    found: bool
    sentence: int | None = None


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
    def missing_elements(self) -> tuple[str, ...]:
        return tuple(element.name for element in self.elements if not element.found)


@dataclass(frozen=True, kw_only=True)
class Report:
    document: Document
    checklist: str
    verdicts: tuple[Verdict, ...]
    labels: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()

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
    def probabilities(self, sentences: Sequence[str], sections: Sequence[Sequence[str]]) -> torch.Tensor:
        """`(s, l)`: the model's own figures, before calibration."""
        batch = self.processor([list(sentences)], [[list(section) for section in sections]])
        inputs = {name: batch[name] for name in self.processor.model_input_names}
        return self.model(**inputs).logits[0].float().sigmoid()


@cache
def load_labeller(checkpoint: str | Path = DEFAULT_CHECKPOINT) -> Labeller:
    """Loads a checkpoint once; nothing is downloaded."""
    folder = Path(checkpoint)
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors; train one (ctfm.reporting.crossfold) or pass its folder."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    settings = json.loads((folder / "processor_config.json").read_text())
    sizes = {name: settings[name] for name in ("window_tokens", "sentence_tokens", "header_tokens") if name in settings}
    model = TrialReportForSentenceLabels.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    calibration = json.loads((folder / "calibration.json").read_text())
    return Labeller(model=model, processor=TrialReportProcessor(tokenizer, **sizes), calibration=calibration)


# ---- sentences ----


def label(
    sentences: Sequence[str],
    sections: Sequence[Sequence[str]] | None = None,
    checklist: str = "consort",
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
) -> list[list[str]]:
    """The items that each sentence states; `sections` are paths of headers, outermost first.

    `checklist` is `"consort"` (2010 numbers) or `"spirit"` (the corpus' own labels).

    Example:
        label(["Assessors were unaware of the allocation."], [["Methods", "Masking"]])
    """
    labeller = load_labeller(checkpoint)
    sections = sections if sections is not None else [[] for _ in sentences]
    return [list(items) for items in _labels(labeller, labeller.probabilities(sentences, sections), checklist)]


def _labels(labeller: Labeller, probabilities: torch.Tensor, checklist: str) -> list[tuple[str, ...]]:
    columns = [
        (number, name.partition(":")[2], labeller.calibration[name]["sentence_threshold"])
        for number, name in enumerate(labeller.names)
        if name.startswith(f"{checklist}:")
    ]
    if not columns:
        raise ValueError(f'checklist "{checklist}" must be "consort" or "spirit".')
    rows = probabilities.tolist()
    return [tuple(name for number, name, threshold in columns if row[number] >= threshold) for row in rows]


# ---- items ----


def calibrate(probability: float, calibration: dict) -> float:
    """Platt scaling of an article's highest sentence, fitted on articles that the model had not seen."""
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    logit = torch.logit(torch.tensor(clipped)).item()
    return torch.sigmoid(torch.tensor(calibration["slope"] * logit + calibration["offset"])).item()


def _by_rule(item: Item, document: Document) -> Verdict:
    def sentences(kind: str) -> list[Sentence]:
        return [sentence for sentence in document.sentences if section_kind(sentence.section) == kind]

    if item.rule == "title_is_randomised":
        found = [
            s for s in sentences("title") if re.search(r"\brandom(i[sz]ed|ly|i[sz]ation)?\b", s.text, re.IGNORECASE)
        ]
        return Verdict(item=item, status="reported" if found else "not found", probability=None, evidence=tuple(found))
    if item.rule == "abstract_is_structured":
        abstract = sentences("abstract")
        headers = {section_kind([s.section[-1]]) for s in abstract if len(s.section) > 1}
        structured = len(headers & {"introduction", "methods", "results", "discussion"}) >= 3
        status = "reported" if structured else ("partly reported" if abstract else "not found")
        elements = (ElementVerdict(name="headings in the abstract", found=structured),) if abstract else ()
        return Verdict(
            item=item,
            status=status,
            probability=None,
            evidence=tuple(s for s in abstract if s.text not in s.section)[:2],
            elements=elements,
        )
    introduction = sentences("introduction")
    status = "reported" if len(introduction) >= 3 else "not found"
    return Verdict(
        item=item,
        status=status,
        probability=None,
        evidence=tuple(s for s in introduction if s.text not in s.section)[:2],
    )


def _happened(item: Item, text: str) -> bool:
    """Whether the report says that what a conditional item asks about took place."""
    patterns = {
        "3b": r"\b(protocol (was |were )?(amend|chang|modif)\w+|amendments?)\b",
        "6b": r"\b(outcome|end[ -]?point)s? (was|were) (changed|amended|added)\b",
        "7b": r"\binterim analys[ie]s\b",
        "11b": r"\b(double|triple|single)[- ](blind|mask)\w*|\bplacebo\b",
        "12b": r"\b(subgroup|sensitivity|exploratory|adjusted|post[- ]hoc) analys[ie]s\b",
        "14b": r"\b(stopped|terminated|halted) (early|prematurely)\b|\bearly (stopping|termination)\b",
        "17b": r"\b(odds ratio|risk ratio|relative risk|proportion of)\b",
        "18": r"\b(subgroup|sensitivity|exploratory|adjusted|post[- ]hoc) analys[ie]s\b",
        "17b_spirit": r"\b(blind|mask)(ed|ing)\b",
        "21b": r"\binterim analys[ie]s\b",
        "33": r"\b(biobank|samples? (will be|are) stored|specimens)\b",
    }
    key = "17b_spirit" if item.number == "17b" and item.labels[:1] != ("consort:17b",) else item.number
    return bool(re.search(patterns[key], text, re.IGNORECASE))


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
    rates = ErrorRates(
        precision=best["precision"],
        recall=best["recall"],
        missing_precision=best["missing_precision"],
        articles=best["articles"],
    )
    if not decided:
        conditional = item.only_if is not None and not _happened(item, text)
        return Verdict(
            item=item,
            status="not applicable" if conditional else "not found",
            probability=highest,
            error_rates=rates,
            note=f"asked for only if {item.only_if}; no sign of that was found" if conditional else "",
        )
    elements = tuple(_elements(item, evidence, document)) if item.labels[0].startswith("consort:") else ()
    partly = any(not element.found for element in elements)
    return Verdict(
        item=item,
        status="partly reported" if partly else "reported",
        probability=highest,
        evidence=evidence,
        elements=elements,
        error_rates=rates,
    )


def _elements(item: Item, evidence: Sequence[Sentence], document: Document) -> list[ElementVerdict]:
    home = [
        sentence
        for sentence in document.sentences
        if section_kind(sentence.section) in item.parts and sentence not in evidence
    ]
    verdicts = []
    for element in elements_of(item.number):
        found = find_element(element, [s.text for s in evidence], [s.text for s in home])
        if found is not None:
            where = next((s.number for s in (*evidence, *home) if element.pattern.search(s.text)), None)
            verdicts.append(ElementVerdict(name=element.name, found=found, sentence=where))
    return verdicts


def check_document(document: Document, protocol: bool = False, checkpoint: str | Path = DEFAULT_CHECKPOINT) -> Report:
    """Checks a document that is already read, against CONSORT 2010 or, as a protocol, against SPIRIT 2013."""
    labeller = load_labeller(checkpoint)
    texts = [sentence.text for sentence in document.sentences]
    probabilities = labeller.probabilities(texts, [sentence.section for sentence in document.sentences])
    text = " ".join(texts)
    items = SPIRIT if protocol else CONSORT
    verdicts = tuple(
        _by_rule(item, document) if item.rule is not None else _by_model(item, document, probabilities, labeller, text)
        for item in items
    )
    warnings = document.warnings
    if protocol:
        warnings += (f"SPIRIT items {', '.join(SPIRIT_NOT_CHECKED)} are not checked: no corpus annotates them.",)
    return Report(
        document=document,
        checklist="SPIRIT 2013" if protocol else "CONSORT 2010",
        verdicts=verdicts,
        labels=tuple(_labels(labeller, probabilities, "spirit" if protocol else "consort")),
        warnings=warnings,
    )


def check(path: str | Path, protocol: bool = False, checkpoint: str | Path = DEFAULT_CHECKPOINT) -> Report:
    """Reads a report of a randomised trial and says what it leaves out.

    Raises:
        DocumentError: the file cannot be read as an English report; the message says why and what to do.

    Example:
        report = check("draft.docx")
        print([verdict.item.number for verdict in report.verdicts if verdict.status == "not found"])
    """
    return check_document(read_document(path), protocol, checkpoint)


def check_folder(folder: str | Path, protocol: bool = False) -> tuple[list[Report], list[str]]:
    """Checks every readable file of a folder; what could not be read comes back as messages."""
    reports, problems = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in READERS:
            try:
                reports.append(check(path, protocol))
            except DocumentError as error:
                problems.append(str(error))
    return reports, problems


def summarise(reports: Sequence[Report]) -> list[tuple[Item, Counter]]:
    """How often every item has every status over a folder, the most often missing first."""
    rows = [
        (verdicts[0].item, Counter(verdict.status for verdict in verdicts))
        for verdicts in zip(*(report.verdicts for report in reports), strict=True)
    ]
    return sorted(rows, key=lambda row: (-row[1]["not found"], -row[1]["partly reported"]))


# ---- comparison of a protocol with its report ----


@dataclass(frozen=True, kw_only=True)
class OutcomeMatch:
    """A sentence of the protocol that defines outcomes, and the sentence of the report nearest to it, if any."""

    protocol: Sentence
    report: Sentence | None
    shared_words: tuple[str, ...]


_COMMON = frozenset(
    ("primary", "secondary", "outcome", "outcomes", "measure", "measures", "assessed", "measured", "defined", "baseline",
     "weeks", "months", "after", "from", "with", "will", "were", "that", "using", "between", "endpoint", "study")
)  # fmt: skip


def compare_outcomes(protocol: Report, report: Report) -> list[OutcomeMatch]:
    """Outcomes that a protocol defines and its report may have left out or changed; to be read by a person.

    Words are compared, not meanings: fewer than three shared content words is no match.
    """
    planned = _outcome_sentences(protocol, "spirit")
    reported = [(sentence, _content_words(sentence.text)) for sentence in _outcome_sentences(report, "consort")]
    matches = []
    for sentence in planned:
        words = _content_words(sentence.text)
        best, shared = None, frozenset()
        for other, other_words in reported:
            if len(words & other_words) > len(shared):
                best, shared = other, words & other_words
        enough = len(shared) >= min(3, max(1, len(words)))
        matches.append(
            OutcomeMatch(protocol=sentence, report=best if enough else None, shared_words=tuple(sorted(shared)))
        )
    return matches


def _outcome_sentences(report: Report, checklist: str) -> list[Sentence]:
    name = "12a_Outcomes_Definitions" if checklist == "spirit" and report.checklist.startswith("SPIRIT") else "6a"
    pattern = re.compile(r"\b(primary|secondary|main)\b.{0,40}\b(outcome|end[ -]?point|measure)", re.IGNORECASE)
    return [
        sentence
        for sentence, labels in zip(report.document.sentences, report.labels, strict=True)
        if name in labels and pattern.search(sentence.text)
    ]


def _content_words(text: str) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in _COMMON)


# ---- command line ----


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctfm report-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help=f"a report ({', '.join(READERS)}), or a folder of reports")
    parser.add_argument("--protocol", action="store_true", help="a protocol: check against SPIRIT 2013")
    parser.add_argument(
        "--compare", type=Path, metavar="PROTOCOL", help="compare the report's outcomes with its protocol's"
    )
    parser.add_argument("--html", type=Path, help="write a page in which a click on an item shows its sentences")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--checklist", type=Path, help="write the checklist to fill in and submit, as .docx or .md")
    parser.add_argument("--numbering", choices=("2010", "2025"), default="2010", help="numbers shown for CONSORT items")
    parser.add_argument("--all", action="store_true", help="show the items that are reported, too")
    parser.add_argument("--no-color", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`ctfm report-check`. 0: done, 2: the file could not be read."""
    from . import render

    options = build_parser().parse_args(argv)
    colours = not options.no_color and sys.stdout.isatty()
    try:
        if options.path.is_dir():
            reports, problems = check_folder(options.path, options.protocol)
            for problem in problems:
                print(f"ctfm report-check: {problem}", file=sys.stderr)
            if not reports:
                print(f"ctfm report-check: {options.path} holds no readable report.", file=sys.stderr)
                return 2
            print(render.summary_table(summarise(reports), len(reports)))
            return 0
        report = check(options.path, options.protocol)
        print(render.terminal_table(report, colours=colours, everything=options.all, numbering=options.numbering))
        writers = (
            (options.html, render.html),
            (options.markdown, render.markdown),
            (options.json, render.to_json),
            (options.csv, render.to_csv),
        )
        for out, write in writers:
            if out is not None:
                out.write_text(write(report), encoding="utf-8")
        if options.checklist is not None:
            render.write_checklist(report, options.checklist)
        if options.compare is not None:
            print(render.comparison(compare_outcomes(check(options.compare, protocol=True), report)))
    except DocumentError as error:
        print(f"ctfm report-check: {error}", file=sys.stderr)
        return 2
    return 0


def renumber(report: Report) -> Report:
    """The same report with CONSORT 2025 numbers where they exist."""
    return replace(
        report,
        verdicts=tuple(
            replace(verdict, item=replace(verdict.item, number=verdict.item.consort_2025 or verdict.item.number))
            for verdict in report.verdicts
        ),
    )
