"""Evaluation from end to end: phantoms and published layouts of the smallest size, features whose answers are known."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm import CTFMConfig, CTFMForImageClassification, CTFMForSemanticSegmentation, CTFMImageProcessor, CTFMModel
from ctfm.evaluate import evaluate as page
from ctfm.evaluate import features as encoding
from ctfm.evaluate import probe as probing
from ctfm.evaluate.cases import find_population, find_sides, label_table, read_case, read_label_map, report_part
from ctfm.evaluate.evaluate import Evaluation, calibrate, evaluate, keep_first_of_equal, probabilities_of
from ctfm.evaluate.features import Pointer
from ctfm.evaluate.metrics import FindingTable
from ctfm.evaluate.protocol import PAIR, PROTOCOLS, finding_directions, load_protocol, say
from ctfm.evaluate.real_scans import main as look_at_real_scans
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.phantom.make import FINDING_NAMES, SEGMENTATION_NAMES, SHIFTED_RANGES, make_phantom
from ctfm.pipeline_ctfm import calibrate as calibrate_one
from ctfm.pipeline_ctfm import finding_prompts
from ctfm.processing_ctfm import CTFMProcessor
from ctfm.train.prepare import main as prepare
from ctfm.train.shards import Manifest
from ctfm.train.table_files import read_table
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.tiny import tiny_config, tiny_tokenizer

CROP, SPACING = (8, 16, 16), (20.0, 20.0, 20.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    wanted = PhantomDataset(folder=folder, num_train=16, num_validation=24, num_test=30, shape=(16, 24, 24))
    prepare(["csv", str(write_dataset(wanted)), str(folder / "prepared"), "--num-workers", "0"])
    return folder / "prepared"


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The phantoms' protocol with few resamples, and pools and ranks that thirty scans fill."""
    facts = json.loads((PROTOCOLS / "phantoms.json").read_text()) | {"resamples": 20}
    facts["retrieval"] |= {"at": [1, 10], "pools": [8]}
    path = tmp_path_factory.mktemp("protocol") / "tiny.json"
    path.write_text(json.dumps(facts))
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(folder)
    CTFMProcessor(CTFMImageProcessor(crop_size=CROP, spacing=SPACING), tiny_tokenizer()).save_pretrained(folder)
    return folder


def test_a_checkpoint_is_asked_everything_twice_alike(
    tmp_path: Path, prepared: Path, protocol: str, checkpoint: Path
) -> None:
    run = Evaluation(
        encoder=str(checkpoint),
        data=(prepared,),
        out=tmp_path / "out",
        protocol=protocol,
        baselines={"random": f"random:{checkpoint}", "histogram": "histogram"},
        writes_calibration=True,
        failures=tmp_path / "failures.png",
    )
    evaluate(run)
    found = json.loads((run.out / "metrics.json").read_text())
    for key in (
        "zero_shot/macro_auroc",
        "zero_shot_unseen_wording/macro_auroc",
        "zero_shot/macro_f1",
        "calibration/ece",
        "abstention/coverage",
        "retrieval/text_to_image/R@10",
        "retrieval_impression/image_to_text/pool_8/R@1",
        "pointing_game/focal",
        "knn/macro_auroc",
        "linear/macro_average_precision",
        "baselines/random/zero_shot/macro_auroc",
        "baselines/random/retrieval/text_to_image/R@10",
        "baselines/histogram/linear/macro_auroc",
    ):
        assert found[key]["low"] <= found[key]["value"] <= found[key]["high"], key
        assert found[key]["n"] > 0
    assert {path.name for path in run.out.glob("*.png")} == {
        f"{name}.png" for name in ("findings", "methods", "reliability", "risk_coverage")
    }
    assert run.failures is not None
    assert run.failures.is_file()
    assert "| this checkpoint |" in (run.out / "table.md").read_text()
    facts = json.loads((run.out / "evaluation.json").read_text())
    assert facts["chosen"]["population"]["test"] == {"scans": 30, "patients": 30}

    written = CTFMConfig.from_pretrained(checkpoint).calibration
    assert written == json.loads((run.out / "calibration.json").read_text())
    assert written
    again = replace(run, out=tmp_path / "again", failures=None)
    evaluate(again)
    assert json.loads((again.out / "metrics.json").read_text()) == found


