"""The command line, run as a user runs it."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm import (
    CTFMForImageClassification,
    CTFMImageProcessor,
    CTFMModel,
    CTFMProcessor,
    CTFMVisionModel,
    read_volume,
)
from ctfm.__main__ import COMMANDS, main
from ctfm.embedding import Part
from ctfm.phantom.dicom_series import write_dicom_series
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from tests.local_hub import LocalHub
from tests.phantoms import canonical_affine, phantom_hu, phantom_volume
from tests.tiny import tiny_config, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CTFMVisionModel(tiny_config().vision_config).save_pretrained(folder)
    CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native").save_pretrained(folder)
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_inspect_says_what_was_read_and_prints_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "scan")
    assert main(["inspect", str(tmp_path / "scan")]) == 0
    text = capsys.readouterr().out
    assert "x".join(map(str, phantom_hu().shape)) in text.replace(" ", "")
    assert "warnings     none" in text
    assert main(["inspect", str(tmp_path / "scan"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == list(phantom_hu().shape)
    assert facts["source"]["kind"] == "dicom"
    np.testing.assert_allclose(facts["affine"], canonical_affine(), atol=1e-4)


def test_inspect_answers_2_and_one_clear_line_for_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4 nothing of use")
    for scan in ("letter.pdf", "nowhere"):
        done = subprocess.run(
            [sys.executable, "-m", "ctfm", "inspect", str(tmp_path / scan)], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("ctfm: "), done.stderr
        assert scan in done.stderr


def test_series_choice_is_asked_for_and_taken(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number, uid in enumerate(("1.2.3.4", "1.2.3.5")):
        hu = phantom_hu(seed=number)
        write_dicom_series(hu[: 20 + number], canonical_affine(), tmp_path / "scan" / str(number), series_uid=uid)
    assert main(["inspect", str(tmp_path / "scan")]) == 2
    assert "1.2.3.5" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "scan"), "--series", "1.2.3.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"][0] == 21


def test_embed_writes_features_and_one_row_a_scan_and_goes_on_past_a_bad_one(tmp_path: Path, checkpoint: Path) -> None:
    studies = tmp_path / "studies"
    write_dicom_series(phantom_hu(), canonical_affine(), studies / "a" / "dicom")
    phantom_volume().to_nifti(_made(studies / "b.nii.gz"))
    (studies / "c.nii.gz").write_bytes(b"broken")
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--model", str(checkpoint), "--dense", "--precision", "float32"]
    assert main(["embed", str(studies), *arguments]) == 1
    found = {Path(row["scan"]).name: row for row in rows(out)}
    assert {name: row["status"] for name, row in found.items()} == {
        "dicom": "done",
        "b.nii.gz": "done",
        "c.nii.gz": "failed",
    }
    assert found["c.nii.gz"]["note"]
    dicom, nifti = (load_file(out / found[name]["features"]) for name in ("dicom", "b.nii.gz"))
    assert set(dicom) == {"scan_features", "crop_embeds", "dense_features", "crop_grid", "crop_size", "grid_affine"}
    torch.testing.assert_close(dicom["scan_features"], nifti["scan_features"], rtol=0, atol=2e-5)

    processor, model = CTFMImageProcessor.from_pretrained(checkpoint), CTFMVisionModel.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = model(**processor(studies / "b.nii.gz")).pooler_output[0]
    torch.testing.assert_close(nifti["scan_features"], expected, rtol=0, atol=2e-5)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_embed_does_nothing_twice_and_what_changed_again(tmp_path: Path, checkpoint: Path) -> None:
    scan, out = tmp_path / "scan.nii", tmp_path / "out"
    phantom_volume().to_nifti(scan)
    arguments = ["embed", str(scan), "--out", str(out), "--model", str(checkpoint)]
    assert main(arguments) == 0
    (first,) = (out / row["features"] for row in rows(out))
    written = first.stat().st_mtime_ns
    assert main(arguments) == 0
    assert first.stat().st_mtime_ns == written
    first.unlink()
    assert main(arguments) == 0
    assert first.is_file()
    volume = phantom_volume()
    volume.to_nifti(scan, volume.hu[::-1].copy())
    assert main(arguments) == 0
    (row,) = rows(out)
    assert row["features"] != first.name
    assert main([*arguments, "--spacing", "coarse"]) == 0
    assert len(rows(out)) == 1
    assert len(list(out.glob("*.safetensors"))) == 3


def test_embed_says_in_which_precision_and_takes_no_features_of_another(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    out, found = tmp_path / "out", {}
    for precision in ("auto", "float32", "bfloat16"):
        arguments = ["--out", str(out), "--model", str(checkpoint), "--precision", precision]
        assert main(["embed", str(tmp_path / "scan.nii"), *arguments]) == 0
        (row,) = rows(out)
        found[precision] = row["precision"], load_file(out / row["features"])["scan_features"]
    assert f"computing in {found['auto'][0]}, which --precision changes" in capsys.readouterr().err
    exact, rounded = found["float32"][1], found["bfloat16"][1]
    assert not torch.equal(exact, rounded)
    for features in (rounded, found["auto"][1]):
        assert torch.nn.functional.cosine_similarity(exact, features, dim=0) > 0.999


def test_embed_shows_on_a_terminal_how_far_it_is(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    arguments = ["embed", str(tmp_path / "scan.nii"), "--out", str(tmp_path / "out"), "--model", str(checkpoint)]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(arguments) == 0
    assert "1/1" in capsys.readouterr().err


def test_embed_resumes_after_a_run_that_was_killed_while_it_wrote(tmp_path: Path, checkpoint: Path) -> None:
    scan, out = tmp_path / "scan.nii", tmp_path / "out"
    phantom_volume().to_nifti(scan)
    arguments = ["embed", str(scan), "--out", str(out), "--model", str(checkpoint)]
    assert main(arguments) == 0
    (first,) = rows(out)
    whole = (out / "manifest.csv").read_text()
    for torn in ("", whole[:-20], whole + whole.splitlines()[1][:9], "other,columns\n1,2\n"):
        (out / "manifest.csv").write_text(torn)
        assert main(arguments) == 0
        assert [row["features"] for row in rows(out)] == [first["features"]]


def test_many_processes_share_a_folder_and_lose_no_scan_when_one_is_killed(tmp_path: Path, checkpoint: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "out"
    for number in range(6):
        phantom_volume(seed=number).to_nifti(_made(studies / f"{number}.nii"))
    command = [sys.executable, "-m", "ctfm", "embed", str(studies), "--out", str(out), "--model", str(checkpoint)]

    def start(rank: int) -> subprocess.Popen:
        return subprocess.Popen([*command, "--rank", str(rank), "--world-size", "2"], stderr=subprocess.PIPE, text=True)

    shares = [
        [path for path in sorted(studies.iterdir()) if Part(rank=rank, world_size=2).holds(path, None)]
        for rank in (0, 1)
    ]
    assert len(shares[0]) + len(shares[1]) == 6
    assert min(map(len, shares)) > 0
    killed = start(0)
    while not any(out.glob("*.safetensors")) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    workers = [start(rank) for rank in (1, 0, 0)]  # and two of one rank at once
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert len(made) == 6
    phantom_volume(seed=6).to_nifti(studies / "late.nii")
    assert main(command[3:]) == 0
    found = rows(out)
    assert sorted(Path(row["scan"]).name for row in found) == [*(f"{number}.nii" for number in range(6)), "late.nii"]
    assert {row["status"] for row in found} == {"done"}
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert made.items() <= now.items()  # nothing was done again
    assert kept.keys() <= now.keys()
    assert not list(out.glob("*.partial"))


def test_a_part_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for given, said in (
        (["--rank", "2", "--world-size", "2"], "--rank 2 must be from 0 to 1"),
        (["--rank", "0"], "--rank and --world-size go together"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["embed", str(tmp_path), "--out", str(tmp_path / "out"), *given])
        assert said in capsys.readouterr().err


def test_embed_takes_any_file_name_and_goes_on(tmp_path: Path, checkpoint: Path) -> None:
    phantom_volume().to_nifti(_made(tmp_path / "studies" / "scan.nii"))
    os.rename(tmp_path / "studies" / "scan.nii", os.fsencode(tmp_path / "studies") + b"/caf\xe9.nii")
    phantom_volume().to_nifti(tmp_path / "studies" / "größe.nii")
    for _ in range(2):
        assert (
            main(["embed", str(tmp_path / "studies"), "--out", str(tmp_path / "out"), "--model", str(checkpoint)]) == 0
        )
        written = (tmp_path / "out" / "manifest.csv").read_bytes()
        assert written.count(b"caf\xe9.nii") == written.count("größe.nii".encode()) == 1


def test_other_weights_in_the_same_folder_give_other_features(tmp_path: Path, checkpoint: Path) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    shutil.copytree(checkpoint, tmp_path / "model")
    arguments = [
        "embed",
        str(tmp_path / "scan.nii"),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "model"),
    ]
    assert main(arguments) == 0
    (before,) = rows(tmp_path / "out")
    CTFMVisionModel(tiny_config().vision_config).save_pretrained(tmp_path / "model")
    assert main(arguments) == 0
    (after,) = rows(tmp_path / "out")
    assert before["features"] != after["features"]


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    (tmp_path / "file").touch()
    for out, model in ((tmp_path / "out", tmp_path / "nowhere"), (tmp_path / "file", checkpoint)):
        capsys.readouterr()
        assert main(["embed", str(tmp_path / "scan.nii"), "--out", str(out), "--model", str(model)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("ctfm: ")


def test_embed_with_both_towers_also_writes_the_joint_space(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(tmp_path / "model")
    CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native").save_pretrained(tmp_path / "model")
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    arguments = [
        "embed",
        str(tmp_path / "scan.nii"),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "model"),
    ]
    assert main(arguments) == 0
    features = load_file(tmp_path / "out" / rows(tmp_path / "out")[0]["features"])
    torch.testing.assert_close(features["image_embeds"].norm(), torch.tensor(1.0))


def test_no_identifier_reaches_any_output(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    def name_patient(dataset, index: int) -> None:
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Zebrafinch^Quilla", "ID-907351", "ACC-55512"
        dataset.PatientBirthDate, dataset.InstitutionName = "19440229", "Saint Nowhere"

    scan, out = tmp_path / "scan", tmp_path / "out"
    write_dicom_series(phantom_hu(), canonical_affine(), scan, edit=name_patient)
    uid = read_first_uid(scan)
    assert main(["inspect", str(scan), "--json"]) == 0
    assert main(["inspect", str(scan)]) == 0
    assert main(["embed", str(scan), "--out", str(out), "--model", str(checkpoint)]) == 0
    assert main(["demo", str(scan), "--out", str(out), "--model", str(checkpoint)]) == 0
    captured = capsys.readouterr()
    written = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    everything = (captured.out + captured.err).encode() + written
    for secret in ("Zebrafinch", "Quilla", "907351", "ACC-55512", "19440229", "Nowhere", uid):
        assert secret.encode() not in everything, secret


def read_first_uid(folder: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(next(file for file in sorted(folder.rglob("*")) if file.is_file())).SeriesInstanceUID)


def test_demo_grades_the_findings_that_a_checkpoint_is_calibrated_for(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flat = {"slope": 0.0, "intercept_variance": 0.0, "slope_variance": 0.0, "covariance": 0.0}
    limits = {"unsure_low": 0.2, "unsure_high": 0.8}
    torch.manual_seed(0)
    model = CTFMModel(tiny_config())
    model.config.calibration = {
        name: flat | limits | {"intercept": intercept}
        for name, intercept in (("Ascites", -3.0), ("Lung nodule", 0.0), ("Emphysema", 3.0), ("Kidney stone", -4.0))
    }
    model.save_pretrained(tmp_path / "dual")
    image_processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native")
    CTFMProcessor(image_processor, tiny_tokenizer()).save_pretrained(tmp_path / "dual")
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    arguments = ["demo", str(tmp_path / "scan.nii"), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "dual")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("findings"))
    assert [line[13:] for line in lines[first : first + 3]] == [
        "0.95 (0.95 to 0.95)  Emphysema: present",
        "0.50 (0.50 to 0.50)  Lung nodule: not sure",
        "absent: Ascites, Kidney stone",
    ]


def test_demo_draws_a_scan(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    from PIL import Image

    phantom_volume().to_nifti(tmp_path / "scan.nii")
    out = tmp_path / "pictures"
    assert main(["demo", str(tmp_path / "scan.nii"), "--out", str(out), "--model", str(checkpoint)]) == 0
    text = capsys.readouterr().out
    for said in ("geometry", "HU", "time", "crops", "not for diagnosis"):
        assert said in text
    for name in ("planes.png", "components.png"):
        picture = np.asarray(Image.open(out / name))
        assert picture.std() > 10, f"{name} is one colour"


@pytest.mark.parametrize(("scan", "expected"), [("", []), ("my scans/a.zip", ["my scans/a.zip"])])
def test_make_demo_gives_the_scan_on_as_one_word(scan: str, expected: list[str]) -> None:
    command = ["make", "--dry-run", "--old-file=.venv/.done", "demo", "SPACE=no", f"SCAN={scan}"]
    root = Path(__file__).parent.parent
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    (words,) = (shlex.split(line) for line in said.splitlines() if "-m ctfm demo" in line)
    assert words[4:] == expected


def test_weights_that_are_random_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    arguments = ["embed", str(tmp_path / "scan.nii"), "--out", str(tmp_path / "out"), "--model", "untrained"]
    assert main([*arguments, "--spacing", "native"]) == 0
    assert "RANDOM" in capsys.readouterr().err
    assert rows(tmp_path / "out")[0]["model"] == "untrained"


def test_the_phantom_is_read_as_it_was_made(tmp_path: Path) -> None:
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, phantom_hu())
    np.testing.assert_allclose(volume.affine, canonical_affine(), atol=1e-4)


# ---- what is loaded, and when ----


def run_python(code: str, *arguments: str, **settings: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_help_and_inspect_load_neither_torch_nor_transformers(tmp_path: Path) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    code = """
import sys
from ctfm.__main__ import main

