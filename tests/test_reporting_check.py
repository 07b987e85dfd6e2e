"""A report -> verdicts -> every output. The worked example was written for this project; it is no published article."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from ctfm.reporting import read_document, render
from ctfm.reporting.check import (
    DEFAULT_CHECKPOINT,
    calibrate,
    check,
    check_document,
    check_folder,
    compare_outcomes,
    label,
    main,
    summarise,
)
from ctfm.reporting.documents import Document, Sentence

EXAMPLE = Path(__file__).parent / "fixtures" / "reporting" / "walking.md"
pytestmark = pytest.mark.skipif(
    not (DEFAULT_CHECKPOINT / "model.safetensors").is_file(), reason=f"no checkpoint at {DEFAULT_CHECKPOINT}"
)


@pytest.fixture(scope="module")
def report():
    return check(EXAMPLE)


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


def test_the_sample_size_of_the_example_lacks_attrition_only(report):
    document = without(report.document, "lost to follow-up")
    assert by_number(check_document(document))["7a"].missing_elements == ("allowance for attrition",)


def test_an_item_whose_sentences_are_taken_out_is_no_longer_reported(report):
    document = without(report.document, "funded", "funding", "grant")
    assert by_number(check_document(document))["25"].status == "not found"


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


def test_error_rates_stand_beside_every_verdict_of_the_model(report):
    assert all(
        (verdict.error_rates is None) == (verdict.item.rule is not None) and render.error_rate(verdict)
        for verdict in report.verdicts
    )


def test_calibration_keeps_the_order():
    row = {"slope": 0.8, "offset": 0.3}
    values = [calibrate(step / 20, row) for step in range(21)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


def test_labels_in_a_batch_are_those_of_the_check(report):
    sentences = report.document.sentences
    found = label([s.text for s in sentences], [s.section for s in sentences])
    assert [tuple(items) for items in found] == list(report.labels)


def test_where_the_report_begins_hardly_changes_the_labels(report):
    sentences = report.document.sentences
    kept = sentences[12:]
    found = label([s.text for s in kept], [s.section for s in kept])
    changed = sum(set(a) ^ set(b) != set() for a, b in zip(found, report.labels[12:], strict=True))
    assert changed <= 0.2 * len(kept)


def test_an_unknown_checklist_is_named():
    with pytest.raises(ValueError, match='checklist "prisma" must be'):
        label(["We walked."], checklist="prisma")


def test_a_protocol_is_checked_against_spirit():
    report = check(EXAMPLE, protocol=True)
    assert report.checklist == "SPIRIT 2013"
    assert any("are not checked" in warning for warning in report.warnings)


def test_the_terminal_table_fits_and_is_plain_without_colours(report):
    table = render.terminal_table(report, colours=False, everything=True)
    assert "\x1b" not in table
    assert all(len(line) <= 140 for line in table.splitlines())
    assert render.DISCLAIMER.split(";")[0] in table
    assert "\x1b[3" in render.terminal_table(report, colours=True)


def test_numbers_of_2025_replace_those_of_2010(report):
    assert "CONSORT 2025" in render.terminal_table(report, colours=False, everything=True, numbering="2025")


def test_json_follows_its_schema(report):
    found = json.loads(render.to_json(report))
    schema = json.loads((Path(render.__file__).parent / "report.schema.json").read_text())
    assert set(found) == set(schema["required"])
    item_schema = schema["properties"]["items"]["items"]
    assert all(set(item) == set(item_schema["required"]) for item in found["items"])
    assert all(item["status"] in item_schema["properties"]["status"]["enum"] for item in found["items"])


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
    render.write_checklist(report, out)
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


def test_an_outcome_that_the_report_left_out_has_no_match(report):
    protocol = check(EXAMPLE, protocol=True)
    matches = compare_outcomes(protocol, report)
    assert all(match.report is not None for match in matches)
    assert render.comparison(matches)


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