def test_scans_that_were_encoded_are_not_encoded_again(
    tmp_path: Path, prepared: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = find_population(load_protocol("phantoms"), [prepared], 4, 4).test
    first = encoding.encode(str(checkpoint), cases, tmp_path)
    monkeypatch.setattr(encoding, "encode_crops", None)  # checkpoints that share a local transformer share its work
    for file in tmp_path.glob("f-*"):
        file.unlink()
    again = encoding.encode(str(checkpoint), cases, tmp_path)
    monkeypatch.setattr(encoding, "encode_chunk", None)
    second = encoding.encode(str(checkpoint), cases, tmp_path)
    np.testing.assert_array_equal(first.sets["joint"], again.sets["joint"])
    np.testing.assert_array_equal(first.sets["joint"], second.sets["joint"])
    assert first.sets["scan"].shape == (4, 72)  # class token and mean of the global transformer
    assert first.sets["crops"].shape == (4, 96)


def test_the_features_are_those_of_the_model(tmp_path: Path, prepared: Path, checkpoint: Path) -> None:
    cases = find_population(load_protocol("phantoms"), [prepared], 2, 2).test
    found = encoding.encode(str(checkpoint), cases, tmp_path)
    model, processor = CTFMModel.from_pretrained(checkpoint).eval(), CTFMImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        inputs = processor(read_case(cases[1]))
        features, output = model.vision_model(**inputs), model.get_image_features(**inputs)
    np.testing.assert_allclose(found.sets["scan"][1], features.pooler_output[0], atol=1e-5)
    joint = torch.nn.functional.normalize(output.pooler_output, dim=-1)[0]
    np.testing.assert_allclose(found.sets["joint"][1], joint, atol=1e-5)


@pytest.mark.parametrize("token_scores", [False, True])
def test_evaluation_and_probe_score_findings_as_the_model_does(
    tmp_path: Path, prepared: Path, token_scores: bool
) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    config.token_scores = token_scores
    model, tokenizer = CTFMModel(config).eval(), tiny_tokenizer()
    processor = CTFMProcessor(CTFMImageProcessor(crop_size=CROP, spacing=SPACING), tokenizer)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    findings = ["Ascites", "Pleural effusion"]
    cases = find_population(load_protocol("phantoms"), [prepared], 3, 3).test
    texts = encoding.Texts(str(tmp_path / "model"))
    directions = finding_directions(texts, PAIR, findings)
    found = encoding.encode(str(tmp_path / "model"), cases, tmp_path, directions=directions).sets["scores"]
    manifest = Manifest(prepared)
    rows = np.array([case.row for case in cases])
    (probed,) = probing.encode_scans([(model, processor)], manifest, rows, findings)
    assert probed.zero_shot is not None
    words = tokenizer([text for name in findings for text in finding_prompts(name)], padding=True, return_tensors="pt")
    with torch.no_grad():
        embeds = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
        embeds = torch.nn.functional.normalize(embeds, dim=-1).view(2, 2, -1)
        for number, case in enumerate(cases):
            image = model.get_image_features(**processor.image_processor(read_case(case)), output_dense_features=True)
            expected = model.score_texts(image, embeds[:, 0] - embeds[:, 1])[0][0].numpy()
            np.testing.assert_allclose(found[number], expected, atol=2e-3)  # stored tokens are float16
            np.testing.assert_allclose(probed.zero_shot.values[number], expected, atol=1e-4)


def test_features_of_another_model_that_knows_everything_score_full_marks(
    tmp_path: Path, prepared: Path, protocol: str
) -> None:
    """Its scans point where their labels do, its texts where the findings they name do."""
    population = find_population(load_protocol("phantoms"), [prepared], 100, 100)
    folder, rows = tmp_path / "features", list[dict[str, str]]()
    folder.mkdir()
    texts, axes = dict[str, np.ndarray](), np.eye(len(FINDING_NAMES) + 30, dtype=np.float32)
    for split in (population.train, population.validation, population.test):
        for number, case in enumerate(split):
            present = label_table([case], FINDING_NAMES).values[0].astype(np.float32)
            embed = np.concatenate([2 * present - 1, 0.5 * axes[number % 30, :30]])  # and the scan's own mark
            file = f"{case.case_id}.safetensors"
            save_file({"scan_features": present, "image_embeds": embed}, folder / file)
            rows.append({"scan": case.path, "features": file})
            if split is population.test:
                texts |= {report_part(case.report, part): embed for part in ("report", "findings", "impression")}
    asked = load_protocol(protocol)
    for k, name in enumerate(FINDING_NAMES):
        for prompts in asked.prompts.values():
            texts |= dict.fromkeys(say(prompts.present, name, prompts.names), axes[k])
            texts |= dict.fromkeys(say(prompts.absent, name, prompts.names), -axes[k])
        assert asked.laterality is not None
        texts |= dict.fromkeys(say((*asked.laterality.left, *asked.laterality.right), name, {}), axes[k])
    save_file({text: np.ascontiguousarray(row) for text, row in texts.items()}, folder / "texts.safetensors")
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["scan", "features"])
        table.writeheader()
        table.writerows(rows)

    run = Evaluation(encoder=str(folder), data=(prepared,), out=tmp_path / "out", protocol=protocol)
    found = evaluate(run).metrics
    for key in ("zero_shot/macro_auroc", "zero_shot_ensemble/macro_auroc", "zero_shot/macro_f1", "abstention/coverage"):
        assert found[key].value == 1.0, key
    assert found["retrieval/text_to_image/R@1"].value == 1.0
    assert found["retrieval/image_to_text/pool_8/R@1"].value == 1.0
    assert found["linear/macro_auroc"].value > 0.9
    assert found["calibration/ece"].value < 0.1
    assert "pointing_game/focal" not in found  # there are no heat maps

    (folder / rows[0]["features"]).unlink()
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.DictWriter(file, ["scan", "features"]).writeheader()
    with pytest.raises(ValueError, match=r"no features of 30 of 30 scans"):
        evaluate(run)


