"""Sentences and their section headers -> windows of tokens, and where every sentence lies in them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
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
        lexical_buckets: how many rows words are hashed into for the lexical view; 0 where the model has none.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self, tokenizer=None, window_tokens=192, sentence_tokens=144, header_tokens=24, lexical_buckets=0, **kwargs
    ):
        self.lexical_buckets = lexical_buckets
        self.window_tokens = window_tokens
        self.sentence_tokens = sentence_tokens
        self.header_tokens = header_tokens
        super().__init__(tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "token_sentences", "sentence_mask", "section_kinds", "places"]
        lexical = ["lexical_buckets", "lexical_counts", "lexical_owners"] if self.lexical_buckets else []
        return names + lexical

    def hash_words(
        self, sentences: Sequence[str], sections: Sequence[Sequence[str]], first: int = 0
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For every sentence its buckets, how often each, and the sentence's number, counted from `first`.

        What is hashed: word pieces, pairs of them, those of the headers and of both neighbours, and the kind of section.
        """
        words = self.tokenizer(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]
        paths = [" > ".join(section) for section in sections]
        known = sorted(set(paths))
        headers = dict(
            zip(known, self.tokenizer(known, add_special_tokens=False, verbose=False)["input_ids"], strict=True)
        )
        words = [torch.tensor(tokens[: self.sentence_tokens], dtype=torch.long) for tokens in words]
        buckets, counts, owners = [], [], []
        for number, (own, path, section) in enumerate(zip(words, paths, sections, strict=True)):
            kind = torch.tensor([SECTION_KINDS.index(section_kind(section))])
            near = [words[other] for other in (number - 1, number + 1) if 0 <= other < len(words)]
            # Every kind of feature starts elsewhere, so that a word of a header is not that of the sentence.
            keys = torch.cat(
                [
                    1_000_003 + own * 7919,
                    2_000_003 + own[:-1] * 7919 + own[1:] * 104729,
                    3_000_017 + torch.tensor(headers[path], dtype=torch.long) * 7919,
                    4_000_037 + kind * 7919,
                    *(5_000_011 + other * 7919 for other in near),
                ]
            )
            hashed = (keys * 2654435761 & 0xFFFFFFFF) % self.lexical_buckets
            found, times = hashed.unique(return_counts=True)
            buckets.append(found)
            counts.append(times)
            owners.append(torch.full_like(found, first + number))
        return buckets, counts, owners

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
        hashed: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for number, (report, paths) in enumerate(zip(sentences, sections, strict=True)):
            own_windows, own_owners, own_cut = self.pack(report, paths)
            windows += own_windows
            owners += [[index + number * width if index >= 0 else -1 for index in row] for row in own_owners]
            cut += own_cut
            mask[number, : len(report)] = True
            kinds[number, : len(report)] = torch.tensor([SECTION_KINDS.index(section_kind(path)) for path in paths])
            places[number, : len(report)] = torch.arange(len(report)) / max(len(report) - 1, 1)
            if self.lexical_buckets:
                for rows, own_rows in zip(hashed, self.hash_words(report, paths, number * width), strict=True):
                    rows += own_rows
        pad = self.tokenizer.pad_token_id
        length = max(len(window) for window in windows)
        names = ("lexical_buckets", "lexical_counts", "lexical_owners") if self.lexical_buckets else ()
        lexical = {name: torch.cat(rows) for name, rows in zip(names, hashed, strict=False)}
        return BatchFeature(
            {
                "input_ids": torch.tensor([window + [pad] * (length - len(window)) for window in windows]),
                "attention_mask": torch.tensor([[1] * len(w) + [0] * (length - len(w)) for w in windows]),
                "token_sentences": torch.tensor([row + [-1] * (length - len(row)) for row in owners]),
                "sentence_mask": mask,
                "section_kinds": kinds,
                "places": places,
                "cut_sentences": cut,
                **lexical,
            }
        )


__all__ = ["SECTION_KINDS", "TrialReportProcessor", "section_kind"]
