"""Annotated corpora on disk -> `Article`s: sentences, section paths, and the checklist items of every sentence.

Two corpora of Kilicoglu's group, both MIT (github.com/ScienceNLP-Lab/RCT-Transparency), on open-access articles: see
`data_card.md`. The texts are not part of this package; pass the folder that holds the files.
"""

import csv
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

CONSORT_ITEMS = (
    "2b", "3a", "3b", "4a", "4b", "5", "6a", "6b", "7a", "7b", "8a", "8b", "9", "10", "11a", "11b", "12a", "12b", "13a",
    "13b", "14a", "14b", "15", "16", "17a", "17b", "18", "19", "20", "21", "22", "23", "24", "25",
)  # fmt: skip
METHODS_ITEMS = CONSORT_ITEMS[1:18]
# Items that only SPIRIT-CONSORT-TM's article-level file has, and the sentences that can be meant: both patterns are in them.
ARTICLE_ITEMS = {
    "16e_Allocation_Mechanism": (
        r"\b(random\w*|allocat\w+|assign\w+|conceal\w*|sequence)\b",
        r"\b(sealed|opaque|envelopes?|central(ly|i[sz]ed)?|telephone|phone|web[- ]?(based|site)?|internet|online|interactive"
        r"|ivrs|iwrs|pharmac\w+|numbered|redcap|software|system|server|app)\b",
    ),
    "16f_Allocation_Concealment": (
        r"\b(random\w*|allocat\w+|assign\w+|sequence|envelopes?|list)\b",
        r"\b(conceal\w*|opaque|sealed|unaware|blind(ed)? to|not (be )?(aware|know\w*)|no (access|knowledge)|unpredictab\w+"
        r"|until)\b",
    ),
    "28_Financial_interests": (
        r"\binterests?\b|\bdisclos\w+",
        r"\b(competing|conflict\w*|financial|declar\w+|disclos\w+|no)\b",
    ),
}
METHODS_SECTIONS = frozenset(  # as the authors' own loader selects Methods sentences (CONSORT-TM-full/data.py)
    header.lower()
    for header in (
        "Methods",
        "Patients and methods",
        "Research Design and Methods",
        "Subjects and methods",
        "Materials and methods",
    )
)


@dataclass(frozen=True, kw_only=True)
class Article:
    """One annotated report. `items[i]` are the items of `sentences[i]`; `fold` or `split` is the published one.

    A protocol and its results report have the same number `pair`.
    """

    pmcid: str
    corpus: str
    kind: str
    sentences: tuple[str, ...]
    sections: tuple[tuple[str, ...], ...]
    items: tuple[frozenset[str], ...]
    fold: int | None = None
    split: str | None = None
    pair: int | None = None

    @property
    def reported(self) -> frozenset[str]:
        """Items that some sentence of the article states."""
        return frozenset().union(*self.items)


def _group(path: Path) -> dict[str, list[dict]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; the corpora are described in data_card.md.")
    rows = defaultdict(list)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows[row["pmcid"]].append(row)
    return {pmcid: sorted(group, key=lambda row: row["sentence"]) for pmcid, group in sorted(rows.items())}


def _article(rows: list[dict], corpus: str) -> Article:
    return Article(
        pmcid=rows[0]["pmcid"],
        corpus=corpus,
        kind=rows[0].get("kind", "Results"),
        sentences=tuple(row["text"] for row in rows),
        sections=tuple(tuple(row["section"]) for row in rows),
        items=tuple(frozenset(row["items"]) for row in rows),
        fold=rows[0].get("fold"),
        split=rows[0].get("split"),
        pair=rows[0].get("pair"),
    )


def load_consort(folder: str | Path) -> list[Article]:
    """CONSORT-TM: 50 trial reports, 34 items by sentence, five published folds."""
    return [_article(rows, "consort") for rows in _group(Path(folder) / "consort_tm.jsonl").values()]


def load_spirit(folder: str | Path) -> list[Article]:
    """SPIRIT-CONSORT-TM, training and validation: 160 protocols and results reports, 83 items by sentence."""
    return [_article(rows, "spirit") for rows in _group(Path(folder) / "spirit_consort_tm.train_valid.jsonl").values()]


def load_spirit_articles(folder: str | Path) -> dict[str, frozenset[str]]:
    """The authors' own article-level file: items that an article reports, by PMCID."""
    reported: dict[str, set[str]] = {}
    with (Path(folder) / "spirit_consort_tm.articles_train_valid.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            items = reported.setdefault(row["PMCID"], set())
            if row["Reported"] == "1":
                items.add(row["ChecklistItem"])
    return {pmcid: frozenset(items) for pmcid, items in reported.items()}


def in_methods(section: tuple[str, ...]) -> bool:
    """Whether the papers count a sentence under these headers as one of the Methods."""
    return bool(section) and section[0].lower() in METHODS_SECTIONS


def states_article_item(item: str, sentence: str, section: tuple[str, ...]) -> bool:
    """Whether a sentence can be the one for which annotators ticked an item of `ARTICLE_ITEMS`.

    Example:
        >>> states_article_item("16e_Allocation_Mechanism", "The allocation was kept in sealed envelopes.", ("Methods",))
        True
    """
    text = " ".join((*section[-1:], sentence)) if item.startswith("28") else sentence
    return all(re.search(pattern, text, re.IGNORECASE) for pattern in ARTICLE_ITEMS[item])
