"""Word in, Word out: comments, the filled checklist, the check of a submitted one, and questions. Files are read back."""

import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from ctfm.reporting import DocumentError, read_document, render
from ctfm.reporting.annotate import annotate, comment_of
from ctfm.reporting.check import DEFAULT_CHECKPOINT, ElementVerdict, Report, Verdict, check
from ctfm.reporting.checklist import load_checklist
from ctfm.reporting.command import main
from ctfm.reporting.study import recognise
from ctfm.reporting.submission import check_claims, claimed_pages, question_of, questions, write_checklist
from ctfm.reporting.word import WORD, word_text

docx = pytest.importorskip("docx")

EXAMPLE = Path(__file__).parent / "fixtures" / "reporting" / "walking.md"
NAMESPACE = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
TRACKED = f"""<w:p {NAMESPACE}><w:r><w:t xml:space="preserve">The pharmacy </w:t></w:r>
<w:del w:id="1" w:author="a"><w:r><w:delText xml:space="preserve">lost </w:delText></w:r></w:del>
<w:ins w:id="2" w:author="a"><w:r><w:t xml:space="preserve">kept </w:t></w:r></w:ins>
<w:r><w:t>the list</w:t><w:br/><w:t>in sealed envelopes. Nobody else had the list.</w:t></w:r></w:p>"""
PAGE = f"<w:r {NAMESPACE}><w:lastRenderedPageBreak/></w:r>"


@pytest.fixture
def draft(tmp_path):
    """A draft of two pages with bold words, tracked changes, a line break and a table."""
    file = docx.Document()
    file.add_heading("Walking or rest: a randomised trial", 0)
    file.add_heading("Methods", 1)
    paragraph = file.add_paragraph("We randomised 90 adults. ")
    paragraph.add_run("A statistician").bold = True
    paragraph.add_run(" made the list by computer. It had blocks of four.")
    file.element.body.insert(len(file.element.body) - 1, docx.oxml.parse_xml(TRACKED))
    table = file.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Eligible", "adults with knee pain on most days"
    file.add_heading("Results", 1)
    paragraph = file.add_paragraph("Pain fell by 1.2 points.")
    paragraph._p.insert(0, docx.oxml.parse_xml(PAGE))
    path = tmp_path / "draft.docx"
    file.save(str(path))
    return path


@pytest.fixture
def report(draft):
    """What a checker might say of the draft: the words of `quote` choose an item's sentence."""
    document = read_document(draft)
    items = {item.number: item for item in load_checklist("consort").items}

    def sentence(words):
        return next(s for s in document.sentences if words in s.text)

    lacking = (ElementVerdict(name="block size", found=False),)
    verdicts = (
        Verdict(item=items["4a"], status="reported", probability=0.9, evidence=(sentence("Eligible"),)),
        Verdict(item=items["8a"], status="reported", probability=0.9, evidence=(sentence("by computer"),)),
        Verdict(
            item=items["8b"],
            status="partly reported",
            probability=0.9,
            evidence=(sentence("blocks"),),
            elements=lacking,
        ),
        Verdict(item=items["9"], status="reported", probability=0.8, evidence=(sentence("sealed"),)),
        Verdict(item=items["10"], status="look here", probability=0.4, nearest=(sentence("Nobody else"),)),
        Verdict(item=items["14b"], status="not applicable", probability=0.1),
        Verdict(item=items["17a"], status="reported", probability=0.9, evidence=(sentence("Pain fell"),)),
        Verdict(item=items["25"], status="not found", probability=0.1),
    )
    return Report(
        document=document,
        checklist="CONSORT 2010",
        verdicts=verdicts,
        labels=tuple(() for _ in document.sentences),
        study=recognise(document.sentences),
    )


def commented(path):
    """Every comment's text, and the words between its two marks."""
    file = docx.Document(str(path))
    found = {}
    for comment in file.comments:
        marks = (f"{WORD}commentRangeStart", f"{WORD}commentRangeEnd")
        inside, words = False, []
        for node in file.element.body.iter():
            if node.tag in marks and node.get(f"{WORD}id") == str(comment.comment_id):
                inside = node.tag == marks[0]
            elif inside and node.tag in (f"{WORD}t", f"{WORD}br"):
                words.append(node.text or " ")
        found[comment.text] = "".join(words)
    return found


def test_a_comment_marks_the_words_of_its_sentence(report, tmp_path):
    annotate(report, tmp_path / "out.docx")
    by_item = {text.split()[0]: words for text, words in commented(tmp_path / "out.docx").items()}
    assert by_item["8a"].strip() == "A statistician made the list by computer."
    assert by_item["8b"].strip() == "It had blocks of four."
    assert by_item["17a"].strip() == "Pain fell by 1.2 points."


