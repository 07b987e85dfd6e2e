"""Checkpoint -> Hub folders by allowlist, each tried in a fresh process; then one commit and one tag on the Hub for each.

    ctfm release --model ORG/ctfm --report ORG/trialreport --space ORG/ctfm --dry-run
    ctfm release --model ORG/ctfm --report ORG/trialreport --space ORG/ctfm

The tag is the version in pyproject.toml. It is set when the commit was read back and holds what was sent, so a tag never
points to half a release; after an interruption start the same command again, and what is published already stays as it is. The
Space is pinned to the model's commit. Refused: a git tree with changes, numbers in a card that are not those of its metrics
file, a version that was published with other files. `hf auth login` comes first, or HF_TOKEN.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.hf_api import RepoFile
from safetensors.torch import load_file

from ..modeling_ctfm import CTFMModel
from ..phantom.make import make_phantom
from ..processing_ctfm import CTFMProcessor
from ..reporting.cards import figures_table
from ..volume_ctfm import Volume
from ..weights import INDEX, hash_weight_files, list_weights, load_complete
from .card import fill_card, find_pictures
from .code_files import copy_code, write_model_code, write_report_code

ROOT = Path(__file__).parent.parent
CHECKPOINT_FILES = (  # beside the weights
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
SHARED_WITH_SPACE = ("body.py", "gate.py")  # of the package; see space/from_package.py
SPACE_FILES = (  # beside those that every Space has
    "*.py",
    "cases.json",
    "sample_trial.md",
    "packages.txt",
    "static/*",
    "examples/*",
    "gallery/*",
)
SNIPPET = re.compile(r"^repo, revision = .*$", re.MULTILINE)  # the line of a card that says what is loaded
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)\)")
SOMEBODYS_PATH = re.compile(r"(?<![\w.:/])/(home|root|Users|tmp|work|mnt|scratch)/")
SENTENCES = "Patients were allocated by a computer-generated list.\nAssessors were unaware of the allocation.\n"


class ReleaseError(RuntimeError):
    """Something that must not be published; the message says what, and the cure."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What goes where.

    Args:
        model, report, space: Hub ids of the CT model, of the trial-report model and of the Space. What is left out is not
            published; the Space needs the model that it is pinned to.
        checkpoint: of the CT model.
        out: the folders as they will be on the Hub are left there; build/release of this repository, or nowhere in a dry run.
        dry_run: makes and tries the folders, shows what they hold and what would be refused; publishes nothing, and writes
            nothing into this repository.
    """

    model: str | None = None
    report: str | None = None
    space: str | None = None
    checkpoint: Path = ROOT / "checkpoints" / "default"
    out: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Hub repository, and the folder that holds what it will hold."""

    repo: str
    kind: Literal["model", "space"]
    folder: Path

    def files(self) -> dict[str, Path]:
        """Path in the repository -> file, sorted."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}


def read_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- folders ----


def copy_files(names: Iterable[str], source: Path, folder: Path) -> None:
    for name in names:
        if not (source / name).is_file():
            raise ReleaseError(f"{source / name} is missing; a release needs it.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def list_files(checkpoint: Path) -> tuple[str, ...]:
    """What from_pretrained reads of a folder, beside code: configs, and weights with their index where they are split."""
    index = (INDEX,) if (checkpoint / INDEX).is_file() else ()
    return (*CHECKPOINT_FILES, *list_weights(checkpoint), *index)


def write_card(card: Path, package: Package, tag: str) -> None:
    """The card as README.md, with the pictures that it shows; its snippet loads this repository at this version."""
    text, count = SNIPPET.subn(f'repo, revision = "{package.repo}", "{tag}"', card.read_text())
    if count != 1:
        raise ReleaseError(f"{card.name} has {count} lines `repo, revision = ...`; its snippet needs one.")
    (package.folder / "README.md").write_text(text)
    pictures = [target for target in LINK.findall(text) if target.endswith((".png", ".jpg", ".svg"))]
    copy_files(pictures, card.parent, package.folder)
    lost = [target for target in LINK.findall(text) if not (package.folder / target).exists()]
    if lost:
        raise ReleaseError(f"{card.name} links to {lost}, which the Hub folder does not hold; name it without a link.")


def stage_model(package: Package, checkpoint: Path, tag: str) -> None:
    """The CT model: weights, configs, code, card, licence, protocols, and what it was trained and measured with."""
    gate = ["gate.safetensors"] if (checkpoint / "gate.safetensors").is_file() else []  # space/measure_gate.py
    copy_files((*list_files(checkpoint), "metrics.json", "run.json", *gate), checkpoint, package.folder)
    write_model_code(package.folder, ROOT)
    copy_files(["LICENSE"], ROOT, package.folder)
    protocols = [
        path.relative_to(ROOT / "evaluate").as_posix() for path in (ROOT / "evaluate").glob("protocols/*.json")
    ]
    copy_files(protocols, ROOT / "evaluate", package.folder)
    write_card(ROOT / "model_card.md", package, tag)


def stage_report(package: Package, tag: str) -> None:
    """The trial-report model, in the same way; its thresholds are in calibration.json, its figures in results.json."""
    source = ROOT / "reporting"
    own = source / "checkpoints" / "default"
    copy_files((*list_files(own), "calibration.json"), own, package.folder)
    write_report_code(package.folder, ROOT)
    copy_code(
        ["__init__", "check", "render"], source, package.folder
    )  # the whole checker, which the Space runs from there
    copy_files(["report.html", "report.schema.json", "results.json", "data_card.md"], source, package.folder)
    copy_files([f"checklists/{path.name}" for path in (source / "checklists").glob("*.json")], source, package.folder)
    copy_files(["LICENSE"], ROOT, package.folder)
    write_card(source / "model_card.md", package, tag)


def prepare_space(space: Path, checkpoint: Path) -> None:
    """What `make space` brings: the viewer, by npm (without it the Space serves its own plain one), examples and a gallery.

    A gallery of these weights stays as it is, so that a repeated release has the same files.
    """
    subprocess.run([sys.executable, "fetch_viewer.py"], cwd=space, check=True)
    index = space / "gallery" / "gallery.json"
    if not index.is_file() or json.loads(index.read_text())["weights"] != hash_weight_files(checkpoint):
        command = [sys.executable, "-m", "ctfm", "gallery", "--checkpoint", str(checkpoint.absolute())]
        subprocess.run([*command, "--out", str(space)], cwd=ROOT, check=True)


def stage_space(package: Package, space: Path, checkpoint: Path) -> None:
    prepare_space(space, checkpoint)
    found = [path for glob in SPACE_FILES for path in space.glob(glob) if path.is_file()]
    names = {path.relative_to(space).as_posix() for path in found}
    copy_files(sorted(names | {"app.py", "README.md", "requirements.txt"}), space, package.folder)
    copy_files(SHARED_WITH_SPACE, ROOT, package.folder)


def pin_space(package: Package, pins: Mapping[str, tuple[str, str]]) -> None:
    """The Space loads these revisions, "model" and "report", and its header names them so that the Hub fetches them ahead.

    Writes model.json, `{"model": id, "revision": commit, "report": id, "report_revision": commit}`.
    """
    model, revision = pins["model"]
    facts = {"model": model, "revision": revision}
    if "report" in pins:
        facts |= dict(zip(("report", "report_revision"), pins["report"], strict=True))
    (package.folder / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
    card = RepoCard.load(package.folder / "README.md")
    card.data["models"] = [repo for repo, _ in pins.values()]
    needed = {name: ",".join(list_files(package.folder.with_name(name))) for name in pins}
    card.data["preload_from_hub"] = [f"{repo} {needed[name]} {at}" for name, (repo, at) in pins.items()]
    card.save(package.folder / "README.md")


def stage(release: Release, tag: str, out: Path, space: Path) -> list[Package]:
    """Writes all folders anew. The Space is pinned to the tag until the model has a commit.

    Args:
        out: gets a folder for each package.
        space: the Space's sources, which get what `prepare_space` brings.
    """
    shutil.rmtree(out, ignore_errors=True)
    packages = []
    if release.model:
        packages.append(Package(repo=release.model, kind="model", folder=out / "model"))
        packages[-1].folder.mkdir(parents=True)
        stage_model(packages[-1], release.checkpoint, tag)
    if release.report:
        packages.append(Package(repo=release.report, kind="model", folder=out / "report"))
        packages[-1].folder.mkdir(parents=True)
        stage_report(packages[-1], tag)
    if release.space:
        if not release.model:
            raise ReleaseError("The Space is pinned to a commit of the model; give --model as well.")
        packages.append(Package(repo=release.space, kind="space", folder=out / "space"))
        packages[-1].folder.mkdir(parents=True)
        stage_space(packages[-1], space, release.checkpoint)
        pin_space(packages[-1], {package.folder.name: (package.repo, tag) for package in packages[:-1]})
    for package in packages:
        for name, file in package.files().items():
            if file.suffix in (".json", ".md") and (found := SOMEBODYS_PATH.search(file.read_text())):
                raise ReleaseError(f'{name} of {package.repo} speaks of a path of one machine, "{found[0]}...".')
    return packages


# ---- what is refused, and what is tried ----


def check_tree() -> None:
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    if status.returncode:
        raise ReleaseError(
            f"{ROOT.name} is no git tree, so nobody could say what was published: {status.stderr.strip()}"
        )
    if status.stdout:
        raise ReleaseError(f"The git tree has changes; commit or drop them first:\n{status.stdout.rstrip()}")


def check_cards(release: Release) -> None:
    """The numbers of both cards are those of their metrics files."""
    if release.model:
        card = ROOT / "model_card.md"
        text = card.read_text()
        metrics, run = (json.loads((release.checkpoint / name).read_text()) for name in ("metrics.json", "run.json"))
        filled = fill_card(text, metrics, run, find_pictures(card))
        if text != filled:
            lacking = next((line for line in filled.splitlines() if line not in text.splitlines()), "their order")
            raise ReleaseError(
                f"model_card.md does not hold the numbers of {release.checkpoint.name}/metrics.json and run.json; it lacks "
                f'"{lacking}". Run ctfm card.'
            )
    if release.report:
        card, results = ROOT / "reporting" / "model_card.md", ROOT / "reporting" / "results.json"
        if figures_table(json.loads(results.read_text())) not in card.read_text():
            raise ReleaseError("reporting/model_card.md does not hold the figures of reporting/results.json.")


def try_folder(folder: Path, scan: Path) -> tuple[dict[str, torch.Tensor], list]:
    """What a fresh process without this package makes of a folder; see load_check.py."""
    with tempfile.TemporaryDirectory() as home:
        settings = {"HF_HOME": home, "HOME": home, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", str(ROOT / "release" / "load_check.py"), str(folder), "main", str(scan), home]
        run = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=home)
        if run.returncode:
            raise ReleaseError(f"{folder.name} does not load in a fresh process:\n{run.stderr[-3000:]}")
        return load_file(Path(home, "tensors.safetensors")), json.loads(Path(home, "answers.json").read_text())


@torch.no_grad()
def try_model(folder: Path, checkpoint: Path) -> list:
    """From a phantom scan to features, which are those of the checkpoint, and a zero-shot answer."""
    with tempfile.TemporaryDirectory() as scratch:
        phantom = make_phantom(4, shape=(48, 64, 64), findings=["Pleural effusion"])
        scan = Path(scratch, "scan.nii")
        Volume(hu=phantom.hu.numpy(), affine=phantom.affine).to_nifti(scan)
        tensors, answers = try_folder(folder, scan)
        texts = [f"{answer['label']}." for answer in sorted(answers, key=lambda answer: answer["label"])]
        inputs = CTFMProcessor.from_pretrained(checkpoint)(images=scan, text=texts)
        expected = load_complete(CTFMModel, checkpoint)(**inputs).image_embeds
    difference = float((tensors["image_embeds"] - expected).abs().max())
    if not difference < 1e-5:  # of vectors of length 1; the number of threads and where weights lie move the last bits
        raise ReleaseError(f"{folder} computes other features than {checkpoint}, by {difference:.1e}.")
    return answers


def try_report(folder: Path) -> list:
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "report.txt")
        text.write_text(SENTENCES)
        return try_folder(folder, text)[1]


# ---- the Hub ----


def compare(api: HfApi, package: Package, revision: str) -> tuple[dict[str, Path], list[str]]:
    """Files that the repository lacks or has otherwise, and files that it has too many."""
    tree = api.list_repo_tree(package.repo, revision=revision, recursive=True, repo_type=package.kind)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    there.pop(".gitattributes", None)  # the Hub's own
    files = package.files()
    other = {name: path for name, path in files.items() if name not in there or not is_same(path, there[name])}
    return other, sorted(set(there) - set(files))


def is_same(path: Path, entry: RepoFile) -> bool:
    """Git names a file by its SHA-1 behind a header, LFS by its SHA-256."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return sha256(path) == entry.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == entry.blob_id


