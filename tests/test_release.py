"""A release over HTTP to a small Hub on this machine: what is sent, what is refused, and what an interruption leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ctfm import CTFMImageProcessor, CTFMModel, CTFMProcessor
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.release import release
from ctfm.release.card import fill_card
from ctfm.release.release import Package, Release, ReleaseError, publish
from ctfm.release.split_weights import SHARDS, split_weights
from huggingface_hub import HfApi, ModelCard, RepoCard
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file

from tests.local_hub import LocalHub, Repository
from tests.phantoms import canonical_affine, phantom_hu
from tests.tiny import tiny_config, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's way of sending LFS
ROOT = Path(__file__).parent.parent
REPO = "org/ctfm"
METRICS = {  # made up: what these tests need is that a card and its file agree
    key: {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 100}
    for key, value in {
        "zero_shot/macro_auroc": 0.91,
        "zero_shot/Pleural effusion/auroc": 0.97,
        "zero_shot/Lung nodule/auroc": 0.71,
        "laterality/auroc": 0.83,
        "retrieval/text_to_image/R@10": 0.52,
        "retrieval/image_to_text/R@10": 0.49,
        "calibration/ece": 0.03,
    }.items()
}
RUN = {"recipe": "tiny", "seed": 0, "hours": 1.5, "hardware": "two CPU cores", "curve": [{"step": 1, "loss": 1.0}]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(hub.url, token="hf_test")


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (tmp_path / "protocols" / "findings.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return Package(repo=REPO, kind="model", folder=tmp_path)


def on_hub(repository: Repository, revision: str) -> dict[str, bytes]:
    sha = repository.find(revision)
    assert sha
    return {path: file.content for path, file in repository.commits[sha].items() if path != ".gitattributes"}


def on_disk(package: Package) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in package.files().items()}


# ---- publish ----


def test_a_release_is_one_commit_with_weights_in_lfs_and_a_tag(hub: LocalHub, api: HfApi, package: Package) -> None:
    commit = publish(api, package, "v1.0.0")
    repository = hub.repositories["models", REPO]
    assert repository.titles == ["initial commit", "v1.0.0"]
    assert repository.tags == {"v1.0.0": commit} == {"v1.0.0": repository.head}
    assert on_hub(repository, "v1.0.0") == on_disk(package)
    files = repository.commits[commit]
    assert {path for path, file in files.items() if file.is_lfs} == {"model.safetensors"}
    assert ("POST", "/api/validate-yaml") in hub.requests


def test_a_repeated_release_changes_nothing(hub: LocalHub, api: HfApi, package: Package) -> None:
    first = publish(api, package, "v1.0.0")
    hub.requests.clear()
    assert publish(api, package, "v1.0.0") == first
    assert {request for request in hub.requests if request[0] != "GET"} == {("POST", "/api/repos/create")}


@pytest.mark.parametrize(
    ("method", "path", "after", "times"),
    [
        ("POST", "/preupload/", False, 6),  # huggingface_hub asks six times
        ("PUT", "/lfs/", False, 6),
        ("POST", "/lfs-verify", False, 6),
        ("POST", "/commit/", False, 1),
        ("POST", "/commit/", True, 1),
        ("POST", "/tag/", False, 1),
        ("POST", "/tag/", True, 1),
    ],
)
def test_an_interrupted_release_leaves_no_half_and_is_finished_by_the_same_call(
    hub: LocalHub, api: HfApi, package: Package, method: str, path: str, after: bool, times: int
) -> None:
    hub.break_next(method, path, after=after, times=times)
    with pytest.raises(Exception, match=r"disconnected|while uploading"):
        publish(api, package, "v1.0.0")
    assert not hub.faults
    repository = hub.repositories["models", REPO]
    assert on_hub(repository, "main") in ({}, on_disk(package))
    assert all(on_hub(repository, tag) == on_disk(package) for tag in repository.tags)
    commit = publish(api, package, "v1.0.0")
    assert repository.titles == ["initial commit", "v1.0.0"]
    assert repository.tags == {"v1.0.0": commit}
    assert on_hub(repository, "v1.0.0") == on_disk(package)


def test_a_connection_that_breaks_once_while_weights_travel_is_taken_up_again(
    hub: LocalHub, api: HfApi, package: Package
) -> None:
    hub.break_next("PUT", "/lfs/")
    publish(api, package, "v1.0.0")
    assert on_hub(hub.repositories["models", REPO], "v1.0.0") == on_disk(package)


def test_the_next_version_replaces_and_removes_files_and_leaves_the_last_one(
    hub: LocalHub, api: HfApi, package: Package
) -> None:
    publish(api, package, "v1.0.0")
    before = on_disk(package)
    (package.folder / "protocols" / "findings.json").rename(package.folder / "protocols" / "others.json")
    (package.folder / "model.safetensors").write_bytes(b"other weights")
    publish(api, package, "v1.1.0")
    repository = hub.repositories["models", REPO]
    assert on_hub(repository, "v1.0.0") == before
    assert on_hub(repository, "main") == on_hub(repository, "v1.1.0") == on_disk(package)
    assert ".gitattributes" in repository.commits[repository.head]


@pytest.mark.parametrize("change", ["another byte", "one file more", "one file less"])
def test_a_version_that_was_published_with_other_files_is_refused(
    hub: LocalHub, api: HfApi, package: Package, change: str
) -> None:
    publish(api, package, "v1.0.0")
    if change == "another byte":
        weights = package.folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    elif change == "one file more":
        (package.folder / "config.json").write_text("{}")
    else:
        (package.folder / "model.safetensors").unlink()
    commits = list(hub.repositories["models", REPO].commits)
    with pytest.raises(ReleaseError, match=r"published as v1\.0\.0 with other files .*raise it in pyproject"):
        publish(api, package, "v1.0.0")
    assert list(hub.repositories["models", REPO].commits) == commits


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(
    hub: LocalHub, api: HfApi, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(HfApi):
        def create_commit(self, *arguments, **named):  # type: ignore[override]
            repository = hub.repositories["models", REPO]
            repository.commit(dict(repository.commits[repository.head]), "somebody else")
            return super().create_commit(*arguments, **named)

    with pytest.raises(HfHubHTTPError, match="412"):
        publish(Slow(hub.url, token="hf_test"), package, "v1.0.0")
    assert hub.repositories["models", REPO].titles == ["initial commit", "somebody else"]
    assert not hub.repositories["models", REPO].tags


def test_a_card_whose_header_the_hub_refuses_is_not_published(hub: LocalHub, api: HfApi, package: Package) -> None:
    (package.folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        publish(api, package, "v1.0.0")
    assert hub.repositories["models", REPO].titles == ["initial commit"]


def test_a_space_is_published_as_a_space(hub: LocalHub, api: HfApi, package: Package) -> None:
    publish(api, Package(repo=REPO, kind="space", folder=package.folder), "v1.0.0")
    assert on_hub(hub.repositories["spaces", REPO], "v1.0.0") == on_disk(package)
    assert ("models", REPO) not in hub.repositories


def test_without_a_token_nothing_is_published(hub: LocalHub, package: Package) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        publish(HfApi(hub.url, token=False), package, "v1.0.0")
    assert not hub.repositories


# ---- folders ----


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository as a clean git tree of its own, with the smallest checkpoint and a card that agrees with it."""
    root = tmp_path_factory.mktemp("project") / "ctfm"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if not name.startswith(("tests/", "checkpoints/", "docs/")) and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    torch.manual_seed(0)
    checkpoint = root / "checkpoints" / "default"
    CTFMModel(tiny_config()).to(torch.bfloat16).save_pretrained(checkpoint)
    image_processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native")
    CTFMProcessor(image_processor, tiny_tokenizer()).save_pretrained(checkpoint)
    split_weights(checkpoint)
    (checkpoint / "optimizer.bin").write_bytes(b"not for the Hub")
    (checkpoint / "metrics.json").write_text(json.dumps(METRICS))
    (checkpoint / "run.json").write_text(json.dumps(RUN))
    (root / "docs").mkdir()
    (root / "docs" / "failures.png").write_bytes(b"a picture")
    text = fill_card((ROOT / "model_card.md").read_text(), METRICS, RUN, ["docs/failures.png"])
    (root / "model_card.md").write_text(text)
    write_space(root)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=root, check=True)
    return root


