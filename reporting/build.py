"""A trained encoder and both corpora -> every figure of the card, and the released checkpoint: one command.

    python -m ctfm.reporting.build --encoder runs/reporting/spirit --out runs/reporting/release

Every article is read once by the encoder. Three views of a sentence are then trained: a sentence transformer on both corpora,
for labels of SPIRIT-CONSORT-TM; another on that corpus first and on CONSORT-TM last, for labels of CONSORT-TM, since 140
articles of the other corpus beside 40 of its own cost them accuracy; and a linear model of words for both. Five parts leave
out a published fold of CONSORT-TM and a fifth of the pairs of SPIRIT-CONSORT-TM's training split; one more is trained on all
140 and 50 articles and released. What a view of a part left in `out` is not made again. `evaluate.py` and `calibrate.py` turn
the predictions into figures and what stands beside a verdict.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from .baselines import predict_rules
from .calibrate import (
    KINDS,
    apply,
    correct_left_out,
    count_verdicts,
    element_table,
    fit,
    fit_correction,
    is_kept,
    item_keys,
    leave_out,
    quality,
    rule_table,
    score_items,
)  # fmt: skip
from .cards import elements_table, figures_table, write_between
from .configuration_trialreport import TrialReportConfig
from .corpora import (
    ARTICLE_ITEMS,
    CONSORT_ITEMS,
    Article,
    load_consort,
    load_spirit,
    load_spirit_articles,
    states_article_item,
)
from .evaluate import (
    METHODS_TEST,
    Predictions,
    evaluate_methods,
    evaluate_predictions,
    evaluate_spirit,
    load_predictions,
    per_item,
    save_predictions,
    select,
    thresholds_from,
)  # fmt: skip
from .modeling_trialreport import TrialReportForSentenceLabels, TrialReportInt8Table, TrialReportLexicalView
from .processing_trialreport import TrialReportProcessor
from .train import learning_rate_scale, spirit_labels

LEXICAL_BUCKETS = 2**15
UNKNOWN = -100
VIEWS = ("both", "consort", "lexical")
# By corpus, the weight of each view in an item's probability.
VIEW_SHARES = {"consort": (0.0, 0.6, 0.4), "spirit": (0.6, 0.0, 0.4)}
# Labels of SPIRIT-CONSORT-TM that an item of CONSORT-TM corresponds to: where its row of the classifier starts.
CONSORT_FROM_SPIRIT: dict[str, tuple[str, ...]] = {
    "2b": ("7_Objectives",),
    "3a": ("8a_Design_Type", "8d_Design_Ratio"),
    "4a": ("10a_Participants_inclusion",),
    "4b": ("9_Setting",),
    "5": ("11a_Intervention_Description",),
    "6a": ("12a_Outcomes_Definitions",),
    "6b": ("12b_Outcomes_Changes",),
    "7a": ("14b_Sample_Calculation",),
    "7b": ("21b_Interim_analyses", "21c_Stopping_guidelines"),
    "8a": ("16a_Randomization_Generation",),
    "8b": ("16b_Randomization_Type", "16c_Randomization_Block_size", "16d_Randomization_Strata"),
    "10": ("16g_Personnel_Sequence", "16h_Personnel_Enrollment"),
    "11a": ("17a_Masking_People_masked",),
    "11b": ("17e_Masking_Similarity",),
    "12a": ("20a_Statistical_methods_Outcomes",),
    "12b": ("20b_Statistical_methods_Other_Analyses",),
    "13a": ("34_Flow",),
    "13b": ("34_Flow",),
    "14a": ("35a_Recruitment_dates", "35b_Followup_dates"),
    "14b": ("35c_Stopping",),
    "15": ("36_Baseline_data",),
    "16": ("37a_Analysis_Numbers",),
    "17a": ("38a_Outcome_results",),
    "17b": ("38b_Binary_results",),
    "18": ("39_Ancillary_results",),
    "19": ("40_Harms_results",),
    "21": ("41_Generalizability",),
    "23": ("3a_Registry_number",),
    "24": ("3b_Protocol_access",),
    "25": ("4_Funding",),
}
RELEASED = (
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "calibration.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Build:
    """`encoder` is a checkpoint of `ctfm.reporting.train` that saw no article of CONSORT-TM. The sentence transformer of
    both corpora is trained for `epochs`; that of CONSORT-TM for `spirit_epochs` on the other corpus, then for
    `consort_epochs` on its own with `spirit_beside` articles of the other."""

    encoder: Path
    out: Path
    data: Path = Path("../shared/trial_reports")
    checkpoint: Path | None = None
    results: Path | None = None
    card: Path | None = None
    data_card: Path | None = None
    epochs: int = 3
    spirit_epochs: int = 4
    consort_epochs: int = 8
    spirit_beside: int = 10
    chunk_sentences: int = 64
    chunks_per_step: int = 4
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.08
    inverse_regularisation: float = 10.0


@dataclass(frozen=True, kw_only=True)
class ReadArticle:
    """An article as the encoder left it: vectors `(s, e)`, section kinds and places `(s,)`, labels `(s, l)` of 1, 0 or -100."""

    article: Article
    vectors: Tensor
    kinds: Tensor
    places: Tensor
    labels: Tensor
    hashed: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One training: the articles that are left out, whose predictions are kept."""

    name: str
    left_out: frozenset[str]


