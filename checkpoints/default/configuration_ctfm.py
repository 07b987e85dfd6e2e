"""JSON -> every number of the CTFM architecture, with its meaning. Lengths are in voxels and tokens; millimetres and
Hounsfield units belong to the image processor."""

from .requirements_ctfm import TRANSFORMERS  # noqa: F401 - first, see there

# isort: split
import math
from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec


def _check_head_size(config: "CTFMVisionConfig | CTFMGlobalConfig") -> None:
    head_size, rest = divmod(config.hidden_size, config.num_attention_heads)
    if rest or head_size % 6:
        raise ValueError(
            f"hidden_size {config.hidden_size} over num_attention_heads {config.num_attention_heads} must give a head "
            "size that divides by 6: 3D RoPE turns pairs of channels on three axes. 384 over 4 does (96)."
        )


@strict
class CTFMGlobalConfig(PreTrainedConfig):
    """The global transformer, over the crop descriptors of a whole scan.

    Args:
        input_size: channels of a crop descriptor; set by `CTFMVisionConfig` to twice its hidden size.
        rope_theta: longest period of the rotary embedding over the crop grid, in half grid extents.
        layerscale_value: initial value of the residual scales (Touvron et al. 2021, arXiv:2103.17239).
    """

    model_type = "ctfm_global"
    base_config_key = "global_config"

    input_size: int | None = None
    hidden_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    rope_theta: float | int = 100.0
    layerscale_value: float | int = 1e-3
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        _check_head_size(self)


@strict
class CTFMVisionConfig(BackboneConfigMixin, PreTrainedConfig):
    """The local transformer over crops, and in `global_config` the transformer over their descriptors.

    Args:
        patch_size: voxels under one token, `(depth, height, width)`.
        rope_theta: longest period of the rotary embedding over a crop's tokens, in half crop extents.
        layerscale_value: initial value of the residual scales.
        num_register_tokens: extra tokens without a place, after the class token (Darcet et al. 2024, arXiv:2309.16588).
        drop_path_rate: share of residual branches left out in the last layer while training, growing linearly from 0.
        pooled_grid: descriptors that the global transformer sees of one crop, `(depth, height, width)`. `(1, 1, 1)` is
            one: the class token beside the mean of the patch tokens.
        windows: parts `(low, high)` of the range of `pixel_values` that the patch embedding sees, each stretched to 0 to 1 and
            clipped, as channels of their own: a lung window, a soft tissue window. `None` shows voxels as they are. With an
            image processor's window of -1000 to 1000 HU, `(0.42, 0.62)` is -160 to 240 HU.
        stem_channels: channels of a convolutional stem in front of the patch embedding, one entry a stage; every stage halves
            the resolution (Xiao et al. 2021, arXiv:2106.14881). A convolution learns a small structure once, a linear patch
            embedding at every place inside the patch. `None` embeds the voxels themselves, as SPECTRE does.
        air_patch_level: `None` encodes every patch. A number leaves out the patches whose brightest voxel is at most
            that, in units of `pixel_values` (0 to 1): less work and other outputs, so use it with weights that were
            trained with it. With a window of -1000 to 1000 HU, 0.05 is -900 HU.
        crops_per_chunk: crops encoded at once while no gradient is kept; bounds memory, changes nothing else.
        global_config: `None` leaves the global transformer out; the scan's feature is then the largest value of every
            descriptor channel over its crops.
        auto_map: see `CTFMConfig`.
    """

    model_type = "ctfm_vision"
    _auto_class = "AutoConfig"
    base_config_key = "vision_config"
    sub_configs_defaults = {"global_config": SubConfigSpec(CTFMGlobalConfig, optional=True)}

    num_channels: int = 1
    patch_size: list[int] | tuple[int, ...] = (8, 16, 16)
    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    rope_theta: float | int = 1000.0
    layerscale_value: float | int = 1e-3
    num_register_tokens: int = 0
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    pooled_grid: list[int] | tuple[int, ...] = (1, 1, 1)
    windows: list[list[float | int] | tuple[float | int, ...]] | None = None
    stem_channels: list[int] | tuple[int, ...] | None = None
    air_patch_level: float | int | None = None
    crops_per_chunk: int = 8
    global_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    auto_map: dict[str, str] = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_ctfm.CTFMVisionConfig",
            "AutoModel": "modeling_ctfm.CTFMVisionModel",
            "AutoBackbone": "modeling_ctfm.CTFMBackbone",
        }
    )
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.patch_size = list(self.patch_size)
        self.pooled_grid = list(self.pooled_grid)
        self.windows = None if self.windows is None else [list(window) for window in self.windows]
        self.stem_channels = None if self.stem_channels is None else list(self.stem_channels)
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
        if isinstance(self.global_config, CTFMGlobalConfig) and self.global_config.input_size is None:
            self.global_config.input_size = 2 * self.hidden_size

    def validate_architecture(self) -> None:
        _check_head_size(self)
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size {self.patch_size} must be three positive numbers (depth, height, width).")
        if len(self.pooled_grid) != 3 or min(self.pooled_grid) < 1:
            raise ValueError(f"pooled_grid {self.pooled_grid} must be three positive numbers (depth, height, width).")
        if self.windows is not None and not (
            self.windows and all(len(window) == 2 and window[0] < window[1] for window in self.windows)
        ):
            raise ValueError(f"windows {self.windows} must be pairs (low, high) with low < high, or None.")
        if self.stem_channels is None:
            return
        if not self.stem_channels or any(size % self.stem_stride for size in self.patch_size):
            raise ValueError(
                f"stem_channels {self.stem_channels} must name at least one stage, and patch_size {self.patch_size} must "
                f"be a multiple of the stem's stride, {self.stem_stride} (2 a stage)."
            )
        if self.air_patch_level is not None:
            raise ValueError(
                f"air_patch_level {self.air_patch_level} leaves patches of air out before the patch embedding, and a stem "
                "sees whole crops. Set one of air_patch_level and stem_channels to None."
            )

    @property
    def windowed_channels(self) -> int:
        """Channels of the voxels as the model sees them: each of `num_channels` through each of the windows."""
        return self.num_channels * len(self.windows or [None])

    @property
    def stem_stride(self) -> int:
        """Voxels along one axis under one place of the stem's features; 1 without a stem."""
        return 2 ** len(self.stem_channels or ())

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patch tokens: the class token and the registers."""
        return 1 + self.num_register_tokens

    @property
    def feature_size(self) -> int:
        """Channels of a scan's feature."""
        return 2 * getattr(self.global_config, "hidden_size", self.hidden_size)


