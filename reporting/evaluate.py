"""Checkpoints and baselines -> figures on the papers' own protocols, as JSON.

    python -m ctfm.reporting.evaluate baselines --out runs/reporting/baselines.json
    python -m ctfm.reporting.evaluate release --folds runs/reporting/folds --out reporting/results.json \\
        --baselines runs/reporting/baselines.json --checkpoint reporting/checkpoints/default --card reporting/model_card.md

CONSORT-TM: the five published folds, all 34 items that it annotates by sentence. Methods: the articles of the 2021 test
split, Methods sentences, 17 items. Thresholds for a fold are chosen on the predictions for the other four folds.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from .baselines import gold, predict_embeddings, predict_rules, predict_tfidf
from .check import calibrate, load_complete, load_labeller
from .checklist import CONSORT, SPIRIT
from .corpora import (
    CONSORT_ITEMS,
    METHODS_ITEMS,
    Article,
    in_methods,
    load_consort,
    load_spirit,
    load_spirit_articles,
)
from .documents import Sentence
from .elements import ELEMENTS, elements_of, find_element
from .figures import write_card
from .metrics import (
    best_threshold,
    bootstrap_interval,
    choose_thresholds,
    fold_mean,
    micro_macro,
    missing,
    score,
)
from .processing_trialreport import section_kind
from .rules import RuleFinding, abstract_is_structured, interests_are_declared, title_is_randomised

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


# ---- the figures of a release ----


def evaluate_spirit(
    articles: Sequence[Article], tuned: Predictions, predictions: Predictions, items: Sequence[str]
) -> dict:
    """SPIRIT-CONSORT-TM's validation split, with thresholds from training articles: sentences, articles, missing items."""
    tune = [article for article in articles if article.pmcid in tuned]
    valid = [article for article in articles if article.pmcid in predictions]
    sentence = thresholds_from(tune, tuned, "sentence", items)
    whole = thresholds_from(tune, tuned, "article", items)
    pairs = [(gold(article, items), predictions[article.pmcid] >= sentence) for article in valid]
    at_articles = [
        (any_sentence(g), predictions[article.pmcid].max(0, keepdims=True) >= whole)
        for article, (g, _) in zip(valid, pairs, strict=True)
    ]
    figures: dict[str, Any] = {"articles": len(valid), "items": len(items)}
    for name, group in (("sentence", pairs), ("article", at_articles)):
        micro, macro = micro_macro(*(np.concatenate(part) for part in zip(*group, strict=True)))
        interval = bootstrap_interval(group, lambda g, p: score(g, p).f1)
        figures[name] = asdict(micro) | {"macro_f1": macro, "micro_f1_interval": interval}
    figures["missing"] = asdict(missing(*(np.concatenate(part) for part in zip(*at_articles, strict=True))))
    return figures


def count_verdicts(there: NDArray[np.bool_], said: NDArray[np.bool_]) -> dict[str, int]:
    """How often an item was called reported and missing over articles, and how often rightly."""
    return {
        "called_reported": int(said.sum()),
        "called_reported_rightly": int((there & said).sum()),
        "called_missing": int((~said).sum()),
        "called_missing_rightly": int((~there & ~said).sum()),
    }


def calibration_table(
    articles: Sequence[Article],
    predictions: Predictions,
    items: Sequence[str],
    scored: tuple[Sequence[Article], Predictions] | None = None,
) -> dict[str, dict]:
    """What the checker needs beside the weights, for every item of a corpus.

    Thresholds and Platt scaling from `articles`, whose predictions are from models that had not seen them; the error rates
    from `scored`, or by leaving each fold out in turn. Scaling: one slope, and an offset an item with a ridge penalty.
    """
    from sklearn.linear_model import LogisticRegression

    sentence = thresholds_from(articles, predictions, "sentence", items)
    whole = thresholds_from(articles, predictions, "article", items)
    flags = np.asarray([gold(article, items).any(0) for article in articles])
    highest = np.asarray([predictions[article.pmcid].max(0) for article in articles]).clip(1e-6, 1 - 1e-6)
    logits = np.log(highest / (1 - highest))
    one_hot = np.tile(np.eye(len(items)), (len(articles), 1))
    fitted = LogisticRegression(C=1.0, max_iter=500).fit(np.hstack([logits.reshape(-1, 1), one_hot]), flags.ravel())
    if scored is None:
        decided = np.zeros_like(flags)
        for fold in range(5):
            rows = [number for number, article in enumerate(articles) if article.fold == fold]
            others = [article for article in articles if article.fold != fold]
            decided[rows] = highest[rows] >= thresholds_from(others, predictions, "article", items)
        truth = flags
    else:
        truth = np.asarray([gold(article, items).any(0) for article in scored[0]])
        decided = np.asarray([scored[1][article.pmcid].max(0) for article in scored[0]]) >= whole
    table = {}
    for column, item in enumerate(items):
        there, said = truth[:, column], decided[:, column]
        table[item] = {
            "sentence_threshold": float(sentence[column]),
            "article_threshold": float(whole[column]),
            "slope": float(fitted.coef_[0, 0]),
            "offset": float(fitted.intercept_[0] + fitted.coef_[0, 1 + column]),
        } | count_verdicts(there, said)
    return table


