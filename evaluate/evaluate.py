"""Checkpoint and scans -> metrics.json with 95 % intervals, a table and plots: what the model knows, asked without training it.

    ctfm evaluate checkpoints/default --data PREPARED... --out evaluated --random --histogram --calibrate
    ctfm evaluate spectre-large --protocol ct_rate_1564 --data CT-RATE --out evaluated
    ctfm evaluate FEATURES --protocol table --data scans.csv --out evaluated      # of any model

Questions: zero-shot findings, probabilities and abstention, retrieval, left or right, where a finding is, nearest neighbours,
linear probe, segmentation. A question that a checkpoint or a population has no answer to is left out and named in
evaluation.json. Protocols (protocols/*.json) hold prompts, splits, populations; features.py says what a checkpoint may be.

Intervals are of 1,000 resamples of patients. Everything is seeded: the same command gives the same numbers.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..image_processing_ctfm import CTFMBatchFeature
from ..modeling_ctfm import CTFMForSemanticSegmentation
from ..segmentation import read_structures
from ..train.labels import label_names
from ..whole_files import write_json, written_whole
from .cases import (
    Case,
    Population,
    all_findings,
    find_population,
    find_sides,
    label_table,
    read_case,
    read_label_map,
    report_part,
)
from .features import Features, Pointer, Texts, encode, image_processor, is_feature_folder, load_encoder
from .figures import draw_failures, draw_findings, draw_methods, draw_reliability, draw_risk_coverage
from .frozen import NEIGHBOURS, PENALTIES, Probed, knn_scores, linear_scores, probe_sets
from .markdown_tables import markdown_table, print_markdown
from .metrics import (
    MIN_SCANS,
    Estimate,
    FindingTable,
    auroc,
    average_precision,
    brier,
    calibration_error,
    can_be_measured,
    choose_threshold,
    choose_unsure,
    dice,
    estimate,
    f1,
    fit_calibration,
    mean,
    measure_findings,
    rank_own,
    recall_in_pools,
    reliability,
    resample_patients,
    risk_coverage,
    sigmoid,
    surface_distances,
)
from .protocol import Protocol, average, finding_directions, load_protocol, say

RECALL = "retrieval/text_to_image/R@10"
WRONG_AT_MOST = 0.05  # of the answers outside the unsure band, on the split that it is chosen on
MIDDLE_SLOPE = 1e-3  # a calibrated score that says less than this about its finding is not calibrated


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to evaluate.

    Args:
        encoder: see features.py; data: prepared folders, or one source in the protocol's layout.
        baselines: name -> encoder, asked the same in the same run.
        train_scans, test_scans: at most so many of the training split, and of each other split.
        writes_calibration: into the checkpoint's config.json.
        failures: where the picture of misses goes; none without.
    """

    encoder: str
    data: tuple[Path, ...]
    out: Path
    protocol: str = "phantoms"
    baselines: dict[str, str] = field(default_factory=dict)
    train_scans: int = 1000
    test_scans: int = 100_000
    num_workers: int = 0
    writes_calibration: bool = False
    failures: Path | None = None


