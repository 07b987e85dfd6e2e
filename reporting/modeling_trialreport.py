"""Windows of consecutive sentences -> sentence vectors -> logits for every checklist item.

The token transformer reads windows: consecutive sentences behind the headers of their section. The mean of a sentence's
tokens, with the kind of its section and its place in the report, is its vector; sentence transformers mix the
vectors of `sentence_context` neighbours on either side, and each has a classifier of its own. Beside them a lexical view, a
linear model of hashed words, sees rare words that a mean of vectors loses. An item's probability is the weighted mean of what
these views say: corpora of different annotators and sizes may weight them differently. Nothing depends on where the report
was cut for a batch.

Shapes: `b` reports, `w` windows in the batch, `t` tokens of a window, `s` sentences of a report, `k` heads, `e` hidden size,
`l` items, `v` views.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_trialreport import TrialReportConfig

if TYPE_CHECKING:  # never runs: the Hub loader and save_pretrained copy what a file imports, so all files go together
    from .processing_trialreport import TrialReportProcessor  # noqa: F401


@dataclass
class TrialReportOutput(ModelOutput):
    """`logits` `(b, s, l)`, `last_hidden_state` `(b, s, e)` of the sentences, `loss` if labels were given."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


def rotary_tables(length: int, head_size: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE over sentences, `(length, head_size)`."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, device=device) / head_size)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns queries or keys `(b, k, s, head)`, in float32 whatever their type."""
    first, second = states.chunk(2, -1)
    return (states * cos + torch.cat((-second, first), -1) * sin).to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class TrialReportAttention(nn.Module):
    def __init__(self, config: TrialReportConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, position_embeddings: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_size))  # (b, n, e) -> (b, n, 3, k, head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # -> 3 x (b, k, n, head)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        output, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.out(output.flatten(2))  # (b, n, k, head) -> (b, n, e)


class TrialReportLayer(GradientCheckpointingLayer):
    """BERT's layer: normalised after each residual. With rotary tables it is a layer over sentences."""

    def __init__(self, config: TrialReportConfig, intermediate_size: int):
        super().__init__()
        self.attention = TrialReportAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        attended = self.attention(hidden_states, attention_mask, position_embeddings)
        hidden_states = self.norm1(hidden_states + self.dropout(attended))
        expanded = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.norm2(hidden_states + self.dropout(expanded))


class TrialReportInt8Table(nn.Module):
    """Rows of int8 with a scale each: half the size of bfloat16, and closer to float32 than the text needs."""

    values: Tensor
    scale: Tensor

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(rows))

    @torch.no_grad()
    def fill(self, table: Tensor) -> None:
        """Rounds a float table `(rows, columns)`."""
        self.scale.copy_(table.abs().amax(1).clamp(min=1e-12) / 127)
        # In the precision that is stored, so that values and scale belong together.
        self.values.copy_((table / self.scale[:, None].to(table.dtype)).round().clamp(-127, 127).to(torch.int8))

    def forward(self, index: Tensor) -> Tensor:
        return self.values[index].to(self.scale.dtype) * self.scale[index][..., None]


class TrialReportLexicalView(nn.Module):
    """A linear model over hashed words of a sentence, its neighbours and headers, with TF-IDF weights: `(s,)` to `(s, l)`."""

    idf: Tensor
    bias: Tensor

    def __init__(self, config: TrialReportConfig):
        super().__init__()
        num_labels = len(config.id2label or {})
        self.table = TrialReportInt8Table(config.lexical_buckets, num_labels)
        self.register_buffer("idf", torch.ones(config.lexical_buckets))
        self.register_buffer("bias", torch.zeros(num_labels))

    def forward(self, buckets: Tensor, counts: Tensor, owners: Tensor, num_sentences: int) -> Tensor:
        """`buckets`, `counts`, `owners` `(m,)`: what is in which sentence, and how often; sorted by sentence."""
        weights = (1 + counts.float().log()) * self.idf.float()[buckets]
        norms = weights.new_zeros(num_sentences).index_add(0, owners, weights.square()).sqrt().clamp(min=1e-9)
        weights = weights / norms[owners] * self.table.scale.float()[buckets]
        starts = torch.searchsorted(owners, torch.arange(num_sentences, device=owners.device))
        logits = nn.functional.embedding_bag(
            buckets, self.table.values.float(), starts, mode="sum", per_sample_weights=weights
        )
        return logits + self.bias.float()


