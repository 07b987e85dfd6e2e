"""The annotated corpora, the metrics of the papers, and the baselines."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ctfm.reporting.baselines import RULES, apply_rules
from ctfm.reporting.calibrate import Scored, calibration_error, correct_left_out, quality, score_items, to_logits
from ctfm.reporting.cards import elements_table, figures_table
from ctfm.reporting.corpora import (
    CONSORT_ITEMS,
    METHODS_ITEMS,
    Article,
    in_methods,
    load_consort,
    load_spirit,
    load_spirit_articles,
)
from ctfm.reporting.evaluate import METHODS_TEST, fold_thresholds
from ctfm.reporting.metrics import best_threshold, choose_thresholds, fold_mean, missing, score, score_intervals

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


def test_both_cards_hold_the_measured_figures():
    room = Path(__file__).parents[1] / "reporting"
    results = json.loads((room / "results.json").read_text())
    assert figures_table(results) in (room / "model_card.md").read_text()
    assert elements_table(results) in (room / "data_card.md").read_text()


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


def test_an_item_of_several_labels_is_there_if_any_of_them_is():
    names = ["spirit:a", "spirit:b"]
    article = Article(
        pmcid="1", corpus="spirit", kind="Protocol", sentences=("x",), sections=((),), items=(frozenset("b"),), pair=1
    )
    scored = score_items(
        [article], {"1": np.array([[0.2, 0.9]])}, names, [("spirit:a",), tuple(names)], {"1": frozenset("b")}
    )
    assert scored.there.tolist() == [[False, True]]
    np.testing.assert_allclose(scored.logits, [[np.log(0.25), np.log(9)]])


def test_calibration_is_perfect_where_confidence_is_the_share_that_is_right():
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0
    assert calibration_error(np.full(4, 0.95), np.zeros(4, dtype=bool)) == pytest.approx(0.95)
    found = quality(np.array([[0.9, 0.2]]), np.array([[True, False]]))
    assert (found["reported"]["right"], found["not found"]["right"]) == (1, 1)


def test_a_correction_undoes_what_makes_probabilities_too_sure():
    generator = np.random.default_rng(0)
    true = generator.uniform(0.05, 0.95, (400, 20))
    there = generator.random(true.shape) < true
    too_sure = 1 / (1 + np.exp(-(2 * to_logits(true) + 0.5)))
    scored = Scored(logits=to_logits(too_sure), there=there, groups=np.arange(400) // 40)
    corrected = correct_left_out(too_sure, scored)
    np.testing.assert_allclose(corrected, true, atol=0.06)
    assert calibration_error(corrected, there) < 0.02 < calibration_error(too_sure, there)


def test_the_correction_of_an_article_does_not_depend_on_its_own_pair():
    generator = np.random.default_rng(1)
    probability, there = generator.uniform(0.05, 0.95, (8, 30)), generator.random((8, 30)) < 0.5
    scored = Scored(logits=to_logits(probability), there=there, groups=np.arange(8) // 2)
    other = there.copy()
    other[:2] = ~other[:2]
    before, after = (correct_left_out(probability, replace(scored, there=flags)) for flags in (there, other))
    assert np.array_equal(before[:2], after[:2])
    assert not np.array_equal(before[2:], after[2:])


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
    low, high = score_intervals(articles, draws=200)["f1"]
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