assert main(["--help"]) == 0
assert sys.modules.keys().isdisjoint({"argparse", "numpy", "torch", "transformers"})
assert main(["inspect", sys.argv[1]]) == 0
assert sys.modules.keys().isdisjoint({"torch", "transformers"})
"""
    assert "geometry" in run_python(code, str(tmp_path / "scan.nii"))


def test_the_first_class_that_is_touched_registers_all_with_the_auto_classes(checkpoint: Path) -> None:
    code = """
import sys
import ctfm

ctfm.read_volume
assert "transformers" not in sys.modules
assert set(ctfm.__all__) <= set(dir(ctfm))
ctfm.CTFMVisionConfig
from transformers import AutoImageProcessor, AutoModel

assert type(AutoModel.from_pretrained(sys.argv[1])) is ctfm.CTFMVisionModel
assert type(AutoImageProcessor.from_pretrained(sys.argv[1])) is ctfm.CTFMImageProcessor
for name in ctfm.__all__:
    getattr(ctfm, name)
try:
    ctfm.CTFMNothing
except AttributeError as error:
    assert "CTFMNothing" in str(error)
"""
    run_python(code, str(checkpoint))


NAMES = [name for _, commands in COMMANDS.values() for name in commands]


def test_help_has_one_line_for_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_every_command_describes_its_arguments_under_its_own_name(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([name, "--help"])
    assert leaving.value.code == 0
    assert f"usage: ctfm {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["embedd"], ["--verbose"]])
def test_what_is_no_command_answers_2_and_lists_the_commands(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "inspect" in printed.err
    assert printed.err.splitlines()[-1].startswith("ctfm: ")


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"ctfm \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


# ---- which weights ----


def test_a_model_without_a_trained_joint_space_has_no_such_features_and_the_manifest_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CTFMModel(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path / "dual")
    CTFMForImageClassification.from_pretrained(tmp_path / "dual").save_pretrained(tmp_path / "findings")
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    outputs = {}
    for name in ("dual", "findings"):
        CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native").save_pretrained(tmp_path / name)
        arguments = ["--out", str(tmp_path / name / "out"), "--model", str(tmp_path / name)]
        assert main(["embed", str(tmp_path / "scan.nii"), *arguments]) == 0
        (row,) = rows(tmp_path / name / "out")
        features = load_file(tmp_path / name / "out" / row["features"])
        outputs[name] = row["outputs"].split()
        assert set(outputs[name]) == features.keys() - {"crop_grid", "crop_size", "grid_affine"}
        assert {features[output].dtype for output in outputs[name]} == {torch.float32}
    assert outputs == {
        "dual": ["scan_features", "crop_embeds", "image_embeds"],
        "findings": ["scan_features", "crop_embeds"],
    }


def test_a_checkpoint_that_lacks_weights_is_refused(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(checkpoint / "model.safetensors")
    weights.pop("local_model.norm.weight")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    arguments = ["--out", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    assert main(["embed", str(tmp_path / "scan.nii"), *arguments]) == 2
    assert "lacks 1 weights, local_model.norm.weight" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's way of sending LFS
def test_a_new_revision_on_the_hub_is_computed_anew(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    command = "import sys; from ctfm.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["embed", str(tmp_path / "scan.nii"), "--out", str(tmp_path / "out"), "--model", "org/ctfm"]
    found = []
    with LocalHub() as hub:
        api = HfApi(hub.url, token="hf_test")
        api.create_repo("org/ctfm")
        for folder in (checkpoint, checkpoint, tmp_path / "other"):
            if not folder.is_dir():
                shutil.copytree(checkpoint, folder)
                CTFMVisionModel(tiny_config().vision_config).save_pretrained(folder)
            api.upload_folder(folder_path=folder, repo_id="org/ctfm")
            run_python(command, *arguments, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_XET="1")
            (row,) = rows(tmp_path / "out")
            found.append((row["features"], row["model"]))
    assert len({features for features, _ in found}) == len({model for _, model in found})
    assert found[1] != found[2]
    assert all(model.startswith("org/ctfm@") for _, model in found)