@dataclass
class Results:
    """Metrics by key, and what must be said beside them."""

    weights: np.ndarray  # (r, n) of the test scans
    findings: tuple[str, ...]
    metrics: dict[str, Estimate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def put(self, key: str, values: np.ndarray, n: int) -> None:
        self.metrics[key] = estimate(values, n)

    def put_findings(self, prefix: str, scores: FindingTable, labels: FindingTable) -> None:
        """AUROC and average precision of each finding that can be measured, and their means."""
        stated = dict(zip(labels.findings, (~np.isnan(labels.values)).sum(0).tolist(), strict=True))
        for name, metric in (("auroc", auroc), ("average_precision", average_precision)):
            found = measure_findings(metric, scores, labels, self.weights)
            for finding, values in found.items():
                self.put(f"{prefix}/{finding}/{name}", values, stated[finding])
            if found:
                self.put(f"{prefix}/macro_{name}", np.mean(list(found.values()), 0), len(scores))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoder's features of the three splits, and what the columns of "scores" are of: KIND/FINDING."""

    name: str
    texts: Texts
    questions: tuple[str, ...]
    train: Features
    validation: Features
    test: Features

    def scores(self, features: Features, kind: str, findings: Sequence[str]) -> FindingTable:
        """Of every finding by one set of prompts: logits of present against absent, or of a side."""
        columns = [self.questions.index(f"{kind}/{name}") for name in findings]
        return FindingTable(findings=tuple(findings), values=features.sets["scores"][:, columns].astype(np.float64))


# ---- the run ----


def evaluate(run: Evaluation) -> Results:
    """Asks everything, writes everything, returns the metrics."""
    protocol = load_protocol(run.protocol)
    population = find_population(protocol, run.data, run.train_scans, run.test_scans)
    findings = protocol.findings or all_findings(population.test)
    patients = [case.patient for case in population.test]
    results = Results(resample_patients(patients, protocol.resamples, protocol.seed), findings)
    describe_population(protocol, population, findings, results)

    ours = encode_splits(run, run.encoder, protocol, population, findings)
    labels = label_table(population.test, findings)
    calibration: dict[str, dict[str, float]] = {}
    logits = None
    if "scores" in ours.test.sets:
        for name in protocol.prompts:
            prefix = (
                "zero_shot" if name == "pair" else f"zero_shot_{name}"
            )  # "pair" is the one that the pipeline speaks
            results.put_findings(prefix, ours.scores(ours.test, name, findings), labels)
        logits = ours.scores(ours.test, "pair", findings)
        if population.validation:
            validation_logits = ours.scores(ours.validation, "pair", findings)
            known = label_table(population.validation, findings)
            calibration = calibrate(validation_logits, known)
            ask_thresholds(validation_logits, known, logits, labels, results)
            ask_probabilities(calibration, logits, labels, results)
        parts = protocol.retrieval.texts if protocol.retrieval else ()
        ask_retrieval(protocol, population.test, ours, results, parts, prefix="retrieval")
        ask_laterality(protocol, population, ours, results)
    else:
        results.notes.append(
            "There is no joint space of scans and texts: no zero-shot findings, retrieval, laterality."
        )
    ask_places(protocol, population, ours, results)
    if not is_feature_folder(run.encoder) and isinstance(load_encoder(run.encoder)[0], CTFMForSemanticSegmentation):
        ask_segmentation(run.encoder, population, results)
    ask_frozen(population, findings, ours, results, prefix="")
    for name, encoder in run.baselines.items():
        baseline = encode_splits(run, encoder, protocol, population, findings, is_baseline=True)
        ask_baseline(protocol, population, findings, baseline, results, prefix=f"baselines/{name}/")

    write_results(run, protocol, calibration, results)
    draw_results(run, population, ours, calibration, logits, labels, results)
    if run.writes_calibration and calibration:
        write_calibration(Path(run.encoder), calibration)
    return results


def describe_population(protocol: Protocol, population: Population, findings: Sequence[str], results: Results) -> None:
    parts = {"train": population.train, "validation": population.validation, "test": population.test}
    counts = {name: {"scans": len(p), "patients": len({c.patient for c in p})} for name, p in parts.items()}
    results.chosen["population"] = counts
    expected = protocol.expected_test_scans
    if expected is not None and expected != len(population.test):
        results.notes.append(
            f"The population has {len(population.test)} scans, and publications use {expected}: not comparable with them."
        )
    labels = label_table(population.test, findings)
    rare = [name for name, column in zip(findings, labels.values.T, strict=True) if not can_be_measured(column)]
    if rare:
        results.notes.append("Too few scans with or without it to be measured: " + ", ".join(rare) + ".")


def encode_splits(
    run: Evaluation,
    encoder: str,
    protocol: Protocol,
    population: Population,
    findings: Sequence[str],
    is_baseline: bool = False,
) -> Encoded:
    """Features of all splits; of the test split with heat maps, where there is something to point at."""
    texts, pointer, where = Texts(encoder), None, protocol.localisation
    numbers = {name: number for number, name in population.structures.items()}
    focal = [name for name in where.findings if name in findings and name in numbers] if where else []
    if where and focal and not is_baseline and not is_feature_folder(encoder) and texts.are_available:
        directions = finding_directions(texts, protocol.prompts["pair"], focal)
        pointer = Pointer(
            directions=dict(zip(focal, directions, strict=True)),
            numbers={name: numbers[name] for name in focal},
            tolerance_mm=where.tolerance_mm,
        )
    questions = ask_texts(texts, protocol, findings) if texts.are_available else {}
    directions = np.stack(list(questions.values())) if questions else None
    cache, workers = run.out / "features", run.num_workers
    return Encoded(
        name=encoder,
        texts=texts,
        questions=tuple(questions),
        test=encode(encoder, population.test, cache, pointer, focal, directions, num_workers=workers),
        validation=encode(encoder, population.validation, cache, directions=directions, num_workers=workers),
        train=encode(encoder, population.train, cache, num_workers=workers),
    )


def ask_texts(texts: Texts, protocol: Protocol, findings: Sequence[str]) -> dict[str, np.ndarray]:
    """KIND/FINDING -> direction `(e,)`: of every finding by every set of prompts, and of those that lie on a side."""
    asked = {}
    for kind, prompts in protocol.prompts.items():
        directions = finding_directions(texts, prompts, findings)
        asked |= {f"{kind}/{name}": row for name, row in zip(findings, directions, strict=True)}
    if protocol.laterality is not None:
        for kind, said in (("left", protocol.laterality.left), ("right", protocol.laterality.right)):
            asked |= {f"{kind}/{name}": average(texts(say(said, name, {}))) for name in protocol.laterality.findings}
    return asked


# ---- zero-shot findings ----


def ask_thresholds(
    validation_logits: FindingTable,
    validation_labels: FindingTable,
    logits: FindingTable,
    labels: FindingTable,
    results: Results,
) -> None:
    """F1 at the threshold that is best on the validation split."""
    found = []
    for k, finding in enumerate(labels.findings):
        known, column = validation_labels.values[:, k], labels.values[:, k]
        if can_be_measured(known) and can_be_measured(column):
            threshold = choose_threshold(validation_logits.values[:, k], known)
            values = f1(logits.values[:, k] >= threshold, column, results.weights)
            results.put(f"zero_shot/{finding}/f1", values, int((~np.isnan(column)).sum()))
            found.append(values)
    if found:
        results.put("zero_shot/macro_f1", np.mean(found, 0), len(labels))


# ---- probabilities ----


def calibrate(logits: FindingTable, labels: FindingTable) -> dict[str, dict[str, float]]:
    """What `CTFMConfig.calibration` keeps of each finding: fitted, and its unsure band chosen, on these scans."""
    assert logits.findings == labels.findings
    calibration = {}
    for finding, x, column in zip(labels.findings, logits.values.T, labels.values.T, strict=True):
        if not can_be_measured(column):
            continue
        fitted = fit_calibration(x, column)
        if fitted["slope"] < MIDDLE_SLOPE:
            continue
        low, high = choose_unsure(probabilities_of(fitted, x), column, WRONG_AT_MOST)
        calibration[finding] = {k: round(v, 8) for k, v in (fitted | {"unsure_low": low, "unsure_high": high}).items()}
    return calibration


def probabilities_of(fitted: dict[str, float], logits: np.ndarray) -> np.ndarray:
    return sigmoid(fitted["slope"] * logits + fitted["intercept"])


def ask_probabilities(
    calibration: dict[str, dict[str, float]], logits: FindingTable, labels: FindingTable, results: Results
) -> None:
    """ECE and Brier score before and after, abstention, over all calibrated findings and for each."""
    findings = [name for name in labels.findings if name in calibration]
    if not findings:
        return
    weights, n = results.weights, len(labels) * len(findings)
    raw, truth = sigmoid(logits.select(findings).values), labels.select(findings).values
    after = calibrated(calibration, logits).values
    results.put("calibration/ece", calibration_error(after, truth, weights), n)
    results.put("calibration/brier", brier(after, truth, weights), n)
    results.put("calibration_before/ece", calibration_error(raw, truth, weights), n)
    results.put("calibration_before/brier", brier(raw, truth, weights), n)
    low, high = (np.array([calibration[name][end] for name in findings]) for end in ("unsure_low", "unsure_high"))
    is_stated = ~np.isnan(truth)
    is_sure = (after < low) | (after >= high)
    is_wrong = (after >= 0.5) != (truth == 1)
    answered = np.where(is_stated, is_sure, np.nan)
    wrong = np.where(is_stated, is_wrong, np.nan)
    wrong_answers = np.where(answered == 1, wrong, np.nan)  # what is not answered is not wrong either
    errors, areas = [], []
    for k, finding in enumerate(findings):
        p, y, stated = after[:, [k]], truth[:, [k]], int(is_stated[:, k].sum())
        confidence = np.abs(p[:, 0] - 0.5)
        errors.append(calibration_error(p, y, weights))
        areas.append(risk_coverage(confidence, wrong[:, k], weights))
        results.put(f"calibration/{finding}/ece", errors[-1], stated)
        results.put(f"calibration/{finding}/brier", brier(p, y, weights), stated)
        results.put(f"abstention/{finding}/risk_coverage_area", areas[-1], stated)
        results.put(f"abstention/{finding}/coverage", mean(answered[:, k], weights), stated)
        results.put(f"abstention/{finding}/error", mean(wrong_answers[:, k], weights), int((answered[:, k] == 1).sum()))
    results.put("calibration/macro_ece", np.mean(errors, 0), n)
    results.put("abstention/risk_coverage_area", np.mean(areas, 0), n)
    results.put("abstention/coverage", mean(answered, weights), n)
    results.put("abstention/error", mean(wrong_answers, weights), int((answered == 1).sum()))


def calibrated(calibration: dict[str, dict[str, float]], logits: FindingTable) -> FindingTable:
    """Probabilities of the findings that have a calibration."""
    findings = tuple(name for name in logits.findings if name in calibration)
    rows = [
        probabilities_of(calibration[name], x)
        for name, x in zip(findings, logits.select(findings).values.T, strict=True)
    ]
    return FindingTable(findings=findings, values=np.stack(rows, 1))


# ---- retrieval ----


def ask_retrieval(
    protocol: Protocol, cases: Sequence[Case], encoded: Encoded, results: Results, parts: Sequence[str], prefix: str
) -> None:
    """Scans by report and reports by scan, among all scans and in small pools. Queries are resampled, what they are sought
    among is not."""
    asked = protocol.retrieval
    if asked is None:
        return
    for part in parts:
        texts = [report_part(case.report, part) for case in cases]
        kept = keep_first_of_equal(texts)
        if len(kept) < max(asked.at[0] + 1, 2):
            results.notes.append(f"Retrieval of {part}: there are {len(kept)} texts.")
            continue
        words = encoded.texts([texts[k] for k in kept])
        similarity = words @ encoded.test.sets["joint"][kept].T
        name = prefix if part == asked.texts[0] else f"{prefix}_{part}"
        weights = results.weights[:, kept]
        for direction, table in (("text_to_image", similarity), ("image_to_text", similarity.T)):
            ranks = rank_own(table)
            for k in asked.at:
                if k < len(kept):
                    results.put(f"{name}/{direction}/R@{k}", mean((ranks < k).astype(float), weights), len(kept))
            for pool in asked.pools:
                if pool <= len(kept):
                    hits = recall_in_pools(table, pool, asked.pool_repeats, protocol.seed)
                    results.put(f"{name}/{direction}/pool_{pool}/R@1", mean(hits, weights), len(kept))
        results.chosen[name] = {"n": len(kept), "dropped": len(cases) - len(kept), "policy": asked.repeated_reports}


def keep_first_of_equal(texts: Sequence[str]) -> list[int]:
    """Rows with a text, the first of equal ones."""
    firsts: dict[str, int] = {}
    for row, text in enumerate(texts):
        words = " ".join(text.split()).lower()
        if words:
            firsts.setdefault(words, row)
    return list(firsts.values())


# ---- sides and places ----


def ask_laterality(protocol: Protocol, population: Population, encoded: Encoded, results: Results) -> None:
    """Whether prompts that differ in the side alone tell scans with a finding on the left from those with it on the right."""
    asked = protocol.laterality
    if asked is None:
        return
    names = [name for name in asked.findings if name in population.structures.values()]
    rows = [row for row, case in enumerate(population.test) if case.has_segmentation]
    sides = np.full((len(population.test), len(names)), np.nan)
    for row in rows:
        case = population.test[row]
        wanted = [name for name in names if case.labels.get(name) == 1]
        if wanted:
            volume = read_case(case)
            label_map = read_label_map(case, volume)
            for name, side in find_sides(label_map, volume.spacing, population.structures, wanted).items():
                sides[row, names.index(name)] = {"left": 1.0, "right": 0.0, "both": np.nan}[side]
    found = []
    for k, name in enumerate(names):
        known = ~np.isnan(sides[:, k])
        if can_be_measured(sides[:, k]):
            left, right = (encoded.scores(encoded.test, side, [name]).values[:, 0] for side in ("left", "right"))
            values = auroc(left - right, sides[:, k], results.weights)
            results.put(f"laterality/{name}/auroc", values, int(known.sum()))
            found.append(values)
    if found:
        counted = [int((~np.isnan(column)).sum()) for column in sides.T if can_be_measured(column)]
        results.put("laterality/auroc", np.mean(found, 0), sum(counted))


def ask_places(protocol: Protocol, population: Population, encoded: Encoded, results: Results) -> None:
    """Pointing game: whether a finding's heat map is largest on it, within the protocol's tolerance; beside it the share of
    the body that would have been a hit."""
    asked, pointed = protocol.localisation, encoded.test.pointed
    if asked is None or not pointed:
        return
    n, names = len(population.test), asked.findings
    hits, exact, chance = (np.full((n, len(names)), np.nan) for _ in range(3))  # NaN where nothing was asked
    for question in pointed:
        k = names.index(question.finding)
        hits[question.case, k] = question.distance_mm <= asked.tolerance_mm
        exact[question.case, k] = question.distance_mm == 0
        chance[question.case, k] = question.chance
    counts = (~np.isnan(hits)).sum(0)
    for key, table in (("pointing_game", hits), ("pointing_game_exact", exact), ("pointing_game_chance", chance)):
        for k, name in enumerate(names):
            if counts[k] >= MIN_SCANS:
                results.put(f"{key}/{name}", mean(table[:, k], results.weights), int(counts[k]))
        results.put(f"{key}/focal", mean(table, results.weights), int(counts.sum()))


def ask_segmentation(encoder: str, population: Population, results: Results) -> None:
    """Dice and surface distances of every structure that model and label maps both name, over the scans that have it."""
    model, processor = load_encoder(encoder)
    config: Any = model.config
    outputs = {name.lower(): number for number, name in read_structures(config, encoder).items()}
    shared = {
        number: outputs[name.lower()] for number, name in population.structures.items() if name.lower() in outputs
    }
    found: dict[str, dict[int, list[tuple[int, float]]]] = {key: {} for key in ("dice", "surface_mm", "surface_p95_mm")}
    for row, case in enumerate(population.test):
        if not case.has_segmentation:
            continue
        volume = read_case(case)
        truth = read_label_map(case, volume)
        inputs: CTFMBatchFeature = image_processor(processor).preprocess(volume)
        predicted = image_processor(processor).to_patient_space(model.segment(**inputs), inputs)[0]  # pyright: ignore
        for number, output in shared.items():
            a, b = predicted == output, truth == number
            if b.any():
                near, far = surface_distances(a, b, volume.spacing)
                for key, value in (("dice", dice(a, b)), ("surface_mm", near), ("surface_p95_mm", far)):
                    found[key].setdefault(number, []).append((row, value))
    for key, tables in found.items():
        means = []
        for number, pairs in tables.items():
            finite = [(row, value) for row, value in pairs if np.isfinite(value)]  # nothing predicted has no distance
            if finite:
                rows, values = map(np.array, zip(*finite, strict=True))
                means.append(mean(values, results.weights[:, rows]))
                results.put(f"segmentation/{population.structures[number]}/{key}", means[-1], len(values))
        if means:
            results.put(f"segmentation/macro_{key}", np.mean(means, 0), len(means))


# ---- frozen features and baselines ----


def ask_frozen(
    population: Population, findings: Sequence[str], encoded: Encoded, results: Results, prefix: str
) -> None:
    """Nearest neighbours and linear probe."""
    if not population.train:
        results.notes.append("The population has no scans to fit a probe on.")
        return
    labels = [label_table(part, findings) for part in (population.train, population.validation, population.test)]
    for name, scorer, settings in (("knn", knn_scores, NEIGHBOURS), ("linear", linear_scores, PENALTIES)):
        probed: Probed = probe_sets(
            encoded.train.sets, labels[0], encoded.validation.sets, labels[1], encoded.test.sets, scorer, settings
        )
        results.put_findings(f"{prefix}{name}", probed.scores, labels[2])
        results.chosen[f"{prefix}{name}"] = {k: v for k, v in vars(probed).items() if k != "scores"}


def ask_baseline(
    protocol: Protocol,
    population: Population,
    findings: Sequence[str],
    encoded: Encoded,
    results: Results,
    prefix: str,
) -> None:
    ask_frozen(population, findings, encoded, results, prefix)
    labels = label_table(population.test, findings)
    if "scores" in encoded.test.sets:
        results.put_findings(f"{prefix}zero_shot", encoded.scores(encoded.test, "pair", findings), labels)
        parts = protocol.retrieval.texts[:1] if protocol.retrieval else ()
        ask_retrieval(protocol, population.test, encoded, results, parts, prefix=f"{prefix}retrieval")
    if "logits" in encoded.test.sets:
        names = tuple(label_names(load_encoder(encoded.name)[0]))  # type: ignore[arg-type]
        shared = [name for name in findings if name in names]
        scores = FindingTable(findings=names, values=encoded.test.sets["logits"])
        results.put_findings(f"{prefix}classifier", scores.select(shared), labels.select(shared))


# ---- write ----


def write_results(
    run: Evaluation, protocol: Protocol, calibration: dict[str, dict[str, float]], results: Results
) -> None:
    run.out.mkdir(parents=True, exist_ok=True)
    write_json(run.out / "metrics.json", as_plain(results.metrics))
    write_json(run.out / "calibration.json", calibration)
    facts = {
        "protocol": protocol.name,
        "protocol_version": protocol.version,
        "about": protocol.about,
        "encoder": Path(run.encoder).name,
        "baselines": {name: Path(encoder).name for name, encoder in run.baselines.items()},
        "resamples": protocol.resamples,
        "seed": protocol.seed,
        "chosen": results.chosen,
        "notes": results.notes,
    }
    write_json(run.out / "evaluation.json", facts)
    (run.out / "table.md").write_text(format_table(results))


def as_plain(metrics: dict[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    """JSON values of four digits, null where undefined."""
    return {
        key: {name: plain(value) if name != "n" else value for name, value in asdict(found).items()}
        for key, found in metrics.items()
    }


def plain(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def report_metrics(metrics: dict[str, Estimate], path: Path) -> dict[str, dict[str, float | int | None]]:
    """Writes and prints them. Returns what was written."""
    found = as_plain(metrics)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(json.dumps(found, indent=1))
    return found


def write_calibration(checkpoint: Path, calibration: dict[str, dict[str, float]]) -> None:
    """Into config.json: it travels with the weights."""
    path = checkpoint / "config.json"
    facts = json.loads(path.read_text())
    with written_whole(path) as partial:  # laid out as save_pretrained does
        partial.write_text(json.dumps(facts | {"calibration": calibration}, indent=2, sort_keys=True) + "\n")


def format_table(results: Results) -> str:
    """Markdown: the checkpoint and its baselines, then everything else that is no single finding's, then the findings."""
    metrics, found = results.metrics, results.findings
    methods = [
        "",
        *dict.fromkeys("/".join(key.split("/")[:2]) + "/" for key in metrics if key.startswith("baselines/")),
    ]
    questions = ("zero_shot/macro_auroc", "knn/macro_auroc", "linear/macro_auroc", "classifier/macro_auroc", RECALL)
    questions = tuple(key for key in questions if any(method + key in metrics for method in methods))
    rows = [
        [
            method[len("baselines/") : -1] or "this checkpoint",
            *(format_cell(metrics.get(method + q)) for q in questions),
        ]
        for method in methods
    ]
    text = markdown_table(["", *questions], rows)
    rows = [
        [key, format_cell(value), str(value.n)]
        for key, value in metrics.items()
        if not key.startswith("baselines/") and not any(f"/{finding}" in key for finding in found)
    ]
    text += "\n" + markdown_table(["metric", "value (95 % interval)", "n"], rows)
    columns = [key for key in ("zero_shot", "zero_shot_ensemble", "knn", "linear") if f"{key}/macro_auroc" in metrics]
    rows = [[name, *(format_cell(metrics.get(f"{column}/{name}/auroc")) for column in columns)] for name in found]
    text += "\n" + markdown_table(["AUROC", *columns], rows)
    return "\n".join([text, *(f"- {note}" for note in results.notes)]) + "\n"


def format_cell(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def draw_results(
    run: Evaluation,
    population: Population,
    encoded: Encoded,
    calibration: dict[str, dict[str, float]],
    logits: FindingTable | None,
    labels: FindingTable,
    results: Results,
) -> None:
    draw_findings(results.metrics, run.out / "findings.png")
    draw_methods(results.metrics, run.out / "methods.png")
    if logits is None or not calibration:
        return
    probabilities = calibrated(calibration, logits)
    findings, after = probabilities.findings, probabilities.values
    truth, before = labels.select(findings).values, sigmoid(logits.select(findings).values)
    draw_reliability(reliability(before, truth), reliability(after, truth), run.out / "reliability.png")
    draw_risk_coverage(after, truth, findings, run.out / "risk_coverage.png")
    if run.failures is not None:
        misses = find_misses(after, truth)
        chosen = [(population.test[row], findings[k], float(after[row, k])) for row, k in misses]
        draw_failures(chosen, encoded.name, encoded.texts, population.structures, run.failures)


def find_misses(probabilities: np.ndarray, truth: np.ndarray, count: int = 6) -> list[tuple[int, int]]:
    """The present findings that were given the least probability, at most one of each kind."""
    missed = [int(np.argmin(np.where(truth[:, k] == 1, probabilities[:, k], 2.0))) for k in range(truth.shape[1])]
    order = np.argsort([probabilities[row, k] for k, row in enumerate(missed)])
    return [(missed[k], int(k)) for k in order[:count]]


# ---- the command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", help="checkpoint, or folder of features")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared folders, or a published one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--protocol", default="phantoms", help="a name in protocols/, or a .json file")
    parser.add_argument("--baseline", action="append", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--random", action="store_true", help="baseline: this architecture with random weights")
    parser.add_argument("--histogram", action="store_true", help="baseline: how the HU are distributed")
    parser.add_argument("--train-scans", type=int, default=1000, help="most that a probe is fitted on")
    parser.add_argument("--test-scans", type=int, default=100_000, help="most of every other split")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument(
        "--calibrate", action="store_true", help="write the calibration into the checkpoint's config.json"
    )
    parser.add_argument("--failures", type=Path, help="where to draw the worst misses")
    given = parser.parse_args(arguments)
    baselines = dict(text.split("=", 1) for text in given.baseline)
    if given.random:
        baselines["random"] = f"random:{given.encoder}"
    if given.histogram:
        baselines["histogram"] = "histogram"
    results = evaluate(
        Evaluation(
            encoder=given.encoder,
            data=tuple(given.data),
            out=given.out,
            protocol=given.protocol,
            baselines=baselines,
            train_scans=given.train_scans,
            test_scans=given.test_scans,
            num_workers=given.num_workers,
            writes_calibration=given.calibrate,
            failures=given.failures,
        )
    )
    print_markdown(format_table(results))
    return 0