def write_space(root: Path) -> None:
    """A Space that brings its viewer and its gallery without a network and in no time."""
    space = root / "space"
    shutil.rmtree(space, ignore_errors=True)
    space.mkdir()
    header = "---\ntitle: CTFM\nsdk: gradio\nsdk_version: 6.31.0\napp_file: app.py\n---\n# CTFM\n"
    (space / "README.md").write_text(header)
    (space / "app.py").write_text("print('a Space')\n")
    (space / "notes.log").write_text("not for the Hub")
    (space / "requirements.txt").write_text("gradio==6.31.0\n")
    (space / "fetch_viewer.py").write_text(
        "from pathlib import Path\nPath('static').mkdir(exist_ok=True)\nPath('static/viewer.js').write_text('viewer')\n"
    )
    (root / "phantom" / "gallery.py").write_text(
        "import json, random\nfrom pathlib import Path\nfrom ..weights import hash_weight_files\n"
        "def main(arguments):\n"
        " checkpoint, out = Path(arguments[1]), Path(arguments[3]) / 'gallery'\n out.mkdir(exist_ok=True)\n"
        " weights = hash_weight_files(checkpoint)\n"
        " (out / 'gallery.json').write_text(json.dumps({'weights': weights, 'another_time': random.random()}))\n return 0\n"
    )
    with (root / ".gitignore").open("a") as file:
        file.write("/space/static/\n/space/gallery/\n")


