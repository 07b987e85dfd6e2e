"""A report -> verdicts -> every output. The worked example was written for this project; it is no published article."""

import csv
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from ctfm.reporting import read_document, render
from ctfm.reporting.check import (
    DEFAULT_CHECKPOINT,
    ElementVerdict,
    ErrorRates,
    calibrate,
    check,
    check_document,
    check_folder,
    label,
    summarise,
)
from ctfm.reporting.command import main
from ctfm.reporting.compare import compare_outcomes, describe_changes
from ctfm.reporting.documents import Document, Sentence
from ctfm.reporting.submission import write_checklist

EXAMPLE = Path(__file__).parent / "fixtures" / "reporting" / "walking.md"
PROTOCOL = EXAMPLE.with_name("walking_protocol.md")
pytestmark = pytest.mark.skipif(
    not (DEFAULT_CHECKPOINT / "model.safetensors").is_file(), reason=f"no checkpoint at {DEFAULT_CHECKPOINT}"
)


@pytest.fixture(scope="module")
def report():
    return check(EXAMPLE)


@pytest.fixture(scope="module")
def protocol():
    return check(PROTOCOL, protocol=True)


def by_number(report):
    return {verdict.item.number: verdict for verdict in report.verdicts}


def without(document, *words):
    """The document less every sentence that holds one of these words."""
    kept = [s for s in document.sentences if not any(word in s.text.lower() for word in words)]
    return Document(path=document.path, kind=document.kind, sentences=tuple(kept))


def test_every_item_gets_one_status(report):
    assert len(report.verdicts) == 37
    assert {verdict.status for verdict in report.verdicts} <= set(render.STATUSES)


def test_evidence_is_from_the_report_and_stands_where_it_says(report):
    for verdict in report.verdicts:
        for sentence in verdict.evidence:
            assert report.document.sentences[sentence.number - 1] == sentence


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("4a", "eligible"),
        ("6a", "primary outcome"),
        ("7a", "power"),
        ("12a", "covariance"),
        ("25", "funded"),
    ],
)
def test_what_the_example_states_is_found_in_its_sentence(report, item, words):
    verdict = by_number(report)[item]
    assert verdict.status in ("reported", "partly reported")
    assert any(words in sentence.text for sentence in verdict.evidence)


def test_an_item_whose_sentences_are_taken_out_is_no_longer_reported(report):
    document = without(report.document, "funded", "funding", "grant")
    verdict = by_number(check_document(document))["25"]
    assert verdict.status in ("not found", "look here")
    assert verdict.evidence == ()


def test_a_conditional_item_without_a_trace_is_not_applicable(report):
    verdict = by_number(report)["14b"]
    assert verdict.status in ("not applicable", "reported")
    assert verdict.status == "reported" or "asked for only if" in verdict.note


def test_title_and_abstract_are_judged_by_rule(report):
    verdicts = by_number(report)
    assert verdicts["1a"].status == "reported"
    untitled = Document(
        path="x", kind=".md", sentences=(Sentence(number=1, text="Walking and knees", section=("Title",)),)
    )
    assert by_number(check_document(untitled))["1a"].status == "not found"


def test_beside_an_item_that_is_not_found_stand_the_three_nearest_sentences(report):
    document = without(report.document, "statistician")
    found = check_document(document)
    absent = [v for v in found.verdicts if v.status in ("not found", "look here") and v.item.labels]
    assert absent
    for verdict in absent:
        assert [s.number for s in verdict.nearest] == sorted(s.number for s in verdict.nearest)
        assert len(verdict.nearest) == 3
        assert set(verdict.nearest) <= set(document.sentences)


def test_what_is_too_often_wrong_when_missing_is_shown_as_look_here():
    wrong = ErrorRates(called_reported=40, called_reported_rightly=38, called_missing=10, called_missing_rightly=5)
    right = replace(wrong, called_missing_rightly=6)
    assert (wrong.is_right_when_missing(0.6), right.is_right_when_missing(0.6)) == (False, True)
    for path in (EXAMPLE, PROTOCOL):
        for verdict in check(path).verdicts:
            if verdict.status == "not found" and verdict.error_rates is not None:
                assert verdict.error_rates.is_right_when_missing(0.6)
            if verdict.status == "not found" and verdict.probability is not None:
                assert verdict.confidence >= 0.6


