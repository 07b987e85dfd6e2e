"""CTFM: an open foundation model for CT scans, as a Hugging Face Hub model package.

Names are loaded when they are touched (PEP 562), so that reading a scan waits for neither torch nor transformers. The first
class of a model or processor that is touched registers all of them with the Auto classes.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_ctfm import CTFMConfig, CTFMGlobalConfig, CTFMVisionConfig
    from .image_processing_ctfm import CTFMImageProcessor, collate_scans
    from .modeling_ctfm import (
        CTFMBackbone,
        CTFMForImageClassification,
        CTFMForSemanticSegmentation,
        CTFMModel,
        CTFMVisionModel,
    )
    from .processing_ctfm import CTFMProcessor
    from .volume_ctfm import Volume, VolumeError, read_segmentation, read_volume

_HOMES = {
    "modeling_ctfm": (
        "CTFMBackbone",
        "CTFMForImageClassification",
        "CTFMForSemanticSegmentation",
        "CTFMModel",
        "CTFMVisionModel",
    ),
    "configuration_ctfm": (
        "CTFMConfig",
        "CTFMGlobalConfig",
        "CTFMVisionConfig",
    ),
    "image_processing_ctfm": (
        "CTFMImageProcessor",
        "collate_scans",
    ),
    "processing_ctfm": ("CTFMProcessor",),
    "volume_ctfm": (
        "Volume",
        "VolumeError",
        "read_segmentation",
        "read_volume",
    ),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home != "volume_ctfm":
        _register()
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@cache
def _register() -> None:
    """Makes the Auto classes know the classes of this package."""
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForSemanticSegmentation,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
    )

    from .configuration_ctfm import CTFMConfig, CTFMGlobalConfig, CTFMVisionConfig
    from .image_processing_ctfm import CTFMImageProcessor
    from .modeling_ctfm import (
        CTFMBackbone,
        CTFMForImageClassification,
        CTFMForSemanticSegmentation,
        CTFMModel,
        CTFMModelBackbone,
        CTFMVisionModel,
    )
    from .processing_ctfm import CTFMProcessor

    AutoConfig.register("ctfm", CTFMConfig)
    AutoConfig.register("ctfm_vision", CTFMVisionConfig)
    AutoConfig.register("ctfm_global", CTFMGlobalConfig)
    AutoModel.register(CTFMConfig, CTFMModel)
    AutoModel.register(CTFMVisionConfig, CTFMVisionModel)
    AutoBackbone.register(CTFMVisionConfig, CTFMBackbone)
    AutoBackbone.register(CTFMConfig, CTFMModelBackbone)
    AutoModelForZeroShotImageClassification.register(CTFMConfig, CTFMModel)
    AutoModelForImageClassification.register(CTFMConfig, CTFMForImageClassification)
    AutoModelForSemanticSegmentation.register(CTFMConfig, CTFMForSemanticSegmentation)
    AutoImageProcessor.register(CTFMConfig, image_processor_classes={"pil": CTFMImageProcessor})
    AutoImageProcessor.register(CTFMVisionConfig, image_processor_classes={"pil": CTFMImageProcessor})
    AutoProcessor.register(CTFMConfig, CTFMProcessor)
    AutoProcessor.register(CTFMVisionConfig, CTFMProcessor)


__all__ = [
    "CTFMBackbone",
    "CTFMConfig",
    "CTFMForImageClassification",
    "CTFMForSemanticSegmentation",
    "CTFMGlobalConfig",
    "CTFMImageProcessor",
    "CTFMModel",
    "CTFMProcessor",
    "CTFMVisionConfig",
    "CTFMVisionModel",
    "Volume",
    "VolumeError",
    "collate_scans",
    "read_segmentation",
    "read_volume",
]
