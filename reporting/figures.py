"""Figures of `results.json` -> the block that `model_card.md` holds of them. Nothing is measured here."""

from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from .markdown_tables import markdown_table


def figures_table(results: dict) -> str:
    """The block of figures in `model_card.md`, from `results.json`."""

    def span(interval: Sequence[float]) -> str:
        return f"({interval[0]:.2f}-{interval[1]:.2f})"

    def row(name: str, figures: dict) -> list[str]:
        cells = [name]
        for level in ("sentence_at_half", "sentence", "article_at_half", "article"):
            mean, interval = figures[level]["fold_mean"], figures[level]["pooled_micro_f1_interval"]
            cells.append(f"{mean['micro_f1']:.3f} ({interval[0]:.3f}-{interval[1]:.3f}) / {mean['macro_f1']:.3f}")
        absent, interval = figures["article"]["missing"], figures["article"]["missing_f1_interval"]
        cells.append(f"{absent['precision']:.2f} / {absent['recall']:.2f} / {absent['f1']:.2f} {span(interval)}")
        return cells

    def share(hits: int, count: int) -> str:
        interval = binomtest(hits, count).proportion_ci(method="wilson") if count else (0.0, 1.0)
        return f"{hits / max(count, 1):.2f} {span(interval)}"

    names = {
        "rules": "Rules alone",
        "tfidf": "TF-IDF, headers, neighbours",
        "embeddings": "Frozen vectors of the start",
    }
    rows = [row(names[key], results["baselines"][key]) for key in names if key in results.get("baselines", {})]
    rows.append(row("**This model**", results["model"]))
    rows.append(["PubMedBERT, 110 M (Jiang et al. 2024)", ".71 / .67", "-", ".90 / .84", "-", "-"])
    head = ("", "Sentences at 0.5", "Sentences", "Articles at 0.5", "Articles", "Missing items")
    lines = [
        "CONSORT-TM, five folds: micro F1 (interval) / macro F1; missing items: precision / recall / F1 (interval).",
        "",
        *markdown_table(head, rows).splitlines(),
    ]
    methods, spirit = results["methods2021"], results["spirit_validation"]
    quality = spirit["calibration"]
    half, chosen = methods["at_half"], methods["thresholds_from_the_other_38"]
    low, high = chosen["micro_f1_interval"]
    lines += [
        "",
        f"Methods 2021 ({chosen['sentences']} sentences): micro F1 {chosen['f1']:.3f} ({low:.3f}-{high:.3f}), at 0.5 "
        f"{half['f1']:.3f}; BioBERT (Kilicoglu et al. 2021) .71.",
        "",
        f"SPIRIT validation ({spirit['articles']} articles, {spirit['items']} items): sentences micro / macro F1 "
        f"{spirit['sentence']['f1']:.3f} / {spirit['sentence']['macro_f1']:.3f}, "
        f"articles {spirit['article']['f1']:.3f} / {spirit['article']['macro_f1']:.3f}, "
        f"missing items F1 {spirit['missing']['f1']:.3f}. PubMedBERT on the test split, which was not looked at here: "
        "sentences .742, articles .865.",
        "",
        f"Probabilities beside SPIRIT's items ({quality['verdicts']} verdicts on those articles): Brier score "
        f"{quality['brier']:.3f}, mean distance from the shares {quality['error_in_ten_bins']:.3f} (ten bins).",
        "",
        "By item (CONSORT-TM, five folds pooled): precision / recall / F1 in sentences and in articles, F1 of the item as "
        "missing, and in how many of the 50 articles the annotators found it. Intervals of F1 as above; those of precision and "
        "recall in articles are Wilson's.",
        "",
    ]
    head, rows = ("Item", "Sentences", "Articles: precision", "recall", "F1", "Missing", "Articles with it"), []
    for item, table in results["per_item"].items():
        s, a, m = table["sentence"], table["article"], table["missing"]
        absent = f"{m['f1']:.2f}" if m["support"] else "never missing"
        hits = a["support"] - table["wrongly_called_missing"]
        called = hits + table["wrongly_called_reported"]
        rows.append(
            (
                item,
                f"{s['precision']:.2f} / {s['recall']:.2f} / {s['f1']:.2f} {span(s['f1_interval'])}",
                share(hits, called),
                share(hits, a["support"]),
                f"{a['f1']:.2f} {span(a['f1_interval'])}",
                absent,
                str(a["support"]),
            )
        )
    return "\n".join([*lines, markdown_table(head, rows)])


def write_card(results: dict, card: Path) -> None:
    """Puts the figures between the card's two marks."""
    before, _, rest = card.read_text().partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- /figures -->\n")
    card.write_text(f"{before}<!-- figures -->\n{figures_table(results)}<!-- /figures -->\n{after}")
