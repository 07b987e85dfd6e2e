"""Files -> documents: what is recognised, what is refused and with which cure."""

import zipfile

import pytest
from ctfm.reporting import pdf
from ctfm.reporting.documents import (
    MAX_BYTES,
    DocumentError,
    read_document,
)
from ctfm.reporting.processing_trialreport import section_kind
from ctfm.reporting.reading import heading_level, split_sentences

MARKDOWN = """# Walking for knees: a randomised trial

## Abstract

**Background:** Knees hurt. **Methods:** We assigned people to walk or to rest.

## Methods

### Randomisation

A statistician made the list vs. a computer (see Fig. 2). It was kept in [sealed envelopes](https://example.org).

| group | n |
|---|---|
| walk | 45 |

## Results

The walkers were randomised and did better.

## References

1. Somebody et al. A paper that is not to be read.
"""

JATS = """<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<title-group><article-title>Walking for knees: a <italic>randomised</italic> trial</article-title></title-group>
<abstract><sec><title>Methods</title><p>People were randomised to the walk or the rest group.</p></sec></abstract>
</article-meta></front><body><sec><title>Methods</title><sec><title>Masking</title>
<p>The assessors were blinded to the group.<xref ref-type="bibr" rid="b1">1</xref></p>
<fig><label>Figure 1</label><caption><p>Flow of the participants.</p></caption></fig>
<table-wrap><caption><p>Baseline.</p></caption><table><tr><td>45</td></tr></table></table-wrap></sec></sec></body>
<back><ack><p>We thank the walkers.</p></ack><ref-list><ref id="b1"><mixed-citation>Not read.</mixed-citation></ref>
</ref-list></back>
</article>"""


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("We gave 2.5 mg vs. placebo (Fig. 1). Nobody died.", 2),
        ("Smith et al. found this. We did not.", 2),
        ("J. B. Brown saw patients. He left.", 2),
        ("It worked.12 13 We stopped.", 2),
        ("Table 1. Baseline data of the groups. See Table 2. It is long.", 3),
        ("No stop at all", 1),
        ("", 0),
    ],
)
def test_sentences_end_where_they_should(text, count):
    assert len(split_sentences(text)) == count


def test_splitting_loses_no_letter():
    text = "We met (e.g. on Mondays). Was it 3.5 mg? Yes! “Fine.” Dr. A. Smith agreed."
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("line", "level"),
    [("Methods", 1), ("RESULTS", 1), ("2. Methods", 1), ("2.1 Sample size", 2), ("Blinding", 2), ("We walked.", 0)],
)
def test_headings_are_recognised_by_their_words(line, level):
    assert heading_level(line) == level


def test_markdown_keeps_sections_and_leaves_out_references_and_tables(tmp_path):
    document = read_document(write(tmp_path, "report.md", MARKDOWN))
    texts = {sentence.text: sentence.section for sentence in document.sentences}
    assert document.title == "Walking for knees: a randomised trial"
    assert texts["It was kept in sealed envelopes."] == ("Methods", "Randomisation")
    assert not any("not to be read" in text for text in texts)
    assert any("rows of tables" in warning for warning in document.warnings)
    assert any("References" in warning for warning in document.warnings)


def test_plain_text_and_markdown_of_one_report_give_the_same_sentences(tmp_path):
    plain = (
        MARKDOWN.replace("#", "")
        .replace("**", "")
        .replace("[sealed envelopes](https://example.org)", "sealed envelopes")
    )
    plain = "\n".join(line.strip() for line in plain.splitlines() if not line.startswith("|"))
    one = read_document(write(tmp_path, "a.md", MARKDOWN))
    two = read_document(write(tmp_path, "a.txt", plain))
    assert [s.text for s in one.sentences] == [s.text for s in two.sentences]


def test_jats_keeps_sections_captions_and_back_matter(tmp_path):
    pytest.importorskip("lxml")
    document = read_document(write(tmp_path, "report.xml", JATS))
    found = {sentence.text: sentence.section for sentence in document.sentences}
    assert document.title == "Walking for knees: a randomised trial"
    assert found["The assessors were blinded to the group.1"] == ("Methods", "Masking")
    assert found["Figure 1 Flow of the participants."] == ("Methods", "Masking")
    assert found["We thank the walkers."][0] == "Back matter"
    assert "Not read." not in " ".join(found)
    assert "45" not in " ".join(found)


