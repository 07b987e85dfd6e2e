"""Checkpoints and baselines -> figures on the papers' own protocols, as JSON.

    python -m ctfm.reporting.evaluate baselines --out reporting/results/baselines.json

CONSORT-TM: the five published folds, all 34 items that it annotates by sentence. Methods: the articles of the 2021 test
split, Methods sentences, 17 items. Thresholds for a fold are chosen on the predictions for the other four folds.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from .baselines import gold, predict_rules, predict_tfidf
from .corpora import CONSORT_ITEMS, METHODS_ITEMS, Article, in_methods, load_consort
from .metrics import (
    best_threshold,
    bootstrap_interval,
    choose_thresholds,
    fold_mean,
    micro_macro,
    missing,
    score,
)

# The 12 test articles of Kilicoglu et al. 2021, as published in github.com/kilicogluh/CONSORT-TM, data/Methods_test.csv.
METHODS_TEST = tuple(
    f"PMC{number}"
    for number in (
        3420230, 3944682, 4797126, 4893154, 4902320, 5009486, 5033259, 5064025, 5099201, 5264229, 5418559, 5529963,
    )
)  # fmt: skip

Scores = NDArray[np.float64]
Predictions = dict[str, Scores]


def split_predictions(articles: Sequence[Article], scores: Scores) -> Predictions:
    """Scores of concatenated articles -> scores by PMCID."""
    bounds = np.cumsum([0, *(len(article.sentences) for article in articles)])
    return {article.pmcid: scores[low:high] for article, (low, high) in zip(articles, pairwise(bounds), strict=True)}


def any_sentence(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`(s, l)` -> `(1, l)`: an article reports what a sentence of it states."""
    return np.asarray(flags.any(0))[None]


def cross_validate(
    articles: Sequence[Article], predict: Callable[[Sequence[Article], Sequence[Article]], Scores]
) -> Predictions:
    """Every article's scores from the other folds' annotations."""
    found: Predictions = {}
    for fold in range(5):
        train = [article for article in articles if article.fold != fold]
        test = [article for article in articles if article.fold == fold]
        found |= split_predictions(test, predict(train, test))
    return found


def fold_thresholds(articles: Sequence[Article], predictions: Predictions, level: str) -> dict[int, NDArray]:
    """Thresholds for every fold, chosen on the other four only."""
    thresholds = {}
    for fold in range(5):
        others = [article for article in articles if article.fold != fold]
        thresholds[fold] = thresholds_from(others, predictions, level)
    return thresholds


def thresholds_from(articles: Sequence[Article], predictions: Predictions, level: str) -> NDArray[np.float64]:
    if level == "sentence":
        return choose_thresholds(
            np.concatenate([gold(article) for article in articles]),
            np.concatenate([predictions[article.pmcid] for article in articles]),
        )
    flags = np.asarray([gold(article).any(0) for article in articles])
    highest = np.asarray([predictions[article.pmcid].max(0) for article in articles])
    common = best_threshold(flags.ravel(), highest.ravel(), 0.5)
    own = []
    for item in range(flags.shape[1]):
        few = min(int(flags[:, item].sum()), int((~flags[:, item]).sum())) < 5
        own.append(common if few else best_threshold(flags[:, item], highest[:, item], common))
    return 0.5 * common + 0.5 * np.asarray(own)


def describe(articles: Sequence[Article], flags: dict[str, NDArray[np.bool_]]) -> dict:
    """All figures of one set of decisions: `flags[pmcid]` `(s, l)` for sentences or `(1, l)` for articles."""
    at_articles = next(iter(flags.values())).shape[0] == 1
    pairs = [
        (any_sentence(gold(article)) if at_articles else gold(article), flags[article.pmcid]) for article in articles
    ]
    folds = sorted({article.fold or 0 for article in articles})
    by_fold = [
        [pair for article, pair in zip(articles, pairs, strict=True) if (article.fold or 0) == fold] for fold in folds
    ]
    golds = [np.concatenate([g for g, _ in group]) for group in by_fold]
    predicted = [np.concatenate([p for _, p in group]) for group in by_fold]
    all_gold, all_predicted = np.concatenate(golds), np.concatenate(predicted)
    micro, macro = micro_macro(all_gold, all_predicted)
    figures = {
        "fold_mean": fold_mean(golds, predicted),
        "pooled": asdict(micro) | {"macro_f1": macro},
        "pooled_micro_f1_interval": bootstrap_interval(pairs, lambda g, p: score(g, p).f1),
    }
    if at_articles:
        figures["missing"] = asdict(missing(all_gold, all_predicted))
        figures["missing_f1_interval"] = bootstrap_interval(pairs, lambda g, p: missing(g, p).f1)
    return figures


