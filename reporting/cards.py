"""`results.json` -> the tables of `model_card.md` and `data_card.md`, between their marks."""

from collections.abc import Sequence
from pathlib import Path

from .checklist import load_checklist


def _span(interval: Sequence[float]) -> str:
    return f"({interval[0]:.2f}-{interval[1]:.2f})"


def _share(hits: int, count: int) -> str:
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(method="wilson") if count else (0.0, 1.0)
    return f"{hits / max(count, 1):.2f} {_span(interval)}"


def _measured(figures: dict) -> str:
    """Precision, recall and F1, each with its interval."""
    return " | ".join(
        f"{figures[name]:.2f} {_span(figures['intervals'][name])}" for name in ("precision", "recall", "f1")
    )


def figures_table(results: dict) -> str:
    """The block of figures in `model_card.md`."""
    return "\n".join([*_consort(results), *_spirit(results), *_verdicts(results), *_items(results)]) + "\n"


def _consort(results: dict) -> list[str]:
    def row(name: str, figures: dict) -> str:
        cells = [name]
        for level in ("sentence_at_half", "sentence", "article_at_half", "article"):
            mean, interval = figures[level]["fold_mean"], figures[level]["pooled_micro_f1_interval"]
            cells.append(f"{mean['micro_f1']:.3f} ({interval[0]:.3f}-{interval[1]:.3f}) / {mean['macro_f1']:.3f}")
        absent, interval = figures["article"]["missing"], figures["article"]["missing_f1_interval"]
        cells.append(f"{absent['precision']:.2f} / {absent['recall']:.2f} / {absent['f1']:.2f} {_span(interval)}")
        return "| " + " | ".join(cells) + " |"

    methods = results["methods2021"]
    low, high = methods["micro_f1_interval"]
    return [
        "CONSORT-TM, five folds: micro F1 (interval) / macro F1; missing items: precision / recall / F1 (interval).",
        "",
        "| | Sentences at 0.5 | Sentences | Articles at 0.5 | Articles | Missing items |",
        "|---|---|---|---|---|---|",
        row("Rules alone", results["baselines"]["rules"]),
        row("The lexical view alone", results["baselines"]["lexical"]),
        row("**This model**", results["model"]),
        "| PubMedBERT, 110 M (Jiang et al. 2024) | .71 / .67 | - | .90 / .84 | - | - |",
        "",
        f"Methods sentences of the 12 test articles of 2021 ({methods['sentences']} sentences, 17 items), each article "
        f"scored by the model of a fold that left it out: micro F1 {methods['f1']:.3f} ({low:.3f}-{high:.3f}); BioBERT, "
        "trained on the other 38 (Kilicoglu et al. 2021), .71.",
        "",
    ]


def _spirit(results: dict) -> list[str]:
    figures = results["spirit_validation"]
    lines = [
        f"SPIRIT-CONSORT-TM, validation split ({figures['articles']} articles, {figures['items']} items; thresholds from "
        "training articles):",
        "",
        "| | Precision | Recall | Micro F1 | Macro F1 |",
        "|---|---|---|---|---|",
        f"| Sentences | {_measured(figures['sentence'])} | {figures['sentence']['macro_f1']:.2f} |",
        f"| Articles | {_measured(figures['article'])} | {figures['article']['macro_f1']:.2f} |",
        f"| Missing items | {_measured(figures['missing'])} | - |",
        "",
        "PubMedBERT on the test split, which was not looked at here: sentences .742, articles .865.",
        "",
    ]
    for level, what in (("sentence", "no sentence"), ("article", "no article")):
        silent = figures[level]["never_called"]
        lines += [f"Items of the validation split that {what} was called: {', '.join(silent) or 'none'}.", ""]
    return lines


def _verdicts(results: dict) -> list[str]:
    lines = [
        "How right a verdict is, and how right it says it is, on articles that the layers that decide had not seen:",
        "",
        "| Articles | Verdict | Right | Said | Calibration error (ten bins) |",
        "|---|---|---|---|---|",
    ]
    for name, quality in results["verdicts"].items():
        for verdict in ("reported", "not found"):
            row = quality[verdict]
            lines.append(
                f"| {name} | {verdict} | {row['right']} of {row['count']}: {_share(row['right'], row['count'])} | "
                f"{row['mean_confidence']:.2f} | {row['calibration_error']:.3f} |"
            )
    return [*lines, ""]


def _items(results: dict) -> list[str]:
    lines = [
        "By item (CONSORT-TM, five folds pooled). Intervals: 95 %, over articles drawn with replacement; those of precision "
        "and recall in articles are Wilson's.",
        "",
        "| Item | Sentences: precision | recall | F1 | Articles: precision | recall | Missing: F1 | Articles with it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item, table in results["per_item"].items():
        a, m = table["article"], table["missing"]
        absent = f"{m['f1']:.2f}" if m["support"] else "never missing"
        hits = a["support"] - table["wrongly_called_missing"]
        called = hits + table["wrongly_called_reported"]
        lines.append(
            f"| {item} | {_measured(table['sentence'])} | {_share(hits, called)} | {_share(hits, a['support'])} "
            f"| {absent} | {a['support']} |"
        )
    lines += [
        "",
        "By item (SPIRIT-CONSORT-TM, sentences of the validation split):",
        "",
        "| Item | Precision | Recall | F1 | Sentences with it |",
        "|---|---|---|---|---|",
    ]
    for item, table in results["spirit_validation"]["sentence"]["per_item"].items():
        lines.append(f"| {item} | {_measured(table)} | {table['support']} |")
    return lines


def elements_table(results: dict) -> str:
    """The block of `data_card.md`: how often elements of an item were called there and missing rightly, and which are kept."""
    names = {
        element.label: element.name
        for key in ("spirit", "consort", "consort-2025")
        for item in load_checklist(key).items
        for element in item.elements
    }
    lines = [
        "| Element | Label | Called there, rightly | Called missing, rightly | Spoken of |",
        "|---|---|---|---|---|",
    ]
    for label, row in results["elements"].items():
        lines.append(
            f"| {names.get(label, '-')} | {label.removeprefix('spirit:')} "
            f"| {row['called_reported_rightly']} of {row['called_reported']} "
            f"| {row['called_missing_rightly']} of {row['called_missing']} | {'yes' if row['kept'] else 'no'} |"
        )
    lines += ["", "| Rule | Called reported, rightly | Called missing, rightly |", "|---|---|---|"]
    for name, row in results["rules"].items():
        lines.append(
            f"| {name.replace('_', ' ')} | {row['called_reported_rightly']} of {row['called_reported']} "
            f"| {row['called_missing_rightly']} of {row['called_missing']} |"
        )
    return "\n".join(lines) + "\n"


def write_between(card: Path, mark: str, block: str) -> None:
    """Puts a block between a card's two marks.

    Raises:
        ValueError: the card lacks the marks.
    """
    before, first, rest = card.read_text().partition(f"<!-- {mark} -->\n")
    _, last, after = rest.partition(f"<!-- /{mark} -->\n")
    if not first or not last:
        raise ValueError(f"{card} lacks the marks <!-- {mark} --> and <!-- /{mark} -->.")
    card.write_text(f"{before}{first}{block}{last}{after}")