# The item of SPIRIT-CONSORT-TM that a rule decides, and the kind of article that the checker asks for it.
RULE_ITEMS: dict[Callable[[Sequence[Sentence]], RuleFinding], tuple[str, str]] = {
    title_is_randomised: ("1a_Title_Randomized", "Results"),
    abstract_is_structured: ("2_Abstract_structured", "Results"),
    interests_are_declared: ("28_Financial_interests", "Protocol"),
}


def rule_table(data: Path) -> dict[str, dict[str, int]]:
    """Error rates of the rules of `rules.py` over SPIRIT-CONSORT-TM's articles, on which they were not tuned."""
    reported = load_spirit_articles(data)
    table = {}
    for rule, (item, kind) in RULE_ITEMS.items():
        articles = [article for article in load_spirit(data) if article.kind == kind]
        said = [rule(as_sentences(article)).is_stated for article in articles]
        there = [item in reported[article.pmcid] for article in articles]
        table[f"rule:{rule.__name__}"] = count_verdicts(np.asarray(there), np.asarray(said))
    return table


_SEQUENCE = (
    "16a_Randomization_Generation", "16b_Randomization_Type", "16c_Randomization_Block_size", "16d_Randomization_Strata",
)  # fmt: skip
# Items of CONSORT 2010 whose elements SPIRIT-CONSORT-TM annotates one by one: the labels of the item, and of its elements.
ANNOTATED_ELEMENTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "3a": (
        ("8a_Design_Type", "8b_Design_Framework", "8d_Design_Ratio"),
        {"type of design": "8a_Design_Type", "allocation ratio": "8d_Design_Ratio"},
    ),
    "8a": (_SEQUENCE, {"method of generating the sequence": "16a_Randomization_Generation"}),
    "8b": (
        _SEQUENCE,
        {
            "type of restriction": "16b_Randomization_Type",
            "block size": "16c_Randomization_Block_size",
            "stratification factors": "16d_Randomization_Strata",
        },
    ),
    "9": (
        ("16e_Allocation_Mechanism", "16f_Allocation_Concealment"),
        {"mechanism of concealment": "16e_Allocation_Mechanism"},
    ),
    "10": (
        ("16g_Personnel_Sequence", "16h_Personnel_Enrollment"),
        {"who generated the sequence": "16g_Personnel_Sequence", "who enrolled participants": "16h_Personnel_Enrollment"},
    ),
    "11a": (
        ("17a_Masking_People_masked", "17b_Masking_Not_masked", "17c_Masking_Type"),
        {"who was blinded": "17a_Masking_People_masked"},
    ),
    "12a": (
        (
            "20a_Statistical_methods_Outcomes", "20c_Statistical_methods_Analysis_population",
            "20d_Statistical_methods_Missing_data",
        ),
        {
            "test or model": "20a_Statistical_methods_Outcomes",
            "analysis population": "20c_Statistical_methods_Analysis_population",
            "handling of missing data": "20d_Statistical_methods_Missing_data",
        },
    ),
}  # fmt: skip


