"""Checklists as files, the rules that they name, and the pages that show them."""

import json
from pathlib import Path

import pytest
from ctfm.reporting.checklist import checklist_keys, load_checklist, mapping_table, read_checklist
from ctfm.reporting.corpora import CONSORT_ITEMS
from ctfm.reporting.documents import Sentence
from ctfm.reporting.rules import (
    abstract_is_structured,
    interests_are_declared,
    introduction_gives_background,
    title_is_randomised,
)


def sentences(*pairs):
    return [Sentence(number=number, text=text, section=section) for number, (text, section) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("rule", "states", "is_silent"),
    [
        (title_is_randomised, [("A randomised trial", ("Title",))], [("A randomised trial", ("Abstract",))]),
        (
            abstract_is_structured,
            [(kind, ("Abstract", kind)) for kind in ("Background", "Methods", "Results")],
            [("We walked.", ("Abstract",))],
        ),
        (
            introduction_gives_background,
            [(f"Knees hurt {n} times.", ("Background",)) for n in "abc"],
            [("Background", ("Background",)), ("Knees hurt.", ("Background",))],
        ),
        (
            interests_are_declared,
            [("None.", ("Competing interests",))],
            [("Walking is of interest.", ("Discussion",))],
        ),
    ],
)
def test_a_rule_finds_what_states_its_item_and_nothing_else(rule, states, is_silent):
    assert rule(sentences(*states)).is_stated
    assert not rule(sentences(*is_silent)).is_stated


def test_an_abstract_without_headings_is_partly_reported():
    assert abstract_is_structured(sentences(("We walked.", ("Abstract",)))).lacking == ("headings in the abstract",)


@pytest.mark.parametrize("key", checklist_keys())
def test_every_checklist_says_what_answers_each_item(key):
    checklist = load_checklist(key)
    assert {item.answered_by for item in checklist.items} <= {"label", "rule", "nothing"}
    assert len({item.number for item in checklist.items}) == len(checklist.items)
    assert all(bool(item.only_if) == bool(item.trace) for item in checklist.items)


def test_consort_2010_has_every_label_of_its_corpus_once():
    labels = [label for item in load_checklist("consort").items for label in item.labels]
    assert sorted(labels) == sorted(f"consort:{item}" for item in CONSORT_ITEMS)


@pytest.mark.parametrize(
    ("item", "words"),
    [({"rule": "by_magic"}, "by_magic"), ({"colour": "red"}, "colour")],
)
def test_a_file_that_breaks_the_format_names_the_item(tmp_path, item, words):
    rows = {"name": "x", "text": "report", "source": "x", "items": [{"number": "9z", "part": "p", "text": "t", **item}]}
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=rf"item 9z: .*{words}"):
        read_checklist(tmp_path / "x.json")


def test_the_worked_example_holds_the_mapping_table():
    assert mapping_table() in (Path(__file__).parents[1] / "docs" / "report_check.md").read_text()