@strict
class CTFMConfig(PreTrainedConfig):
    """A scan encoder and a text encoder that meet in one space.

    Args:
        text_config: any text encoder that transformers knows (`BertConfig`, `Qwen3Config`, ...).
        text_pooling: `"mean"` over the tokens, or `"last"` token, as decoder-only encoders are trained.
        projection_hidden_size, projection_bottleneck_size, projection_dim: widths of both projection heads.
        token_scores: patch tokens are projected into the joint space, too. A text's score for a scan is then a soft maximum
            over its tokens beside the similarity of the whole scan, its map is the tokens' own scores, and the classifier
            reads tokens beside the scan's feature. False compares whole scans alone, as SPECTRE does.
        structures: number -> name of what `CTFMForSemanticSegmentation` segments, where these are other than `id2label`: one
            checkpoint then holds trained weights for findings of scans and for structures of voxels.
        decoder_stride: 1 segments at the crop's resolution, 2 at half of it, for an eighth of the work.
        logit_scale_init_value, logit_bias_init_value: of the sigmoid loss (Zhai et al. 2023, arXiv:2303.15343).
        calibration: what turns similarity into probability, for every finding that was calibrated; `evaluate/evaluate.py`
            fits it to scans of a split of their own. With x the logit of the present prompt minus that of the absent one,
            the probability is sigmoid(`slope` * x + `intercept`); `slope_variance`, `intercept_variance` and `covariance`
            give its interval; between `unsure_low` and `unsure_high` the answer is "not sure".
        auto_map: which class each Auto class loads, so that any checkpoint serves all of them with `trust_remote_code`.
            `save_pretrained` alone would name only the class that was saved.
        custom_pipelines: which class serves a pipeline task; the library's own cannot take scans.
    """

    model_type = "ctfm"
    _auto_class = "AutoConfig"  # save_pretrained writes the code beside what it saves
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(CTFMVisionConfig),
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    text_pooling: str = "mean"
    projection_hidden_size: int = 2048
    projection_bottleneck_size: int = 256
    projection_dim: int = 512
    token_scores: bool = False
    structures: dict[int, str] | dict[str, str] | None = None
    decoder_stride: int = 1
    logit_scale_init_value: float | int = math.log(10)
    logit_bias_init_value: float | int = -10.0
    initializer_range: float = 0.02
    calibration: dict[str, dict[str, float | int]] | None = None
    problem_type: str | None = "multi_label_classification"
    auto_map: dict[str, str] = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_ctfm.CTFMConfig",
            "AutoModel": "modeling_ctfm.CTFMModel",
            "AutoModelForZeroShotImageClassification": "modeling_ctfm.CTFMModel",
            "AutoModelForImageClassification": "modeling_ctfm.CTFMForImageClassification",
            "AutoModelForSemanticSegmentation": "modeling_ctfm.CTFMForSemanticSegmentation",
            "AutoBackbone": "modeling_ctfm.CTFMModelBackbone",
        }
    )
    custom_pipelines: dict[str, dict] = field(
        default_factory=lambda: {
            "zero-shot-image-classification": {"impl": "pipeline_ctfm.CTFMZeroShotPipeline", "pt": ["AutoModel"]},
            "image-classification": {
                "impl": "pipeline_ctfm.CTFMImageClassificationPipeline",
                "pt": ["AutoModelForImageClassification"],
            },
        }
    )

    def __post_init__(self, **kwargs):
        if self.structures is not None:  # JSON has no whole numbers as keys
            self.structures = {int(number): name for number, name in self.structures.items()}
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> "CTFMConfig":
        """Also takes the config of a `CTFMVisionModel`, so that heads grow on a scan encoder without a text tower."""
        if config_dict.get("model_type") == CTFMVisionConfig.model_type:
            config_dict = {"vision_config": config_dict, "dtype": config_dict.get("dtype")}
        elif config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(f'This is the config of a "{config_dict["model_type"]}" model, and none of CTFM.')
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        if self.text_pooling not in ("mean", "last"):
            raise ValueError(f'text_pooling "{self.text_pooling}" must be "mean" or "last".')
        if self.decoder_stride not in (1, 2):
            raise ValueError(f"decoder_stride {self.decoder_stride} must be 1 or 2.")
        if self.token_scores and getattr(self.vision_config, "global_config", None) is None:
            raise ValueError(
                "token_scores needs the global transformer, which tells a token where in the patient it lies, and "
                "vision_config.global_config is None."
            )


__all__ = ["CTFMConfig", "CTFMGlobalConfig", "CTFMVisionConfig"]