def element_table(data: Path) -> dict[str, dict[str, int]]:
    """Error rates of the patterns of `elements.py`, in articles that report the item according to its annotators.

    The patterns were written after a look at the first half of the training pairs of protocol and report; the other half
    and the validation pairs are counted.
    """
    reported, articles = load_spirit_articles(data), load_spirit(data)
    pairs = sorted({article.pair or 0 for article in articles if article.split == "train"})
    looked_at = set(pairs[: len(pairs) // 2])
    verdicts: dict[str, list[tuple[bool, bool]]] = {}
    for article in (article for article in articles if article.pair not in looked_at):
        there, kinds = reported[article.pmcid], [section_kind(section) for section in article.sections]
        for item in SPIRIT if article.kind == "Protocol" else CONSORT:
            home = [text for text, kind in zip(article.sentences, kinds, strict=True) if kind in item.parts]
            for element in (element for key in item.elements for element in elements_of(key)):
                labels, annotated = ANNOTATED_ELEMENTS.get(element.item, ((), {}))
                if element.name in annotated and not there.isdisjoint(labels):
                    found = find_element(element, home, [])
                    if found is not None:
                        verdicts.setdefault(element.key, []).append((annotated[element.name] in there, found))
    return {
        f"element:{element.key}": count_verdicts(*map(np.asarray, zip(*verdicts[element.key], strict=True)))
        for element in ELEMENTS
        if element.key in verdicts
    }


# The authors' article-level file has what SPIRIT asks for about concealment; the model labels it as CONSORT's item 9.
CONCEALMENT = ANNOTATED_ELEMENTS["9"][0]


def spirit_item_table(
    data: Path, predictions: Predictions, names: Sequence[str], calibration: dict
) -> tuple[dict, dict]:
    """Verdicts on SPIRIT's items over the validation articles: error rates by item, and how calibrated all of them are.

    `predictions` `(s, l)` of the released checkpoint, with a column for each of `names`. The truth is the authors'
    article-level file. The error of the calibration is the mean distance, weighted by their numbers, between probability and
    share in ten equal bins.
    """
    reported = load_spirit_articles(data)
    highest = {pmcid: dict(zip(names, scores.max(0).tolist(), strict=True)) for pmcid, scores in predictions.items()}
    table, probabilities, truths = {}, [], []
    for item in (item for item in SPIRIT if item.rates is not None):
        truth = CONCEALMENT if item.number == "16b" else [name.removeprefix("spirit:") for name in item.labels]
        there = [any(label in reported[pmcid] for label in truth) for pmcid in highest]
        said = [
            any(s[name] >= calibration[name]["article_threshold"] for name in item.labels) for s in highest.values()
        ]
        table[item.rates] = count_verdicts(np.asarray(there), np.asarray(said))
        probabilities += [max(calibrate(s[name], calibration[name]) for name in item.labels) for s in highest.values()]
        truths += there
    p, y = np.asarray(probabilities), np.asarray(truths, dtype=float)
    bins = np.minimum((p * 10).astype(int), 9)
    error = sum(abs(p[bins == k].mean() - y[bins == k].mean()) * (bins == k).mean() for k in np.unique(bins))
    return table, {"verdicts": len(p), "brier": float(((p - y) ** 2).mean()), "error_in_ten_bins": float(error)}


def predict_validation(checkpoint: Path, data: Path) -> Predictions:
    """What a checkpoint says about the validation articles of SPIRIT-CONSORT-TM."""
    labeller = load_labeller(checkpoint)
    valid = [article for article in load_spirit(data) if article.split == "valid"]
    return {a.pmcid: labeller.probabilities(a.sentences, a.sections)[0].double().numpy() for a in valid}


def as_sentences(article: Article) -> list[Sentence]:
    pairs = zip(article.sentences, article.sections, strict=True)
    return [Sentence(number=number, text=text, section=section) for number, (text, section) in enumerate(pairs, 1)]


def release(folds: Path, data: Path, checkpoint: Path | None, baselines: Path | None) -> dict:
    """Predictions of `crossfold` -> all figures, and the checkpoint with its calibration if `checkpoint` is given."""
    articles = load_consort(data)
    predictions: Predictions = {}
    for fold in range(5):
        predictions |= load_predictions(folds / f"fold{fold}.npz")
    results: dict = {"model": evaluate_predictions(articles, predictions), "per_item": per_item(articles, predictions)}
    held_out = load_predictions(folds / "methods2021.npz")
    others = [article for article in articles if article.pmcid not in METHODS_TEST]
    results["methods2021"] = {
        "at_half": evaluate_methods(articles, held_out, np.full(len(CONSORT_ITEMS), 0.5)),
        "thresholds_from_the_other_38": evaluate_methods(
            articles, held_out, thresholds_from(others, predictions, "sentence")
        ),
    }
    spirit = load_spirit(data)
    items = sorted({item for article in spirit for item in article.reported})
    tuned, valid = load_predictions(folds / "spirit_tune.npz"), load_predictions(folds / "spirit_valid.npz")
    results["spirit_validation"] = evaluate_spirit(spirit, tuned, valid, items)
    if baselines is not None:
        results["baselines"] = json.loads(baselines.read_text())
    if checkpoint is not None:
        tune = [article for article in spirit if article.pmcid in tuned]
        scored = [article for article in spirit if article.pmcid in valid]
        spirit_table = calibration_table(tune, tuned, items, (scored, valid))
        table = {
            f"consort:{item}": row for item, row in calibration_table(articles, predictions, CONSORT_ITEMS).items()
        }
        table |= {f"spirit:{item}": row for item, row in spirit_table.items()} | rule_table(data) | element_table(data)
        write_checkpoint(folds / "release", checkpoint, table)
        add_spirit_items(checkpoint, data, results)
    return results


def add_spirit_items(checkpoint: Path, data: Path, results: dict) -> None:
    """Adds what `spirit_item_table` measures to the checkpoint's calibration and to `results`."""
    path = checkpoint / "calibration.json"
    calibration = json.loads(path.read_text())
    names = load_labeller(checkpoint).names
    rows, quality = spirit_item_table(data, predict_validation(checkpoint, data), names, calibration)
    path.write_text(json.dumps(calibration | rows, indent=1) + "\n")
    results["spirit_validation"]["calibration"] = quality


def write_checkpoint(source: Path, out: Path, calibration: dict) -> None:
    """The release in bfloat16 with tokenizer, processor and `calibration.json`."""
    import shutil

    import torch

    model = load_complete(source, torch.bfloat16)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copyfile(source / name, out / name)
    (out / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n")


# ---- command line ----


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Rules alone and TF-IDF on the five folds; with `encoded`, the folder of `crossfold`, frozen vectors too."""

    out: Path
    encoded: Path | None = None
    data: Path = Path("../shared/trial_reports")


@dataclass(frozen=True, kw_only=True)
class Release:
    """All figures of a model from what `crossfold` left in `folds`, and its checkpoint."""

    out: Path
    folds: Path
    checkpoint: Path | None = None
    baselines: Path | None = None
    card: Path | None = None
    data: Path = Path("../shared/trial_reports")


def read_vectors(folder: Path, article: Article) -> NDArray[np.float64]:
    """`(s, e)`: an article's sentence vectors as the frozen encoder left them."""
    import torch

    stored = torch.load(folder / f"{article.pmcid}.pt", weights_only=True)
    vectors = torch.zeros(len(article.sentences), stored["hidden_states"][0].shape[-1])
    vectors[torch.cat(stored["owners"])] = torch.cat(stored["hidden_states"]).float()
    return vectors.double().numpy()


def run_baselines(options: Baselines) -> dict:
    articles = load_consort(options.data)
    results = json.loads(options.out.read_text()) if options.out.is_file() else {}
    methods = {"rules": predict_rules, "tfidf": predict_tfidf}
    if options.encoded is not None:
        methods = {"embeddings": partial(predict_embeddings, embed=partial(read_vectors, options.encoded))}
    for name, predict in methods.items():
        predictions = cross_validate(articles, predict)
        results[name] = evaluate_predictions(articles, predictions)
        save_predictions(predictions, options.out.with_suffix(f".{name}.npz"))
    return results


def main() -> int:
    options = tyro.cli(
        Annotated[Baselines, tyro.conf.subcommand("baselines")] | Annotated[Release, tyro.conf.subcommand("release")],
        description=__doc__,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(options, Baselines):
        results = run_baselines(options)
    else:
        results = release(options.folds, options.data, options.checkpoint, options.baselines)
        if options.card is not None:
            write_card(results, options.card)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
