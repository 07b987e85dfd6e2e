"""The annotated corpora, the metrics of the papers, and the baselines."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ctfm.reporting.baselines import RULES, apply_rules
from ctfm.reporting.check import DEFAULT_CHECKPOINT
from ctfm.reporting.checklist import SPIRIT
from ctfm.reporting.corpora import (
    CONSORT_ITEMS,
    METHODS_ITEMS,
    Article,
    in_methods,
    load_consort,
    load_spirit,
    load_spirit_articles,
)
from ctfm.reporting.elements import ELEMENTS
from ctfm.reporting.evaluate import METHODS_TEST, element_table, fold_thresholds, spirit_item_table
from ctfm.reporting.metrics import best_threshold, bootstrap_interval, choose_thresholds, fold_mean, missing, score

CORPORA = Path(__file__).parents[2] / "shared" / "trial_reports"
needs_corpora = pytest.mark.skipif(not CORPORA.is_dir(), reason=f"the annotated corpora are not at {CORPORA}")


@needs_corpora
def test_consort_tm_has_fifty_articles_in_five_equal_folds():
    articles = load_consort(CORPORA)
    assert [sum(article.fold == fold for article in articles) for fold in range(5)] == [10] * 5
    assert sum(len(article.sentences) for article in articles) == 10709
    assert frozenset().union(*(article.reported for article in articles)) == set(CONSORT_ITEMS)


@needs_corpora
def test_spirit_articles_agree_with_the_authors_article_level_file():
    reported = load_spirit_articles(CORPORA)
    articles = load_spirit(CORPORA)
    agreed = [
        (item in article.reported) == (item in reported[article.pmcid])
        for article in articles
        for item in frozenset().union(*reported.values())
    ]
    assert len(articles) == 160
    assert np.mean(agreed) > 0.95  # 0.955: four items are in the article file only, and spans were matched again


@needs_corpora
def test_no_article_is_in_both_corpora():
    assert not {article.pmcid for article in load_consort(CORPORA)} & {a.pmcid for a in load_spirit(CORPORA)}


@needs_corpora
def test_the_methods_split_of_2021_is_twelve_articles_of_the_corpus():
    articles = {article.pmcid: article for article in load_consort(CORPORA)}
    assert len(METHODS_TEST) == 12
    assert all(any(map(in_methods, articles[pmcid].sections)) for pmcid in METHODS_TEST)
    assert len(METHODS_ITEMS) == 17


@needs_corpora
def test_the_figures_beside_elements_are_those_of_the_patterns():
    calibration = json.loads((DEFAULT_CHECKPOINT / "calibration.json").read_text())
    assert element_table(CORPORA) == {name: row for name, row in calibration.items() if name.startswith("element:")}


def test_the_data_card_has_the_figures_beside_elements():
    calibration = json.loads((DEFAULT_CHECKPOINT / "calibration.json").read_text())
    card = (Path(__file__).parents[1] / "reporting" / "data_card.md").read_text()
    keys = [element.key for element in ELEMENTS if f"element:{element.key}" in calibration]
    assert len(keys) == sum(name.startswith("element:") for name in calibration)
    for key in keys:
        said, right, absent, right_absent = calibration[f"element:{key}"].values()
        assert f"| {key} | {right} of {said} | {right_absent} of {absent} |" in card


def test_absent_corpora_are_named_with_the_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"consort_tm\.jsonl is not there; .*data_card\.md"):
        load_consort(tmp_path)


def test_scores_of_a_hand_counted_case():
    gold = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    predicted = np.array([[1, 0], [0, 1], [1, 0]], dtype=bool)
    found = score(gold, predicted)
    assert (found.precision, found.recall, found.f1, found.support) == (2 / 3, 2 / 3, 2 / 3, 3)


def test_micro_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    gold, predicted = generator.random((2, 50, 6)) < 0.3
    assert score(gold, predicted).f1 == pytest.approx(metrics.f1_score(gold, predicted, average="micro"))
    assert fold_mean([gold], [predicted])["macro_f1"] == pytest.approx(
        metrics.f1_score(gold, predicted, average="macro")
    )


def test_a_missing_item_is_found_when_nothing_was_labelled():
    gold = np.array([[True, False, False]])
    assert missing(gold, np.array([[True, False, False]])).f1 == 1
    assert missing(gold, np.array([[False, False, False]])).precision == pytest.approx(2 / 3)


def test_an_item_of_several_labels_is_counted_once_an_article(tmp_path):
    head = "Protocol/Results,PairID,PMCID,ChecklistItem,Reported,Split"
    rows = ["Protocol,1,PMC1,8d_Design_Ratio,1,valid", "Protocol,2,PMC2,8d_Design_Ratio,0,valid"]
    (tmp_path / "spirit_consort_tm.articles_train_valid.csv").write_text("\n".join([head, *rows]))
    names = [name for item in SPIRIT for name in item.labels]
    calibration = {name: {"article_threshold": 0.5, "slope": 1.0, "offset": 0.0} for name in names}
    predictions = {pmcid: np.zeros((3, len(names))) for pmcid in ("PMC1", "PMC2")}
    predictions["PMC1"][1, names.index("spirit:8b_Design_Framework")] = 0.9
    table, quality = spirit_item_table(tmp_path, predictions, names, calibration)
    assert tuple(table["item:SPIRIT 8"].values()) == (1, 1, 1, 1)
    assert tuple(table["item:SPIRIT 7"].values()) == (0, 0, 2, 2)
    assert quality["verdicts"] == 2 * len(table)
    assert quality["brier"] == pytest.approx(0.1**2 / quality["verdicts"], abs=1e-6)
    assert quality["error_in_ten_bins"] == pytest.approx(0.1 / quality["verdicts"], abs=1e-5)


def test_the_best_threshold_beats_every_other():
    generator = np.random.default_rng(1)
    scores = generator.random(300)
    gold = generator.random(300) < scores**2
    best = score(gold, scores >= best_threshold(gold, scores, 0.5)).f1
    assert all(best >= score(gold, scores >= threshold).f1 for threshold in np.linspace(0, 1, 101))


@pytest.mark.parametrize("level", ["sentence", "article"])
def test_thresholds_of_a_fold_do_not_depend_on_its_own_articles(level):
    generator = np.random.default_rng(3)

    def article(number):
        items = tuple(frozenset(item for item in CONSORT_ITEMS if generator.random() < 0.1) for _ in range(20))
        text = (("We walked.",) * 20, (("Methods",),) * 20)
        return Article(
            pmcid=f"PMC{number}",
            corpus="consort",
            kind="Results",
            sentences=text[0],
            sections=text[1],
            items=items,
            fold=number % 5,
        )

    articles = [article(number) for number in range(20)]
    scores = {a.pmcid: generator.random((20, len(CONSORT_ITEMS))) for a in articles}
    before = fold_thresholds(articles, scores, level)
    changed = [replace(a, items=(frozenset(CONSORT_ITEMS),) * 20) if a.fold == 0 else a for a in articles]
    rescored = {a.pmcid: scores[a.pmcid] / 9 if a.fold == 0 else scores[a.pmcid] for a in articles}
    after = fold_thresholds(changed, rescored, level)
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_rare_items_take_the_common_threshold():
    gold = np.zeros((200, 2), dtype=bool)
    scores = np.tile(np.linspace(0, 1, 200)[:, None], (1, 2))
    gold[150:, 0] = True
    gold[0, 1] = True
    assert choose_thresholds(gold, scores)[1] == best_threshold(gold.ravel(), scores.ravel(), 0.5)


def test_the_interval_holds_the_estimate():
    generator = np.random.default_rng(2)
    articles = [(generator.random((20, 3)) < 0.3, generator.random((20, 3)) < 0.3) for _ in range(12)]
    estimate = score(*(np.concatenate(part) for part in zip(*articles, strict=True))).f1
    low, high = bootstrap_interval(articles, lambda g, p: score(g, p).f1, draws=200)
    assert low <= estimate <= high


def test_every_item_of_the_corpus_has_a_rule():
    assert set(RULES) == set(CONSORT_ITEMS)


@pytest.mark.parametrize(
    ("item", "section", "sentence"),
    [
        ("2b", "Introduction", "The aim of this trial was to compare walking with rest."),
        ("4a", "Methods", "Adults were eligible if they could walk."),
        ("7a", "Methods", "With 80% power to detect a change, 90 participants were needed."),
        ("8a", "Methods", "A computer-generated sequence was used."),
        ("8b", "Methods", "Allocation was stratified by site in permuted blocks of four."),
        ("9", "Methods", "Assignments were kept in sealed opaque envelopes."),
        ("11a", "Methods", "Assessors were blinded to allocation."),
        ("19", "Results", "No serious adverse events occurred."),
        ("20", "Discussion", "A limitation is the small sample."),
        ("23", "Abstract", "Registered as ISRCTN00000000."),
        ("25", "Funding", "The trial was funded by a grant."),
    ],
)
def test_a_rule_finds_its_item_in_its_section(item, section, sentence):
    assert apply_rules([sentence], [[section]])[0, CONSORT_ITEMS.index(item)]


def test_a_rule_is_silent_outside_its_section():
    assert not apply_rules(["Assessors were blinded."], [["Discussion"]])[0, CONSORT_ITEMS.index("11a")]
