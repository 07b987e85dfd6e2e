"""What a probe asks of frozen features: each finding against its own labels, whatever a scan states."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ctfm import CTFMImageProcessor, CTFMVisionModel
from ctfm.evaluate import probe as probing
from ctfm.evaluate.frozen import knn_scores, linear_scores
from ctfm.evaluate.metrics import FindingTable, macro_auroc
from ctfm.train.shards import MANIFEST_SCHEMA, Manifest

from tests.tiny import tiny_config
from tests.tiny_training import tiny_data


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Scans of which the first states one finding, the others two in either order, and one states a third."""
    prepared = Manifest(tiny_data(tmp_path_factory.mktemp("phantoms"), num_train=12, num_test=12))
    rows = prepared.table.to_pylist()
    for number, row in enumerate(rows):
        labels = {"bright": float(number % 2), "dark": float(number % 2 == 0)}
        if number % 12 == 0:
            del labels["bright"]
        if number % 3 == 0:
            labels = dict(reversed(labels.items()))
        if number == 20:
            labels["stated once"] = 1.0
        row["labels"] = json.dumps(labels)
    prepared.table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    return prepared


def test_findings_are_those_of_all_scans_and_each_meets_its_own_labels(manifest: Manifest) -> None:
    rows = probing.choose_rows(manifest, "train", 12), probing.choose_rows(manifest, "test", 12)
    findings = probing.stated_findings(*((manifest, some) for some in rows))
    assert findings == ("bright", "dark", "stated once")
    torch.manual_seed(0)
    vision = CTFMVisionModel(tiny_config().vision_config).eval()
    processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing=(20.0, 20.0, 20.0))
    (train,), (test,) = (probing.encode_scans([(vision, processor)], manifest, some, findings) for some in rows)
    assert test.labels.findings == findings
    for part, some in ((train, rows[0]), (test, rows[1])):
        for values, row in zip(part.labels.values, some, strict=True):
            stated = manifest.labels_of(int(row))
            assert {n: v for n, v in zip(findings, values, strict=True) if not np.isnan(v)} == stated
    found = probing.probe(vision, processor, manifest, 12, 12)
    assert found == {f"{way}/macro_auroc": macro_auroc(s, test.labels) for way, s in train.scores_of(test).items()}

    known = replace(train, features=np.nan_to_num(train.labels.values))  # features that are the labels
    asked = replace(test, features=np.nan_to_num(test.labels.values))
    assert {way: macro_auroc(s, asked.labels) for way, s in known.scores_of(asked).items()} == {
        "knn": 1.0,
        "linear": 1.0,
    }


def test_a_split_without_scans_is_an_error(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="has no scan of split 'validation'"):
        probing.choose_rows(manifest, "validation", 5)


def test_scans_that_state_nothing_have_no_vote_and_scores_keep_their_names() -> None:
    features = np.random.default_rng(0).normal(size=(40, 3))
    labels = np.stack([features[:, 0] > 0, features[:, 1] > 0], 1).astype(float)
    table = FindingTable(findings=("b", "a"), values=labels)
    with_more = FindingTable(findings=("b", "a"), values=np.concatenate([labels, np.full((40, 2), np.nan)]))
    asked = np.random.default_rng(1).normal(size=(10, 3))
    twice = np.concatenate([features, features])  # standardised alike
    for scorer, setting in ((knn_scores, 5), (linear_scores, 1.0)):
        (found,) = scorer(features, table, [asked], setting)
        (again,) = scorer(twice, with_more, [asked], setting * (2 if scorer is knn_scores else 1))
        assert found.findings == ("b", "a")
        np.testing.assert_allclose(found.values, again.values, atol=1e-6)