def test_a_classifier_and_a_segmenter_are_asked_what_they_answer(tmp_path: Path, prepared: Path, protocol: str) -> None:
    processor = CTFMImageProcessor(crop_size=CROP, spacing=SPACING)
    config = tiny_config()
    for kind in (CTFMForImageClassification, CTFMForSemanticSegmentation):
        torch.manual_seed(0)
        config.id2label = (
            dict(enumerate(FINDING_NAMES))
            if kind is CTFMForImageClassification
            else {0: "background", 1: "Liver", 2: "heart"}
        )
        kind(config).save_pretrained(tmp_path / kind.__name__)
        processor.save_pretrained(tmp_path / kind.__name__)
    run = Evaluation(
        encoder=str(tmp_path / "CTFMForSemanticSegmentation"),
        data=(prepared,),
        out=tmp_path / "out",
        protocol=protocol,
        baselines={"supervised": str(tmp_path / "CTFMForImageClassification")},
    )
    found = evaluate(run).metrics
    assert 0 <= found["segmentation/liver/dice"].value <= found["segmentation/liver/dice"].high <= 1
    assert found["segmentation/macro_surface_mm"].value > 0
    assert 0 < found["baselines/supervised/classifier/macro_auroc"].value < 1
    assert "zero_shot/macro_auroc" not in found
    assert "no joint space" in (run.out / "table.md").read_text()


