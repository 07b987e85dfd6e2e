"""The figures of a card come from its files and from nowhere else."""

import json
import re
from pathlib import Path

import pytest
import yaml
from ctfm.release.card import MIN_AUROC, CardError, fill_card, find_pictures

ROOT = Path(__file__).parent.parent
BLOCKS = ("model-index", "results", "methods", "findings", "failures", "details", "real scans", "compute")
CARD = "---\nlicense: mit\n# <!-- model-index -->\nold: 1\n# <!-- /model-index -->\n---\n# A model\n" + "".join(
    f"<!-- {name} -->\nold 0.999\n<!-- /{name} -->\n" for name in BLOCKS[1:]
)
RUN = {"recipe": "tiny", "hours": 1.5, "curve": [{"loss": 3.25}]}


def measured(value: float | None, n: int = 100) -> dict:
    return {"value": value, "low": value and value - 0.05, "high": value and value + 0.05, "n": n}


METRICS = {
    "zero_shot/Lung nodule/auroc": measured(0.7012),
    "zero_shot/Pleural effusion/auroc": measured(0.95),
    "zero_shot/macro_auroc": measured(0.8256),
    "linear/Lung nodule/auroc": measured(None),
    "calibration/ece": measured(0.04),
    "calibration_before/ece": measured(0.3),
    "retrieval/text_to_image/R@10": measured(0.61, n=300),
    "retrieval/image_to_text/R@10": measured(0.62, n=1000),
    "real_scans/side_auroc": measured(0.6, n=9),
    "baselines/random/zero_shot/macro_auroc": measured(0.51),
    "baselines/random/zero_shot/Lung nodule/auroc": measured(0.52),
}


def rows(card: str, block: str) -> list[list[str]]:
    found = re.search(rf"<!-- {block} -->\n(.*)<!-- /{block} -->", card, re.DOTALL)
    assert found
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines() if line.startswith("|")]


def test_the_tables_hold_the_numbers_of_the_files_and_nothing_that_stood_there() -> None:
    card = fill_card(CARD, METRICS, RUN)
    assert "old: 1" not in card
    assert "0.999" not in card
    assert rows(card, "findings")[2:] == [
        ["Pleural effusion", "100", "0.950 (0.900 to 1.000)", ""],
        ["Lung nodule", "100", "0.701 (0.651 to 0.751)", "-"],
    ]
    assert rows(card, "methods")[2:] == [
        ["**this checkpoint**", "0.826 (0.776 to 0.876)", "", "", "", "0.610 (0.560 to 0.660)"],
        ["random", "0.510 (0.460 to 0.560)", "", "", "", ""],
    ]
    assert rows(card, "details")[2:] == [["`calibration_before/ece`", "0.300 (0.250 to 0.350)", "100"]]
    assert rows(card, "real scans")[2:] == [["side auroc", "0.600 (0.550 to 0.650)", "9"]]
    assert rows(card, "compute")[2:] == [["recipe", "tiny"], ["hours", "1.5"]]


def test_an_aim_is_reached_missed_or_reached_among_fewer_and_a_failing_finding_is_named() -> None:
    card = fill_card(CARD, METRICS, RUN)
    verdicts = {row[0]: row[-1] for row in rows(card, "results")[2:]}
    assert verdicts == {
        "Zero-shot findings, macro AUROC": "**missed**",
        "Left told from right, AUROC": "**missed**",  # was not measured
        "Report to scan, R@10": "reached, of fewer",
        "Scan to report, R@10": "reached",
        "Calibration error (ECE) after calibration": "reached",
        "Pointing game, focal findings": "**missed**",
    }
    assert "Failing, below 0.75: Lung nodule.\n" in card


def test_pictures_of_misses_are_shown_where_there_are_any(tmp_path: Path) -> None:
    card = tmp_path / "model_card.md"
    assert find_pictures(card) == []
    assert "![" not in fill_card(CARD, METRICS, RUN)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "failures.png").touch()
    assert "(docs/failures.png)\n" in fill_card(CARD, METRICS, RUN, find_pictures(card))


def test_the_header_stays_yaml_and_lists_what_was_measured() -> None:
    header = yaml.safe_load(fill_card(CARD, METRICS, RUN).split("---\n")[1])
    assert header["license"] == "mit"
    (result,) = header["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.8256, 0.61, 0.62, 0.04]


def test_filling_a_card_again_changes_nothing() -> None:
    once = fill_card(CARD, METRICS, RUN)
    assert fill_card(once, METRICS, RUN) == once


@pytest.mark.parametrize("block", BLOCKS)
def test_a_card_without_a_block_is_refused(block: str) -> None:
    with pytest.raises(CardError, match=f"0 blocks between <!-- {block} -->"):
        fill_card(CARD.replace(f"<!-- /{block} -->", ""), METRICS, RUN)


def test_metrics_without_findings_are_refused() -> None:
    with pytest.raises(CardError, match="ctfm evaluate"):
        fill_card(CARD, {"calibration/ece": measured(0.1)}, RUN)


def test_the_card_of_this_repository_holds_the_numbers_of_its_checkpoint() -> None:
    checkpoint, card = ROOT / "checkpoints" / "default", (ROOT / "model_card.md").read_text()
    if not (checkpoint / "metrics.json").is_file():
        pytest.skip("there is no trained checkpoint yet")
    metrics, run = (json.loads((checkpoint / name).read_text()) for name in ("metrics.json", "run.json"))
    assert fill_card(card, metrics, run, find_pictures(ROOT / "model_card.md")) == card


def test_the_readme_counts_the_findings_that_the_checkpoint_tells_apart() -> None:
    metrics = json.loads((ROOT / "checkpoints" / "default" / "metrics.json").read_text())
    found = [row["value"] for key, row in metrics.items() if re.fullmatch(r"zero_shot/[^/]+/auroc", key)]
    told = sum(value >= MIN_AUROC for value in found)
    assert f"tell {told} of {len(found)} findings of phantoms apart (AUROC of {MIN_AUROC} or more)" in (
        " ".join((ROOT / "README.md").read_text().split())
    )