def test_error_rates_stand_beside_every_verdict_but_that_of_the_background(report):
    assert [v.item.number for v in report.verdicts if v.error_rates is None] == ["2a"]
    for verdict in report.verdicts:
        if verdict.error_rates is not None:
            assert verdict.error_rates.called_reported + verdict.error_rates.called_missing in (50, 80)
            assert re.match(r"right \d+ of \d+ times|no such verdict in \d+ articles", render.error_rate(verdict))


def test_the_error_rate_is_that_of_the_verdict(report):
    verdict = by_number(report)["9"]
    rates = verdict.error_rates
    missing = render.error_rate(replace(verdict, status="not found"))
    assert missing == f"right {rates.called_missing_rightly} of {rates.called_missing} times"
    assert render.error_rate(verdict) == f"right {rates.called_reported_rightly} of {rates.called_reported} times"


def test_beside_a_missing_element_stands_how_often_that_was_right(report):
    rates = ErrorRates(called_reported=28, called_reported_rightly=24, called_missing=15, called_missing_rightly=8)
    lacking = ElementVerdict(name="block size", found=False, error_rates=rates)
    verdict = replace(by_number(report)["8b"], status="partly reported", elements=(lacking,))
    changed = replace(report, verdicts=(verdict,))
    for text in (
        render.terminal_table(changed),
        render.markdown(changed),
        render.to_csv(changed),
        render.html(changed),
    ):
        assert "block size (right 8 of 15 times)" in text
    assert render.as_dict(changed)["items"][0]["elements"][0]["error_rates"] == asdict(rates)
    unknown = replace(lacking, error_rates=None)
    assert "block size (" not in render.markdown(replace(report, verdicts=(replace(verdict, elements=(unknown,)),)))


def test_no_verdict_is_less_probable_than_its_opposite(report, protocol):
    verdicts = [v for v in (*report.verdicts, *protocol.verdicts) if v.confidence is not None]
    assert all(verdict.confidence >= 0.5 for verdict in verdicts)


def test_only_elements_whose_absence_was_called_rightly_are_spoken_of(report, protocol):
    rows = json.loads((DEFAULT_CHECKPOINT / "calibration.json").read_text())["elements"]
    assert all(row["called_missing_rightly"] >= 0.8 * row["called_missing"] for row in rows.values())
    for verdict in (v for v in (*report.verdicts, *protocol.verdicts) if v.item.labels):
        names = {element.name: element.label for element in verdict.item.elements}
        for element in verdict.elements:
            assert element.error_rates == ErrorRates.of(rows[names[element.name]])