@pytest.fixture
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(release, "ROOT", project)
    monkeypatch.setenv("PYTHONPATH", str(project.parent))
    return project


def wish(project: Path, out: Path | None, **settings: object) -> Release:
    checkpoint = project / "checkpoints" / "default"
    return Release(model=REPO, report="org/trialreport", space=REPO, checkpoint=checkpoint, out=out, **settings)  # type: ignore[arg-type]


CODE = {
    f"{name}_ctfm.py" for name in ("configuration", "modeling", "processing", "image_processing", "pipeline", "drawing")
}
CODE |= {f"{name}_ctfm.py" for name in ("precision", "requirements", "volume")}
VOLUME = ("scan", "raster", "archive", "dicom", "dicom_header", "dicom_stack", "dicom_pixels")
CODE |= {f"volume_{name}_ctfm.py" for name in VOLUME}


def test_a_dry_run_shows_the_files_of_the_allowlist_and_publishes_nothing(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("try_model", "try_report"):  # which the releases below do
        monkeypatch.setattr(release, name, lambda *arguments: "its answer")
    assert release.run(wish(in_project, tmp_path, dry_run=True)) == 0
    printed = capsys.readouterr().out
    files = {
        name: set(Package(repo=REPO, kind="model", folder=tmp_path / name).files())
        for name in ("model", "report", "space")
    }
    data = {*release.CHECKPOINT_FILES, "README.md", "LICENSE"}
    shards = {*SHARDS, "model.safetensors.index.json"}
    protocols = {f"protocols/{path.name}" for path in (ROOT / "evaluate" / "protocols").glob("*.json")}
    assert files["model"] == data | shards | CODE | protocols | {"metrics.json", "run.json", "docs/failures.png"}
    code = {f"{name}_trialreport.py" for name in ("configuration", "modeling", "processing")}
    code |= {"__init__.py", "check.py", "render.py", "checklist.py", "documents.py", "submission.py"}
    figures = {"calibration.json", "results.json", "data_card.md", "report.html", "report.schema.json"}
    figures |= {f"checklists/{path.name}" for path in (ROOT / "reporting" / "checklists").glob("*.json")}
    assert files["report"] >= data | code | figures
    extra = files["report"] - data - code - figures
    assert {name for name in extra if not name.endswith(".py")} == {"model.safetensors"}
    assert files["report"].isdisjoint({"train.py", "build.py", "evaluate.py", "corpora.py"})
    own = {"README.md", "app.py", "requirements.txt", "fetch_viewer.py", "model.json"}
    own |= {"static/viewer.js", "gallery/gallery.json", "body.py", "gate.py"}
    assert files["space"] == own
    weights = tmp_path / "model" / SHARDS[0]
    assert f"{weights.stat().st_size:,}  {SHARDS[0]}" in printed
    assert f'{REPO} loads in a fresh process and answers "its answer"' in printed


def test_a_dry_run_writes_nothing_into_the_repository(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = shutil.copytree(project, tmp_path / "ctfm")
    subprocess.run(["git", "clean", "-fdXq"], cwd=clone, check=True)  # no viewer and no gallery were brought
    monkeypatch.setattr(release, "ROOT", clone)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # whatever runs from a folder leaves its bytecode there
    for name in ("try_model", "try_report"):
        monkeypatch.setattr(release, name, lambda *arguments: "its answer")

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in clone.rglob("*") if ".git" not in path.parts}

    before = written()
    assert release.run(wish(clone, None, dry_run=True)) == 0
    assert written() == before
    assert "gallery/gallery.json" in capsys.readouterr().out  # it was drawn, elsewhere


def test_a_staged_card_has_a_header_a_first_sentence_and_the_version_in_its_snippet(
    in_project: Path, tmp_path: Path
) -> None:
    release.stage(wish(in_project, tmp_path), "v1.0.0", tmp_path, in_project / "space")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    assert results["Zero-shot findings, macro AUROC"] == METRICS["zero_shot/macro_auroc"]["value"]
    assert 'repo, revision = "org/ctfm", "v1.0.0"' in card.text
    first = " ".join(card.text.strip().split("\n\n")[1].split()).split(". ")[0]
    assert "trained on synthetic phantoms alone" in first
    assert first.endswith("no scan, report or label of any patient")
    assert "More Information Needed" not in card.content


# ---- refusals ----


def test_a_tree_with_changes_is_refused(in_project: Path, tmp_path: Path) -> None:
    (in_project / "half_done.py").touch()
    try:
        with pytest.raises(ReleaseError, match=r"git tree has changes.*\n.*half_done\.py"):
            release.run(wish(in_project, tmp_path))
    finally:
        (in_project / "half_done.py").unlink()


def test_a_folder_without_git_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ReleaseError, match="no git tree"):
        release.check_tree()