def test_a_run_that_holds_a_line_break_is_marked_whole(report, tmp_path):
    annotate(report, tmp_path / "out.docx")
    by_item = {text.split()[0]: words for text, words in commented(tmp_path / "out.docx").items()}
    assert by_item["9"] == "The pharmacy kept the list in sealed envelopes. Nobody else had the list."
    assert by_item["10"] == "the list in sealed envelopes. Nobody else had the list."


def test_comments_leave_the_text_its_format_and_its_changes_as_they_were(report, draft, tmp_path):
    annotate(report, tmp_path / "out.docx")
    before, after = docx.Document(str(draft)), docx.Document(str(tmp_path / "out.docx"))
    texts = [word_text(node) for node in before.element.body.iter(f"{WORD}p")]
    assert [word_text(node) for node in after.element.body.iter(f"{WORD}p")][: len(texts)] == texts
    for tag in ("ins", "del", "delText", "br"):
        counts = [len(list(file.element.body.iter(f"{WORD}{tag}"))) for file in (before, after)]
        assert counts[1] - counts[0] == (tag == "br")  # the page break before the list
    bold = "".join(run.text for paragraph in after.paragraphs for run in paragraph.runs if run.bold)
    assert bold.startswith("A statistician")


def test_the_list_stands_at_the_end_with_a_row_for_every_item(report, tmp_path):
    annotate(report, tmp_path / "out.docx")
    rows = [[cell.text for cell in row.cells] for row in docx.Document(str(tmp_path / "out.docx")).tables[-1].rows]
    assert rows[0][-1] == "Verdict"
    assert [row[0] for row in rows[1:]] == [verdict.item.number for verdict in report.verdicts]
    assert rows[2][2:] == ["p. 1, par. 2", "A statistician made the list by computer.", "reported"]


def test_a_sentence_of_a_table_has_no_comment_but_a_row(report, tmp_path):
    annotate(report, tmp_path / "out.docx")
    assert not any(text.startswith("4a") for text in commented(tmp_path / "out.docx"))
    rows = [[cell.text for cell in row.cells] for row in docx.Document(str(tmp_path / "out.docx")).tables[-1].rows]
    assert rows[1][3] == "Eligible: adults with knee pain on most days"


def test_the_commented_file_reads_as_the_draft_did(report, draft, tmp_path):
    annotate(report, tmp_path / "out.docx")
    texts = [sentence.text for sentence in read_document(draft).sentences]
    again = read_document(tmp_path / "out.docx")
    assert [sentence.text for sentence in again.sentences][: len(texts)] == texts
    assert any("5 comments were not read" in warning for warning in again.warnings)


def test_comments_ask_where_nothing_was_found(report):
    told = {verdict.item.number: comment_of(verdict) for verdict in report.verdicts}
    assert told["10"].endswith("not found. Does this sentence state it?")
    assert told["8b"].endswith("partly reported; not found: block size.")


def test_only_a_word_file_is_commented_and_never_overwritten(report, draft, tmp_path):
    other = replace(report, document=replace(report.document, path=str(EXAMPLE)))
    with pytest.raises(DocumentError, match=r"walking\.md is not a Word file"):
        annotate(other, tmp_path / "out.docx")
    with pytest.raises(DocumentError, match="is the report itself"):
        annotate(report, draft)


# ---- checklists ----


@pytest.mark.parametrize(
    ("cell", "pages"),
    [
        ("3", (3,)),
        ("p. 3, par. 12; p. 5, par. 2", (3, 5)),
        ("5-7", (5, 6, 7)),
        ("pages 5 to 6 and 9", (5, 6, 9)),
        ("Page 4, lines 120-131", (4,)),
        ("Table 2, page 11; Figure 1", (11,)),
        ("Section 2.1", ()),
        ("2010", ()),
        ("n/a", ()),
        ("9-8", (9,)),
    ],
)
def test_pages_are_told_from_other_numbers(cell, pages):
    assert claimed_pages(cell) == pages


def test_the_checklist_that_is_written_agrees_with_the_report(report, tmp_path):
    for name in ("filled.docx", "filled.md"):
        write_checklist(report, tmp_path / name)
        claims = check_claims(report, tmp_path / name)
        assert [claim.number for claim in claims] == ["4a", "8a", "8b", "9", "17a"]
        assert all(claim.agrees for claim in claims)


def submitted(path, rows, header=("Section", "Item No", "Checklist item", "Reported on page No")):
    file = docx.Document()
    table = file.add_table(rows=0, cols=len(header))
    for row in (header, *rows):
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    file.save(str(path))


