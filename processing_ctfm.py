"""Scans and texts -> everything `CTFMModel` takes."""

import os
from collections.abc import Sequence
from typing import Any

from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType, cached_file

from .image_processing_ctfm import CTFMBatchFeature, CTFMImageProcessor, Segmentation
from .volume_ctfm import Source

HUB_SETTINGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CTFMProcessor(ProcessorMixin):
    """`CTFMImageProcessor` beside the text tower's tokenizer."""

    _auto_class = "AutoProcessor"  # save_pretrained writes the code beside what it saves
    valid_processor_kwargs = None

    def __init__(self, image_processor: CTFMImageProcessor | None = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **loading: Any) -> Any:
        """The processor of a folder or Hub id; of a scan encoder, which has no tokenizer, its image processor."""
        place = {name: loading[name] for name in HUB_SETTINGS if name in loading}
        tokenizer = cached_file(source, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **place)
        return (CTFMImageProcessor if tokenizer is None else super()).from_pretrained(source, **loading)

    def __call__(
        self,
        images: Source | list[Source] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | TensorType | None = "pt",
        *,
        padding: bool | str = True,
        truncation: bool | str = True,
        max_length: int | None = None,
        spacing: Sequence[float] | str | None = None,
        series_uid: str | None = None,
        segmentations: Segmentation | list[Segmentation] | None = None,
    ) -> CTFMBatchFeature:
        """Prepares scans, texts or both.

        Args:
            images, spacing, series_uid, segmentations: see `CTFMImageProcessor.preprocess`.
            text: one text or a list.
            return_tensors: `"pt"` or `"np"`.
            padding, truncation, max_length: of the tokenizer. Without them, texts are as long as the longest, and cut to the
                tokenizer's own limit.

        Returns:
            `pixel_values`, `crop_grid`, `crop_mask`, `input_ids`, `attention_mask`, as far as they were asked for.
        """
        if images is None and text is None:
            raise ValueError("Neither images nor text was given.")
        batch = CTFMBatchFeature()
        if images is not None:
            batch = self.image_processor(
                images,
                return_tensors=return_tensors,
                spacing=spacing,
                series_uid=series_uid,
                segmentations=segmentations,
            )
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            if not isinstance(texts, Sequence) or not texts or not all(isinstance(one, str) for one in texts):
                raise ValueError(f'text {text!r} must be a text or a list of texts, such as ["Pleural effusion."].')
            encoded = self.tokenizer(
                list(texts),
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_tensors=return_tensors,
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