def test_calibration_keeps_the_order():
    row = {"slope": 0.8, "offset": 0.3}
    values = [calibrate(step / 20, row) for step in range(21)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


def test_where_the_report_begins_hardly_changes_the_labels(report):
    sentences = report.document.sentences
    kept = sentences[12:]
    found = label([s.text for s in kept], [s.section for s in kept])
    changed = sum(set(a) ^ set(b) != set() for a, b in zip(found, report.labels[12:], strict=True))
    assert changed <= 0.2 * len(kept)


def test_a_protocol_is_checked_against_spirit(protocol):
    assert protocol.checklist == "SPIRIT 2013"
    assert any("are not checked" in warning for warning in protocol.warnings)
    verdicts = by_number(protocol)
    assert all(verdicts[number].evidence for number in ("7", "10", "12", "14", "16a", "16b", "24", "28"))
    assert verdicts["33"].status == "not applicable"
    assert verdicts["2b"].status == "not checked"


def test_a_protocol_that_is_checked_as_a_report_is_told():
    report = check(PROTOCOL, protocol=False)
    assert report.checklist == "CONSORT 2010"
    assert any("check it against SPIRIT" in warning for warning in report.warnings)


def test_a_protocol_is_recognised(protocol):
    assert check(PROTOCOL).checklist == protocol.checklist


COHORT = """# Walking and painful knees: a cohort study

## Methods

We followed 900 adults for a year. The participants were not randomised.
"""


def test_what_is_no_trial_gets_no_verdict_in_any_format_and_says_so_first(tmp_path, capsys):
    (tmp_path / "cohort.md").write_text(COHORT)
    report = check(tmp_path / "cohort.md")
    assert report.verdicts == ()
    assert report.warnings[0].startswith("This looks like a cohort study, not a randomised trial")
    assert main([str(tmp_path / "cohort.md")]) == 0
    out = capsys.readouterr().out
    assert "a cohort study" in out.splitlines()[3]
    assert "Every item" not in out
    assert "not found" not in out.split("Beside each")[0]
    for text in (render.markdown(report), render.html(report)):
        assert "This looks like a cohort study" in text
    assert render.as_dict(report)["study"]["is_trial"] is False
    pytest.importorskip("jsonschema").validate(
        render.as_dict(report), json.loads((Path(render.__file__).parent / "report.schema.json").read_text())
    )


def test_the_user_overrules_the_study_type(tmp_path):
    (tmp_path / "cohort.md").write_text(COHORT)
    assert len(check(tmp_path / "cohort.md", is_trial=True).verdicts) == 37
    assert check(EXAMPLE, is_trial=False).verdicts == ()


def test_a_folder_says_which_files_are_no_trials(tmp_path, capsys):
    (tmp_path / "cohort.md").write_text(COHORT)
    (tmp_path / "walking.md").write_text(EXAMPLE.read_text())
    (tmp_path / "walking_protocol.md").write_text(PROTOCOL.read_text())
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "cohort.md: This looks like a cohort study" in err
    assert "CONSORT 2010: 1 reports" in out
    assert "SPIRIT 2013: 1 reports" in out


def test_an_abstract_is_held_against_the_list_for_abstracts():
    texts = ("We randomised 90 adults to walk or to rest.", "Pain fell by 1.2 points (95% CI 0.4 to 2.0).", "It helps.")
    title = Sentence(number=1, text="Walking for knees: a randomised trial", section=("Title",))
    body = (Sentence(number=n, text=text, section=("Abstract",)) for n, text in enumerate(texts, 2))
    report = check_document(Document(path="x", kind=".txt", sentences=(title, *body)))
    assert report.checklist == "CONSORT for abstracts"
    assert len(report.verdicts) == 17
    assert report.count("not checked") == 2
    assert all(verdict.error_rates is None and verdict.probability is None for verdict in report.verdicts)


def test_sections_that_are_absent_are_asked_for_only_where_they_belong(protocol):
    assert not any("No section was recognised" in warning for warning in protocol.warnings)
    part = Document(path="x", kind=".md", sentences=(Sentence(number=1, text="We walked " * 90, section=("Methods",)),))
    warnings = check_document(part).warnings
    assert "No section was recognised as results, discussion; items that belong there may be missed." in warnings
    assert "Sentences too long to be read to their end: 1." in warnings


def test_the_terminal_table_fits_and_is_plain_without_colours(report):
    table = render.terminal_table(report, colours=False, everything=True)
    assert "\x1b" not in table
    assert all(len(line) <= 140 for line in table.splitlines())
    assert f"{render.LEGEND} {render.DISCLAIMER}" in " ".join(table.split())
    assert "\x1b[3" in render.terminal_table(report, colours=True)


def test_the_worked_example_shows_what_the_command_says(report):
    page = (EXAMPLE.parents[3] / "docs" / "report_check.md").read_text()
    shown = re.findall(
        r"^  (\w+) +[~✗?] (partly reported|not found|look here) .* (\d+%)", page.split("## ")[0], re.MULTILINE
    )
    assert shown == [(v.item.number, v.status, f"{v.confidence:.0%}") for v in report.verdicts if v.needs_a_look]
    assert render.counts(report) in page


def test_consort_2025_is_whole_and_says_what_it_does_not_check(report):
    again = check(EXAMPLE, checklist="consort-2025")
    assert again.checklist == "CONSORT 2025"
    numbers = [verdict.item.number for verdict in again.verdicts]
    assert {re.match(r"\d+", number)[0] for number in numbers} == {str(number) for number in range(1, 31)}
    assert [v.item.number for v in again.verdicts if v.status == "not checked"] == ["8", "24a", "24b"]
    assert any("3 of 42 items are not checked" in warning for warning in again.warnings)
    assert json.loads(render.to_json(again))["items"][0]["number"] == "1a"


def test_an_extension_follows_the_items_of_consort_2010():
    text = EXAMPLE.read_text().replace("parallel-group randomised", "cluster randomised crossover")
    title = text.splitlines()[0].replace("randomised trial", "cluster randomised trial")
    document = read_document(EXAMPLE)
    sentences = (replace(document.sentences[0], text=title.lstrip("# ")), *document.sentences[1:])
    found = check_document(replace(document, sentences=sentences))
    assert found.extensions == ("CONSORT extension for cluster trials",)
    own = [verdict for verdict in found.verdicts if verdict.item.part == found.extensions[0]]
    assert own[0].status == "reported"
    assert {verdict.status for verdict in own[1:]} == {"not checked"}
    assert all(len(verdict.nearest) == 3 for verdict in own[1:])


def test_a_list_for_another_kind_of_text_is_refused():
    with pytest.raises(ValueError, match='checklist "spirit" is for a protocol; leave out protocol=False'):
        check(EXAMPLE, protocol=False, checklist="spirit")


def check_schema(value, schema, where="$"):
    """The part of JSON Schema that report.schema.json uses."""
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kinds["null"] = type(None)
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    assert not types or any(isinstance(value, kinds[name]) for name in types), where
    if isinstance(value, (int, float)):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), where
    if isinstance(value, dict):
        others = schema.get("additionalProperties", False)
        known = set(value) if isinstance(others, dict) else set(schema.get("properties", value))
        assert set(schema.get("required", ())) <= set(value) <= known, where
        for key, part in value.items():
            check_schema(part, schema.get("properties", {}).get(key, others), f"{where}.{key}")
    if isinstance(value, list):
        for number, part in enumerate(value):
            check_schema(part, schema["items"], f"{where}[{number}]")


