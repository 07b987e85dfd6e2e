"""Sentences and their section headers -> windows of tokens, and where every sentence lies in them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

SECTION_KINDS = ("other", "title", "abstract", "introduction", "methods", "results", "discussion", "back matter")

_KIND_PATTERNS = (
    ("title", r"title$"),
    ("abstract", r"(abstract|summary|synopsis)\b"),
    ("methods", r"(\w+[ ,/]+(and|&) )?(methods?|design|procedures?)\b|.*\b(methods?|methodology|trial design)\b"),
    ("introduction", r"(introduction|background|rationale|aims?|objectives?)\b"),
    ("results", r"(results?|findings)\b"),
    ("discussion", r"(discussion|conclusions?|limitations?|study limitations|interpretation|comment)\b"),
    (
        "back matter",
        r"(back matter|acknowledge?ments?|references?|fund|competing|conflicts?|disclosures?|authors?['’]? ?contrib"
        r"|abbreviations|list of abbreviations|supplement|additional|appendix|trial registration|trial status|ethic"
        r"|data (availability|sharing)|availability|footnotes|declarations?|pre-?publication|consent for publication)",
    ),
)


def section_kind(section: Sequence[str]) -> str:
    """The part of a report that a path of headers belongs to, outermost header first.

    Example:
        >>> section_kind(["Patients and methods", "Randomisation"])
        'methods'
    """
    for header in section:
        plain = re.sub(r"^([\W\d]+|[IVX]+[.):]\s*)+", "", header).strip().lower()
        for kind, pattern in _KIND_PATTERNS:
            if re.match(pattern, plain):
                return kind
    return "other"


class TrialReportProcessor(ProcessorMixin):
    """Packs consecutive sentences into windows of at most `window_tokens`, behind the headers of their section.

    Args:
        window_tokens: tokens of a window; what the model was trained with.
        sentence_tokens: a longer sentence is cut there, which `BatchFeature["cut_sentences"]` counts.
        header_tokens: tokens of a window's headers.
    """

    _auto_class = "AutoProcessor"

    def __init__(self, tokenizer=None, window_tokens=192, sentence_tokens=144, header_tokens=24, **kwargs):
        self.window_tokens = window_tokens
        self.sentence_tokens = sentence_tokens
        self.header_tokens = header_tokens
        super().__init__(tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "token_sentences", "sentence_mask", "section_kinds", "places"]

    def pack(self, sentences: Sequence[str], sections: Sequence[Sequence[str]]) -> tuple[list, list, int]:
        """Windows as lists of token ids, the sentence of every token (-1: header), and how many sentences were cut."""
        ids = self.tokenizer(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]
        paths = sorted({" > ".join(section) for section in sections})
        heads = self.tokenizer(paths, add_special_tokens=False, verbose=False)["input_ids"] if paths else []
        header_ids = {path: tokens[: self.header_tokens] for path, tokens in zip(paths, heads, strict=True)}
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        windows: list[list[int]] = []
        owners: list[list[int]] = []
        cut, previous = 0, None
        for number, (tokens, section) in enumerate(zip(ids, sections, strict=True)):
            cut += len(tokens) > self.sentence_tokens
            tokens = [*tokens[: self.sentence_tokens], last]
            outer = section_kind(section)
            if not windows or outer != previous or len(windows[-1]) + len(tokens) > self.window_tokens:
                head = [first, *header_ids[" > ".join(section)], last]
                windows.append(head)
                owners.append([-1] * len(head))
            windows[-1].extend(tokens)
            owners[-1].extend([number] * len(tokens))
            previous = outer
        return windows, owners, cut

    def __call__(self, sentences: Any = None, sections: Any = None, **kwargs) -> BatchFeature:
        """One report, or a list of reports, with a section path (outermost header first) for every sentence.

        Example:
            processor(["Patients were randomised 1:1."], [["Methods", "Randomisation"]])
        """
        if not sentences:
            raise ValueError("No sentence was given; pass at least one, each with its section path.")
        if isinstance(sentences[0], str):
            sentences, sections = [sentences], [sections]
        sections = sections or []
        if [len(report) for report in sentences] != [len(report or []) for report in sections]:
            raise ValueError("Every sentence needs a section path; pass [] where the report has no headers.")
        width = max(len(report) for report in sentences)
        windows, owners, cut = [], [], 0
        mask = torch.zeros(len(sentences), width, dtype=torch.bool)
        kinds = torch.zeros(len(sentences), width, dtype=torch.long)
        places = torch.zeros(len(sentences), width)
        for number, (report, paths) in enumerate(zip(sentences, sections, strict=True)):
            own_windows, own_owners, own_cut = self.pack(report, paths)
            windows += own_windows
            owners += [[index + number * width if index >= 0 else -1 for index in row] for row in own_owners]
            cut += own_cut
            mask[number, : len(report)] = True
            kinds[number, : len(report)] = torch.tensor([SECTION_KINDS.index(section_kind(path)) for path in paths])
            places[number, : len(report)] = torch.arange(len(report)) / max(len(report) - 1, 1)
        pad = self.tokenizer.pad_token_id
        length = max(len(window) for window in windows)
        return BatchFeature(
            {
                "input_ids": torch.tensor([window + [pad] * (length - len(window)) for window in windows]),
                "attention_mask": torch.tensor([[1] * len(w) + [0] * (length - len(w)) for w in windows]),
                "token_sentences": torch.tensor([row + [-1] * (length - len(row)) for row in owners]),
                "sentence_mask": mask,
                "section_kinds": kinds,
                "places": places,
                "cut_sentences": cut,
            }
        )


__all__ = ["SECTION_KINDS", "TrialReportProcessor", "section_kind"]
