"""metrics.json and run.json of a checkpoint -> the tables of its card, between marks; no number in them is typed by hand.

    ctfm card                # writes model_card.md
    ctfm card --checkpoint runs/other --card runs/other/README.md

A block starts at a line with `<!-- name -->` and ends before one with `<!-- /name -->`; in the header the marks are comments.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..evaluate.markdown_tables import markdown_table

ROOT = Path(__file__).parent.parent
Metrics = Mapping[str, Mapping[str, float]]  # key -> value, low, high (95 %), n

# key, what it is called, what it should reach, whether more is better, and among how many at least
AIMS = (
    ("zero_shot/macro_auroc", "Zero-shot findings, macro AUROC", 0.90, True, 0),
    ("laterality/auroc", "Left told from right, AUROC", 0.85, True, 0),
    ("retrieval/text_to_image/R@10", "Report to scan, R@10", 0.50, True, 1000),
    ("retrieval/image_to_text/R@10", "Scan to report, R@10", 0.50, True, 1000),
    ("calibration/ece", "Calibration error (ECE) after calibration", 0.05, False, 0),
    ("pointing_game/focal", "Pointing game, focal findings", 0.60, True, 0),
)
# pictures that `ctfm evaluate` draws, and what they show
PICTURES = {
    "docs/failures.png": "The worst misses: each finding outlined in its scan, and beside it where the model looked for it",
}
MIN_AUROC = 0.75  # of a finding; below, it is named as failing


class CardError(ValueError):
    """A card without its marks, or a metrics file without what the card must say."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card and the checkpoint that it speaks of."""

    card: Path = ROOT / "model_card.md"
    checkpoint: Path = ROOT / "checkpoints" / "default"


def cell(metric: Mapping[str, float] | None) -> str:
    """Value and interval; empty for what was not asked, a dash for what is undefined."""
    if metric is None or metric["value"] is None:
        return "" if metric is None else "-"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def results_table(metrics: Metrics) -> str:
    rows = []
    for key, name, aim, more_is_better, least_n in AIMS:
        wish = f"at {'least' if more_is_better else 'most'} {aim:.2f}" + (f" of {least_n:,}" if least_n else "")
        metric = metrics.get(key)
        if metric is None or metric["value"] is None:
            rows.append((name, "not measured", "", wish, "**missed**"))
            continue
        is_reached = metric["value"] >= aim if more_is_better else metric["value"] <= aim
        verdict = "reached" if metric["n"] >= least_n else "reached, of fewer"
        rows.append((name, cell(metric), str(metric["n"]), wish, verdict if is_reached else "**missed**"))
    return markdown_table(("", "Measured (95 % interval)", "n", "Aim", ""), rows)


def methods_table(metrics: Metrics) -> str:
    """The checkpoint and, in the same run, its baselines: macro AUROC of the findings by each way to ask, and retrieval."""
    names = dict.fromkeys(key.split("/")[1] for key in metrics if key.startswith("baselines/"))
    prefixes = {"**this checkpoint**": "", **{name: f"baselines/{name}/" for name in names}}
    ways = {
        "zero-shot": "zero_shot/macro_auroc",
        "nearest neighbours": "knn/macro_auroc",
        "linear probe": "linear/macro_auroc",
        "trained for it": "classifier/macro_auroc",
        "report to scan, R@10": "retrieval/text_to_image/R@10",
    }
    rows = [[name, *(cell(metrics.get(prefix + key)) for key in ways.values())] for name, prefix in prefixes.items()]
    return markdown_table(("", *ways), rows)


def finding_aurocs(metrics: Metrics) -> dict[str, Mapping[str, float]]:
    """Finding -> its zero-shot AUROC, from the highest down.

    Raises:
        CardError: there is none.
    """
    found = {m[1]: value for key, value in metrics.items() if (m := re.fullmatch(r"zero_shot/([^/]+)/auroc", key))}
    if not found:
        raise CardError("The metrics hold no zero_shot/FINDING/auroc; write them with ctfm evaluate.")
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["value"]))


