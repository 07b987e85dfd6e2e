"""CTFM: an open foundation model for CT scans, as a Hugging Face Hub model package."""

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
from .image_processing_ctfm import CTFMImageProcessor, collate_scans
from .modeling_ctfm import (
    CTFMBackbone,
    CTFMForImageClassification,
    CTFMForSemanticSegmentation,
    CTFMModel,
    CTFMModelBackbone,
    CTFMVisionModel,
)
from .processing_ctfm import CTFMProcessor
from .volume_ctfm import Volume, VolumeError, read_segmentation, read_volume

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