def test_what_of_a_jats_file_was_not_read_is_said(tmp_path):
    pytest.importorskip("lxml")
    supplement = (
        '<sec><supplementary-material id="s1"><caption><p>Extra data.</p></caption></supplementary-material></sec>'
    )
    document = read_document(write(tmp_path, "report.xml", JATS.replace("<ack>", f"{supplement}<ack>")))
    assert document.warnings[:4] == (
        "1 figures: captions were read, pictures were not.",
        "1 tables: captions and rows of words were read, rows of numbers were not.",
        "1 supplements were recognised and not read.",
        "1 references were recognised and left out.",
    )
    assert not any("Extra data" in sentence.text for sentence in document.sentences)


def test_pictures_are_counted_and_their_captions_read(tmp_path):
    document = read_document(
        write(tmp_path, "report.md", f"{MARKDOWN}\n## Discussion\n\n![Flow of people](flow.png)\n")
    )
    assert "1 pictures were not read." in document.warnings
    assert document.sentences[-1].text == "Flow of people"


@pytest.mark.parametrize(
    ("sentence", "points"),
    [
        ("Harms are listed in Supplementary Table 2.", True),
        ("The protocol is given in Additional file 1.", True),
        ("The whole analysis plan is in the online appendix.", True),
        ("Participants took a supplement of vitamin D and additional tablets.", False),
        ("The appendix was removed by laparoscopy.", False),
    ],
)
def test_a_sentence_that_points_to_a_supplement_is_counted(tmp_path, sentence, points):
    document = read_document(write(tmp_path, "report.md", f"{MARKDOWN}\n## Harms\n\n{sentence}\n"))
    assert any("point to a supplement: 1." in warning for warning in document.warnings) == points


def test_jats_gives_the_funding_of_its_front_and_no_abstract_of_a_review(tmp_path):
    pytest.importorskip("lxml")
    funding = "<funding-group><funding-statement>Funded by the club of walkers.</funding-statement></funding-group>"
    review = "<sub-article><front-stub><abstract><p>A review of the trial.</p></abstract></front-stub></sub-article>"
    text = JATS.replace("</article-meta>", f"{funding}</article-meta>").replace("</article>", f"{review}</article>")
    found = {s.text: s.section for s in read_document(write(tmp_path, "report.xml", text)).sentences}
    assert found["Funded by the club of walkers."] == ("Back matter", "Funding")
    assert "A review of the trial." not in found


def test_docx_keeps_its_heading_styles(tmp_path):
    docx = pytest.importorskip("docx")
    file = docx.Document()
    file.add_heading("Walking for knees", 0)
    file.add_heading("Methods", 1)
    file.add_heading("Sample size", 2)
    file.add_paragraph("We needed 90 people. They came.")
    file.save(str(tmp_path / "draft.docx"))
    document = read_document(tmp_path / "draft.docx")
    assert document.title == "Walking for knees"
    assert document.sentences[-1].section == ("Methods", "Sample size")


def make_pdf(path, lines, password=None):
    """A PDF with one page a list of lines, by hand: text of the base font."""
    rows = ["".join(f"({line}) Tj T* " for line in page) for page in lines]
    return draw_pdf(path, [f"BT /F1 10 Tf 12 TL 50 800 Td {row}ET" for row in rows], password)


def place_pdf(path, pages):
    """A PDF with one page a list of `(x, y, size, text)`, drawn in that order."""
    draw = "BT /F1 {2} Tf {0} {1} Td ({3}) Tj ET".format
    return draw_pdf(path, ["\n".join(draw(*line) for line in page) for page in pages])


def draw_pdf(path, pages, password=None):
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
         NameObject("/BaseFont"): NameObject("/Helvetica")}
    )  # fmt: skip
    for content in pages:
        page = writer.add_blank_page(595, 842)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        stream = DecodedStreamObject()
        stream.set_data(content.encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)
    return path


