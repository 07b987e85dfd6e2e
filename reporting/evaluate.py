"""Predictions of `build.py` -> the figures of the papers' own protocols, with intervals.

CONSORT-TM: the five published folds, all 34 items that it annotates by sentence. Methods: the articles of the 2021 test split,
Methods sentences, 17 items. Thresholds for a fold are chosen on the predictions for the other four folds.
SPIRIT-CONSORT-TM: the published validation split, with thresholds from training articles whose predictions come from parts
of `build.py` that left them out.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .baselines import gold
from .corpora import CONSORT_ITEMS, METHODS_ITEMS, Article, in_methods
from .metrics import best_threshold, choose_thresholds, fold_mean, micro_macro, missing, score, score_intervals

# The 12 test articles of Kilicoglu et al. 2021, as published in github.com/kilicogluh/CONSORT-TM, data/Methods_test.csv.
METHODS_TEST = tuple(
    f"PMC{number}"
    for number in (
        3420230, 3944682, 4797126, 4893154, 4902320, 5009486, 5033259, 5064025, 5099201, 5264229, 5418559, 5529963,
    )
)  # fmt: skip

Scores = NDArray[np.float64]
Predictions = dict[str, Scores]


def any_sentence(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`(s, l)` -> `(1, l)`: an article reports what a sentence of it states."""
    return np.asarray(flags.any(0))[None]


def fold_thresholds(articles: Sequence[Article], predictions: Predictions, level: str) -> dict[int, NDArray]:
    """Thresholds for every fold, chosen on the other four only."""
    thresholds = {}
    for fold in range(5):
        others = [article for article in articles if article.fold != fold]
        thresholds[fold] = thresholds_from(others, predictions, level)
    return thresholds


def thresholds_from(
    articles: Sequence[Article], predictions: Predictions, level: str, items: Sequence[str] = CONSORT_ITEMS
) -> NDArray[np.float64]:
    """A threshold for every item, chosen on these articles: for sentences, or for an article's highest sentence."""
    if level == "sentence":
        return choose_thresholds(
            np.concatenate([gold(article, items) for article in articles]),
            np.concatenate([predictions[article.pmcid] for article in articles]),
        )
    flags = np.asarray([gold(article, items).any(0) for article in articles])
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
        "pooled_micro_f1_interval": score_intervals(pairs)["f1"],
    }
    if at_articles:
        figures["missing"] = asdict(missing(all_gold, all_predicted))
        figures["missing_f1_interval"] = score_intervals([(~g, ~p) for g, p in pairs])["f1"]
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
            "sentence": asdict(score(g, p)) | {"intervals": score_intervals(sentences)},
            "article": asdict(score(ga, pa)) | {"intervals": score_intervals(whole)},
            "missing": asdict(missing(ga, pa)),
            "wrongly_called_missing": int((ga & ~pa).sum()),
            "wrongly_called_reported": int((~ga & pa).sum()),
        }
    return table


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
    interval = score_intervals(pairs)["f1"]
    return asdict(micro) | {"macro_f1": macro, "sentences": len(g), "micro_f1_interval": interval}


def save_predictions(predictions: Predictions, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **dict(predictions))


def load_predictions(path: Path) -> Predictions:
    with np.load(path, allow_pickle=False) as file:
        return {pmcid: file[pmcid] for pmcid in file.files}


def evaluate_spirit(
    train: Sequence[Article],
    tuned: Predictions,
    valid: Sequence[Article],
    predictions: Predictions,
    items: Sequence[str],
) -> dict:
    """SPIRIT-CONSORT-TM's validation split, with thresholds from training articles: sentences, articles, missing items.

    `tuned` are predictions for `train` by models that had not seen the article's labels; columns are `items`.
    """
    sentence = thresholds_from(train, tuned, "sentence", items)
    whole = thresholds_from(train, tuned, "article", items)
    pairs = [(gold(article, items), predictions[article.pmcid] >= sentence) for article in valid]
    at_articles = [
        (any_sentence(g), predictions[article.pmcid].max(0, keepdims=True) >= whole)
        for article, (g, _) in zip(valid, pairs, strict=True)
    ]
    figures: dict = {"articles": len(valid), "items": len(items)}
    for name, group in (("sentence", pairs), ("article", at_articles)):
        g, p = (np.concatenate(part) for part in zip(*group, strict=True))
        micro, macro = micro_macro(g, p)
        figures[name] = asdict(micro) | {"macro_f1": macro, "intervals": score_intervals(group)}
        figures[name]["never_called"] = [
            item for column, item in enumerate(items) if g[:, column].any() and not p[:, column].any()
        ]
        figures[name]["per_item"] = {
            item: asdict(score(g[:, column], p[:, column]))
            | {"intervals": score_intervals([(a[:, column], b[:, column]) for a, b in group])}
            for column, item in enumerate(items)
        }
    absent = [(~g, ~p) for g, p in at_articles]
    figures["missing"] = asdict(missing(*(np.concatenate(part) for part in zip(*at_articles, strict=True))))
    figures["missing"]["intervals"] = score_intervals(absent)
    return figures


def select(predictions: Predictions, names: Sequence[str], corpus: str, items: Sequence[str]) -> Predictions:
    """The columns of a corpus' items."""
    columns = [list(names).index(f"{corpus}:{item}") for item in items]
    return {pmcid: scores[:, columns].astype(float) for pmcid, scores in predictions.items()}
