"""metrics.json and run.json of a checkpoint -> the tables of its card, between marks; no number in them is typed by hand.

    python -m ctfm.train.card                # writes model_card.md
    python -m ctfm.train.card --checkpoint runs/other --card runs/other/README.md

A block starts at a line with `<!-- name -->` and ends before one with `<!-- /name -->`; in the header the marks are comments.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent
Metrics = Mapping[str, Mapping[str, float]]  # key -> value, low, high (95 %), n

# key, what it is called, what it should reach, and whether more is better
AIMS = (
    ("zero_shot/macro_auroc", "Zero-shot findings, macro AUROC", 0.90, True),
    ("laterality/auroc", "Left told from right, AUROC", 0.85, True),
    ("retrieval/text_to_image/R@10", "Report to scan, R@10", 0.50, True),
    ("retrieval/image_to_text/R@10", "Scan to report, R@10", 0.50, True),
    ("calibration/ece", "Calibration error (ECE) after calibration", 0.05, False),
    ("pointing_game/focal", "Pointing game, focal findings", 0.60, True),
)
LEAST_AUROC = 0.75  # of a finding; below, it is named as failing


class CardError(ValueError):
    """A card without its marks, or a metrics file without what the card must say."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card and the checkpoint that it speaks of."""

    card: Path = ROOT / "model_card.md"
    checkpoint: Path = ROOT / "checkpoints" / "default"


def cell(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def results_table(metrics: Metrics) -> str:
    lines = ["| | Measured (95 % interval) | n | Aim | |", "|---|---|---|---|---|"]
    for key, name, aim, more_is_better in AIMS:
        if key not in metrics:
            lines.append(f"| {name} | not measured | | {aim:.2f} | |")
            continue
        value = metrics[key]["value"]
        is_reached = value >= aim if more_is_better else value <= aim
        bound = "at least" if more_is_better else "at most"
        verdict = "reached" if is_reached else "**missed**"
        lines.append(f"| {name} | {cell(metrics[key])} | {metrics[key]['n']} | {bound} {aim:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def finding_aurocs(metrics: Metrics) -> dict[str, Mapping[str, float]]:
    """Finding -> its zero-shot AUROC, from the highest down."""
    found = {m[1]: value for key, value in metrics.items() if (m := re.fullmatch(r"zero_shot/([^/]+)/auroc", key))}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["value"]))


def findings_table(metrics: Metrics) -> str:
    findings = finding_aurocs(metrics)
    if not findings:
        raise CardError("The metrics hold no zero_shot/FINDING/auroc; write them with ctfm.train.evaluate.")
    lines = ["| Finding | Zero-shot AUROC (95 % interval) | n |", "|---|---|---|"]
    lines += [f"| {name} | {cell(auroc)} | {auroc['n']} |" for name, auroc in findings.items()]
    failing = [name for name, auroc in findings.items() if auroc["value"] < LEAST_AUROC]
    verdict = (
        f"Failing, below {LEAST_AUROC}: {', '.join(failing)}." if failing else f"No finding is below {LEAST_AUROC}."
    )
    return "\n".join([*lines, "", verdict]) + "\n"


def compute_table(run: Mapping[str, object]) -> str:
    lines = [
        f"| {name.replace('_', ' ')} | {value} |" for name, value in run.items() if not isinstance(value, list | dict)
    ]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def model_index(metrics: Metrics) -> str:
    """The same figures as the header of a card holds them, for the Hub's own table."""
    measured = [(key, name) for key, name, _, _ in AIMS if key in metrics]
    lines = [
        "model-index:",
        "- name: CTFM",
        "  results:",
        "  - task: {type: zero-shot-image-classification}",
        "    dataset: {type: synthetic, name: held-out phantoms from shifted ranges}",
        "    metrics:",
    ]
    kinds = {"auroc": "roc_auc", "macro_auroc": "roc_auc", "R@10": "recall_at_10", "ece": "ece", "focal": "accuracy"}
    for key, name in measured:
        value = round(metrics[key]["value"], 4)
        lines.append(f'    - {{type: {kinds[key.rsplit("/", 1)[1]]}, name: "{name}", value: {value}}}')
    return "\n".join(lines) + "\n"


def fill_card(text: str, metrics: Metrics, run: Mapping[str, object]) -> str:
    """The card with its blocks written anew.

    Raises:
        CardError: a mark is missing.
    """
    blocks = {
        "model-index": model_index(metrics),
        "results": results_table(metrics),
        "findings": findings_table(metrics),
        "compute": compute_table(run),
    }
    for name, block in blocks.items():
        pattern = rf"(^.*<!-- {name} -->.*\n)(?:.*\n)*?(.*<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda m, block=block: m[1] + block + m[2], text, flags=re.MULTILINE)
        if count != 1:
            raise CardError(f"The card has {count} blocks between <!-- {name} --> and <!-- /{name} -->; it needs one.")
    return text


def main() -> int:
    options = tyro.cli(Card, description=__doc__)
    metrics, run = (json.loads((options.checkpoint / name).read_text()) for name in ("metrics.json", "run.json"))
    options.card.write_text(fill_card(options.card.read_text(), metrics, run))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