PAGE = [
    "Journal of Knees",
    "Methods",
    "The participants of the trial were randomised to walk or to rest in equal num-",
    "bers. The list was made by a statistician and was kept from the staff of the trial.",
    "Results",
    "The walkers of the first group had less pain than the others at the end of the trial.",
]


def test_pdf_gives_pages_and_joins_hyphens_and_drops_running_heads(tmp_path):
    document = read_document(
        make_pdf(tmp_path / "report.pdf", [[*PAGE, f"It was {word}."] for word in ["true", "old", "new", "odd"]])
    )
    texts = [sentence.text for sentence in document.sentences]
    assert "The participants of the trial were randomised to walk or to rest in equal numbers." in texts
    assert "Journal of Knees" not in " ".join(texts)
    assert document.sentences[-1].page == 4


LEFT = [
    "Methods",
    *(f"The walkers of part {word} were randomised to" for word in ("a", "b", "c", "d", "e", "f", "g", "h")),
]
RIGHT = [f"rest after part {word} of the trial was over." for word in ("i", "j", "k", "l", "m", "n", "o", "p", "q")]


def test_columns_that_a_pdf_draws_line_by_line_are_read_one_after_the_other(tmp_path):
    rows = [
        (x, 700 - 12 * number, 9, text)
        for number, pair in enumerate(zip(LEFT, RIGHT, strict=True))
        for x, text in zip((50, 310), pair, strict=True)
    ]
    text = " ".join(s.text for s in read_document(place_pdf(tmp_path / "two.pdf", [rows])).sentences)
    assert text.index("part h were") < text.index("part i of")


@pytest.mark.parametrize("authors_first", [False, True])
def test_the_title_of_a_pdf_is_what_is_largest_above_the_text(tmp_path, authors_first):
    authors = [(50, 780 if authors_first else 690, 10, "A Walker, B Rester, University of Nowhere, Nowhere")]
    title = [(50, 740, 18, "Walking for knees:"), (50, 718, 18, "a randomised trial of two groups")]
    body = [(50, 640 - 12 * n, 10, line) for n, line in enumerate(PAGE[1:])]
    lines = [*authors, *title, *body] if authors_first else [*title, *authors, *body]
    document = read_document(place_pdf(tmp_path / "title.pdf", [lines]))
    assert document.title == "Walking for knees: a randomised trial of two groups"


@pytest.mark.parametrize("apart", [False, True])
def test_line_numbers_of_a_manuscript_are_left_out_and_counted(tmp_path, apart):
    lines = [*PAGE[1:], *(f"Then the walkers walked {word} and rested." for word in ("on", "off", "up", "down"))]
    numbered = [
        part
        for n, line in enumerate(lines, 1)
        for part in (
            [(30, 760 - 14 * n, 8, n), (60, 760 - 14 * n, 10, line)]
            if apart
            else [(60, 760 - 14 * n, 10, f"{n} {line}")]
        )
    ]
    document = read_document(place_pdf(tmp_path / "numbered.pdf", [numbered]))
    assert "The participants of the trial were randomised to walk or to rest in equal numbers." in [
        s.text for s in document.sentences
    ]
    assert "9 line numbers were left out." in document.warnings


def test_a_banner_that_is_drawn_over_the_page_is_left_out_and_sentences_stay_whole(tmp_path):
    banner = (60, 40, 8, "Preprint posted on 1 May 2020; not certified by peer review.")
    pages = [
        [
            (50, 300, 10, "Methods"),
            (50, 288, 10, f"The {word} list was made by a computer, and it was kept by the"),
            banner,
            (50, 276, 10, f"pharmacy until the last patient of the {word} site was randomised and it was over."),
        ]
        for word in ("first", "second", "third")
    ]
    texts = [s.text for s in read_document(place_pdf(tmp_path / "banner.pdf", pages)).sentences]
    assert not any("Preprint" in text for text in texts)
    assert any(text.startswith("The first list") and text.endswith("it was over.") for text in texts)


def test_an_encrypted_pdf_is_refused(tmp_path):
    with pytest.raises(DocumentError, match=r"is encrypted\. Save a copy without a password"):
        read_document(make_pdf(tmp_path / "secret.pdf", [PAGE], password="secret"))