@pytest.mark.parametrize("which", ["report", "protocol", "2025"])
def test_json_follows_its_schema(report, protocol, which):
    found = {"report": report, "protocol": protocol, "2025": check(EXAMPLE, checklist="consort-2025")}[which]
    schema = json.loads((Path(render.__file__).parent / "report.schema.json").read_text())
    check_schema(json.loads(render.to_json(found)), schema)


def test_csv_has_a_row_for_every_item_and_no_formula(report):
    rows = list(csv.DictReader(io.StringIO(render.to_csv(report))))
    assert [row["item"] for row in rows] == [verdict.item.number for verdict in report.verdicts]
    assert not any(cell[:1] in ("=", "+", "@") for row in rows for cell in row.values())


def test_the_page_needs_nothing_from_outside_and_escapes_the_report():
    nasty = Sentence(number=1, text='<script>alert("x")</script> & more', section=("Title",))
    page = render.html(check_document(Document(path="x", kind=".md", sentences=(nasty,))))
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "%%" not in page


def test_every_evidence_sentence_of_the_page_can_be_clicked_to(report):
    page = render.html(report)
    for verdict in report.verdicts:
        assert all(f'id="s{sentence.number}"' in page for sentence in verdict.evidence)


@pytest.mark.parametrize("name", ["checklist.docx", "checklist.md"])
def test_the_checklist_to_submit_has_every_item(report, tmp_path, name):
    out = tmp_path / name
    write_checklist(report, out)
    if name.endswith(".docx"):
        docx = pytest.importorskip("docx")
        assert len(docx.Document(str(out)).tables[0].rows) == 38
    else:
        assert out.read_text().count("\n| ") == 38


