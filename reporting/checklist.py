"""Files of items in `checklists/` -> `Checklist`s. Another checklist or extension is another file.

A file holds `name`, `text` (what it is for: `"report"`, `"protocol"` or `"abstract"`), `source`, `design` where it is the
extension for a design of trials, and `items`. An item holds `number`, `part` and `text`, in this project's own short wording
(the statements themselves are at www.consort-spirit.org), and what answers it:

- `labels`: labels of the model, any of which states the item;
- `rule`: the name of a function of `rules.py` that decides it instead;
- neither: nothing answers it, so that it is "not checked" and never "not found". `near` may name labels whose sentences are
  worth a look.

`only_if` says in words when an item is asked for; if `trace`, a pattern of that, is nowhere in the text, an absent item is not
applicable. `elements` are small facts inside the item, each with a label of its own; with `only_if`, a pattern, they are asked
for where the item's sentences hold it. `same_as` gives the numbers of the item in other checklists.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .markdown_tables import markdown_table
from .rules import RULES

FOLDER = Path(__file__).parent / "checklists"
TEXTS = ("report", "protocol", "abstract")


@dataclass(frozen=True, kw_only=True)
class Element:
    """A small fact inside an item; the fields are those of its file."""

    name: str
    label: str
    only_if: str | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of a checklist; the fields are those of its file."""

    number: str
    part: str
    text: str
    labels: tuple[str, ...] = ()
    rule: str | None = None
    only_if: str | None = None
    trace: str | None = None
    elements: tuple[Element, ...] = ()
    near: tuple[str, ...] = ()
    same_as: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def answered_by(self) -> str:
        return "label" if self.labels else "rule" if self.rule else "nothing"

    @property
    def key(self) -> str:
        """The item's row in a checkpoint's calibration: items of several lists that rest on the same labels share it."""
        return " | ".join(self.labels)


@dataclass(frozen=True, kw_only=True)
class Checklist:
    """A file of items; `key` is its name without `.json`, `text` what it is for, `design` that of an extension."""

    key: str
    name: str
    text: str
    source: str
    items: tuple[Item, ...]
    design: str | None = None

    @property
    def not_checked(self) -> tuple[str, ...]:
        return tuple(item.number for item in self.items if item.answered_by == "nothing")


def checklist_keys() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def load_checklist(key: str, folder: Path = FOLDER) -> Checklist:
    """The checklist of a file, by its name without `.json`.

    Raises:
        ValueError: no such checklist, or a file that does not follow the format; the message names the item.

    Example:
        >>> load_checklist("consort").items[0].number
        '1a'
    """
    path = folder / f"{key}.json"
    if not path.is_file():
        raise ValueError(f'checklist "{key}" must be one of {", ".join(checklist_keys())}.')
    return read_checklist(path)


def read_checklist(path: Path) -> Checklist:
    """A file of any folder; `load_checklist` says which are here."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    text = rows.get("text")
    if text not in TEXTS:
        raise ValueError(f'{path.name}: "text" is {text!r}; it must be one of {", ".join(TEXTS)}.')
    return Checklist(
        key=path.stem,
        name=rows["name"],
        text=text,
        source=rows["source"],
        design=rows.get("design"),
        items=tuple(_item(row, path.name) for row in rows["items"]),
    )


def _item(row: dict[str, Any], file: str) -> Item:
    unknown = set(row) - set(Item.__dataclass_fields__)
    if unknown or not {"number", "part", "text"} <= set(row):
        raise ValueError(
            f"{file}, item {row.get('number')}: unknown or absent fields {', '.join(sorted(unknown)) or '-'}."
        )
    rule = row.get("rule")
    if rule is not None and (rule not in RULES or row.get("labels")):
        raise ValueError(f"{file}, item {row['number']}: the rule {rule!r} is unknown, or stands beside labels.")
    return Item(
        number=row["number"],
        part=row["part"],
        text=row["text"],
        labels=tuple(row.get("labels", ())),
        rule=rule,
        only_if=row.get("only_if"),
        trace=row.get("trace"),
        elements=tuple(Element(**element) for element in row.get("elements", ())),
        near=tuple(row.get("near", ())),
        same_as={key: tuple(numbers) for key, numbers in row.get("same_as", {}).items()},
    )


def extension_of(design: str) -> Checklist | None:
    """The extension of CONSORT 2010 for a design that `study.recognise` names; None where no file is for it."""
    for key in checklist_keys():
        found = load_checklist(key)
        if found.design == design:
            return found
    return None


def mapping_table() -> str:
    """CONSORT 2010 beside CONSORT 2025 and SPIRIT 2013, in Markdown."""
    rows = [
        (item.number, *(", ".join(item.same_as.get(key, ())) or "-" for key in ("consort-2025", "spirit")), item.text)
        for item in load_checklist("consort").items
    ]
    return markdown_table(["CONSORT 2010", "CONSORT 2025", "SPIRIT 2013", "Item"], rows)