def evaluate_predictions(articles: Sequence[Article], predictions: Predictions) -> dict:
    """Sentence and article figures at 0.5, as the papers score, and at thresholds from the training folds."""
    at_half = {pmcid: scores >= 0.5 for pmcid, scores in predictions.items()}
    sentence = fold_thresholds(articles, predictions, "sentence")
    article_level = fold_thresholds(articles, predictions, "article")
    fold_of = {article.pmcid: int(article.fold or 0) for article in articles}
    chosen = {pmcid: scores >= sentence[fold_of[pmcid]] for pmcid, scores in predictions.items()}
    highest = {
        pmcid: scores.max(0, keepdims=True) >= article_level[fold_of[pmcid]] for pmcid, scores in predictions.items()
    }
    return {
        "sentence_at_half": describe(articles, at_half),
        "sentence": describe(articles, chosen),
        "article_at_half": describe(articles, {pmcid: any_sentence(flags) for pmcid, flags in at_half.items()}),
        "article_from_sentences": describe(articles, {pmcid: any_sentence(flags) for pmcid, flags in chosen.items()}),
        "article": describe(articles, highest),
    }


def per_item(articles: Sequence[Article], predictions: Predictions) -> dict[str, dict]:
    """Every item at sentence and article level, and as a missing item, with intervals."""
    sentence = fold_thresholds(articles, predictions, "sentence")
    at_article = fold_thresholds(articles, predictions, "article")
    table = {}
    for column, item in enumerate(CONSORT_ITEMS):
        sentences, whole = [], []
        for article in articles:
            scores, fold = predictions[article.pmcid][:, column], int(article.fold or 0)
            flags = gold(article)[:, column]
            sentences.append((flags, scores >= sentence[fold][column]))
            whole.append((flags.any(keepdims=True), scores.max(keepdims=True) >= at_article[fold][column]))
        g, p = (np.concatenate(part) for part in zip(*sentences, strict=True))
        ga, pa = (np.concatenate(part) for part in zip(*whole, strict=True))
        table[item] = {
            "sentence": asdict(score(g, p)) | {"f1_interval": bootstrap_interval(sentences, _f1, draws=300)},
            "article": asdict(score(ga, pa)) | {"f1_interval": bootstrap_interval(whole, _f1, draws=300)},
            "missing": asdict(missing(ga, pa)),
            "wrongly_called_missing": int((ga & ~pa).sum()),
            "wrongly_called_reported": int((~ga & pa).sum()),
        }
    return table


def _f1(g: NDArray[np.bool_], p: NDArray[np.bool_]) -> float:
    return score(g, p).f1


def evaluate_methods(articles: Sequence[Article], predictions: Predictions, thresholds: NDArray) -> dict:
    """The 2021 protocol: Methods sentences of the 12 test articles, 17 items."""
    columns = [CONSORT_ITEMS.index(item) for item in METHODS_ITEMS]
    pairs = []
    for article in articles:
        if article.pmcid in METHODS_TEST:
            rows = [number for number, section in enumerate(article.sections) if in_methods(section)]
            flags = predictions[article.pmcid] >= thresholds
            pairs.append((gold(article)[rows][:, columns], flags[rows][:, columns]))
    g, p = (np.concatenate(part) for part in zip(*pairs, strict=True))
    micro, macro = micro_macro(g, p)
    interval = bootstrap_interval(pairs, lambda a, b: score(a, b).f1)
    return asdict(micro) | {"macro_f1": macro, "sentences": len(g), "micro_f1_interval": interval}


def save_predictions(predictions: Predictions, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **dict(predictions))


def load_predictions(path: Path) -> Predictions:
    with np.load(path, allow_pickle=False) as file:
        return {pmcid: file[pmcid] for pmcid in file.files}


# ---- command line ----


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Rules alone and TF-IDF on the five folds."""

    out: Path
    data: Path = Path("../shared/trial_reports")


def run_baselines(options: Baselines) -> dict:
    articles = load_consort(options.data)
    results = {}
    for name, predict in (("rules", predict_rules), ("tfidf", predict_tfidf)):
        predictions = cross_validate(articles, predict)
        results[name] = evaluate_predictions(articles, predictions)
        save_predictions(predictions, options.out.with_suffix(f".{name}.npz"))
    return results


def write_json(results: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, default=list)
    out.write_text(text + "\n")


def main() -> int:
    options = tyro.cli(Annotated[Baselines, tyro.conf.arg(name="")], description=__doc__)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(run_baselines(options), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
