"""Every element of every item: a sentence that states it, and one near it that does not."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from ctfm.reporting.check import ErrorRates, Labeller, check_document, label
from ctfm.reporting.checklist import CONSORT, CONSORT_2025_NOT_CHECKED, CONSORT_FROM_SPIRIT, SPIRIT, mapping_table
from ctfm.reporting.corpora import CONSORT_ITEMS
from ctfm.reporting.documents import Document, Sentence
from ctfm.reporting.elements import ELEMENTS, elements_of, elements_table, find_element
from ctfm.reporting.rules import (
    abstract_is_structured,
    interests_are_declared,
    introduction_gives_background,
    title_is_randomised,
)

SENTENCES = {
    ("3a", "type of design"): ("This was a parallel-group trial.", "This was a trial."),
    ("3a", "allocation ratio"): ("Walkers were allocated 2:1.", "Walkers were allocated at random."),
    ("4a", "inclusion criteria"): ("Adults were eligible if they could walk.", "Walking is healthy."),
    ("4a", "exclusion criteria"): ("We excluded people with a fracture.", "We welcomed people with a fracture."),
    ("4b", "kind or number of places"): ("The trial ran in three rural clinics.", "The trial ran in the spring."),
    ("5", "dose, intensity or frequency"): ("They took 20 mg twice daily.", "They took the tablets."),
    ("5", "duration"): ("Treatment went on for 12 weeks.", "Treatment went on."),
    ("5", "what the comparison group received"): ("The others received usual care.", "The others were adults."),
    ("6a", "a named primary outcome"): ("The primary outcome was pain.", "Pain was of interest."),
    ("6a", "time point of the primary outcome"): ("Pain was rated at 12 weeks.", "Pain was rated."),
    ("6a", "how it was measured"): ("Pain was rated on a visual scale.", "Pain was of interest."),
    ("7a", "expected difference or effect"): ("This sufficed to detect one point.", "This sufficed."),
    ("7a", "power"): ("Ninety participants gave 80% power.", "Ninety participants were planned."),
    ("7a", "significance level"): ("A two-sided alpha of 0.05 was used.", "Ninety participants were planned."),
    ("7a", "allowance for attrition"): ("Ten more were added for drop-outs.", "Ten more were added."),
    ("8a", "method of generating the sequence"): ("A computer produced the sequence.", "The sequence was random."),
    ("8b", "type of restriction"): ("Randomisation used permuted blocks.", "Randomisation was used."),
    ("8b", "block size"): ("It used blocks of four.", "It used permuted blocks."),
    ("8b", "stratification factors"): ("It was stratified by clinic.", "It was stratified."),
    ("9", "mechanism of concealment"): ("Numbered opaque envelopes were used.", "Paper was used."),
    ("10", "who generated the sequence"): ("A statistician prepared the list.", "The list was long."),
    ("10", "who enrolled participants"): ("Nurses enrolled the participants.", "Participants came on Mondays."),
    ("10", "who assigned participants"): ("They were assigned by a pharmacist.", "They came on Mondays."),
    ("11a", "who was blinded"): ("Assessors were blinded.", "The trial was double-blind."),
    ("12a", "test or model"): ("Scores were compared by analysis of covariance.", "Scores were compared."),
    ("12a", "analysis population"): ("Analysis was by intention to treat.", "Analysis was careful."),
    ("12a", "handling of missing data"): ("Missing scores were imputed.", "Scores were summed."),
    ("13a", "number randomised in each group"): (
        "Of 90 people, 45 were assigned to walk.",
        "People were assigned to walk.",
    ),
    ("13a", "flow diagram"): ("Figure 1 shows the flow of participants.", "Participants came and went."),
    ("13b", "number lost or excluded"): ("Three walkers withdrew.", "Walkers came and went."),
    ("13b", "reasons"): ("They left because of pain.", "They left."),
    ("14a", "dates of recruitment"): ("Recruitment ran from May 2015 to June 2016.", "Recruitment ran in summer."),
    ("14a", "length of follow-up"): ("Follow-up lasted 6 months.", "Follow-up was complete."),
    ("15", "table of baseline data"): ("Table 1 gives the baseline characteristics.", "Groups were alike."),
    ("16", "numbers analysed"): ("All 45 walkers were analysed.", "Walkers were there."),
    ("17a", "size of the effect"): ("The mean difference was 1.2 points.", "Walkers did better."),
    ("17a", "confidence interval"): ("The difference was 1.2 (95% CI 0.4 to 2.0).", "The difference was 1.2."),
    ("17b", "relative effect"): ("The risk ratio was 0.7.", "Fewer walkers fell."),
    ("17b", "absolute effect"): ("Falls occurred in 5 of 45 walkers.", "Fewer walkers fell."),
    ("19", "number or absence of harms"): ("There were two serious adverse events.", "Safety matters."),
    ("20", "sources of bias or imprecision"): ("The small sample is a limitation.", "We thank the walkers."),
    ("23", "registration number"): ("Registered as ISRCTN00000000.", "The trial was registered."),
    ("24", "where the protocol is"): ("The protocol is at https://example.org.", "There was a protocol."),
    ("25", "source of funding"): ("The trial was funded by a grant.", "The trial was cheap."),
    ("25", "role of the funders"): ("The funder had no role in the design.", "The funder is thanked."),
}


def test_every_element_has_its_two_sentences():
    assert set(SENTENCES) == {(element.item, element.name) for element in ELEMENTS}


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: f"{element.item}: {element.name}")
def test_an_element_is_found_where_it_is_stated_and_nowhere_else(element):
    states, is_silent = SENTENCES[element.item, element.name]
    assert find_element(element, ["Blocks were stratified.", states], []) is True
    assert find_element(element, ["Blocks were stratified."[: -1 if element.only_if else 0], is_silent], []) is False


@dataclass(frozen=True, kw_only=True)
class KnownLabels(Labeller):
    """Stands in for the model: it labels every Methods sentence with these, surely."""

    labels: tuple[str, ...]

    @property
    def names(self):
        return list(self.calibration)

    def probabilities(self, sentences, sections):
        rows = [[float(name in self.labels and "Methods" in path) for name in self.names] for path in sections]
        return torch.tensor(rows), 0


def use_labels(monkeypatch, *labels):
    row = {"sentence_threshold": 0.5, "article_threshold": 0.5, "slope": 1.0, "offset": 0.0}
    row |= {field.name: 0 for field in fields(ErrorRates)}
    calibration = {name: row for item in (*CONSORT, *SPIRIT) for name in (*item.labels, item.rates) if name}
    nothing: Any = None
    stand_in = KnownLabels(model=nothing, processor=nothing, calibration=calibration, labels=labels)
    monkeypatch.setattr(sys.modules[check_document.__module__], "load_labeller", lambda checkpoint: stand_in)


def verdict_on(monkeypatch, label, *sentences, protocol=False):
    """What is said about the one item that a tiny article states."""
    use_labels(monkeypatch, label)
    texts = [("Walking or rest", ("Title",)), *((text, ("Methods",)) for text in sentences)]
    document = Document(
        path="tiny.md",
        kind=".md",
        sentences=tuple(Sentence(number=n, text=text, section=path) for n, (text, path) in enumerate(texts, 1)),
    )
    (verdict,) = [v for v in check_document(document, protocol).verdicts if v.item.labels and v.evidence]
    return verdict


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: f"{element.item}: {element.name}")
def test_a_tiny_article_that_lacks_an_element_is_partly_reported(element, monkeypatch):
    states, is_silent = SENTENCES[element.item, element.name]
    condition = ("Blocks were stratified.",) if element.only_if else ()
    lacking = verdict_on(monkeypatch, f"consort:{element.item}", *condition, is_silent)
    assert lacking.status == "partly reported"
    assert element.name in lacking.missing_elements
    stated = verdict_on(monkeypatch, f"consort:{element.item}", *condition, states)
    assert element.name not in stated.missing_elements
    (found,) = [e for e in stated.elements if e.name == element.name]
    assert stated.evidence[-1].number == found.sentence


def test_a_protocol_is_asked_for_the_elements_of_its_items(monkeypatch):
    verdict = verdict_on(
        monkeypatch, "spirit:14b_Sample_Calculation", "We need 82 participants for 80% power.", protocol=True
    )
    assert (verdict.item.number, verdict.status) == ("14", "partly reported")
    assert verdict.missing_elements == (
        "expected difference or effect",
        "significance level",
        "allowance for attrition",
    )


def test_concealment_is_labelled_in_the_numbers_of_each_list(monkeypatch):
    use_labels(monkeypatch, "consort:9")
    text, section = ["The list was kept in opaque envelopes."], [["Methods"]]
    assert label(text, section) == [["9"]]
    assert label(text, section, checklist="consort-2025") == [["18"]]
    assert label(text, section, checklist="spirit") == [["16b"]]


def test_every_element_of_the_protocol_list_exists():
    assert all(elements_of(key) for item in SPIRIT for key in item.elements)
    assert [element.name for element in elements_of("7a: power")] == ["power"]


def test_a_condition_without_a_trace_makes_an_item_not_applicable(monkeypatch):
    assert {item.number for item in CONSORT if item.only_if} == {item.number for item in CONSORT if item.trace}
    assert {item.number for item in SPIRIT if item.only_if} == {item.number for item in SPIRIT if item.trace}
    use_labels(monkeypatch)

    def status(text):
        sentence = Sentence(number=1, text=text, section=("Results",))
        report = check_document(Document(path="x", kind=".md", sentences=(sentence,)))
        return next(verdict.status for verdict in report.verdicts if verdict.item.number == "14b")

    assert status("Ninety people walked.") == "not applicable"
    assert status("The trial was stopped early.") == "not found"


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


@pytest.mark.parametrize("name", ["block size", "stratification factors"])
def test_a_conditional_element_is_asked_for_only_when_it_applies(name):
    element = next(element for element in ELEMENTS if element.name == name)
    assert find_element(element, ["Simple randomisation was used."], []) is None


def test_elements_are_of_items_that_the_model_labels():
    assert {element.item for element in ELEMENTS} <= set(CONSORT_ITEMS)
    assert elements_of("1a") == ()


def test_the_checklists_cover_their_labels_once():
    labels = [label for item in CONSORT for label in item.labels]
    assert sorted(labels) == sorted(f"consort:{item}" for item in CONSORT_ITEMS)
    assert len(CONSORT) == 37
    assert not set(CONSORT_2025_NOT_CHECKED) & {item.consort_2025 for item in CONSORT}
    assert len({item.number for item in SPIRIT}) == len(SPIRIT)


def test_the_mapping_table_has_every_item_and_a_2025_number():
    table = mapping_table()
    assert all(f"| {item.number} | {item.consort_2025} |" in table for item in CONSORT)


def test_the_worked_example_holds_both_tables():
    page = (Path(__file__).parents[1] / "docs" / "report_check.md").read_text()
    assert elements_table() in page
    assert mapping_table() in page


def test_labels_that_the_start_knows_and_the_protocol_list_does_not_are_of_results():
    known = {label.removeprefix("spirit:") for item in SPIRIT for label in item.labels}
    results_only = {label for group in CONSORT_FROM_SPIRIT.values() for label in group} - known
    assert {label.partition("_")[0] for label in results_only} == (
        {"3b", "12b", "17e", "34", "35a", "35b", "35c", "36", "37a", "38a", "38b", "39", "40", "41"}
    )
