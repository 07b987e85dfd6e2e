"""Every element of every item: a sentence that states it, and one near it that does not."""

import pytest
from ctfm.reporting.checklist import CONSORT, CONSORT_FROM_SPIRIT, SPIRIT, mapping_table
from ctfm.reporting.corpora import CONSORT_ITEMS
from ctfm.reporting.elements import ELEMENTS, elements_of, find_element

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
    assert len({item.number for item in SPIRIT}) == len(SPIRIT)


def test_the_mapping_table_has_every_item_and_a_2025_number():
    table = mapping_table()
    assert all(f"| {item.number} | {item.consort_2025} |" in table for item in CONSORT)


def test_labels_that_the_start_knows_and_the_protocol_list_does_not_are_of_results():
    known = {label.removeprefix("spirit:") for item in SPIRIT for label in item.labels}
    results_only = {label for group in CONSORT_FROM_SPIRIT.values() for label in group} - known
    assert {label.partition("_")[0] for label in results_only} == (
        {"3b", "12b", "17e", "34", "35a", "35b", "35c", "36", "37a", "38a", "38b", "39", "40", "41"}
    )