@pytest.mark.parametrize("key", list(METRICS))
@pytest.mark.parametrize("part", ["value", "low", "n"])
def test_a_number_in_the_card_that_is_not_in_the_metrics_file_is_refused(
    in_project: Path, tmp_path: Path, key: str, part: str
) -> None:
    for name, facts in (("run.json", RUN), ("metrics.json", METRICS | {key: METRICS[key] | {part: 0.123}})):
        (tmp_path / name).write_text(json.dumps(facts))
    with pytest.raises(ReleaseError, match=r"0\.123.*ctfm card"):
        release.check_cards(Release(model=REPO, checkpoint=tmp_path))


def test_figures_of_the_trial_report_card_that_are_not_its_results_are_refused(in_project: Path) -> None:
    release.check_cards(Release(report=REPO))
    card = in_project / "reporting" / "model_card.md"
    text = card.read_text()
    assert "0.640 (0.619-0.660)" in text
    card.write_text(text.replace("0.640 (0.619-0.660)", "0.940 (0.619-0.660)"))
    try:
        with pytest.raises(ReleaseError, match="reporting/results"):
            release.check_cards(Release(report=REPO))
    finally:
        card.write_text(text)


def test_a_space_without_its_model_is_refused(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="give --model as well"):
        release.stage(Release(space=REPO), "v1.0.0", tmp_path, in_project / "space")


