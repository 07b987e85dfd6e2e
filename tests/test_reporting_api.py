"""The public names of `ctfm.reporting`, as its README gives them, and what the package needs."""

import ast
import sys
from pathlib import Path

import ctfm.reporting
import pytest
from ctfm.reporting import check, label
from ctfm.reporting.check import DEFAULT_CHECKPOINT, Report
from ctfm.reporting.checklist import load_checklist

CONSORT, SPIRIT = load_checklist("consort").items, load_checklist("spirit").items

ROOM = Path(ctfm.reporting.__file__).parent
EXAMPLE = Path(__file__).parent / "fixtures" / "reporting" / "walking.md"
PROTOCOL = EXAMPLE.with_name("walking_protocol.md")
needs_checkpoint = pytest.mark.skipif(
    not (DEFAULT_CHECKPOINT / "model.safetensors").is_file(), reason=f"no checkpoint at {DEFAULT_CHECKPOINT}"
)


@needs_checkpoint
def test_check_and_label_come_from_the_package_itself():
    report = check(EXAMPLE)
    assert isinstance(report, Report)
    sentences = report.document.sentences
    found = label([s.text for s in sentences], [s.section for s in sentences])
    assert [tuple(numbers) for numbers in found] == list(report.labels)


@needs_checkpoint
def test_labels_are_numbers_of_the_checklist_that_was_asked_for():
    document = check(PROTOCOL, protocol=True).document
    sentences, sections = [s.text for s in document.sentences], [s.section for s in document.sentences]

    def numbers(checklist):
        return {number for found in label(sentences, sections, checklist=checklist) for number in found}

    consort, new, spirit = numbers("consort"), numbers("consort-2025"), numbers("spirit")
    assert consort <= {item.number for item in CONSORT}
    assert spirit <= {item.number for item in SPIRIT}
    assert new <= {item.number for item in load_checklist("consort-2025").items}
    assert "24" in spirit  # ethics approval, which CONSORT does not ask for


@needs_checkpoint
def test_labels_of_a_protocol_are_those_of_its_check():
    report = check(PROTOCOL, protocol=True)
    sentences = report.document.sentences
    found = label([s.text for s in sentences], [s.section for s in sentences], checklist="spirit")
    assert [tuple(numbers) for numbers in found] == list(report.labels)


def test_an_unknown_checklist_is_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match='checklist "prisma" must be one of abstracts, cluster, consort, consort-2025'):
        label(["We walked."], checklist="prisma", checkpoint=tmp_path)


def test_the_room_imports_nothing_but_what_its_readme_lists():
    listed = (ROOM / "README.md").read_text()
    names = {"docx": "python-docx", "sklearn": "scikit-learn"}
    for path in sorted(ROOM.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path.name} imports from outside reporting/"
                continue
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in (name.partition(".")[0] for name in modules):
                is_listed = names.get(module, module) in listed and module != "ctfm"
                assert module in sys.stdlib_module_names or is_listed, f"{path.name} imports {module}"