def test_a_map_that_peaks_on_the_finding_is_a_hit_and_one_elsewhere_is_not(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = find_population(load_protocol("phantoms"), [prepared], 1, 100)
    numbers = {name: number for number, name in population.structures.items()}
    case = next(c for c in population.test if c.labels["Liver lesion"] == 1)
    volume = read_case(case)
    truth = read_label_map(case, volume) == numbers["Liver lesion"]
    far = np.zeros(truth.shape)
    far[-1, 0, 0] = 1
    pointer = Pointer(directions={"Liver lesion": np.zeros(4)}, numbers=numbers, tolerance_mm=16.0)
    distances = []
    for heat in (truth.astype(float), far):
        monkeypatch.setattr(encoding, "text_maps", lambda *_, heat=heat: [heat])
        ((_, distance, chance),) = encoding.point(None, None, None, None, case, ["Liver lesion"], pointer)  # type: ignore[arg-type]
        distances.append(distance)
    assert distances[0] == 0
    assert distances[1] > 50
    assert 0 < chance < 0.5


def test_stored_tokens_give_the_heat_maps_of_the_model(tmp_path: Path, prepared: Path, checkpoint: Path) -> None:
    cases = find_population(load_protocol("phantoms"), [prepared], 1, 1).test
    focal = tuple(name for name, present in cases[0].labels.items() if present)
    model, processor = encoding.load_encoder(str(checkpoint))
    encoding.encode(str(checkpoint), cases, tmp_path, focal=focal)
    (file,) = tmp_path.glob("local-*")
    with safe_open(file, framework="pt") as stored:
        output, grid = encoding.stored_output(stored, 0, with_tokens=True)
    volume, directions = read_case(cases[0]), np.eye(2, 24)
    maps = encoding.text_maps(model, processor.image_processor, output, grid, volume, directions)
    inputs = processor.image_processor(volume)
    with torch.no_grad():
        whole = model.get_image_features(**inputs, output_dense_features=True)
    expected = model.get_text_maps(whole, inputs["crop_grid"], inputs["crop_mask"], torch.eye(2, 24))
    for found, wanted in zip(maps, expected.unbind(1), strict=True):
        assert np.ptp(found) > 0
        np.testing.assert_allclose(found, processor.to_patient_space(wanted, inputs)[0], atol=2e-3 * np.ptp(found))


def test_the_side_of_a_finding_is_the_side_it_was_drawn_on() -> None:
    phantom = make_phantom(
        1_000_000,
        shape=(32, 48, 48),
        ranges=SHIFTED_RANGES,
        findings=["Pleural effusion", "Kidney stone", "Consolidation", "Kidney tumour"],
    )
    names = sorted({finding.name for finding in phantom.findings})
    found = find_sides(phantom.segmentation.numpy(), phantom.spacing, SEGMENTATION_NAMES, names)
    drawn = {name: {finding.side for finding in phantom.findings if finding.name == name} for name in names}
    assert found == {name: side.pop() if len(side) == 1 else "both" for name, side in drawn.items()}
    assert {"left", "right"} & set(found.values())
    mirrored = find_sides(phantom.segmentation.numpy()[..., ::-1], phantom.spacing, SEGMENTATION_NAMES, names)
    assert mirrored == found  # organs were mirrored too
    assert find_sides(np.zeros((4, 4, 4)), (1, 1, 1), SEGMENTATION_NAMES, names) == {}


def test_the_pair_is_what_the_pipeline_says_and_the_probability_is_its_own() -> None:
    for path in PROTOCOLS.glob("*.json"):
        pair = load_protocol(path.stem).prompts["pair"]
        for name in (*FINDING_NAMES, "COVID-19"):
            said = (*say(pair.present, name, pair.names), *say(pair.absent, name, pair.names))
            assert said == finding_prompts(name)
    random = np.random.default_rng(0)
    x = random.normal(0, 2, 400)
    labels = (random.random(400) < probabilities_of({"slope": 1.5, "intercept": -1.0}, x)).astype(float)
    logits, truth = (FindingTable(findings=("Ascites",), values=values[:, None]) for values in (x, labels))
    fitted = calibrate(logits, truth)["Ascites"]
    p = probabilities_of(fitted, x)
    answers = [calibrate_one(value, fitted) for value in x]
    np.testing.assert_allclose([answer["probability"] for answer in answers], p, atol=1e-9)
    sure = np.array([answer["verdict"] != "not sure" for answer in answers])
    assert sure.tolist() == ((p < fitted["unsure_low"]) | (p >= fitted["unsure_high"])).tolist()
    assert 0 < sure.mean() < 1


def test_scores_that_say_nothing_of_a_finding_are_not_calibrated() -> None:
    labels = np.tile([0.0, 1.0], 50)[:, None]
    tables = [FindingTable(findings=("Ascites",), values=values) for values in (-labels, labels)]
    assert calibrate(*tables) == {}


def test_equal_reports_are_kept_once() -> None:
    assert keep_first_of_equal(["A  b.", "", "a b.", "c"]) == [0, 3]


def test_every_prompt_names_its_finding() -> None:
    for path in PROTOCOLS.glob("*.json"):
        protocol = load_protocol(path.stem)
        assert protocol.name == path.stem
        for prompts in protocol.prompts.values():
            assert all("inding}" in text for text in (*prompts.present, *prompts.absent))
            assert set(prompts.names) <= set(FINDING_NAMES)
    with pytest.raises(ValueError, match=r'no protocol "ct_rate"; there are ct_rate_1564, ct_rate_3002'):
        load_protocol("ct_rate")


# ---- published layouts ----


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_the_two_populations_of_ct_rate_are_kept_apart(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    names = [f"valid_{p}_{s}_{r}" for p, s, r in ((1, "a", 1), (1, "a", 2), (1, "b", 1), (2, "a", 1), (3, "a", 1))]
    for name in (*names, "train_9_a_1", "train_8_a_1"):
        split, patient, scan, _ = name.split("_")
        path = root / split / f"{split}_{patient}" / f"{split}_{patient}_{scan}" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "metadata").mkdir()
    (root / "metadata" / "no_chest_valid.txt").write_text("valid_3_a_1.nii.gz\n")
    one = find_population(load_protocol("ct_rate_1564"), [tmp_path], 10, 10)
    every = find_population(load_protocol("ct_rate_3002"), [tmp_path], 10, 10)
    assert [Path(case.path).name[:-7] for case in one.test] == [names[k] for k in (0, 2, 3, 4)]  # one of each scan
    assert [Path(case.path).name[:-7] for case in every.test] == names[:4]  # all, without what is no chest
    assert len({case.patient for case in every.test}) == 2
    assert len(every.train) + len(every.validation) == 2


def test_rad_chestct_joins_locations_and_lies_as_the_patient_did(tmp_path: Path) -> None:
    hu = np.full((10, 8, 9), -1000, np.int16)
    hu[0], hu[:, 0], hu[:, :, 0] = 100, 200, 300  # head, front, the patient's right
    for name in ("trn00001", "tst00002"):
        np.savez(tmp_path / f"{name}.npz", ct=hu)
    for split, name in (("train", "trn00001"), ("test", "tst00002")):
        row = {"NoteAcc_DEID": name, "nodule*left_upper": "0", "nodule*right_lower": "1", "mass*liver": "1"}
        row |= {"calcification*aorta": "1", "emphysema*left_lung": "0"}
        write_table(tmp_path / f"img{split}_Abnormality_and_Location_Labels.csv", [row])
    patients = [{"MRN_DEID": "7", "NoteAcc_DEID": "trn00001"}, {"MRN_DEID": "8", "NoteAcc_DEID": "tst00002"}]
    write_table(tmp_path / "CT_Scan_Metadata_Complete_35747.csv", patients)
    population = find_population(load_protocol("rad_chestct"), [tmp_path], 10, 10)
    assert len(population.test) == 2  # zero-shot on all
    assert population.test[0].labels == {
        "Lung nodule": 1.0,
        "Coronary artery wall calcification": 1.0,
        "Arterial wall calcification": 1.0,
        "Emphysema": 0.0,
    }
    volume = read_case(population.test[0])
    assert volume.spacing == pytest.approx((0.8, 0.8, 0.8))
    assert (volume.hu[-1, 1:, 1:] == 100).all()
    assert (volume.hu[:-1, 0, 1:] == 200).all()
    assert (volume.hu[:, :, 0] == 300).all()


def test_a_published_folder_is_evaluated_where_it_lies(tmp_path: Path, checkpoint: Path) -> None:
    """Merlin's layout: study, findings and impression, three answers a finding; what is not mentioned does not count."""
    write_dataset(PhantomDataset(folder=tmp_path / "drawn", num_train=0, num_test=14, shape=(16, 24, 24)))
    root = tmp_path / "merlinabdominalctdataset"
    (root / "merlin_data").mkdir(parents=True)
    labels, reports = [], []
    for number, scan in enumerate(sorted((tmp_path / "drawn" / "test").glob("???????.mha"))):
        scan.rename(root / "merlin_data" / f"AC{number}.mha")
        labels.append({"study id": f"AC{number}.mha", "ascites": str(number % 2), "renal_cyst": str((number % 3) - 1)})
        said = {"Findings": f"Liver seen, {number} mm.", "Impressions": "Normal.", "Split": "test"}
        reports.append({"study id": f"AC{number}.mha"} | said)
    write_table(root / "zero_shot_findings_disease_cls.csv", labels)
    write_table(root / "reports_final.csv", reports)
    facts = json.loads((PROTOCOLS / "merlin.json").read_text()) | {"resamples": 10}
    facts["retrieval"] |= {"pools": [4]}
    (tmp_path / "protocol.json").write_text(json.dumps(facts))
    run = Evaluation(
        encoder=str(checkpoint), data=(tmp_path,), out=tmp_path / "out", protocol=str(tmp_path / "protocol.json")
    )
    results = evaluate(run)
    assert results.metrics["zero_shot/ascites/auroc"].n == 14
    assert "zero_shot/renal_cyst/auroc" not in results.metrics  # five present, but only four absent
    assert results.metrics["retrieval/text_to_image/pool_4/R@1"].n == 14
    assert any("Retrieval of impression: there are 1 texts" in note for note in results.notes)
    assert any("no scans to fit a probe on" in note for note in results.notes)


def test_a_population_of_another_size_than_the_published_one_says_so(
    tmp_path: Path, prepared: Path, protocol: str, checkpoint: Path
) -> None:
    facts = json.loads(Path(protocol).read_text()) | {"expected_test_scans": 31, "resamples": 2}
    (tmp_path / "protocol.json").write_text(json.dumps(facts))
    results = page.Results(np.ones((1, 30)), FINDING_NAMES)
    asked = load_protocol(str(tmp_path / "protocol.json"))
    population = find_population(asked, [prepared], 10, 100)
    page.describe_population(asked, population, FINDING_NAMES, results)
    assert "has 30 scans, and publications use 31" in results.notes[0]


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [{"path": f"{k}.mha", "patient": "one", "split": split} for k, split in enumerate(("train", "test"))]
    write_table(tmp_path / "table.csv", rows)
    with pytest.raises(ValueError, match="1 patients are in the test split and in another"):
        find_population(load_protocol("table"), [tmp_path / "table.csv"], 10, 10)
    with pytest.raises(ValueError, match=r"No scan of .* is of split"):
        find_population(load_protocol("ct_rate_1564"), [tmp_path], 10, 10)


def test_without_a_column_split_the_columns_that_are_there_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", [{"path": "a.mha", "Split": "", "Nodule": "1"}])
    with pytest.raises(ValueError, match=r'has no column "split"; its columns are path, Split, Nodule'):
        find_population(load_protocol("table"), [tmp_path / "table.csv"], 10, 10)
    write_table(tmp_path / "table.csv", [{"path": f"{k}.mha", "split": split} for k, split in enumerate(["train", ""])])
    with pytest.raises(ValueError, match=r'is of split "test"; there are 1 of no split, 1 of train'):
        find_population(load_protocol("table"), [tmp_path / "table.csv"], 10, 10)


def test_without_a_validation_split_whole_patients_are_set_aside(tmp_path: Path) -> None:
    rows = [{"path": f"{k}.mha", "patient": f"p{k // 2}", "split": "train"} for k in range(80)]
    write_table(tmp_path / "table.csv", [*rows, {"path": "t.mha", "patient": "t", "split": "test"}])
    population = find_population(load_protocol("table"), [tmp_path / "table.csv"], 100, 100)
    chosen, fitted = ({case.patient for case in part} for part in (population.validation, population.train))
    assert not chosen & fitted
    assert len(population.train) + len(population.validation) == 80
    assert 4 <= len(population.validation) <= 32


def test_a_few_scans_are_looked_at(tmp_path: Path, checkpoint: Path) -> None:
    wanted = PhantomDataset(folder=tmp_path, num_train=0, num_test=6, shape=(16, 24, 24))
    paths = [row["path"] for row in read_table(write_dataset(wanted))]
    facts = [("lung tumour left", "chest"), ("lung nodule right lower lobe", "chest"), ("", "half chest")]
    facts += [("pleural effusion right", "chest"), ("", "abdomen+pelvis"), ("liver metastases", "abdomen")]
    rows = [
        {"file": path, "patient": f"p{number}", "region": region, "finding": finding}
        for number, (path, (finding, region)) in enumerate(zip(paths, facts, strict=True))
    ]
    write_table(tmp_path / "labels_dev.csv", [*rows, rows[0] | {"file": "missing.mha"}])
    (tmp_path / "metrics.json").write_text('{"kept": {"value": 1, "low": 1, "high": 1, "n": 1}}')
    arguments = [str(checkpoint), "--scans", str(tmp_path), "--out", str(tmp_path / "out")]
    look_at_real_scans([*arguments, "--metrics", str(tmp_path / "metrics.json")])
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["kept"]["value"] == 1
    assert (found["real_scans/encoded"]["value"], found["real_scans/encoded"]["n"]) == (0.8571, 7)  # one is not there
    assert found["real_scans/nearest_is_same_region"]["n"] == 6
    # Four of six scans are chests: three of five others; two are abdomens: one of five.
    assert found["real_scans/nearest_is_same_region_by_chance"]["value"] == pytest.approx(
        (4 * 3 / 5 + 2 / 5) / 6, abs=1e-4
    )
    assert found["real_scans/side_auroc"]["n"] == 3
    assert len(list((tmp_path / "out").glob("heat_*.png"))) == 4
