"""Annotated corpora -> a TrialReport checkpoint.

    python -m ctfm.reporting.train --corpora spirit --init MINILM_FOLDER --out runs/reporting/spirit
    python -m ctfm.reporting.train --corpora consort --init runs/reporting/spirit --fold 0 --out runs/reporting/fold0

The lower layers stay as they were pretrained: they read every window once, and only the layers above `frozen_layers` and
the sentence transformer are trained on what they gave. With two processes:
`OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node 2 -m ctfm.reporting.train ...`
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from .check import load_complete
from .configuration_trialreport import TrialReportConfig
from .corpora import CONSORT_ITEMS, Article, load_consort, load_spirit
from .modeling_trialreport import TrialReportForSentenceLabels
from .processing_trialreport import TrialReportProcessor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    `fold` leaves that CONSORT-TM fold out. `init` is a folder: a TrialReport checkpoint or a BERT-shaped encoder.
    `quiet_share` is the share of windows without any label that an epoch sees. `held_out` leaves these PMCIDs out. With
    `budget_minutes` the learning rate falls with the clock where the steps alone would take longer: same recipe, slower
    machine, fewer steps.
    """

    out: Path
    init: Path
    data: Path = Path("../shared/trial_reports")
    corpora: tuple[str, ...] = ("consort",)
    fold: int | None = None
    held_out: tuple[str, ...] = ()
    with_validation: bool = False
    frozen_layers: int = 3
    epochs: float = 2.0
    chunks_per_step: int = 2
    windows_per_chunk: int = 5
    quiet_share: float = 0.5
    learning_rate: float = 1.5e-4
    head_learning_rate: float = 6e-4
    warmup_share: float = 0.08
    weight_decay: float = 0.01
    seed: int = 0
    budget_minutes: float | None = None
    log_every: int = 20


@dataclass(frozen=True, kw_only=True)
class EncodedArticle:
    """Windows of an article behind the frozen layers, with what the rest of the model needs."""

    hidden_states: list[Tensor]
    owners: list[Tensor]
    kinds: Tensor
    places: Tensor
    labels: Tensor


# ---- the start ----


def label_names(spirit_items: Sequence[str]) -> list[str]:
    return [f"consort:{item}" for item in CONSORT_ITEMS] + [f"spirit:{item}" for item in spirit_items]