def publish(api: HfApi, package: Package, tag: str) -> str:
    """One commit and one tag, or nothing where they are there already. Large files travel before the commit.

    Returns:
        The commit that the tag names.

    Raises:
        ReleaseError: the tag names a commit with other files, or the commit does not hold what was sent.
        HfHubHTTPError: the Hub refuses; another commit came between, for one.
    """
    repo, kind = package.repo, package.kind
    api.create_repo(repo, repo_type=kind, exist_ok=True, space_sdk="gradio" if kind == "space" else None)
    tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo, repo_type=kind).tags}
    if tag in tagged:
        other, gone = compare(api, package, tagged[tag])
        if other or gone:
            raise ReleaseError(
                f"{repo} was published as {tag} with other files ({', '.join([*other, *gone][:5])}). A version never "
                "changes: raise it in pyproject.toml."
            )
        return tagged[tag]
    head = str(api.repo_info(repo, repo_type=kind).sha)
    other, gone = compare(api, package, head)
    if other or gone:
        operations = [CommitOperationAdd(name, path) for name, path in other.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        commit = api.create_commit(repo, operations, commit_message=tag, parent_commit=head, repo_type=kind)
        head = commit.oid
        other, gone = compare(api, package, head)
        if other or gone:
            raise ReleaseError(f"{repo} at {head} does not hold what was sent: {[*other, *gone]}.")
    api.create_tag(repo, tag=tag, revision=head, repo_type=kind)
    return head


def show(packages: Iterable[Package]) -> None:
    for package in packages:
        sizes = {name: path.stat().st_size for name, path in package.files().items()}
        print(f"{package.repo} ({package.kind}): {len(sizes)} files, {sum(sizes.values()):,} bytes")
        for name, size in sizes.items():
            print(f"  {size:>12,}  {name}")


def run(release: Release) -> int:
    if not release.dry_run:
        return release_from(release, release.out or ROOT / "build" / "release", ROOT / "space")
    with tempfile.TemporaryDirectory() as scratch:
        # The viewer and the gallery are written among the Space's sources, so a dry run brings them to a copy.
        space = shutil.copytree(ROOT / "space", Path(scratch, "sources"), ignore=shutil.ignore_patterns("__pycache__"))
        return release_from(release, release.out or Path(scratch, "release"), space)


def release_from(release: Release, out: Path, space: Path) -> int:
    """Stages, tries and, unless it is a dry run, publishes; `out` and `space` as `stage` takes them."""
    tag = f"v{read_version()}"
    refused = []
    for check in (check_tree, lambda: check_cards(release)):
        try:
            check()
        except ReleaseError as error:
            if not release.dry_run:
                raise
            refused.append(error)
    packages = stage(release, tag, out, space)
    show(packages)
    for package in packages:
        if package.folder.name != "space":
            is_report = package.folder.name == "report"
            answers = try_report(package.folder) if is_report else try_model(package.folder, release.checkpoint)
            print(f"{package.repo} loads in a fresh process and answers {json.dumps(answers)}")
    if release.dry_run:
        for error in refused:
            print(f"would be refused: {error}")
        return 1 if refused else 0
    api, pins = HfApi(), {}
    for package in packages:
        if package.kind == "space":
            pin_space(package, pins)
        pins[package.folder.name] = package.repo, publish(api, package, tag)
        print(f"{package.repo} {tag} is commit {pins[package.folder.name][1]}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    release = tyro.cli(Release, prog="ctfm release", args=arguments, description=__doc__)
    try:
        return run(release)
    except ReleaseError as error:
        print(f"ctfm release: {error}", file=sys.stderr)
        return 1