def test_a_scanned_pdf_is_refused(tmp_path):
    with pytest.raises(DocumentError, match=r"0 letters on 3 pages: it is a scan\. Run text recognition"):
        read_document(make_pdf(tmp_path / "scan.pdf", [[]] * 3))


def test_two_thousand_pages_are_refused_unread(tmp_path, monkeypatch):
    path = make_pdf(tmp_path / "thesis.pdf", [["page"]] * 2000)
    pypdf = pytest.importorskip("pypdf")
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: pytest.fail("a page was read"))
    with pytest.raises(DocumentError, match="2000 pages; at most 400"):
        read_document(path)


def test_a_pdf_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "MAX_PDF_SECONDS", -1)
    with pytest.raises(DocumentError, match=r"at page 1 of 2\. Pass it as docx or text"):
        read_document(make_pdf(tmp_path / "slow.pdf", [PAGE, PAGE]))


def test_rows_of_tables_in_a_pdf_are_left_out_and_counted(tmp_path):
    rows = ["Table 1. Baseline characteristics of the walkers of the trial.", "Age in years 54.2 55.0 0.45 0.12 12"]
    document = read_document(
        make_pdf(tmp_path / "report.pdf", [[*PAGE[:4], *rows, *PAGE[4:], f"It was {n}."] for n in "abc"])
    )
    texts = [sentence.text for sentence in document.sentences]
    assert rows[0] in texts
    assert not any("54.2" in text for text in texts)
    assert "3 lines look like rows of tables and were not read." in document.warnings


def test_a_text_of_two_thousand_pages_is_refused(tmp_path):
    pages = "The patients were randomised to one of the groups, e.g. A or B, by the staff of the trial.\n" * 22_000
    with pytest.raises(DocumentError, match=r"[\d,]+ letters; at most 2,000,000"):
        read_document(write(tmp_path, "thesis.txt", pages))


def test_more_sentences_than_a_report_has_are_refused(tmp_path):
    with pytest.raises(DocumentError, match="6001 sentences; at most 6000"):
        read_document(write(tmp_path, "thesis.txt", "We met the patients of the trial.\n\n" * 6001))


@pytest.mark.parametrize("suffix", [".txt", ".pdf", ".docx", ".xml", ".md"])
def test_binary_junk_is_refused_in_every_format(tmp_path, suffix):
    junk = bytes(range(256)) * 40
    with pytest.raises(DocumentError, match=r"junk\.\w+ "):
        read_document(write(tmp_path, f"junk{suffix}", junk))