def findings_table(metrics: Metrics) -> str:
    findings = finding_aurocs(metrics)
    ways = {
        "Zero-shot AUROC (95 % interval)": "zero_shot/{}/auroc",
        "in wording never trained on": "zero_shot_unseen_wording/{}/auroc",
        "Linear probe AUROC": "linear/{}/auroc",
        "ECE": "calibration/{}/ece",
        'Answered, not "not sure"': "abstention/{}/coverage",
        "Wrong of those": "abstention/{}/error",
    }
    ways = {name: key for name, key in ways.items() if any(key.format(finding) in metrics for finding in findings)}
    rows = [
        [name, str(auroc["n"]), *(cell(metrics.get(key.format(name))) for key in ways.values())]
        for name, auroc in findings.items()
    ]
    return markdown_table(("Finding", "n", *ways), rows)


def details_table(metrics: Metrics) -> str:
    """Everything else that is no single finding's."""
    findings, aims = finding_aurocs(metrics), {key for key, *_ in AIMS}
    rows = [
        (f"`{key}`", cell(value), str(value["n"]))
        for key, value in metrics.items()
        if key not in aims
        and not key.startswith(("baselines/", "real_scans/"))
        and findings.keys().isdisjoint(key.split("/"))
    ]
    return markdown_table(("Key in metrics.json", "Value (95 % interval)", "n"), rows)


def real_scans_table(metrics: Metrics) -> str:
    rows = [
        (key.removeprefix("real_scans/").replace("_", " "), cell(value), str(value["n"]))
        for key, value in metrics.items()
        if key.startswith("real_scans/")
    ]
    return markdown_table(("", "Value (95 % interval)", "n"), rows) if rows else "Not looked at.\n"


def failures(metrics: Metrics, pictures: Sequence[str]) -> str:
    """The findings that fail, and the pictures."""
    failing = [name for name, auroc in finding_aurocs(metrics).items() if auroc["value"] < MIN_AUROC]
    said = f"Failing, below {MIN_AUROC}: {', '.join(failing)}." if failing else f"No finding is below {MIN_AUROC}."
    return "\n".join([said + "\n", *(f"![{PICTURES[name]}]({name})\n" for name in pictures)])


def compute_table(run: Mapping[str, object]) -> str:
    """Every single fact of run.json; curves and settings stay in the file."""
    rows = [(name.replace("_", " "), str(fact)) for name, fact in run.items() if not isinstance(fact, list | dict)]
    return markdown_table(("", ""), rows)


def model_index(metrics: Metrics) -> str:
    """The same figures as the header of a card holds them, for the Hub's own table."""
    measured = [(key, name) for key, name, *_ in AIMS if (metrics.get(key) or {}).get("value") is not None]
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


def find_pictures(card: Path) -> list[str]:
    return [name for name in PICTURES if (card.parent / name).is_file()]


def fill_card(text: str, metrics: Metrics, run: Mapping[str, object], pictures: Sequence[str] = ()) -> str:
    """The card with its blocks written anew; `pictures` are those of `PICTURES` that there are.

    Raises:
        CardError: a mark is missing.
    """
    blocks = {
        "model-index": model_index(metrics),
        "results": results_table(metrics),
        "methods": methods_table(metrics),
        "findings": findings_table(metrics),
        "failures": failures(metrics, pictures),
        "details": details_table(metrics),
        "real scans": real_scans_table(metrics),
        "compute": compute_table(run),
    }
    for name, block in blocks.items():
        pattern = rf"(^.*<!-- {name} -->.*\n)(?:.*\n)*?(.*<!-- /{name} -->)"
        space = "" if name == "model-index" else "\n"  # a table needs an empty line before and after it
        filled = f"{space}{block}{space}"
        text, count = re.subn(pattern, lambda m, filled=filled: m[1] + filled + m[2], text, flags=re.MULTILINE)
        if count != 1:
            raise CardError(f"The card has {count} blocks between <!-- {name} --> and <!-- /{name} -->; it needs one.")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    options = tyro.cli(Card, prog="ctfm card", args=arguments, description=__doc__)
    metrics, run = (json.loads((options.checkpoint / name).read_text()) for name in ("metrics.json", "run.json"))
    text = fill_card(options.card.read_text(), metrics, run, find_pictures(options.card))
    options.card.write_text(text)
    return 0