def test_page_numbers_of_a_submitted_checklist_are_checked(report, tmp_path):
    rows = [
        ("Methods", "8a", "Method used to generate the sequence", "1"),
        ("", "9", "Mechanism of concealment", "2"),
        ("", "10", "Who enrolled", "p. 2, lines 30-31"),
        ("Results", "17a", "Results for each outcome", "2-3"),
        ("Other", "25", "Funding", "not stated"),
    ]
    submitted(tmp_path / "filled.docx", rows)
    says = {claim.number: (claim.agrees, claim.says) for claim in check_claims(report, tmp_path / "filled.docx")}
    assert says == {
        "8a": (True, "claimed on p. 1; found there"),
        "9": (False, "claimed on p. 2; found on p. 1"),
        "10": (False, "claimed on p. 2; the item was not found anywhere (look here)"),
        "17a": (True, "claimed on p. 2, 3; found there"),
    }
    table = render.claims_table(check_claims(report, tmp_path / "filled.docx")).splitlines()
    assert [line[:2] for line in table[2:]] == ["! ", "! ", "  ", "  "]


def test_an_item_may_stand_on_the_page_of_its_own_number(report, tmp_path):
    (tmp_path / "filled.csv").write_text("item,text,page\n9,Concealment,9\n", encoding="utf-8")
    (claim,) = check_claims(report, tmp_path / "filled.csv")
    assert (claim.number, claim.pages) == ("9", (9,))


def test_claims_of_an_extension_are_those_of_the_list_itself(report, tmp_path):
    own = load_checklist("cluster").items[0]
    again = replace(own, number="8a")
    extended = replace(report, verdicts=(*report.verdicts, Verdict(item=again, status="not checked", probability=None)))
    (tmp_path / "filled.csv").write_text("8a,Sequence,1\n", encoding="utf-8")
    (claim,) = check_claims(extended, tmp_path / "filled.csv")
    assert claim.agrees


def test_a_checklist_or_a_report_without_pages_is_refused(report, tmp_path):
    (tmp_path / "filled.csv").write_text("8a,Sequence,yes\n", encoding="utf-8")
    with pytest.raises(DocumentError, match="no row names an item and a page"):
        check_claims(report, tmp_path / "filled.csv")
    sentences = tuple(replace(sentence, page=None) for sentence in report.document.sentences)
    pageless = replace(report, document=replace(report.document, sentences=sentences))
    with pytest.raises(DocumentError, match=r"draft\.docx has no page numbers; pass the PDF"):
        check_claims(pageless, tmp_path / "filled.csv")


# ---- questions, and several reports ----


def test_a_question_is_asked_for_what_is_missing_and_for_nothing_else(report):
    asked = [verdict.item.number for verdict in report.verdicts if question_of(verdict)]
    assert asked == ["8b", "10", "25"]
    text = questions(report)
    assert 'The nearest passage that we found is "Nobody else had the list." (p. 1, par. 3).' in text
    assert "this is reported (p. 1, par. 2), but we did not find block size" in text
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3."]


def test_the_page_holds_every_question_to_be_edited(report):
    page = render.html(report)
    assert page.count("<textarea class=question") == 3
    assert page.count("<textarea class=remark") == len(report.verdicts)


def test_a_table_for_an_editor_has_a_row_for_every_report_most_missing_first(report):
    document = replace(report.document, path="other.docx")
    better = replace(report, document=document, verdicts=report.verdicts[:-1])
    rows = list(csv.DictReader(io.StringIO(render.editors_csv([better, report]))))
    assert [(row["file"], row["not found"], row["items not found"]) for row in rows] == [
        ("draft.docx", "1", "25"),
        ("other.docx", "0", ""),
    ]
    assert Counter(row["items to look at"] for row in rows) == {"10": 2}


@pytest.mark.skipif(not (DEFAULT_CHECKPOINT / "model.safetensors").is_file(), reason="no default checkpoint")
def test_the_command_writes_word_and_questions_and_checks_claims(draft, tmp_path, capsys):
    found = check(draft, is_trial=True)
    write_checklist(found, tmp_path / "filled.docx")
    outputs = ["--word", str(tmp_path / "out.docx"), "--questions", str(tmp_path / "ask.txt")]
    assert main([str(draft), "--trial", *outputs, "--claims", str(tmp_path / "filled.docx")]) == 0
    assert "Page numbers of the submitted checklist" in capsys.readouterr().out
    assert len(list(docx.Document(str(tmp_path / "out.docx")).comments)) >= 1
    assert (tmp_path / "ask.txt").read_text().startswith('Questions on "Walking or rest: a randomised trial"')