@pytest.mark.parametrize("suffix", [".txt", ".md", ".xml", ".pdf", ".docx"])
def test_a_file_that_was_cut_off_is_refused_or_read_as_far_as_it_goes(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pdf":
        make_pdf(whole, [[*PAGE, "It was true."]] * 4)
    elif suffix == ".docx":
        file = pytest.importorskip("docx").Document()
        file.add_paragraph("The walkers were randomised to the walk or to the rest group.")
        file.save(str(whole))
    else:
        pytest.importorskip("lxml")
        write(tmp_path, whole.name, JATS if suffix == ".xml" else MARKDOWN)
    read = read_document(whole).sentences
    data = whole.read_bytes()
    for share in (0.3, 0.6, 0.9):
        cut = write(tmp_path, f"cut{suffix}", data[: int(len(data) * share)])
        if suffix in (".txt", ".md"):
            part = read_document(cut).sentences
            assert [s.text for s in part[:-1]] == [s.text for s in read[: len(part) - 1]]
        else:
            with pytest.raises(DocumentError, match=rf"cut{suffix} .*\. (Download|Print|Save|Run|Pass)"):
                read_document(cut)


@pytest.mark.parametrize("name", ["report.rtf", "report"])
def test_an_unknown_format_is_named_with_the_known_ones(tmp_path, name):
    with pytest.raises(DocumentError, match=r"is not a known format; pass one of \.txt"):
        read_document(write(tmp_path, name, "text"))


def test_another_language_is_refused(tmp_path):
    german = "Die Patienten wurden zufällig einer der beiden Gruppen zugeteilt und über zwölf Wochen behandelt. " * 10
    with pytest.raises(DocumentError, match="does not look English"):
        read_document(write(tmp_path, "bericht.txt", german))


def test_what_is_not_a_trial_is_doubted(tmp_path):
    text = "Methods\n\nWe looked at the records of the hospital for all of the patients with a fracture.\n" * 10
    document = read_document(write(tmp_path, "cohort.txt", text))
    assert any("may not be a report of a randomised trial" in warning for warning in document.warnings)


def test_an_xml_bomb_is_refused_unexpanded(tmp_path):
    pytest.importorskip("lxml")
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE article [<!ENTITY l0 "lol">{entities}]><article><body><p>&l9;</p></body></article>'
    with pytest.raises(DocumentError, match=r"entities|well-formed"):
        read_document(write(tmp_path, "bomb.xml", bomb))


def test_an_external_entity_is_not_fetched(tmp_path):
    pytest.importorskip("lxml")
    secret = write(tmp_path, "secret.txt", "do not read me")
    text = f'<!DOCTYPE article [<!ENTITY x SYSTEM "file://{secret}">]><article><body><p>The &x; of it.</p></body></article>'
    with pytest.raises(DocumentError, match="entities"):
        read_document(write(tmp_path, "spy.xml", text))


def test_a_zip_bomb_is_refused_before_it_is_expanded(tmp_path):
    pytest.importorskip("docx")
    path = tmp_path / "bomb.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"word/{number}.xml", b"0" * 80_000_000)
    with pytest.raises(DocumentError, match="expands to 240,000,000 bytes"):
        read_document(path)


def test_a_pdf_bomb_is_refused_before_it_is_expanded(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, NameObject

    writer = pypdf.PdfWriter()
    page, stream = writer.add_blank_page(595, 842), DecodedStreamObject()
    stream.set_data(b"BT (the participants of the trial) Tj ET " * 2_000_000)
    page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())
    writer.write(tmp_path / "bomb.pdf")
    assert (tmp_path / "bomb.pdf").stat().st_size < 1_000_000
    with pytest.raises(DocumentError, match=r"bomb\.pdf "):
        read_document(tmp_path / "bomb.pdf")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DocumentError, match="40,000,001 bytes"):
        read_document(path)


@pytest.mark.parametrize("text", ["", "\n\n", "﻿"])
def test_an_empty_file_holds_no_sentence(tmp_path, text):
    with pytest.raises(DocumentError, match="holds no sentence"):
        read_document(write(tmp_path, "empty.txt", text))


@pytest.mark.parametrize(
    "line", ["2 | METHODS", "II. METHODS", "2. Methods", "2: Methods", "2) Methods", "B. Methods", "METHODS"]
)
def test_a_heading_is_one_in_every_numbering(tmp_path, line):
    document = read_document(
        write(tmp_path, "a.txt", f"Walking for knees\n\n{line}\n\nThe list was made by a computer.\n")
    )
    assert section_kind(document.sentences[-1].section) == "methods"


def test_roman_numbers_do_not_hide_the_kind_of_a_section():
    kinds = [section_kind([header]) for header in ("III. RESULTS", "IV. Discussion", "I. INTRODUCTION")]
    assert kinds == ["results", "discussion", "introduction"]
    assert heading_level("A. B. Smith wrote it") == 0


@pytest.mark.parametrize("top", ["Walking: a trial\n\n", '---\ntitle: "Walking: a trial"\nauthor: A. Nobody\n---\n\n'])
def test_the_title_of_markdown_stands_on_the_first_line_or_in_the_front_matter(tmp_path, top):
    document = read_document(write(tmp_path, "a.md", f"{top}## Methods\n\nThe walkers were randomised.\n"))
    assert document.sentences[0].section == ("Title",)
    assert document.title == "Walking: a trial"
    assert "Nobody" not in " ".join(sentence.text for sentence in document.sentences)


def test_references_without_a_heading_are_no_text(tmp_path):
    listed = "".join(f"{n}. Nobody A, Someone B. Randomised knees. J Knees 200{n};1:{n}-9.\n" for n in range(1, 5))
    text = f"Walking\n\nMethods\n\nThe walkers were randomised in 2014.\n\n{listed}"
    document = read_document(write(tmp_path, "a.txt", text))
    assert document.sentences[-1].text == "The walkers were randomised in 2014."
    assert "4 references without a heading were left out." in document.warnings


