"""Scans and texts -> everything `CTFMModel` takes."""

from collections.abc import Sequence
from typing import Any

from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType

from .image_processing_ctfm import CTFMBatchFeature, CTFMImageProcessor
from .volume_ctfm import Source


class CTFMProcessor(ProcessorMixin):
    """`CTFMImageProcessor` beside the text tower's tokenizer."""

    valid_processor_kwargs = None

    def __init__(self, image_processor: CTFMImageProcessor | None = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Source | list[Source] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | TensorType | None = "pt",
        max_length: int | None = None,
        **image_kwargs: Any,
    ) -> CTFMBatchFeature:
        """Prepares scans, texts or both.

        Args:
            images: see `CTFMImageProcessor.preprocess`, which also takes the remaining keywords.
            text: one text or a list. Longer ones are cut to `max_length` tokens, the tokenizer's own limit by default.

        Returns:
            `pixel_values`, `crop_grid`, `crop_mask`, `input_ids`, `attention_mask`, as far as they were asked for.
        """
        if images is None and text is None:
            raise ValueError("Neither images nor text was given.")
        batch = CTFMBatchFeature()
        if images is not None:
            batch = self.image_processor(images, return_tensors=return_tensors, **image_kwargs)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            encoded = self.tokenizer(
                texts, padding=True, truncation=True, max_length=max_length, return_tensors=return_tensors
            )
            batch.update({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
        return batch

    def to_patient_space(self, maps: Any, inputs: CTFMBatchFeature) -> list:
        """See `CTFMImageProcessor.to_patient_space`."""
        return self.image_processor.to_patient_space(maps, inputs)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask"]


__all__ = ["CTFMProcessor"]