class TrialReportEmbeddings(nn.Module):
    def __init__(self, config: TrialReportConfig):
        super().__init__()
        self.words: nn.Module = (
            TrialReportInt8Table(config.vocab_size, config.hidden_size)
            if config.int8_words
            else nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        )
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.dropout(self.norm(self.words(input_ids) + self.positions(positions)))  # (w, t) -> (w, t, e)


class TrialReportSentenceEncoder(nn.Module):
    """Sentence vectors -> the same with their neighbours, sections and place in the report."""

    def __init__(self, config: TrialReportConfig):
        super().__init__()
        self.config = config
        self.section_kinds = nn.Embedding(config.num_section_kinds, config.hidden_size)
        self.place = nn.Linear(8, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            TrialReportLayer(config, config.sentence_intermediate_size) for _ in range(config.num_sentence_layers)
        )

    def forward(self, vectors: Tensor, sentence_mask: Tensor, section_kinds: Tensor, places: Tensor) -> Tensor:
        waves = torch.pi * places[..., None] * 2 ** torch.arange(4, device=places.device)
        place = self.place(torch.cat((waves.sin(), waves.cos()), -1).to(vectors.dtype))
        hidden_states = self.norm(vectors + self.section_kinds(section_kinds) + place)  # (b, s, e)
        number = torch.arange(vectors.shape[1], device=vectors.device)
        near = (number[:, None] - number[None]).abs() <= self.config.sentence_context
        same = number[:, None] == number[None]  # padding sees itself, so that no row of the softmax is empty
        attention_mask = (near & sentence_mask[:, None, :] | same)[:, None]  # (b, 1, s, s)
        head_size = self.config.hidden_size // self.config.num_attention_heads
        tables = rotary_tables(vectors.shape[1], head_size, float(self.config.rope_theta), vectors.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, tables)
        return hidden_states


