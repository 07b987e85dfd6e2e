"""What the text tower reads of a report in one step."""

import pytest
from ctfm.train.reports import ReportConfig, split_sections, vary_report

REPORT = (
    "History: Cough.\n"
    "Technique: Without contrast.\n"
    "Findings: A small nodule. No effusion. The heart is large.\n"
    "Impression: One nodule."
)
WHOLE = ReportConfig(drop_probability=0.0, reorder_probability=0.0, excerpt_probability=0.0)
SEEDS = range(40)


def headings(text: str) -> list[str]:
    return [heading for heading, _ in split_sections(text)]


def test_sections_come_in_their_order_and_text_without_a_heading_is_findings() -> None:
    assert headings(REPORT) == ["history", "technique", "findings", "impression"]
    assert split_sections("No nodule.\nIMPRESSION : Normal.") == [("findings", "No nodule."), ("impression", "Normal.")]
    assert split_sections("Findings:\nImpression: Normal.") == [("impression", "Normal.")]


def test_a_report_that_nothing_changes_is_itself() -> None:
    assert {vary_report(REPORT, WHOLE, seed) for seed in SEEDS} == {REPORT}


def test_the_text_of_a_step_is_a_function_of_its_seed() -> None:
    texts = [vary_report(REPORT, ReportConfig(), seed) for seed in SEEDS]
    assert texts == [vary_report(REPORT, ReportConfig(), seed) for seed in SEEDS]
    assert len(set(texts)) > 10


def test_sections_are_dropped_but_never_all_that_say_what_is_seen() -> None:
    config = ReportConfig(drop_probability=1.0, reorder_probability=0.0, excerpt_probability=0.0)
    kept = [headings(vary_report(REPORT, config, seed)) for seed in SEEDS]
    assert {tuple(names) for names in kept} == {("findings",), ("impression",)}
    some = [len(headings(vary_report(REPORT, ReportConfig(excerpt_probability=0.0), seed))) for seed in SEEDS]
    assert set(some) == {1, 2, 3, 4}


def test_sections_change_their_order_and_lose_no_word() -> None:
    config = ReportConfig(drop_probability=0.0, reorder_probability=1.0, excerpt_probability=0.0)
    texts = [vary_report(REPORT, config, seed) for seed in SEEDS]
    assert len(set(texts)) > 10  # of 24 orders
    assert {tuple(sorted(text.splitlines())) for text in texts} == {tuple(sorted(REPORT.splitlines()))}


def test_an_excerpt_is_consecutive_sentences_of_one_section_that_states() -> None:
    config = ReportConfig(excerpt_probability=1.0, longest_excerpt=2)
    expected = {
        *("A small nodule.", "No effusion.", "The heart is large."),
        *("A small nodule. No effusion.", "No effusion. The heart is large."),
        "One nodule.",
    }
    assert {vary_report(REPORT, config, seed) for seed in range(200)} == expected


def test_a_report_that_states_nothing_is_read_as_it_is() -> None:
    assert vary_report("Technique: Without contrast.", ReportConfig(), 0) == "Technique: Without contrast."


def test_a_report_without_a_heading_is_read_whole_or_in_excerpts() -> None:
    report = "A small nodule. No effusion."
    assert split_sections(report) == [("findings", report)]
    assert {vary_report(report, WHOLE, seed) for seed in SEEDS} == {f"Findings: {report}"}
    excerpts = ReportConfig(excerpt_probability=1.0, longest_excerpt=1)
    assert {vary_report(report, excerpts, seed) for seed in SEEDS} == {"A small nodule.", "No effusion."}


@pytest.mark.parametrize("report", ["", " \n", "Findings:", "Findings:\nImpression:\n"])
def test_a_report_that_says_nothing_has_no_section_and_stays_as_it_is(report: str) -> None:
    assert split_sections(report) == []
    assert {vary_report(report, ReportConfig(), seed) for seed in SEEDS} == {report}


def test_headings_within_one_line_part_it_and_words_within_a_sentence_do_not() -> None:
    line = "History: Cough. FINDINGS: A nodule. Impression : One nodule, impression: unchanged."
    assert split_sections(line) == [
        ("history", "Cough."),
        ("findings", "A nodule."),
        ("impression", "One nodule, impression: unchanged."),
    ]
    assert len({vary_report(line, ReportConfig(), seed) for seed in SEEDS}) > 5
    assert {vary_report("Normal.", WHOLE, seed) for seed in SEEDS} == {"Findings: Normal."}
