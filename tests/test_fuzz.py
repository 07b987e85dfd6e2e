"""Mutated inputs of every format, the same in every run: only the reader's own error leaves; what reads agrees with itself."""

import logging
import random
import warnings
from pathlib import Path

import pytest

pytest.importorskip("pydicom")
pytest.importorskip("lxml")

from ctfm.fuzz.mutate import mutate
from ctfm.fuzz.targets import TARGETS

NUM_INPUTS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_sound_inputs_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    for error in ("ctfm.fuzz.targets.VolumeError", "ctfm.fuzz.targets.DocumentError"):
        monkeypatch.setattr(error, AssertionError)  # so that a refusal fails
    for index, content in enumerate(target.seeds()):
        (tmp_path / str(index)).mkdir()
        target.check(content, tmp_path / str(index))


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_read_or_refused(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, chance = TARGETS[name], random.Random(f"ctfm {name}")
    seeds = target.seeds()
    caplog.set_level(logging.CRITICAL, "pypdf")  # what it says of the damage
    for index in range(NUM_INPUTS):
        (tmp_path / str(index)).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pypdf's, of the damage
            target.check(mutate(chance, seeds, target.words), tmp_path / str(index))


W = b'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jats", b"<?xml version='1.0' encoding='nonsense'?><article/>"),
        ("docx", b"<w:document " + W + b"/>"),
        ("docx", b"<w:document " + W + b"><w:body>"),
        ("docx", b"<w:p " + W + b"/>"),
        ("docx", b"<w:document " + W + b"><w:body><w:p><w:pPr><w:pStyle/></w:pPr></w:p></w:body></w:document>"),
        (
            "docx",
            b"<w:document "
            + W
            + b"><w:body><w:p><w:pPr><w:pStyle w:val='a&quot;b'/></w:pPr></w:p></w:body></w:document>",
        ),
        (
            "pdf",
            b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 1 0 R /Kids [1 0 R] >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF",
        ),
    ],
)
def test_what_fuzzing_found_is_an_error_of_the_reader(name: str, content: bytes, tmp_path: Path) -> None:
    TARGETS[name].check(content, tmp_path)


def test_the_same_seed_gives_the_same_inputs() -> None:
    runs = [[mutate(random.Random(7), [b"sound " * 40], [b"word"]) for _ in range(20)] for _ in range(2)]
    assert runs[0] == runs[1]