class TrialReportPreTrainedModel(PreTrainedModel):
    """How weights are drawn, and which kernels of attention the model takes."""

    config: TrialReportConfig
    config_class = TrialReportConfig
    base_model_prefix = "trialreport"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["TrialReportEmbeddings", "TrialReportLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class TrialReportForSentenceLabels(TrialReportPreTrainedModel):
    """Labels every sentence of a report with checklist items.

    `forward` takes what `TrialReportProcessor` makes: `input_ids` and `attention_mask` `(w, t)`, `token_sentences` `(w, t)`:
    the sentence of the batch that a token belongs to (`report * s + sentence`) or -1, `sentence_mask`, `section_kinds` and
    `places` `(b, s)`. `labels` `(b, s, l)` are 1, 0, or -100 where nobody annotated.
    """

    _auto_class = "AutoModel"
    view_shares: Tensor

    def __init__(self, config: TrialReportConfig):
        super().__init__(config)
        self.embeddings = TrialReportEmbeddings(config)
        self.layers = nn.ModuleList(
            TrialReportLayer(config, config.intermediate_size) for _ in range(config.num_hidden_layers)
        )
        num_labels = len(config.id2label or {})
        self.sentences = nn.ModuleList(TrialReportSentenceEncoder(config) for _ in range(config.num_sentence_encoders))
        self.classifiers = nn.ModuleList(
            nn.Linear(config.hidden_size, num_labels) for _ in range(config.num_sentence_encoders)
        )
        self.lexical = TrialReportLexicalView(config) if config.lexical_buckets else None
        num_views = config.num_sentence_encoders + bool(config.lexical_buckets)
        self.register_buffer("view_shares", torch.full((num_views, num_labels), 1 / num_views))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.words = value

    def encode_tokens(self, hidden_states: Tensor, attention_mask: Tensor, layers: slice = slice(None)) -> Tensor:
        """Some layers of the token transformer; training caches what the frozen ones give. `(w, t, e)` to the same."""
        mask = attention_mask.bool()[:, None, None, :]  # (w, t) -> (w, 1, 1, t)
        mask = mask.expand(-1, -1, mask.shape[-1], -1)
        for layer in self.layers[layers]:
            hidden_states = layer(hidden_states, mask)
        return hidden_states

    def pool_sentences(self, hidden_states: Tensor, token_sentences: Tensor, num_sentences: int) -> Tensor:
        """Mean over the tokens of every sentence: `(w, t, e)` -> `(num_sentences, e)`; a sentence may span windows."""
        chosen = token_sentences >= 0
        index = token_sentences[chosen]
        vectors = hidden_states.new_zeros(num_sentences, hidden_states.shape[-1], dtype=torch.float32)
        vectors = vectors.index_add(0, index, hidden_states[chosen].float())
        counts = torch.bincount(index, minlength=num_sentences).clamp(min=1)
        return (vectors / counts[:, None]).to(hidden_states.dtype)

    def label_sentences(
        self,
        vectors: Tensor,
        sentence_mask: Tensor,
        section_kinds: Tensor,
        places: Tensor,
        labels: Tensor | None = None,
        lexical_logits: Tensor | None = None,
    ) -> TrialReportOutput:
        """Sentence vectors `(b, s, e)`, and what the lexical view says `(b, s, l)`, -> logits."""
        states = [encoder(vectors, sentence_mask, section_kinds, places) for encoder in self.sentences]
        views = [head(state) for head, state in zip(self.classifiers, states, strict=True)]  # (b, s, e) -> (b, s, l)
        hidden_states = torch.stack(states).mean(0)
        if lexical_logits is not None:
            views.append(lexical_logits)
        logits = views[0]
        if len(views) > 1:
            shares = self.view_shares.float()[:, None, None]  # (v, l) -> (v, 1, 1, l)
            probability = (torch.stack([view.float() for view in views]).sigmoid() * shares).sum(0)
            logits = probability.clamp(1e-6, 1 - 1e-6).logit().to(vectors.dtype)
        loss = None
        if labels is not None:
            known = (labels >= 0) & sentence_mask[..., None]
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float()[known], labels[known].float())
        return TrialReportOutput(loss=loss, logits=logits, last_hidden_state=hidden_states)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_sentences: Tensor,
        sentence_mask: Tensor,
        section_kinds: Tensor,
        places: Tensor,
        lexical_buckets: Tensor | None = None,
        lexical_counts: Tensor | None = None,
        lexical_owners: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TrialReportOutput:
        chunk = len(input_ids) if torch.is_grad_enabled() else self.config.windows_per_chunk
        hidden_states = torch.cat(
            [
                self.encode_tokens(self.embeddings(ids), mask)
                for ids, mask in zip(input_ids.split(chunk), attention_mask.split(chunk), strict=True)
            ]
        )
        vectors = self.pool_sentences(hidden_states, token_sentences, sentence_mask.numel())
        vectors = vectors.view(*sentence_mask.shape, -1)  # (b * s, e) -> (b, s, e)
        lexical = None
        if self.lexical is not None:
            if lexical_buckets is None or lexical_counts is None or lexical_owners is None:
                raise ValueError("This model has a lexical view; pass all that TrialReportProcessor gives.")
            lexical = self.lexical(lexical_buckets, lexical_counts, lexical_owners, sentence_mask.numel())
            lexical = lexical.view(*sentence_mask.shape, -1)  # (b * s, l) -> (b, s, l)
        return self.label_sentences(vectors, sentence_mask, section_kinds, places, labels, lexical)


__all__ = ["TrialReportForSentenceLabels", "TrialReportOutput", "TrialReportPreTrainedModel"]
