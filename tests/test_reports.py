"""What the text tower reads of a report in one step."""

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