def load_bert(folder: Path, labels: Sequence[str]) -> TrialReportForSentenceLabels:
    """The token transformer from any BERT checkpoint; the sentence transformer starts at random."""
    bert = json.loads((folder / "config.json").read_text())
    config = TrialReportConfig(
        vocab_size=bert["vocab_size"],
        hidden_size=bert["hidden_size"],
        num_hidden_layers=bert["num_hidden_layers"],
        num_attention_heads=bert["num_attention_heads"],
        intermediate_size=bert["intermediate_size"],
        max_position_embeddings=bert["max_position_embeddings"],
        layer_norm_eps=bert["layer_norm_eps"],
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = TrialReportForSentenceLabels(config)
    old = load_file(folder / "model.safetensors")
    old = {key.removeprefix("bert."): value for key, value in old.items()}
    state = model.state_dict()
    new = {
        "embeddings.words.weight": old["embeddings.word_embeddings.weight"],
        # BERT's type of the first segment is the same for every token, so it joins the positions.
        "embeddings.positions.weight": old["embeddings.position_embeddings.weight"]
        + old["embeddings.token_type_embeddings.weight"][0],
    }
    names = {
        "attention.out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for kind in ("weight", "bias"):
        new[f"embeddings.norm.{kind}"] = old[f"embeddings.LayerNorm.{kind}"]
        for number in range(config.num_hidden_layers):
            source = f"encoder.layer.{number}"
            parts = [old[f"{source}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            new[f"layers.{number}.attention.qkv.{kind}"] = torch.cat(parts)
            for name, old_name in names.items():
                new[f"layers.{number}.{name}.{kind}"] = old[f"{source}.{old_name}.{kind}"]
    model.load_state_dict(state | new, strict=True)
    classifier = model.classifiers[0]
    assert isinstance(classifier, nn.Linear)
    nn.init.constant_(classifier.bias, -4.0)  # an item is stated by one sentence in fifty
    return model


def load_start(recipe: Recipe, labels: Sequence[str]) -> tuple[TrialReportForSentenceLabels, TrialReportProcessor]:
    config = json.loads((recipe.init / "config.json").read_text())
    processor = TrialReportProcessor(AutoTokenizer.from_pretrained(recipe.init))
    if config["model_type"] != "trialreport":
        return load_bert(recipe.init, labels), processor
    model = load_complete(recipe.init, torch.float32)
    if list(item_numbers(model)) != list(labels):
        raise ValueError(
            f"{recipe.init} labels other items than the corpora in {recipe.data}; start it from an encoder."
        )
    return model, processor


def item_numbers(model: TrialReportForSentenceLabels) -> dict[str, int]:
    """Column of every item, in order."""
    return {str(label): int(number) for number, label in (model.config.id2label or {}).items()}


# ---- data ----


def select_articles(recipe: Recipe) -> list[Article]:
    articles = []
    if "consort" in recipe.corpora:
        articles += [article for article in load_consort(recipe.data) if article.fold != recipe.fold]
    if "spirit" in recipe.corpora:
        articles += [
            article for article in load_spirit(recipe.data) if article.split == "train" or recipe.with_validation
        ]
    return [article for article in articles if article.pmcid not in recipe.held_out]


def label_tensor(article: Article, label2id: dict[str, int]) -> Tensor:
    """`(s, l)`: 1 and 0 for the items of the article's own corpus, -100 for the other's."""
    labels = torch.full((len(article.sentences), len(label2id)), -100, dtype=torch.int8)
    own = [number for label, number in label2id.items() if label.startswith(f"{article.corpus}:")]
    labels[:, own] = 0
    for number, items in enumerate(article.items):
        labels[number, [label2id[f"{article.corpus}:{item}"] for item in items]] = 1
    return labels


@torch.no_grad()
def encode_article(
    article: Article, model: TrialReportForSentenceLabels, processor: TrialReportProcessor, frozen_layers: int
) -> EncodedArticle:
    batch = processor([list(article.sentences)], [[list(section) for section in article.sections]])
    hidden_states, owners = [], []
    for ids, mask, owner in zip(
        batch["input_ids"].split(8), batch["attention_mask"].split(8), batch["token_sentences"].split(8), strict=True
    ):
        longest = int(mask.sum(1).max())
        states = model.encode_tokens(model.embeddings(ids[:, :longest]), mask[:, :longest], slice(0, frozen_layers))
        for state, row, length in zip(states, owner, mask.sum(1).tolist(), strict=True):
            state, row = state[:length], row[:length]
            if frozen_layers >= len(model.layers):  # nothing above needs tokens: a sentence's mean stands for them
                own = row[row >= 0].unique()
                state = torch.stack([state[row == number].mean(0) for number in own])
                row = own
            hidden_states.append(state.bfloat16().clone())
            owners.append(row.clone())
    return EncodedArticle(
        hidden_states=hidden_states,
        owners=owners,
        kinds=batch["section_kinds"][0],
        places=batch["places"][0],
        labels=label_tensor(article, item_numbers(model)),
    )


def window_is_quiet(article: EncodedArticle, window: int) -> bool:
    owners = article.owners[window]
    return not bool((article.labels[owners[owners >= 0].unique()] == 1).any())


def iterate_chunks(articles: list[EncodedArticle], recipe: Recipe, epoch: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Steps of an epoch: chunks of consecutive windows, cut at another place every epoch, long ones together."""
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
    chunks = []
    for number, article in enumerate(articles):
        keep = [
            window
            for window in range(len(article.owners))
            if not window_is_quiet(article, window) or torch.rand((), generator=generator) < recipe.quiet_share
        ]
        offset = int(torch.randint(recipe.windows_per_chunk, (), generator=generator))
        bounds = [0, *range(offset or recipe.windows_per_chunk, len(keep), recipe.windows_per_chunk), len(keep)]
        chunks += [(number, keep[low:high]) for low, high in pairwise(bounds) if high > low]
    order = torch.randperm(len(chunks), generator=generator).tolist()
    for low in range(0, len(order) - recipe.chunks_per_step + 1, recipe.chunks_per_step):
        yield [chunks[index] for index in order[low : low + recipe.chunks_per_step]]


def collate(articles: list[EncodedArticle], chunks: list[tuple[int, list[int]]]) -> dict[str, Tensor]:
    """Chunks -> the batch that `SentenceLabelTask` takes, padded."""
    sentences = []
    for number, windows in chunks:
        owners = torch.cat([articles[number].owners[window] for window in windows])
        sentences.append(owners[owners >= 0].unique())
    width = max(len(ids) for ids in sentences)
    states, masks, owners = [], [], []
    mask = torch.zeros(len(chunks), width, dtype=torch.bool)
    kinds = torch.zeros(len(chunks), width, dtype=torch.long)
    places = torch.zeros(len(chunks), width)
    num_labels = articles[0].labels.shape[1]
    labels = torch.full((len(chunks), width, num_labels), -100, dtype=torch.long)
    for row, ((number, windows), ids) in enumerate(zip(chunks, sentences, strict=True)):
        article = articles[number]
        for window in windows:
            owner = article.owners[window]
            states.append(article.hidden_states[window].float())
            masks.append(torch.ones(len(owner), dtype=torch.long))
            owners.append(torch.where(owner >= 0, torch.searchsorted(ids, owner.clamp(min=0)) + row * width, -1))
        mask[row, : len(ids)] = True
        kinds[row, : len(ids)] = article.kinds[ids]
        places[row, : len(ids)] = article.places[ids]
        labels[row, : len(ids)] = article.labels[ids].long()
    pad = nn.utils.rnn.pad_sequence
    return {
        "hidden_states": pad(states, batch_first=True),
        "attention_mask": pad(masks, batch_first=True),
        "token_sentences": pad(owners, batch_first=True, padding_value=-1),
        "sentence_mask": mask,
        "section_kinds": kinds,
        "places": places,
        "labels": labels,
    }


# ---- training ----


class SentenceLabelTask(nn.Module):
    """A batch behind the frozen layers -> loss."""

    def __init__(self, model: TrialReportForSentenceLabels, frozen_layers: int):
        super().__init__()
        self.model = model
        self.layers = slice(frozen_layers, None)
        for part in (model.embeddings, *model.layers[:frozen_layers]):
            part.requires_grad_(False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        token_sentences: Tensor,
        sentence_mask: Tensor,
        section_kinds: Tensor,
        places: Tensor,
        labels: Tensor,
    ) -> Tensor:
        hidden_states = self.model.encode_tokens(hidden_states, attention_mask, self.layers)
        vectors = self.model.pool_sentences(hidden_states, token_sentences, sentence_mask.numel())
        vectors = vectors.view(*sentence_mask.shape, -1)
        loss = self.model.label_sentences(vectors, sentence_mask, section_kinds, places, labels).loss
        assert loss is not None
        return loss


def build_optimizer(task: SentenceLabelTask, recipe: Recipe) -> torch.optim.AdamW:
    head, encoder = [], []
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("model.layers") else head).append(parameter)
    groups = [{"params": head, "lr": recipe.head_learning_rate, "initial_lr": recipe.head_learning_rate}]
    if encoder:
        groups.append({"params": encoder, "lr": recipe.learning_rate, "initial_lr": recipe.learning_rate})
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def learning_rate_scale(progress: float, warmup_share: float) -> float:
    """Up in a line over the first `warmup_share` of the run, down to 0 over the rest; `progress` from 0 to 1."""
    return min((progress + 0.005) / warmup_share, max(0.0, (1 - progress) / (1 - warmup_share)))


def fit(
    model: TrialReportForSentenceLabels, encoded: list[EncodedArticle], recipe: Recipe, accelerator: Accelerator
) -> None:
    """The loop, over articles that are already behind the frozen layers."""
    whole = math.ceil(recipe.epochs)
    steps = [step for epoch in range(whole) for step in iterate_chunks(encoded, recipe, epoch)]
    steps = steps[: int(len(steps) * recipe.epochs / whole)]
    own = steps[accelerator.process_index :: accelerator.num_processes]
    num_steps = len(steps) // accelerator.num_processes
    task = SentenceLabelTask(model, recipe.frozen_layers)
    prepared, optimizer = accelerator.prepare(task, build_optimizer(task, recipe))
    prepared.train()
    recipe.out.mkdir(parents=True, exist_ok=True)
    total, started = 0.0, time.perf_counter()
    for number in range(num_steps):
        progress = number / num_steps
        if recipe.budget_minutes is not None:
            clock = torch.tensor((time.perf_counter() - started) / (60 * recipe.budget_minutes))
            clock = broadcast(clock)
            assert isinstance(clock, Tensor)
            progress = max(progress, clock.item())  # the first process's clock, so that all stop together
        if progress >= 1:
            break
        scale = learning_rate_scale(progress, recipe.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = scale * group["initial_lr"]
        batch = {key: value.to(accelerator.device) for key, value in collate(encoded, own[number]).items()}
        loss = prepared(**batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if (number + 1) % recipe.log_every == 0 and accelerator.is_main_process:
            row = {"step": number + 1, "of": num_steps, "progress": progress, "loss": total / recipe.log_every}
            row["seconds"] = round(time.perf_counter() - started)
            with (recipe.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            total = 0.0
    model.eval()


@torch.no_grad()
def predict_encoded(
    model: TrialReportForSentenceLabels, article: EncodedArticle, frozen_layers: int, windows: int = 16
) -> Tensor:
    """Probabilities `(s, l)` of a whole article behind the frozen layers; the same figures as `forward` gives."""
    pad = nn.utils.rnn.pad_sequence
    states, owners = [], []
    for low in range(0, len(article.owners), windows):
        chunk = article.hidden_states[low : low + windows]
        owner = article.owners[low : low + windows]
        mask = pad([torch.ones(len(row), dtype=torch.long) for row in owner], batch_first=True)
        encoded = model.encode_tokens(
            pad([state.float() for state in chunk], batch_first=True), mask, slice(frozen_layers, None)
        )
        states.append(encoded[mask.bool()])
        owners.append(torch.cat(list(owner)))
    count = len(article.labels)
    vectors = model.pool_sentences(torch.cat(states)[None], torch.cat(owners)[None], count)[None]
    mask = torch.ones(1, count, dtype=torch.bool)
    logits = model.label_sentences(vectors, mask, article.kinds[None], article.places[None]).logits
    assert logits is not None
    return logits[0].float().sigmoid()


def spirit_labels(folder: Path) -> list[str]:
    return sorted({item for article in load_spirit(folder) for item in article.reported})


def train(recipe: Recipe) -> TrialReportForSentenceLabels:
    """Runs the recipe and saves to `recipe.out`: model, tokenizer, `recipe.json`, `log.jsonl`."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(recipe.seed)
    model, processor = load_start(recipe, label_names(spirit_labels(recipe.data)))
    model.eval()
    encoded = [encode_article(article, model, processor, recipe.frozen_layers) for article in select_articles(recipe)]
    fit(model, encoded, recipe, accelerator)
    if accelerator.is_main_process:
        save(model, processor, recipe)
    accelerator.wait_for_everyone()
    return model


def save(model: TrialReportForSentenceLabels, processor: TrialReportProcessor, recipe: Recipe) -> None:
    model.save_pretrained(recipe.out)
    processor.save_pretrained(recipe.out)
    (recipe.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1, default=str) + "\n")


def main() -> int:
    torch.set_num_threads(1)
    train(tyro.cli(Recipe, description=__doc__))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