def test_a_path_of_somebodys_machine_is_refused(in_project: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(in_project / "checkpoints" / "default", tmp_path / "checkpoint")
    (checkpoint / "run.json").write_text(json.dumps(RUN | {"data": "/home/somebody/scans"}))
    with pytest.raises(ReleaseError, match=r'run\.json .* "/home/\.\.\."'):
        release.stage(Release(model=REPO, checkpoint=checkpoint), "v1.0.0", tmp_path / "out", in_project / "space")


def test_weights_that_do_not_load_are_refused(in_project: Path, tmp_path: Path) -> None:
    checkpoint = in_project / "checkpoints" / "default"
    release.stage(Release(model=REPO, checkpoint=checkpoint), "v1.0.0", tmp_path, in_project / "space")
    (tmp_path / "model" / "volume_ctfm.py").unlink()
    with pytest.raises(ReleaseError, match=r"does not load in a fresh process:[\s\S]*volume_ctfm"):
        release.try_model(tmp_path / "model", in_project / "checkpoints" / "default")


def test_a_folder_whose_features_are_not_those_of_the_checkpoint_is_refused(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = in_project / "checkpoints" / "default"
    model, processor = CTFMModel.from_pretrained(checkpoint), CTFMProcessor.from_pretrained(checkpoint)

    def answer(turned: float) -> Any:
        def try_folder(folder: Path, scan: Path) -> tuple[dict[str, torch.Tensor], list]:
            with torch.no_grad():
                embeds = model(**processor(images=scan, text=["Lung nodule."])).image_embeds
            return {"image_embeds": embeds + turned * torch.eye(embeds.shape[1])[:1]}, [{"label": "Lung nodule"}]

        return try_folder

    monkeypatch.setattr(release, "try_folder", answer(1e-6))  # as far as rounding goes
    assert release.try_model(tmp_path, checkpoint) == [{"label": "Lung nodule"}]
    monkeypatch.setattr(release, "try_folder", answer(1e-4))
    with pytest.raises(ReleaseError, match="other features"):
        release.try_model(tmp_path, checkpoint)


# ---- all of it, in processes of their own ----


def run_release(project: Path, hub: LocalHub) -> subprocess.CompletedProcess:
    """The command as a maintainer gives it."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(project.parent),
    }
    command = [
        sys.executable,
        "-m",
        "ctfm",
        "release",
        "--model",
        REPO,
        "--space",
        REPO,
        "--report",
        "org/trialreport",
    ]
    return subprocess.run(
        command,
        cwd=project.parent,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_stranger(hub: LocalHub, home: Path, arguments: list[str], **settings: str) -> subprocess.CompletedProcess:
    """A machine with the libraries and no token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", **settings}
    command = [sys.executable, "-I", *arguments]
    return subprocess.run(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def released(project: Path) -> Iterator[tuple[LocalHub, list[subprocess.CompletedProcess]]]:
    """A Hub after a release that broke before the Space's commit and was started again."""
    with LocalHub() as hub:
        hub.break_next("POST", "/api/spaces/org/ctfm/commit/main")
        yield hub, [run_release(project, hub), run_release(project, hub)]


def test_an_interrupted_release_is_finished_by_the_same_command(
    released: tuple[LocalHub, list[subprocess.CompletedProcess]],
) -> None:
    hub, (first, second) = released
    assert first.returncode, first.stdout
    assert second.returncode == 0, second.stdout
    version = f"v{release.read_version()}"
    for kind, name in (("models", REPO), ("models", "org/trialreport"), ("spaces", REPO)):
        repository = hub.repositories[kind, name]
        assert repository.titles == ["initial commit", version]
        assert repository.tags == {version: repository.head}
        assert f"{name} {version} is commit {repository.head}" in second.stdout
    assert f'{REPO} loads in a fresh process and answers [{{"label": "' in second.stdout


def test_the_space_is_pinned_to_the_commits_of_both_models(
    released: tuple[LocalHub, list[subprocess.CompletedProcess]],
) -> None:
    hub, _ = released
    heads = {name: hub.repositories["models", name].head for name in (REPO, "org/trialreport")}
    files = on_hub(hub.repositories["spaces", REPO], "main")
    pins = {
        "model": REPO,
        "revision": heads[REPO],
        "report": "org/trialreport",
        "report_revision": heads["org/trialreport"],
    }
    assert json.loads(files["model.json"]) == pins
    header = RepoCard(files["README.md"].decode()).data
    assert header["models"] == list(heads)
    assert [line.split()[::2] for line in header["preload_from_hub"]] == [[name, head] for name, head in heads.items()]
    assert header["title"] == "CTFM"


def test_a_strangers_machine_loads_the_pinned_commit_and_goes_on_without_the_hub(
    released: tuple[LocalHub, list[subprocess.CompletedProcess]], project: Path, tmp_path: Path
) -> None:
    hub, _ = released
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "study")
    head = hub.repositories["models", REPO].head
    script = [str(ROOT / "release" / "load_check.py"), REPO, head, str(tmp_path / "study"), str(tmp_path)]
    online = run_stranger(hub, tmp_path, script)
    assert online.returncode == 0, online.stdout
    first = load_file(tmp_path / "tensors.safetensors")
    hub.requests.clear()
    offline = run_stranger(hub, tmp_path, script, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stdout
    assert not hub.requests
    checkpoint = project / "checkpoints" / "default"
    inputs = CTFMProcessor.from_pretrained(checkpoint)(
        images=tmp_path / "study", text=["Pleural effusion.", "Lung nodule."]
    )
    with torch.no_grad():
        expected = CTFMModel.from_pretrained(checkpoint)(**inputs).logits_per_image
    again = load_file(tmp_path / "tensors.safetensors")["logits_per_image"]
    for logits in (first["logits_per_image"], again):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [REPO, "org/trialreport"])
def test_the_snippet_of_the_published_card_runs_as_it_is(
    released: tuple[LocalHub, list[subprocess.CompletedProcess]], tmp_path: Path, name: str
) -> None:
    hub, _ = released
    card = on_hub(hub.repositories["models", name], "main")["README.md"].decode()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "repo, revision = " in block)
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "study")
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study")
    (tmp_path / "snippet.py").write_text("import sys\nsys.modules['ctfm'] = None\n" + block)
    run = run_stranger(hub, tmp_path, ["snippet.py"])
    assert run.returncode == 0, run.stdout


