"""What a text is taken for: a randomised trial or not, protocol or report, whole or abstract, and which design."""

import pytest
from ctfm.reporting.documents import Sentence, read_document
from ctfm.reporting.study import recognise

FILLER = "Adults with painful knees walked for thirty minutes on five days of the week."


def study(title, *methods, results=()):
    rows = [(title, ("Title",)), *((text, ("Methods",)) for text in methods), *((t, ("Results",)) for t in results)]
    return recognise([Sentence(number=n, text=text, section=path) for n, (text, path) in enumerate(rows, 1)])


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Walking and knees: a cohort study of 900 adults", "a cohort study"),
        ("Walking for knees: a systematic review of randomised trials", "a systematic review or meta-analysis"),
        ("Walking for knees: meta-analysis of randomized controlled trials", "a systematic review or meta-analysis"),
        ("Steps per day: a secondary analysis of a randomised trial", "a secondary analysis"),
        ("Post hoc analysis of the randomised WALK trial", "a secondary analysis"),
        ("Walking for knees: a non-randomised controlled trial", "a non-randomised study"),
        ("A nonrandomized trial of walking", "a non-randomised study"),
        ("A single-arm trial of walking", "a non-randomised study"),
        ("Running wheels and knee pain in rats: a randomised study", "a study in animals or cells"),
        ("Walking and knees: a case-control study", "a case-control study"),
        ("Walking and knees: a cross-sectional survey", "a cross-sectional study"),
        ("Knee pain and steps: a Mendelian randomization study", "a Mendelian randomisation study"),
    ],
)
def test_a_title_that_says_what_else_it_is_decides(title, kind):
    found = study(title, "Participants were randomly assigned in the trials.")
    assert (found.is_trial, found.kind) == (False, kind)
    assert found.sentence is not None
    assert found.sentence.text == title


@pytest.mark.parametrize(
    "text",
    [
        "We did a prospective cohort study in three clinics.",
        "Participants were not randomised.",
        "This was a retrospective study of records.",
        "We conducted a systematic review of walking.",
    ],
)
def test_a_text_that_says_what_else_it_is_decides_where_the_title_does_not(text):
    assert not study("Walking and knees", FILLER, text).is_trial


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("Walking for knees: a randomised trial nested in a cohort study", FILLER),
        ("Walking for knees", "Participants were randomly assigned to walk or to rest."),
        ("Walking for knees", "We randomised 90 adults. Patients in the registry were not randomised."),
        ("Walking for knees", "Adults were randomized. A systematic review found that walking helps."),
        ("Walking for knees", FILLER),
    ],
)
def test_a_trial_is_taken_for_one_whatever_it_says_of_other_studies(title, text):
    assert study(title, *text.split(". ")).is_trial


def test_a_long_text_that_never_mentions_randomisation_is_no_report_of_a_trial():
    found = study("Walking for knees", *[FILLER] * 40)
    assert not found.is_trial
    assert "No sentence mentions randomisation" in found.description


@pytest.mark.parametrize(
    ("title", "is_protocol"),
    [
        ("Walking for knees: study protocol for a randomised trial", True),
        ("Rationale and study design of a randomised trial of walking", True),
        ("Walking for knees: a randomised trial", False),
    ],
)
def test_a_protocol_is_recognised_by_its_title(title, is_protocol):
    assert study(title, "Walkers were randomised.", results=["Pain fell."]).is_protocol is is_protocol


def test_a_protocol_is_recognised_by_what_it_plans():
    planned = ["Participants will be randomised.", "Pain will be assessed.", "Data will be kept."] * 2
    assert study("Walking for knees", *planned).is_protocol
    assert not study("Walking for knees", *planned, results=["Pain fell."]).is_protocol


@pytest.mark.parametrize(
    ("text", "designs"),
    [
        ("This was a parallel-group randomised trial.", ("parallel",)),
        ("We did a cluster-randomised trial in 20 practices.", ("cluster",)),
        ("We conducted a randomised crossover trial.", ("crossover",)),
        ("This study was a randomised non-inferiority trial.", ("non-inferiority",)),
        ("We conducted a pilot randomised controlled trial.", ("pilot",)),
        ("We used the effect of a previous pilot study.", ()),
    ],
)
def test_the_design_is_recognised_from_what_the_text_says_of_itself(text, designs):
    assert study("Walking for knees", "Walkers were randomised.", text).designs == designs


def test_a_structured_abstract_alone_is_an_abstract(tmp_path):
    text = """A randomised trial of walking for painful knees

Background: Painful knees are common. Methods: We randomised 90 adults to walk or to rest for 12 weeks.
Results: Pain of the knees fell by 1.2 points more with walking. Conclusions: Walking helped the knees.
"""
    (tmp_path / "abstract.txt").write_text(text)
    assert recognise(read_document(tmp_path / "abstract.txt").sentences).is_abstract
    assert not study("Walking for knees", *[FILLER] * 40).is_abstract


DRAFT = """# Walking for knees: a randomised trial

## Methods

### Sample size

To be completed by the authors.

### Blinding

The assessors were unaware of the allocation.

## Competing interests

## CONSORT 2010 checklist

Sample size 7a How sample size was determined. Page 4
Anything else that the authors wrote there.
"""


def test_checklists_placeholders_and_empty_headings_are_left_out_and_named(tmp_path):
    (tmp_path / "draft.md").write_text(DRAFT)
    document = read_document(tmp_path / "draft.md")
    assert [sentence.text for sentence in document.sentences[1:]] == [
        "Methods",
        "Blinding",
        "The assessors were unaware of the allocation.",
    ]
    assert [sentence.number for sentence in document.sentences] == [1, 2, 3, 4]
    told = " ".join(document.warnings)
    assert "3 sentences of an appended checklist were left out" in told
    assert "1 placeholders were left out" in told
    assert "2 headings without text of their own were left out" in told


def test_rows_of_a_checklist_without_its_heading_are_left_out(tmp_path):
    row = "8a Method used to generate the random allocation sequence. Page 4\n"
    (tmp_path / "draft.md").write_text(DRAFT.partition("## Competing")[0] + row)
    texts = [sentence.text for sentence in read_document(tmp_path / "draft.md").sentences]
    assert not any("Method used" in text for text in texts)
