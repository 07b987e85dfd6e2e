"""Report -> what the text tower reads of it in one step: sections dropped and reordered, sometimes a few sentences alone."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# At the start of a line or after a sentence: exports from report systems often come as one line.
HEADING = re.compile(
    r"(?:^|(?<=[.!?]\s))(history|indication|technique|comparison|findings|impression|conclusion)\s*:\s*", re.I | re.M
)
STATEMENTS = ("findings", "impression", "conclusion")  # the others say why and how, not what is seen
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How a report varies from step to step.

    Args:
        drop_probability: of each section; one that states what is seen always stays.
        reorder_probability: that the remaining sections stand in another order.
        excerpt_probability: that only one to `longest_excerpt` consecutive sentences of one stating section are read.
            Prompts are short; reports are not.
        max_tokens: longer texts are cut.
    """

    drop_probability: float = 0.3
    reorder_probability: float = 0.5
    excerpt_probability: float = 0.3
    longest_excerpt: int = 3
    max_tokens: int = 256


def split_sections(report: str) -> list[tuple[str, str]]:
    """Report -> (heading in lower case, text) in its order, sections without text left out. Text before a heading, and a
    report without any, is findings.

    >>> split_sections("Findings: No nodule.\\nImpression: Normal.")
    [('findings', 'No nodule.'), ('impression', 'Normal.')]
    """
    headings = list(HEADING.finditer(report))
    names = ["findings", *(heading[1].lower() for heading in headings)]
    starts = [0, *(heading.end() for heading in headings)]
    stops = [*(heading.start() for heading in headings), len(report)]
    sections = [(name, report[start:stop].strip()) for name, start, stop in zip(names, starts, stops, strict=True)]
    return [section for section in sections if section[1]]


def hash_words(text: str) -> int:
    """63 bits that are equal for texts of the same words, whatever the case and the space between them."""
    words = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


def vary_report(report: str, config: ReportConfig, seed: int) -> str:
    """The text of one step, a pure function of the seed."""
    generator = torch.Generator().manual_seed(seed)

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    def choose(options: Sequence[tuple[str, str]]) -> tuple[str, str]:
        return options[int(chance() * len(options))]

    sections = split_sections(report)
    stating = [section for section in sections if section[0] in STATEMENTS]
    if not stating:
        return report
    must_stay = choose(stating)
    if chance() < config.excerpt_probability:
        sentences = SENTENCE_END.split(must_stay[1])
        length = 1 + int(chance() * config.longest_excerpt)
        start = int(chance() * max(1, len(sentences) - length + 1))
        return " ".join(sentences[start : start + length])
    kept = [section for section in sections if section is must_stay or chance() >= config.drop_probability]
    if chance() < config.reorder_probability:
        kept = [kept[i] for i in torch.randperm(len(kept), generator=generator)]
    return "\n".join(f"{heading.capitalize()}: {text}" for heading, text in kept)