SPACE_LOADS = """
import sys
sys.modules["ctfm"] = None
sys.path.insert(0, sys.argv[1])
import loading, report_tab
source = loading.find_source()
weights = loading.load_weights(source)
assert f".{source.revision}." in type(weights.model).__module__  # its code is of that commit
assert weights.metrics and weights.run and weights.drawing.principal_components
check, render, folder = report_tab.load_checker(source)
assert folder.name == source.report_revision
report = check.check(sys.argv[2], False, folder)
assert report.verdicts and render.html(report)
"""


def test_the_space_loads_both_models_at_the_commits_that_it_is_pinned_to(
    released: tuple[LocalHub, list[subprocess.CompletedProcess]], tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="the extra [space] is not installed")
    hub, _ = released
    space = shutil.copytree(
        ROOT / "space", tmp_path / "space", ignore=shutil.ignore_patterns("static", "gallery", "examples")
    )
    for name in release.SHARED_WITH_SPACE:
        shutil.copyfile(ROOT / name, space / name)
    (space / "model.json").write_bytes(on_hub(hub.repositories["spaces", REPO], "main")["model.json"])
    trial = ROOT / "tests" / "fixtures" / "reporting" / "walking.md"
    run = run_stranger(hub, tmp_path, ["-c", SPACE_LOADS, str(space), str(trial)])
    assert run.returncode == 0, run.stdout