def test_a_folder_is_summarised_most_often_missing_first(tmp_path):
    text = EXAMPLE.read_text()
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text("\n".join(line for line in text.splitlines() if "fund" not in line.lower()))
    (tmp_path / "c.pdf").write_bytes(b"junk")
    reports, problems = check_folder(tmp_path)
    assert len(reports) == 2
    assert "c.pdf is not a readable PDF" in problems[0]
    rows = summarise(reports)
    assert [row[1]["not found"] for row in rows] == sorted((row[1]["not found"] for row in rows), reverse=True)
    assert "2 reports" in render.summary_table(rows, 2)


def test_the_comparison_names_what_was_changed_and_what_was_left_out(report, protocol):
    matches = {match.protocol.text.split()[1]: match for match in compare_outcomes(protocol, report)}
    assert matches["primary"].report.text.startswith("The primary outcome was knee pain")
    assert matches["primary"].changes == ("24 weeks is in the protocol only",)
    assert matches["secondary"].changes == ()
    assert matches["further"].report is None
    text = render.comparison(list(matches.values()))
    assert "no sentence of the report is near" in text
    assert "! 24 weeks is in the protocol only" in text


@pytest.mark.parametrize(
    ("planned", "reported", "changes"),
    [
        (
            "The primary outcome is pain.",
            "Pain was a secondary outcome.",
            ("primary in the protocol, secondary in the report",),
        ),
        ("Pain at week 6.", "Pain at 6 weeks.", ()),
        ("Pain at 1 year.", "Pain.", ()),
        ("Pain at 6, 12 and at 24 weeks.", "Pain at weeks 6 and 24.", ("12 weeks is in the protocol only",)),
        (
            "Pain at 1 year.",
            "Pain at 2-year visits.",
            ("1 year is in the protocol only", "2 years is in the report only"),
        ),
    ],
)
def test_rank_and_time_points_are_compared(planned, reported, changes):
    assert describe_changes(planned, reported) == changes


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys):
    names = {"--html": "a.html", "--json": "a.json", "--csv": "a.csv", "--markdown": "a.md", "--checklist": "b.md"}
    arguments = [part for option, name in names.items() for part in (option, str(tmp_path / name))]
    assert main([str(EXAMPLE), *arguments]) == 0
    assert all((tmp_path / name).stat().st_size > 500 for name in names.values())
    assert "CONSORT 2010" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_with_a_file(tmp_path, capsys):
    (tmp_path / "scan.rtf").write_text("x")
    assert main([str(tmp_path / "scan.rtf")]) == 2
    assert "is not a known format" in capsys.readouterr().err


def test_nothing_is_sent_anywhere(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"a connection was opened: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    document = read_document(EXAMPLE)
    check_document(document)


def test_a_folder_leaves_a_page_for_every_report(tmp_path, capsys):
    source = tmp_path / "drafts"
    source.mkdir()
    for name in ("a.md", "a.txt"):
        (source / name).write_text(EXAMPLE.read_text())
    assert (
        main(
            [
                str(source),
                "--html",
                str(tmp_path / "pages"),
                "--csv",
                str(tmp_path / "rows"),
                "--table",
                str(tmp_path / "editor.csv"),
            ]
        )
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["a.md.html", "a.txt.html"]
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["a.md.csv", "a.txt.csv"]
    assert "2 reports" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "editor.csv").read_text())))
    assert sorted(row["file"] for row in rows) == ["a.md", "a.txt"]
    assert {row["checklist"] for row in rows} == {"CONSORT 2010"}


def test_a_folder_without_reports_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no readable report" in capsys.readouterr().err


def test_the_report_is_never_overwritten(tmp_path, capsys):
    draft = tmp_path / "draft.md"
    draft.write_text(EXAMPLE.read_text())
    assert main([str(draft), "--markdown", str(draft)]) == 2
    assert "is the report itself" in capsys.readouterr().err
    assert draft.read_text() == EXAMPLE.read_text()


def test_a_page_that_cannot_be_written_is_named(tmp_path, capsys):
    assert main([str(EXAMPLE), "--html", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "--compare", str(PROTOCOL)], "--compare takes one results report"),
        (["--list", "spirit", "--compare", str(PROTOCOL)], "--compare reads outcomes as CONSORT 2010 numbers them"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main([str(EXAMPLE), *arguments])
    assert words in capsys.readouterr().err