def test_references_over_several_lines_are_no_headings_and_no_text(tmp_path):
    listed = (
        "1 Smith AB. Walking and pain\n2 Jones C. A computer made it\nin trials. J 2010;1:1.\n3 Brown D, Lee E. Rest.\n"
    )
    document = read_document(
        write(tmp_path, "a.txt", f"Walking\n\nMethods\n\nThe walkers were randomised.\n\n{listed}")
    )
    assert document.sentences[-1].text == "The walkers were randomised."


FRONT = """<article><front><article-meta><title-group><article-title>Walking for knees</article-title>
<subtitle>a randomised trial</subtitle></title-group>
<funding-group><award-group><funding-source>The Knee Fund</funding-source><award-id>K1</award-id></award-group></funding-group>
<custom-meta-group><custom-meta><meta-name>Trial registration</meta-name><meta-value>ISRCTN00000000</meta-value></custom-meta>
</custom-meta-group></article-meta></front><body><sec><title>Methods</title>
<def-list><def-item><term>Primary outcome</term><def><p>pain of the knee at 12 weeks</p></def></def-item></def-list>
<table-wrap><table><tr><td>Inclusion</td><td>adults with pain on most days of the month</td></tr>
<tr><td>Age</td><td>54</td><td>55</td><td>56</td></tr></table></table-wrap></sec></body>
<sub-article><body><p>A reviewer says that it is not to be read.</p></body></sub-article></article>"""


def test_jats_gives_subtitle_front_matter_definitions_and_tables_of_words(tmp_path):
    document = read_document(write(tmp_path, "a.xml", FRONT))
    texts = [sentence.text for sentence in document.sentences]
    assert document.title == "Walking for knees: a randomised trial"
    assert "Funding: The Knee Fund, K1." in texts
    assert "Trial registration: ISRCTN00000000." in texts
    assert "Primary outcome: pain of the knee at 12 weeks" in texts
    assert "Inclusion: adults with pain on most days of the month" in texts
    assert not any("54" in text or "reviewer" in text for text in texts)
    assert any("sub-articles" in warning for warning in document.warnings)


WORD_BODY = """<w:p xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:r>
<w:t xml:space="preserve">The list was </w:t>
</w:r><w:ins w:id="1"><w:r><w:t xml:space="preserve">kept by a pharmacist</w:t></w:r></w:ins>
<w:del w:id="2"><w:r><w:delText>lost</w:delText></w:r></w:del>
<w:moveFrom w:id="3"><w:r><w:t>moved away</w:t></w:r></w:moveFrom><w:r><w:instrText>PAGE</w:instrText></w:r>
<w:fldSimple w:instr="REF x"><w:r><w:t xml:space="preserve"> of block 4</w:t></w:r></w:fldSimple><w:r><w:t>.</w:t></w:r>
<w:r><w:pict><w:txbxContent><w:p><w:r>
<w:t>The box tells of the randomised walkers.</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>"""
WORD_CONTROL = """<w:sdt xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:sdtContent><w:p><w:r>
<w:t>The control holds the power of the trial.</w:t></w:r></w:p></w:sdtContent></w:sdt>"""


def test_word_gives_what_it_shows_once_all_changes_are_accepted(tmp_path):
    docx = pytest.importorskip("docx")
    file = docx.Document()
    file.add_heading("Walking for knees", 0)
    file.add_heading("Methods", 1)
    for xml in (WORD_BODY, WORD_CONTROL):
        file.element.body.insert(len(file.element.body) - 1, docx.oxml.parse_xml(xml))
    table = file.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("Inclusion", "adults with pain on most days", "Age", "54"), strict=True):
        cell.text = text
    file.save(str(tmp_path / "a.docx"))
    document = read_document(tmp_path / "a.docx")
    assert [sentence.text for sentence in document.sentences[2:]] == [
        "The list was kept by a pharmacist of block 4.",
        "The box tells of the randomised walkers.",
        "The control holds the power of the trial.",
        "Inclusion: adults with pain on most days",
    ]
    assert "1 rows of tables were not read." in document.warnings


