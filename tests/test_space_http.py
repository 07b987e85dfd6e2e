"""The Space over HTTP: its functions for programs and language models, its limits, and what it leaves behind."""

import asyncio
import gzip
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ctfm import Volume, read_volume

from analysis import Analyser
from loading import Source, load_weights
from tests.phantoms import canonical_affine, phantom_hu
from tests.space_process import HOSTILE, ROOT, SECRET, Space, hold, run_space, write_study
from texts import TEXTS
from uploads import CACHE_SCANS, Scan

gradio_client = pytest.importorskip("gradio_client", reason="the extra [space] is not installed")
httpx = pytest.importorskip("httpx")
nibabel = pytest.importorskip("nibabel")

FUNCTIONS = {
    "inspect_scan", "find", "query", "heat_map", "embed", "similar_scans", "compare_scans", "report_check",
}  # fmt: skip
QUEUE_SIZE = 32  # of space/app.py


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with run_space(tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(scope="module")
def client(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gradio_client.Client(
        space.url,
        verbose=False,
        download_files=str(tmp_path_factory.mktemp("downloads")),
        httpx_kwargs={"timeout": None},  # a busy machine is no failure
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of one DICOM series; the name of the file, a folder in it and the headers name a patient."""
    return write_study(tmp_path_factory.mktemp("study") / f"{SECRET}.zip")


@pytest.fixture(scope="module")
def two_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / f"{SECRET}.zip", seeds=(0, 1))


def files_of(*paths: Path) -> list[Any]:
    return [gradio_client.handle_file(path) for path in paths]


def post(space: Space, function: str, *arguments: object) -> Any:
    return httpx.post(f"{space.url}/gradio_api/call/{function}", json={"data": arguments}, timeout=None)


def outcome(space: Space, function: str, *arguments: object) -> str:
    """What the server says at the end of a call whose JSON is written by hand."""
    number = post(space, function, *arguments).json()["event_id"]
    return httpx.get(f"{space.url}/gradio_api/call/{function}/{number}", timeout=None).text


def kept(space: Space) -> set[Path]:
    return {path for path in space.work.rglob("*") if path.is_file()}


# ---- the functions ----


def test_the_public_functions_are_these_and_every_one_declares_its_json(client: Any) -> None:
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert {name.removeprefix("/") for name in endpoints} == FUNCTIONS
    for name, endpoint in endpoints.items():
        assert endpoint["returns"][0]["type"], name


def test_findings_over_http_equal_the_packages_and_a_second_look_computes_nothing(
    client: Any, space: Space, study: Path
) -> None:
    weights = load_weights(Source(model=str(space.checkpoint)))
    scan = Scan(key="here", volume=read_volume(study), read_seconds=0.0)
    analysis = Analyser(weights).analyse(scan)
    answer = client.predict(files_of(study), api_name="/find")
    assert answer["scan"]["shape"] == list(scan.volume.hu.shape)
    assert [f["label"] for f in answer["findings"]] == [f.label for f in analysis.findings]
    for there, here in zip(answer["findings"], analysis.findings, strict=True):
        assert there["probability"] == pytest.approx(here.probability, abs=1e-5)
        assert there["interval"] == pytest.approx(here.interval, abs=1e-5)
        assert there["verdict"] == here.verdict
        if here.place is None:
            assert there["strongest_place"] is None
        else:
            assert there["strongest_place"]["mm"] == pytest.approx(here.place.mm, abs=0.051)
    assert client.predict(files_of(study), api_name="/find") == answer  # the seconds it took, too
    embedding = client.predict(files_of(study), api_name="/embed")["embedding"]
    np.testing.assert_allclose(embedding, analysis.embedding, atol=1e-5)


def test_a_sentence_is_ranked_and_an_empty_one_is_refused(client: Any, study: Path) -> None:
    answer = client.predict(files_of(study), "Pleural effusion.", api_name="/query")
    assert -1 <= answer["similarity"] <= 1
    assert 1 <= answer["rank"] <= answer["num_sentences"]
    assert answer["strongest_place"]["level"] in ("lower", "middle", "upper")
    with pytest.raises(gradio_client.exceptions.AppError, match=TEXTS["error_no_text"][0]):
        client.predict(files_of(study), "  ", api_name="/query")


def test_a_heat_map_comes_on_the_scans_own_voxels_and_names_nobody(client: Any, study: Path) -> None:
    path = Path(client.predict(files_of(study), "Lung nodule", api_name="/heat_map"))
    image, volume = nibabel.load(path), read_volume(study)
    assert image.shape == volume.hu.shape[::-1]
    np.testing.assert_allclose(image.affine, volume.affine[:, [2, 1, 0, 3]], atol=1e-3)
    assert np.ptp(image.get_fdata()) > 0
    assert SECRET.encode() not in gzip.decompress(path.read_bytes())
    assert SECRET not in path.name


def test_of_several_series_one_has_to_be_chosen(client: Any, two_series: Path) -> None:
    listed = client.predict(files_of(two_series), api_name="/inspect_scan")
    assert listed["scan"] is None
    sizes = {series["number"]: series["shape"][0] for series in listed["series"]}
    assert sorted(sizes.values()) == [20, 21]
    with pytest.raises(gradio_client.exceptions.AppError, match=TEXTS["error_choose_series"][0]):
        client.predict(files_of(two_series), api_name="/find")
    for number, size in sizes.items():
        assert client.predict(files_of(two_series), number, api_name="/inspect_scan")["scan"]["shape"][0] == size


def test_two_scans_are_compared(client: Any, study: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other.zip", seeds=(2,))
    answer = client.predict(files_of(study), files_of(other), api_name="/compare_scans")
    assert {change["label"] for change in answer["changes"]} == {"Pleural effusion", "Lung nodule", "Cardiomegaly"}
    assert 0 < answer["embedding_cosine"] < 1
    assert {change["change"] for change in answer["changes"]} <= {"new", "resolved", "more", "less", "same", "unclear"}


def test_the_language_models_tools_are_the_same_functions_and_one_answers(space: Space, study: Path) -> None:
    pytest.importorskip("mcp", reason="the extra [space] is not installed")
    names: dict[str, Any] = {"url": space.url}
    exec(compile(card_blocks()[-1], "space/README.md, MCP", "exec"), names)
    with study.open("rb") as file:
        (path,) = httpx.post(f"{space.url}/gradio_api/upload", files={"files": file}, timeout=None).json()
    *tools, answer = asyncio.run(names["ask"](f"{space.url}/gradio_api/file={path}"))
    assert {tool.rpartition("ctfm_")[2] for tool in tools} >= FUNCTIONS
    assert "Pleural effusion" in answer


def card_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "space" / "README.md").read_text(), re.DOTALL)


def test_the_examples_of_the_card_run(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path / "chest.zip")
    write_study(tmp_path / "chest_prior.zip", seeds=(2,))
    write_study(tmp_path / "two_series.zip", seeds=(0, 1))
    shutil.copy(ROOT / "tests" / "fixtures" / "reporting" / "walking.md", tmp_path / "trial.md")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"url": space.url}
    blocks = card_blocks()
    for number, block in enumerate(blocks):
        exec(compile(block, f"space/README.md, python block {number + 1}", "exec"), names)
    assert names["report"]["items"]
    assert len(names["series"]) == 2


def test_a_host_sees_that_it_is_alive_and_how_calls_ended_and_nothing_of_a_scan(
    client: Any, space: Space, study: Path
) -> None:
    client.predict(files_of(study), api_name="/inspect_scan")
    outcome(space, "find", [], -1)
    health = httpx.get(f"{space.url}/health", timeout=None).json()
    assert health == {"status": "ok", "model": "embedded checkpoint", "answers_findings": True}
    told = httpx.get(f"{space.url}/metrics", timeout=None)
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = dict(line.rsplit(" ", 1) for line in told.text.splitlines() if not line.startswith("#"))
    assert int(counted['ctfm_space_calls_total{function="inspect_scan",outcome="done"}']) >= 1
    assert int(counted['ctfm_space_calls_total{function="find",outcome="refused"}']) >= 1
    assert float(counted['ctfm_space_call_seconds_total{function="inspect_scan"}']) > 0
    assert int(counted["ctfm_space_scans_in_memory"]) >= 1
    assert int(counted["ctfm_space_peak_memory_bytes"]) > 2**20
    assert SECRET not in told.text.upper()


# ---- what must not work ----


def test_ten_hostile_uploads_at_once_are_refused_with_their_reasons_and_it_goes_on_serving(
    client: Any, space: Space, study: Path, tmp_path: Path
) -> None:
    before = kept(space)
    made: list[tuple[Callable[[Path, str], Path], Any]] = []
    for number, make in enumerate([*HOSTILE, *HOSTILE][:10]):
        (tmp_path / str(number)).mkdir()
        made.append((make, client.submit(files_of(make(tmp_path / str(number), SECRET)), api_name="/find")))
    for make, job in made:
        key, reason = HOSTILE[make]
        with pytest.raises(gradio_client.exceptions.AppError) as told:
            job.result()
        assert str(told.value).startswith(TEXTS[key][0]), make.__name__
        assert reason in str(told.value)
        assert SECRET not in str(told.value)
    assert client.predict(files_of(study), api_name="/find")["findings"]
    assert kept(space) == before


@pytest.mark.parametrize("named", [str, lambda path: {"path": path}, lambda path: f"{path}/../../space/app.py"])
def test_a_path_on_the_server_is_no_upload(named: Callable[[str], object], space: Space) -> None:
    """A client may write any path into the JSON, and what the Space takes it moves and deletes."""
    example = space.checkpoint.parent / "space" / "examples" / "effusion.zip"
    for function in ("find", "inspect_scan"):
        told = outcome(space, function, [named(str(example))], -1)
        assert told.startswith("event: error"), told
    told = outcome(space, "report_check", named(str(space.checkpoint / "config.json")), False)
    assert told.startswith("event: error"), told
    assert example.is_file()
    assert (space.checkpoint / "config.json").is_file()
    assert (space.checkpoint.parent / "space" / "app.py").is_file()


@pytest.mark.parametrize("files", [[], None, [7], [{"url": "x"}], ["http://127.0.0.1:1/x.zip"], ["/nowhere"]])
def test_what_names_no_file_is_refused_in_a_sentence(files: object, space: Space) -> None:
    told = outcome(space, "find", files, -1)
    assert told.startswith("event: error")
    assert any(TEXTS[key][0] in told for key in ("error_no_file", "error_upload_gone"))


def test_while_it_computes_the_page_answers_and_the_queue_is_bounded(
    client: Any, space: Space, study: Path, tmp_path: Path
) -> None:
    with hold(space, "analyse") as begun:
        held = client.submit(files_of(write_study(tmp_path / "study.zip", seeds=(3,))), api_name="/find")
        begun()
        assert httpx.get(space.url, timeout=None).status_code == 200
        with ThreadPoolExecutor(8) as pool:
            codes = list(pool.map(lambda _: post(space, "find", [], -1).status_code, range(QUEUE_SIZE + 16)))
        assert codes.count(503) == 16
        assert not held.done()
    assert held.result()["findings"]
    assert client.predict(files_of(study), api_name="/find")["findings"]


# ---- what is served ----


def send(space: Space, name: str, content: bytes) -> str:
    """Uploads a file; where the server put it."""
    answer = httpx.post(f"{space.url}/gradio_api/upload", files={"files": (name, content)}, timeout=None)
    (path,) = answer.raise_for_status().json()
    return path


SCRIPT = b"<script>document.title = 'ran'</script>"


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.js", "x.pdf", "x.zip"])
def test_an_upload_is_never_served(space: Space, name: str) -> None:
    path = send(space, name, SCRIPT)
    static = space.checkpoint.parent / "space" / "static"
    for address in (f"file={path}", f"file/{path}", f"file={static}/%2e%2e/%2e%2e/..{path}", f"file=%2f{path[1:]}"):
        answer = httpx.get(f"{space.url}/gradio_api/{address}", timeout=None)
        assert answer.status_code == 404, address
        assert SCRIPT not in answer.content


def test_nothing_but_the_folders_of_the_space_is_served(space: Space) -> None:
    code = space.checkpoint.parent / "space" / "app.py"
    for path in (code, space.log, space.checkpoint / "config.json", "/etc/passwd", "https://example.com/", "%00", ""):
        assert httpx.get(f"{space.url}/gradio_api/file={path}", timeout=None).status_code == 404, path


def test_every_response_forbids_other_types_and_other_hosts(client: Any, space: Space, study: Path) -> None:
    script = space.checkpoint.parent / "space" / "static" / "viewer.js"
    client.predict(files_of(study), "Lung nodule", api_name="/heat_map")
    (made, *_) = (space.work / "made").rglob("heat_map.nii.gz")
    served = [f"gradio_api/file={path}" for path in (script, made)]
    others = [
        "",
        "config",
        "theme.css",
        "gradio_api/info",
        "nowhere",
        "gradio_api/file=/etc/passwd",
        "gradio_api/queue/data",
    ]
    answers = {path: httpx.get(f"{space.url}/{path}", timeout=None) for path in (*served, *others)}
    answers["upload"] = httpx.post(f"{space.url}/gradio_api/upload", timeout=None)
    answers["call"] = post(space, "nowhere")
    assert {answer.status_code for answer in answers.values()} >= {200, 400, 404, 422}
    for path, answer in answers.items():
        assert answer.headers["x-content-type-options"] == "nosniff", path
        policy = policy_of(answer)
        assert policy["default-src"] == ("'none'" if "file=" in path else "'self'"), path
        hosts = [sources for name, sources in policy.items() if name != "frame-ancestors"]
        assert not any("http" in sources or "*" in sources for sources in hosts), path
    for path in served:
        assert answers[path].status_code == 200
        assert answers[path].headers["content-disposition"] == "attachment"
        assert "sandbox" in policy_of(answers[path])
    assert answers[served[1]].content == made.read_bytes()


def policy_of(answer: Any) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";"))
    return {name: sources for name, _, sources in parts}


# ---- what fails ----


def laughing(folder: Path) -> Path:
    """A Word file whose text is an entity of ten entities of ten entities, nine deep."""
    path = folder / f"{SECRET}.docx"
    pytest.importorskip("docx").Document().save(folder / "plain.docx")
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    document = (
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY l0 "ha">{entities}]>'
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        "<w:body><w:p><w:r><w:t>&l9;</w:t></w:r></w:p></w:body></w:document>"
    )
    with zipfile.ZipFile(folder / "plain.docx") as plain, zipfile.ZipFile(path, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name, document if name == "word/document.xml" else plain.read(name))
    return path


def test_a_document_that_would_grow_without_end_is_refused_in_words(client: Any, space: Space, tmp_path: Path) -> None:
    with pytest.raises(gradio_client.exceptions.AppError) as told:
        client.predict(gradio_client.handle_file(laughing(tmp_path)), api_name="/report_check")
    assert str(told.value).startswith(TEXTS["error_report"][0])
    assert SECRET not in str(told.value)
    assert "Traceback" not in space.log.read_text()


WRONG: dict[str, tuple[object, ...]] = {
    "find": (None, "1", 0.5, True, [], {}),
    "similar_scans": (None, "4", [4]),
    "query": (None, 5, ["text"], {"a": 1}),
    "heat_map": (None, 5, []),
}


@pytest.mark.parametrize("function", WRONG)
def test_a_value_of_another_type_is_refused_in_words(function: str, space: Space, study: Path) -> None:
    for wrong in WRONG[function]:
        path = send(space, f"{SECRET}.zip", study.read_bytes())
        told = outcome(space, function, [{"path": path}], wrong, *([] if function == "find" else [-1]))
        assert told.startswith("event: error")
        assert TEXTS["error_argument"][0] in told
        Path(path).unlink()  # nothing took it
    assert SECRET not in space.log.read_text()


def test_whatever_else_fails_is_answered_in_words_and_logged_without_a_name(space: Space, study: Path) -> None:
    path = send(space, f"{SECRET}.zip", study.read_bytes())
    for arguments in ([[{"path": f"{path}\0"}], -1], [[{"path": "x" * 5000}], -1], [[{"path": path}]]):
        told = outcome(space, "find", *arguments)
        assert told.startswith("event: error"), told
        assert any(TEXTS[key][0] in told for key in ("error_internal", "error_upload_gone")), told
    Path(path).unlink()  # nothing took it
    for body in ("no JSON", '{"data": 5}', f'{{"data": ["{SECRET}"], "fn_index": 10000, "session_hash": "a"}}'):
        answer = httpx.post(f"{space.url}/gradio_api/queue/join", content=body, timeout=None)
        assert answer.status_code >= 400
        assert answer.json()["detail"]
    assert SECRET not in space.log.read_text()
    assert "Traceback" not in space.log.read_text()


def test_one_file_that_is_given_twice_is_one_file(space: Space, study: Path) -> None:
    path = send(space, f"{SECRET}.zip", study.read_bytes())
    told = outcome(space, "inspect_scan", [{"path": path}, {"path": path}], -1)
    assert told.startswith("event: complete"), told


def test_a_path_answers_nothing_once_its_file_is_gone(space: Space, study: Path) -> None:
    paths = [send(space, "study.zip", study.read_bytes()) for _ in range(2)]
    assert paths[0] != paths[1]  # equal files of two people
    assert outcome(space, "find", [{"path": paths[0]}], -1).startswith("event: complete")
    for function in ("find", "inspect_scan", "embed"):
        told = outcome(space, function, [{"path": paths[0]}], -1)
        assert told.startswith("event: error")
        assert TEXTS["error_upload_gone"][0] in told
    assert outcome(space, "find", [{"path": paths[1]}], -1).startswith("event: complete")


# ---- what is left behind ----


def test_the_memory_of_the_server_stays_flat_however_many_scans_are_uploaded(
    client: Any, space: Space, tmp_path: Path
) -> None:
    resident, hu = [], phantom_hu((12, 48, 48)).repeat(5, 0).repeat(10, 1).repeat(10, 2)
    for number in range(CACHE_SCANS + 6):
        path = tmp_path / f"{number}.nii.gz"
        Volume(hu=hu + np.int16(number), affine=canonical_affine((5.0, 1.0, 1.0))).to_nifti(path)
        client.predict(files_of(path), api_name="/inspect_scan")
        resident.append(psutil.Process(space.process.pid).memory_info().rss)
    assert resident[-1] - resident[CACHE_SCANS] < 2 * hu.nbytes  # of five more


def test_nobody_is_named_in_an_answer_a_download_or_the_log_and_uploads_are_gone(
    client: Any, space: Space, study: Path, two_series: Path
) -> None:
    before = kept(space)
    answers = [
        client.predict(files_of(two_series), api_name="/inspect_scan"),
        client.predict(files_of(study), api_name="/inspect_scan"),
        client.predict(files_of(study), api_name="/find"),
        client.predict(files_of(study), "Effusion", api_name="/query"),
        client.predict(files_of(study), 3, api_name="/similar_scans"),
        client.predict(files_of(study), files_of(study), api_name="/compare_scans"),
    ]
    assert SECRET not in json.dumps(answers).upper()
    assert SECRET not in space.log.read_text().upper()
    assert "Traceback" not in space.log.read_text()
    assert kept(space) == before
    for path in kept(space):  # downloads that were made before and not fetched yet
        assert SECRET not in str(path).upper()
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert SECRET.encode() not in content.upper(), path.name
