"""A checkpoint trained on SPIRIT-CONSORT-TM -> predictions for the five CONSORT-TM folds and the 2021 split, and the release.

    python -m ctfm.reporting.crossfold --init runs/reporting/spirit --out runs/reporting/folds

No article is in both corpora, so the start saw none of the articles that are scored. All articles are read once by the
frozen layers; every fold then trains its own copy of the rest.
"""

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator

from .checklist import CONSORT_FROM_SPIRIT
from .corpora import CONSORT_ITEMS, Article, load_consort, load_spirit
from .evaluate import METHODS_TEST, save_predictions
from .modeling_trialreport import TrialReportForSentenceLabels
from .train import (
    EncodedArticle,
    Recipe,
    encode_article,
    fit,
    item_numbers,
    label_names,
    load_start,
    predict_encoded,
    save,
    spirit_labels,
    start_consort_from_spirit,
)


@dataclass(frozen=True, kw_only=True)
class Folds:
    """`spirit_articles` of the other corpus are trained on beside every fold, so that its labels are not forgotten.

    Two processes may share the `parts`. In `release` a last model is trained on all 50 articles and saved to
    `out/release`; it also labels the validation articles of the other corpus, and `tune_articles` of its training
    articles, on which the thresholds are chosen. What the frozen layers read is kept in `out/encoded`; with `read_only` a
    second process fills that and stops.
    """

    init: Path
    out: Path
    data: Path = Path("../shared/trial_reports")
    frozen_layers: int = 6
    epochs: float = 8
    spirit_articles: int = 10
    tune_articles: int = 14
    parts: tuple[str, ...] = ("fold0", "fold1", "fold2", "fold3", "fold4", "methods2021", "release")
    read_only: bool = False
    learning_rate: float = 1e-4
    head_learning_rate: float = 4e-4
    seed: int = 0


def main() -> int:
    torch.set_num_threads(1)
    options = tyro.cli(Folds, description=__doc__)
    recipe = Recipe(
        out=options.out,
        init=options.init,
        data=options.data,
        corpora=("consort", "spirit"),
        frozen_layers=options.frozen_layers,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
        seed=options.seed,
        log_every=100,
    )
    model, processor = load_start(recipe, label_names(spirit_labels(options.data)))
    start_consort_from_spirit(model, CONSORT_FROM_SPIRIT)
    model.eval()
    articles = load_consort(options.data)
    spirit = load_spirit(options.data)
    beside = [article for article in spirit if article.split == "train"]
    beside = beside[:: max(1, len(beside) // max(1, options.spirit_articles))][: options.spirit_articles]
    started = time.perf_counter()

    cache = options.out / "encoded"
    cache.mkdir(parents=True, exist_ok=True)

    def encode(article: Article) -> EncodedArticle:
        path = cache / f"{article.pmcid}.pt"
        if path.is_file():
            return EncodedArticle(**torch.load(path, weights_only=True))
        found = encode_article(article, model, processor, options.frozen_layers)
        torch.save(vars(found), path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
        return found

    unused = [article for article in spirit if article.split == "train" and article not in beside]
    sets = {
        "spirit_tune": unused[:: max(1, len(unused) // options.tune_articles)][: options.tune_articles],
        "spirit_valid": [article for article in spirit if article.split == "valid"],
    }
    if options.read_only:
        for article in (*beside, *sets["spirit_valid"], *sets["spirit_tune"], *articles[::-1]):
            encode(article)
        return 0
    encoded = {article.pmcid: encode(article) for article in (*articles, *beside)}
    print(f"{len(encoded)} articles read in {time.perf_counter() - started:.0f} s", flush=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())

    def train_on(kept: list[Article]) -> TrialReportForSentenceLabels:
        torch.manual_seed(options.seed)
        own = copy.deepcopy(model)
        fit(own, [encoded[article.pmcid] for article in (*kept, *beside)], recipe, accelerator)
        return own

    def predict(trained: TrialReportForSentenceLabels, tested: list[Article], name: str) -> None:
        columns = [item_numbers(trained)[f"consort:{item}"] for item in CONSORT_ITEMS]
        found = {
            article.pmcid: predict_encoded(trained, encoded[article.pmcid], options.frozen_layers)[:, columns].numpy()
            for article in tested
        }
        save_predictions(found, options.out / f"{name}.npz")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)

    for fold in range(5):
        if f"fold{fold}" in options.parts:
            trained = train_on([article for article in articles if article.fold != fold])
            predict(trained, [article for article in articles if article.fold == fold], f"fold{fold}")
    if "methods2021" in options.parts:
        trained = train_on([article for article in articles if article.pmcid not in METHODS_TEST])
        predict(trained, [article for article in articles if article.pmcid in METHODS_TEST], "methods2021")
    if "release" in options.parts:
        trained = train_on(articles)
        save(trained, processor, replace(recipe, out=options.out / "release"))
        numbers = [number for label, number in item_numbers(trained).items() if label.startswith("spirit:")]
        for name, group in sets.items():
            found = {
                article.pmcid: predict_encoded(trained, encode(article), options.frozen_layers)[:, numbers].numpy()
                for article in group
            }
            save_predictions(found, options.out / f"{name}.npz")
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
