"""JSON -> every number of the trial-report encoder, with its meaning."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TrialReportConfig(PreTrainedConfig):
    """A token transformer over windows of consecutive sentences, and a sentence transformer over the whole report.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: the token transformer, BERT's layout.
        max_position_embeddings: longest window, in tokens.
        num_sentence_layers, sentence_intermediate_size: the sentence transformer; its width and heads are those above.
        sentence_context: how many sentences back and forth a sentence sees beyond its own window.
        rope_theta: longest period of the rotary embedding over sentences.
        num_sentence_encoders: sentence transformers, each with a classifier of its own; the model's `view_shares` weight them.
        lexical_buckets: rows of the lexical view's table, which words and pairs of words are hashed into; 0 is none.
        int8_words: whether the word embeddings are stored as int8, which a released checkpoint does.
        num_section_kinds: title, abstract, introduction, methods, ...: what `section_kinds` may hold.
        id2label: checklist items, `"consort:8a"` or `"spirit:16a_Randomization_Generation"`.
    """

    model_type = "trialreport"
    _auto_class = "AutoConfig"  # save_pretrained writes the code beside what it saves

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    num_sentence_layers: int = 2
    sentence_intermediate_size: int = 512
    sentence_context: int = 48
    num_sentence_encoders: int = 1
    lexical_buckets: int = 0
    int8_words: bool = False
    rope_theta: float | int = 1000.0
    num_section_kinds: int = 8
    windows_per_chunk: int = 16
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    problem_type: str | None = "multi_label_classification"

    def validate_architecture(self) -> None:
        head_size, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest or head_size % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} must give an even "
                "head size: the rotary embedding turns pairs of channels. 384 over 12 does (32)."
            )


__all__ = ["TrialReportConfig"]