# ---- data ----


def label_names(folder: Path) -> list[str]:
    spirit = sorted({*spirit_labels(folder), *ARTICLE_ITEMS})
    return [f"consort:{item}" for item in CONSORT_ITEMS] + [f"spirit:{item}" for item in spirit]


def label_tensor(article: Article, names: Sequence[str], reported: frozenset[str]) -> Tensor:
    """The annotators' labels; of items that only the article-level file has, the sentences that can be meant.

    Where the article does not report such an item no sentence states it. Where it does, the sentences that
    `states_article_item` picks do; if there is none, nobody knows which, and the article does not count.
    """
    labels = torch.full((len(article.sentences), len(names)), UNKNOWN, dtype=torch.int8)
    columns = {name: number for number, name in enumerate(names)}
    own = [number for name, number in columns.items() if name.startswith(f"{article.corpus}:")]
    labels[:, own] = 0
    for number, items in enumerate(article.items):
        labels[number, [columns[f"{article.corpus}:{item}"] for item in items]] = 1
    if article.corpus == "spirit":
        for item in ARTICLE_ITEMS:
            column = columns[f"spirit:{item}"]
            pairs = zip(article.sentences, article.sections, strict=True)
            meant = [number for number, pair in enumerate(pairs) if states_article_item(item, *pair)]
            if item in reported:
                labels[meant, column] = 1
                if not meant:
                    labels[:, column] = UNKNOWN
    return labels


def share_table(names: Sequence[str]) -> Tensor:
    """`VIEW_SHARES` of every label: `(v, l)`."""
    return torch.tensor([VIEW_SHARES[name.partition(":")[0]] for name in names]).T.contiguous()