def test_footnotes_of_word_are_read(tmp_path):
    docx = pytest.importorskip("docx")
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part

    file = docx.Document()
    file.add_paragraph("The walkers were randomised to walk or to rest.")
    notes = """<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:footnote w:id="2"><w:p>
<w:r>
<w:t>The trial was funded by a grant.</w:t></w:r></w:p></w:footnote></w:footnotes>"""
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    part = Part(PackURI("/word/footnotes.xml"), kind, notes.encode(), file.part.package)
    file.part.relate_to(part, RELATIONSHIP_TYPE.FOOTNOTES)
    file.save(str(tmp_path / "a.docx"))
    assert read_document(tmp_path / "a.docx").sentences[-1].text == "The trial was funded by a grant."


LATEX = r"""\documentclass{article}
\title{Walking for \emph{knees}: a randomised trial}
\author{A. Walker}
\begin{document}
\maketitle
\begin{abstract}
\textbf{Background:} Knees hurt. \textbf{Methods:} We randomised 90 adults.
\end{abstract}
\section{Methods}
\subsection{Randomisation}
A statistician~made the list \cite{a} with 80\% power ($\alpha = 0.05$).% a comment
\input{statistics}
\begin{itemize}
\item Adults of 40 years were eligible.
\end{itemize}
\begin{table}\caption{Outcomes and times.}\begin{tabular}{ll}
Primary outcome & Pain at twelve weeks on a scale \\
Age & 54.2 (10.1) \\
\end{tabular}\end{table}
\begin{thebibliography}{9}\bibitem{a} Smith. Not read.\end{thebibliography}
\end{document}
"""

HTML = """<!doctype html><html><head><title>x</title><script>not read</script></head><body><nav>Menu, not read</nav><article>
<h1>Walking for <i>knees</i>: a randomised trial</h1><h2>Abstract</h2><p><b>Background:</b> Knees hurt. <b>Methods:</b> We
randomised 90 adults.</p><h2>Methods</h2><h3>Randomisation</h3><p>A statistician made the list with 80% power (α = 0.05).</p>
<ul><li>Adults of 40 years were eligible.</li></ul><table><caption>Outcomes and times.</caption><tr><td>Primary outcome</td>
<td>Pain at twelve weeks on a scale</td></tr><tr><td>54.2</td></tr></table><h2>References</h2><ol><li>Smith. Not read.</li></ol>
</article><footer>Imprint, not read</footer></body></html>"""


@pytest.mark.parametrize(("name", "text"), [("report.tex", LATEX), ("report.html", HTML)])
def test_latex_and_html_give_title_sections_lists_and_tables_of_words(tmp_path, name, text):
    document = read_document(write(tmp_path, name, text))
    found = {sentence.text: sentence.section for sentence in document.sentences}
    assert document.title == "Walking for knees: a randomised trial"
    assert found["Methods: We randomised 90 adults."] == ("Abstract", "Methods")
    assert found["A statistician made the list with 80% power (α = 0.05)."] == ("Methods", "Randomisation")
    assert found["Adults of 40 years were eligible."] == ("Methods", "Randomisation")
    assert {"Outcomes and times.", "Primary outcome: Pain at twelve weeks on a scale"} <= set(found)
    assert not any("ot read" in sentence for sentence in found)
    assert "1 rows of tables were not read." in document.warnings


def test_a_file_that_latex_includes_is_named_as_not_read(tmp_path):
    warnings = read_document(write(tmp_path, "report.tex", LATEX)).warnings
    assert r"1 files that \input names were not read." in warnings


@pytest.mark.parametrize(
    ("paragraph", "section"),
    [
        ("Sample size. We needed 82 people.", ("Methods", "Sample size")),
        ("Randomisation: A computer made the list.", ("Methods", "Randomisation")),
        ("Results. The walkers did better.", ("Results",)),
        ("Consent was obtained. We met them.", ("Methods",)),
    ],
)
def test_a_heading_at_the_start_of_its_paragraph_is_one(tmp_path, paragraph, section):
    text = f"# Walking for knees\n\n## Methods\n\nWe walked.\n\n{paragraph}\n\nThen we rested.\n"
    sentences = read_document(write(tmp_path, "a.md", text)).sentences
    assert [sentence.section for sentence in sentences[-2:]] == [section, section]