def load_encoder(folder: Path, names: Sequence[str]) -> tuple[TrialReportForSentenceLabels, TrialReportProcessor]:
    """The token transformer of a checkpoint, with new sentence transformers, classifiers and lexical view."""
    old = json.loads((folder / "config.json").read_text())
    shape = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "layer_norm_eps",
    )  # fmt: skip
    config = TrialReportConfig(
        **{name: old[name] for name in shape},
        num_sentence_encoders=len(VIEWS) - 1,
        lexical_buckets=LEXICAL_BUCKETS,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model = TrialReportForSentenceLabels(config)
    state = {
        name: value.float()
        for name, value in load_file(folder / "model.safetensors").items()
        if name.startswith(("embeddings.", "layers."))
    }
    if "embeddings.words.values" in state:
        scale = state.pop("embeddings.words.scale")
        state["embeddings.words.weight"] = state.pop("embeddings.words.values") * scale[:, None]
    absent, unexpected = model.load_state_dict(state, strict=False)
    differing = [*(name for name in absent if name.startswith(("embeddings.", "layers."))), *unexpected]
    if differing:
        raise ValueError(f"{folder} holds another encoder: it differs in {', '.join(differing[:3])}.")
    model.view_shares.copy_(share_table(names))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval(), TrialReportProcessor(tokenizer, lexical_buckets=LEXICAL_BUCKETS)


@torch.inference_mode()
def read_article(
    article: Article,
    model: TrialReportForSentenceLabels,
    processor: TrialReportProcessor,
    cache: Path,
    names: Sequence[str],
    reported: frozenset[str],
) -> ReadArticle:
    """The encoder's vectors from `cache`, or made and kept there."""
    path = cache / f"{article.pmcid}.pt"
    sections = [list(section) for section in article.sections]
    if not path.is_file():
        batch = processor([list(article.sentences)], [sections])
        states = torch.cat(
            [
                model.encode_tokens(model.embeddings(ids), mask)
                for ids, mask in zip(batch["input_ids"].split(8), batch["attention_mask"].split(8), strict=True)
            ]
        )
        vectors = model.pool_sentences(states, batch["token_sentences"], len(article.sentences))
        hashed = [torch.cat(rows) for rows in processor.hash_words(article.sentences, sections)]
        kept = {
            "vectors": vectors.half(),
            "kinds": batch["section_kinds"][0],
            "places": batch["places"][0],
            "hashed": hashed,
        }
        torch.save(kept, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    kept = torch.load(path, weights_only=True)
    buckets, counts, owners = kept["hashed"]
    return ReadArticle(
        article=article,
        vectors=kept["vectors"].float(),
        kinds=kept["kinds"],
        places=kept["places"],
        labels=label_tensor(article, names, reported),
        hashed=(buckets, counts, owners),
    )


# ---- the sentence transformers ----


class Member(nn.Module):
    """One sentence transformer and its classifier, which the model holds."""

    def __init__(self, model: TrialReportForSentenceLabels, number: int):
        super().__init__()
        classifier = model.classifiers[number]
        assert isinstance(classifier, nn.Linear)
        self.encoder, self.classifier = model.sentences[number], classifier
        self.dropout = nn.Dropout(model.config.hidden_dropout)

    def forward(self, vectors: Tensor, mask: Tensor, kinds: Tensor, places: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.encoder(vectors, mask, kinds, places)))


def iterate_chunks(articles: Sequence[ReadArticle], options: Build, generator: torch.Generator) -> Iterator[list]:
    """Steps of an epoch: chunks of consecutive sentences, cut at another place every epoch."""
    size = options.chunk_sentences
    chunks = []
    for article in articles:
        offset = int(torch.randint(size, (), generator=generator))
        bounds = [0, *range(offset or size, len(article.labels), size), len(article.labels)]
        chunks += [(article, low, high) for low, high in pairwise(bounds) if high > low]
    order = torch.randperm(len(chunks), generator=generator).tolist()
    for low in range(0, len(order) - options.chunks_per_step + 1, options.chunks_per_step):
        yield [chunks[index] for index in order[low : low + options.chunks_per_step]]


def reset(member: Member, seed: int) -> None:
    torch.manual_seed(seed)
    for module in member.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.constant_(member.classifier.bias, -4.0)  # an item is stated by one sentence in fifty


@torch.no_grad()
def start_consort(member: Member, names: Sequence[str]) -> None:
    """Before CONSORT-TM is seen: an item's row is the mean of the labels that it corresponds to."""
    for item, others in CONSORT_FROM_SPIRIT.items():
        rows = [names.index(f"spirit:{other}") for other in others]
        for values in (member.classifier.weight, member.classifier.bias):
            values[names.index(f"consort:{item}")] = values[rows].mean(0)


def fit_member(member: Member, articles: Sequence[ReadArticle], options: Build, epochs: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = [step for _ in range(epochs) for step in iterate_chunks(articles, options, generator)]
    optimizer = torch.optim.AdamW(member.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    member.train()
    pad = nn.utils.rnn.pad_sequence
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_scale(number / len(steps), options.warmup_share)
        vectors = pad([article.vectors[low:high] for article, low, high in step], batch_first=True)
        mask = pad([torch.ones(high - low, dtype=torch.bool) for _, low, high in step], batch_first=True)
        kinds = pad([article.kinds[low:high] for article, low, high in step], batch_first=True)
        places = pad([article.places[low:high] for article, low, high in step], batch_first=True)
        labels = pad(
            [article.labels[low:high].float() for article, low, high in step], batch_first=True, padding_value=UNKNOWN
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = member(vectors, mask, kinds, places).float()
        known = labels >= 0
        loss = nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        optimizer.step()
    member.eval()


# ---- the lexical view ----


def fit_lexical(view: TrialReportLexicalView, articles: Sequence[ReadArticle], inverse_regularisation: float) -> None:
    """Logistic regression of every label on the hashed words, by liblinear, then rounded to int8."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows, buckets, counts, first = [], [], [], 0
    for article in articles:
        own, times, owners = article.hashed
        rows.append(owners + first)
        buckets.append(own)
        counts.append(times)
        first += len(article.labels)
    row, column = torch.cat(rows).numpy(), torch.cat(buckets).numpy()
    labels = torch.cat([article.labels for article in articles]).numpy()
    seen = np.bincount(column, minlength=view.table.values.shape[0])
    idf = np.where(seen < 2, 0.0, np.log((1 + first) / (1 + seen)) + 1)  # a word of one sentence teaches nothing
    weights = (1 + np.log(torch.cat(counts).numpy())) * idf[column]
    norms = np.sqrt(np.bincount(row, weights**2, minlength=first)).clip(1e-9)
    inputs: Any = csr_matrix((weights / norms[row], (row, column)), shape=(first, len(seen)))
    table, bias = torch.zeros(len(seen), labels.shape[1]), torch.full((labels.shape[1],), -8.0)
    for label in range(labels.shape[1]):
        known = labels[:, label] >= 0
        if (labels[known, label] == 1).any():
            solver: Any = LogisticRegression(C=inverse_regularisation, solver="liblinear", max_iter=100, tol=1e-2)
            solver.fit(inputs[known], labels[known, label] == 1)
            table[:, label] = torch.from_numpy(solver.coef_[0]).float()
            bias[label] = float(solver.intercept_[0])
    view.table.fill(table)
    view.idf.copy_(torch.from_numpy(idf))
    view.bias.copy_(bias)


# ---- parts ----


@torch.inference_mode()
def predict(model: TrialReportForSentenceLabels, article: ReadArticle, view: str) -> np.ndarray:
    """Probabilities `(s, l)` of one view alone."""
    count = len(article.labels)
    if view == "lexical":
        assert model.lexical is not None
        return model.lexical(*article.hashed, count).sigmoid().numpy()
    mask = torch.ones(1, count, dtype=torch.bool)
    member = Member(model, VIEWS.index(view)).eval()
    return member(article.vectors[None], mask, article.kinds[None], article.places[None])[0].sigmoid().numpy()


def mix(views: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """What the model says, from the predictions of `VIEWS`."""
    shares = share_table(names).numpy()
    return {
        pmcid: np.einsum("vl,vsl->sl", shares, np.stack([view[pmcid].astype(float) for view in views]))
        for pmcid in views[0]
    }


@dataclass(frozen=True)
class Builder:
    """The parts of a build; articles are read once and kept."""

    options: Build

    @cached_property
    def names(self) -> list[str]:
        return label_names(self.options.data)

    @cached_property
    def articles(self) -> list[ReadArticle]:
        options = self.options
        model, processor = load_encoder(options.encoder, self.names)
        cache = options.out / "encoded"
        cache.mkdir(parents=True, exist_ok=True)
        reported = load_spirit_articles(options.data)
        return [
            read_article(article, model, processor, cache, self.names, reported.get(article.pmcid, frozenset()))
            for article in (*load_consort(options.data), *load_spirit(options.data))
        ]

    def parts(self) -> list[Part]:
        train = [article for article in load_spirit(self.options.data) if article.split == "train"]
        pairs = sorted({article.pair or 0 for article in train})
        consort = load_consort(self.options.data)
        parts = [
            Part(
                name=f"fold{fold}",
                left_out=frozenset(
                    [article.pmcid for article in consort if article.fold == fold]
                    + [article.pmcid for article in train if pairs.index(article.pair or 0) % 5 == fold]
                ),
            )
            for fold in range(5)
        ]
        return [Part(name="release", left_out=frozenset()), *parts]

    @cached_property
    def spirit_state(self) -> dict[str, Tensor]:
        """The sentence transformer of SPIRIT-CONSORT-TM's training articles alone, where that of CONSORT-TM starts."""
        path = self.options.out / "spirit.safetensors"
        if not path.is_file():
            member = Member(load_encoder(self.options.encoder, self.names)[0], 1)
            reset(member, 0)
            fit_member(member, self.spirit_train, self.options, self.options.spirit_epochs)
            save_file(member.state_dict(), path)
        return load_file(path)

    @property
    def spirit_train(self) -> list[ReadArticle]:
        return [read for read in self.articles if read.article.split == "train"]

    def fit_view(self, view: str, model: TrialReportForSentenceLabels, left_out: frozenset[str]) -> None:
        options = self.options
        kept = [read for read in self.articles if read.article.pmcid not in left_out and read.article.split != "valid"]
        if view == "lexical":
            assert model.lexical is not None
            fit_lexical(model.lexical, kept, options.inverse_regularisation)
            return
        member = Member(model, VIEWS.index(view))
        reset(member, 0)
        if view == "consort":
            member.load_state_dict(self.spirit_state)
            start_consort(member, self.names)
            beside = self.spirit_train[:: len(self.spirit_train) // options.spirit_beside][: options.spirit_beside]
            own = [read for read in kept if read.article.corpus == "consort"]
            fit_member(member, [*own, *beside], options, options.consort_epochs)
        else:
            fit_member(member, kept, options, options.epochs)

    def run(self, part: Part) -> None:
        """Trains the views of a part, and keeps what they predict for the articles that it left out, or of validation."""
        out = self.options.out
        is_release = part.name == "release"
        absent = [view for view in VIEWS if not (out / f"{part.name}.{view}.npz").is_file()]
        if is_release and (absent or not (out / "release" / "model.safetensors").is_file()):
            absent = list(VIEWS)  # the weights of all are saved together
        if not absent:
            return
        model, processor = load_encoder(self.options.encoder, self.names)
        tested = [
            read
            for read in self.articles
            if read.article.pmcid in part.left_out or (is_release and read.article.split == "valid")
        ]
        for view in absent:
            self.fit_view(view, model, part.left_out)
            found = {read.article.pmcid: predict(model, read, view) for read in tested}
            save_predictions(found, out / f"{part.name}.{view}.npz")
            print(part.name, view, flush=True)
        if is_release:
            save_release(model.eval(), processor, out / "release")

    def load(self, part: str, view: str) -> Predictions:
        return load_predictions(self.options.out / f"{part}.{view}.npz")


def save_release(model: TrialReportForSentenceLabels, processor: TrialReportProcessor, out: Path) -> None:
    """The model in bfloat16 with word embeddings in int8, and the processor."""
    words = model.embeddings.words
    assert isinstance(words, nn.Embedding)
    table = TrialReportInt8Table(*words.weight.shape)
    table.fill(words.weight.detach())
    model.embeddings.words = table
    model.config.int8_words = True
    model.bfloat16().save_pretrained(out)
    processor.save_pretrained(out)


# ---- figures ----


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`results` are the card's figures, `calibration` what the checker needs beside the weights."""

    results: dict
    calibration: dict


def measure(
    left_out: Predictions, lexical: Predictions, valid: Predictions, names: Sequence[str], data: Path
) -> Measured:
    """Figures and calibration from predictions `(s, l)` by PMCID.

    `left_out` are those of the five parts for the articles that each left out, `lexical` the same of the lexical view alone,
    `valid` those of the release for the validation articles.
    """
    consort, spirit = load_consort(data), load_spirit(data)
    train = [article for article in spirit if article.split == "train"]
    validation = [article for article in spirit if article.split == "valid"]
    reported = load_spirit_articles(data) | {article.pmcid: article.reported for article in consort}
    folds = {article.pmcid for article in consort}
    own = select({pmcid: left_out[pmcid] for pmcid in folds}, names, "consort", CONSORT_ITEMS)
    words = select({pmcid: lexical[pmcid] for pmcid in folds}, names, "consort", CONSORT_ITEMS)
    items = spirit_labels(data)
    sentence = {
        "consort": dict(zip(CONSORT_ITEMS, thresholds_from(consort, own, "sentence"), strict=True)),
        "spirit": dict(
            zip(items, thresholds_from(train, select(left_out, names, "spirit", items), "sentence", items), strict=True)
        ),
    }
    results: dict[str, Any] = {
        "model": evaluate_predictions(consort, own),
        "baselines": {
            "rules": evaluate_predictions(consort, predict_rules(consort)),
            "lexical": evaluate_predictions(consort, words),
        },
        "per_item": per_item(consort, own),
        "methods2021": evaluate_methods(
            consort, own, thresholds_from([a for a in consort if a.pmcid not in METHODS_TEST], own, "sentence")
        ),
        "spirit_validation": evaluate_spirit(
            train, select(left_out, names, "spirit", items), validation, select(valid, names, "spirit", items), items
        ),
        "verdicts": {},
        "rules": rule_table(data),
    }
    table: dict[str, dict[str, dict]] = {}
    probability: dict[str, dict[str, float]] = {}

    def keep(keys: Sequence[tuple[str, ...]], kind: str, slope: float, offsets: Any, there: Any, found: Any) -> None:
        for column, labels in enumerate(keys):
            row = {"slope": slope, "offset": float(offsets[column])}
            table.setdefault(" | ".join(labels), {})[kind] = row | count_verdicts(
                there[:, column], found[:, column] >= 0.5
            )

    keys = item_keys("consort", names)
    scored = score_items(consort, left_out, names, keys, reported)
    found = leave_out(scored)
    keep(keys, "report", *fit(scored), scored.there, found)
    results["verdicts"]["CONSORT-TM, reports"] = quality(found, scored.there)
    keys = item_keys("spirit", names)
    for kind, name in KINDS.items():
        tuned = score_items([a for a in train if a.kind == name], left_out, names, keys, reported)
        tested = [article for article in validation if article.kind == name]
        scored = score_items(tested, valid, names, keys, reported)
        slope, offsets = fit(tuned)
        tuned_only = apply(scored.logits, slope, offsets)
        found = correct_left_out(tuned_only, scored)
        scale, shift = fit_correction(tuned_only, scored.there)
        keep(keys, kind, slope * scale, offsets * scale + shift, scored.there, found)
        results["verdicts"][f"SPIRIT-CONSORT-TM, {kind}s"] = quality(found, scored.there)
        for article, row in zip(tested, found, strict=True):
            probability[article.pmcid] = {
                labels[0]: float(row[column]) for column, labels in enumerate(keys) if len(labels) == 1
            }
    elements = element_table(validation, probability, reported)
    results["elements"] = {label: row | {"kept": is_kept(row)} for label, row in elements.items()}
    thresholds = {f"{corpus}:{item}": float(t) for corpus, own in sentence.items() for item, t in own.items()}
    common = float(np.median(list(sentence["spirit"].values())))
    calibration = {
        # Nobody annotated the sentences of items that only the article-level file has.
        "sentence_thresholds": {name: thresholds.get(name, common) for name in names},
        "items": table,
        "rules": results["rules"],
        "elements": {label: row for label, row in elements.items() if is_kept(row)},
    }
    return Measured(results=results, calibration=calibration)


def main() -> int:
    torch.set_num_threads(1)
    options = tyro.cli(Build, description=__doc__)
    builder = Builder(options)
    folder = options.out
    for part in builder.parts():
        builder.run(part)
    left_out: Predictions = {}
    lexical: Predictions = {}
    for fold in range(5):
        views = [builder.load(f"fold{fold}", view) for view in VIEWS]
        left_out |= mix(views, builder.names)
        lexical |= views[-1]
    valid = mix([builder.load("release", view) for view in VIEWS], builder.names)
    measured = measure(left_out, lexical, valid, builder.names, options.data)
    (folder / "results.json").write_text(json.dumps(measured.results, indent=1) + "\n")
    (folder / "release" / "calibration.json").write_text(json.dumps(measured.calibration, indent=1) + "\n")
    if options.checkpoint is not None:
        for name in RELEASED:
            shutil.copyfile(folder / "release" / name, options.checkpoint / name)
    if options.results is not None:
        shutil.copyfile(folder / "results.json", options.results)
    if options.card is not None:
        write_between(options.card, "figures", figures_table(measured.results))
    if options.data_card is not None:
        write_between(options.data_card, "elements", elements_table(measured.results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
