"""pixel_values -> tokens -> scan features -> logits.

A scan arrives as a grid of crops. The local transformer turns every crop into patch tokens; the class token beside the
mean of the patch tokens is the crop's descriptor; the global transformer mixes the descriptors of a whole scan. The design
is that of SPECTRE (Claessens et al. 2025, arXiv:2511.17209); `release/convert_spectre.py` brings its weights here.

Shapes: `b` batch, `g` crops in a scan, `c` channels, `D H W` voxels of a crop, `d h w` its token grid, `n = d*h*w`,
`p` prefix tokens (class, registers), `t` descriptors of a crop, `k` heads, `e` hidden size. Three axes are always ordered
(depth to the head, height to the back, width to the patient's left); crops, patches and voxels run width fastest.
"""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# transformers declares sub-configs and outputs as optional or as plain dictionaries; here they are what they were built as.

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ctfm import CTFMConfig, CTFMGlobalConfig, CTFMVisionConfig
from .precision_ctfm import set_precision

if TYPE_CHECKING:  # never runs: the Hub loader and save_pretrained copy what a file imports, so all files go together
    from .drawing_ctfm import draw_planes  # noqa: F401
    from .pipeline_ctfm import CTFMZeroShotPipeline  # noqa: F401
    from .processing_ctfm import CTFMProcessor  # noqa: F401


@dataclass
class CTFMVisionOutput(ModelOutput):
    """What a scan becomes.

    last_hidden_state `(b, 1 + g*t, e)`: global class token and one token a descriptor, or None without global stage.
    pooler_output `(b, 2e)`: global class token beside the mean of the real crops' tokens. Without a global transformer
        (`config.global_config` is None), the largest value of every descriptor channel over the real crops.
    crop_embeds `(b, g, t, 2e)`: crop descriptors, as the local transformer left them.
    dense_features `(b, g, d, h, w, e)`: patch tokens in place, when `output_dense_features=True`.
    occupied `(b, g)`: 1 where a crop holds more than air and padding, 0 elsewhere.
    hidden_states, attentions: of the local transformer, `(b, g, p + n, e)` and `(b, g, k, p + n, p + n)`.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    crop_embeds: Tensor | None = None
    dense_features: Tensor | None = None
    occupied: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CTFMOutput(ModelOutput):
    """Scans against texts: `logits_per_image` `(b, texts)`, `image_embeds` and `text_embeds` of length 1, both towers."""

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    vision_model_output: CTFMVisionOutput | None = None
    text_model_output: BaseModelOutput | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


# ---- position ----


def grid_coordinates(grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Centres of a token grid, each axis spanning -1 to 1 whatever its length: `(d*h*w, 3)`."""
    axes = [(2 * torch.arange(size, device=device) + 1) / size - 1 for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def rotary_tables(coordinates: Tensor, head_size: int, theta: float, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 3D RoPE, `(..., p + n, head_size)` in float32, from coordinates `(..., n, 3)`.

    A sixth of the channels is spent on every axis, at periods from 1 to `theta`, in pairs half a head apart. The prefix
    tokens have no place and are not turned.
    """
    frequencies = theta ** (-torch.arange(head_size // 6, device=coordinates.device) / (head_size // 6))
    angles = 2 * math.pi * coordinates.float()[..., None] * frequencies  # (..., n, 3) -> (..., n, 3, head/6)
    angles = angles.flatten(-2)  # -> (..., n, head/2)
    angles = torch.cat((angles, angles), -1)  # -> (..., n, head)
    angles = nn.functional.pad(angles, (0, 0, num_prefix_tokens, 0))  # -> (..., p + n, head), angle 0 turns nothing
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns queries or keys `(b, k, n, head)`, in float32 whatever their type."""
    first, second = states.chunk(2, -1)
    return (states * cos + torch.cat((-second, first), -1) * sin).to(states.dtype)


# ---- the layer, shared by both transformers ----


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
        weights = weights + attention_mask
    # In float32, turned into it before: on a CPU softmax(dtype=...) takes five times as long for the same numbers.
    weights = nn.functional.softmax(weights.float(), dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CTFMAttention(nn.Module):
    def __init__(self, config: CTFMVisionConfig | CTFMGlobalConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        self.product_dtype: torch.dtype | None = None  # of attention on a CPU, where it is not that of the states
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_size))  # (b, n, e) -> (b, n, 3, k, head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # -> 3 x (b, k, n, head)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if self.product_dtype is not None:
            # torch's fused attention is no faster in bfloat16 than in float32 on a CPU, and plain products are.
            query, key, value = (states.to(self.product_dtype) for states in (query, key, value))
            attention = eager_attention_forward
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out(output.flatten(2).to(hidden_states.dtype)), weights  # (b, n, k, head) -> (b, n, e)


class CTFMMLP(nn.Module):
    def __init__(self, config: CTFMVisionConfig | CTFMGlobalConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class CTFMLayerScale(nn.Module):
    def __init__(self, config: CTFMVisionConfig | CTFMGlobalConfig):
        super().__init__()
        self.initial_value = float(config.layerscale_value)
        self.scale = nn.Parameter(torch.full((config.hidden_size,), self.initial_value))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.scale


class CTFMDropPath(nn.Module):
    """Leaves a residual branch out for some samples while training (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1 - self.rate)


class CTFMLayer(GradientCheckpointingLayer):
    def __init__(self, config: CTFMVisionConfig | CTFMGlobalConfig, index: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CTFMAttention(config)
        self.layer_scale1 = CTFMLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CTFMMLP(config)
        self.layer_scale2 = CTFMLayerScale(config)
        self.drop_path = CTFMDropPath(config.drop_path_rate * index / max(config.num_hidden_layers - 1, 1))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        branch, _ = self.attention(self.norm1(hidden_states), attention_mask, position_embeddings, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(branch))
        branch = self.mlp(self.norm2(hidden_states))
        return hidden_states + self.drop_path(self.layer_scale2(branch))


# One checkpoint holds weights for several classes, and each of them leaves what belongs to the others.
JOINT_SPACE = [r"^text_", r"^visual_projection", r"^logit_", r"^token_(projection|scale|bias)", r"^score_"]
CLASSIFIER = [r"^classifier", r"^token_(head|weights)"]
DECODER = [r"^decoder"]


class CTFMPreTrainedModel(PreTrainedModel):
    """What the models share: how weights are drawn, and which kernels of attention they take."""

    config: CTFMConfig
    config_class = CTFMConfig
    base_model_prefix = "ctfm"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CTFMPatchEmbeddings", "CTFMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CTFMStemStage):
            for convolution in (module.down, module.refine):  # no norm follows: keep the variance (He et al. 2015)
                init.normal_(convolution.weight, std=math.sqrt(2 / convolution.weight[0].numel()))
        elif isinstance(module, CTFMLayerScale):
            init.constant_(module.scale, module.initial_value)
        elif isinstance(module, CTFMPatchEmbeddings):
            init.trunc_normal_(module.prefix_tokens, std=std)
            init.zeros_(module.mask_token)
        elif isinstance(module, CTFMGlobalModel):
            init.trunc_normal_(module.class_token, std=std)
        elif isinstance(module, CTFMModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            init.constant_(module.logit_bias, self.config.logit_bias_init_value)
            if self.config.token_scores:
                init.constant_(module.token_scale, self.config.logit_scale_init_value)
                init.constant_(module.token_bias, TOKEN_BIAS)
                init.ones_(module.score_weights)
                init.zeros_(module.score_bias)
        elif isinstance(module, CTFMForImageClassification) and self.config.token_scores:
            init.constant_(module.token_head.out.bias, TOKEN_BIAS)

    @torch.no_grad()
    def set_precision(self, precision: str = "auto") -> str:
        """Changes the arithmetic of the local transformer's layers, for inference; all else becomes float32.

        In place: a model in "bfloat16" or "int8" cannot be trained or saved, and in "int8" it stays on the CPU.

        Args:
            precision: "float32"; "bfloat16"; "int8", 8-bit integer products of weights rounded once and activations rounded
                anew in every call (torch's dynamic quantisation), with attention in bfloat16 where the processor has
                it; or "auto", the fastest that this device has instructions for and that moves this model's features of
                made-up crops by a cosine of at least 0.999, "float32" where there is none.

        Returns:
            The precision that the model now has.

        Raises:
            ValueError: no such precision, none such on this device, or the model was changed before.
        """
        local_model = next((m for m in self.modules() if isinstance(m, CTFMLocalModel)), None)
        if local_model is None:
            raise ValueError(f"A {type(self).__name__} has no local transformer, whose precision could be set.")
        if local_model.precision != "float32":
            raise ValueError(f"This model has precision {local_model.precision!r} already; load it again for another.")
        self.float()  # weights load as they were saved, in bfloat16
        return set_precision(local_model, precision)


# ---- local: crops -> tokens ----


def apply_windows(voxels: Tensor, windows: Sequence[Sequence[float]] | None, dim: int) -> Tensor:
    """Voxels through each window, stretched to 0 to 1 and clipped, one after the other along `dim`."""
    if not windows:
        return voxels
    return torch.cat([((voxels - low) / (high - low)).clamp(0, 1) for low, high in windows], dim)


class CTFMStemStage(nn.Module):
    """A convolution that halves the resolution, and a residual one at that resolution."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.down = nn.Conv3d(num_inputs, num_outputs, 3, stride=2, padding=1)
        self.refine = nn.Conv3d(num_outputs, num_outputs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        features = nn.functional.gelu(self.down(features))
        return features + nn.functional.gelu(self.refine(features))


class CTFMStem(nn.Module):
    """Crops through their windows -> features at a fraction of the resolution: `(b, c, D, H, W) -> (b, f, D/s, H/s, W/s)`."""

    def __init__(self, config: CTFMVisionConfig):
        super().__init__()
        self.windows = config.windows
        channels = [config.windowed_channels, *(config.stem_channels or ())]
        self.stages = nn.ModuleList([CTFMStemStage(before, after) for before, after in pairwise(channels)])

    def forward(self, pixel_values: Tensor) -> Tensor:
        # Windows before the cast: in bfloat16 a voxel of a wide window is known to some 10 HU alone.
        features = apply_windows(pixel_values, self.windows, 1)
        features = features.to(self.stages[0].down.weight.dtype)
        for stage in self.stages:
            features = stage(features)
        return features


class CTFMPatchEmbeddings(nn.Module):
    def __init__(self, config: CTFMVisionConfig):
        super().__init__()
        self.patch_size, self.windows, self.num_channels = tuple(config.patch_size), config.windows, config.num_channels
        self.stem = CTFMStem(config) if config.stem_channels else None
        embedded_channels = config.stem_channels[-1] if config.stem_channels else config.windowed_channels
        embedded_size = math.prod(size // config.stem_stride for size in self.patch_size)
        self.projection = nn.Linear(embedded_channels * embedded_size, config.hidden_size)
        self.prefix_tokens = nn.Parameter(torch.zeros(1, config.num_prefix_tokens, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def cut(self, pixel_values: Tensor) -> Tensor:
        """Voxels, or the stem's features, of every patch: `(b, c, D, H, W) -> (b, d, h, w, c * places in a patch)`."""
        if pixel_values.ndim != 5 or any(s % p for s, p in zip(pixel_values.shape[2:], self.patch_size, strict=True)):
            raise ValueError(
                f"A batch of crops must have shape (b, c, D, H, W) with D, H, W multiples of the patch size "
                f"{self.patch_size}, not {tuple(pixel_values.shape)}. CTFMImageProcessor cuts a scan into such crops."
            )
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"Crops of {pixel_values.shape[1]} channels, {tuple(pixel_values.shape)}, do not fit a model with num_channels "
                f"{self.num_channels}. CTFMImageProcessor makes one channel of HU; a CT scan has no colours."
            )
        d, h, w = (s // p for s, p in zip(pixel_values.shape[2:], self.patch_size, strict=True))
        if self.stem is not None:
            pixel_values = self.stem(pixel_values)
        b, c = pixel_values.shape[:2]
        pd, ph, pw = (s // n for s, n in zip(pixel_values.shape[2:], (d, h, w), strict=True))
        patches = pixel_values.reshape(b, c, d, pd, h, ph, w, pw)
        return patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, d, h, w, c * pd * ph * pw)

    def forward(self, patches: Tensor, bool_masked_pos: Tensor | None = None) -> Tensor:
        patches = patches.flatten(1, 3)  # (b, d, h, w, voxels) -> (b, n, voxels)
        if self.stem is None:
            patches = apply_windows(patches, self.windows, -1)
        # the tokens' type and not the projection's weight's, which is an integer one where a library has quantised it
        tokens = self.projection(patches.to(self.prefix_tokens.dtype))  # -> (b, n, e)
        if bool_masked_pos is not None:
            tokens = torch.where(bool_masked_pos[..., None], self.mask_token.to(tokens.dtype), tokens)
        # `len(tokens)` would freeze the number of crops when the model is exported
        return torch.cat((self.prefix_tokens.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens), 1)


class CTFMLocalModel(CTFMPreTrainedModel):
    """Crops -> patch tokens and descriptors. Knows voxels; knows neither millimetres nor the other crops."""

    config: CTFMVisionConfig
    config_class = CTFMVisionConfig
    base_model_prefix = "local_model"
    input_modalities = ["image"]
    _can_record_outputs = {"hidden_states": CTFMLayer, "attentions": CTFMAttention}

    def __init__(self, config: CTFMVisionConfig):
        super().__init__(config)
        self.embeddings = CTFMPatchEmbeddings(config)
        self.layers = nn.ModuleList([CTFMLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.precision = (
            "float32"  # of the layers, where the model is in float32; see CTFMPreTrainedModel.set_precision
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encodes crops.

        Args:
            pixel_values: `(b, c, D, H, W)`, any multiple of the patch size.
            bool_masked_pos: `(b, n)`, True where a patch is hidden behind the mask token.

        Returns:
            `last_hidden_state` `(b, p + n, e)` after the final norm and `pooler_output` `(b, t, 2e)`, the descriptors.
        """
        prefix = self.config.num_prefix_tokens
        patches = self.embeddings.cut(pixel_values)
        grid = patches.shape[1:4]
        hidden_states = self.embeddings(patches, bool_masked_pos)
        if self.precision == "bfloat16":
            hidden_states = hidden_states.bfloat16()
        head_size = self.config.hidden_size // self.config.num_attention_heads
        position_embeddings = rotary_tables(
            grid_coordinates(grid, pixel_values.device), head_size, self.config.rope_theta, prefix
        )
        if self.config.air_patch_level is None:
            for layer in self.layers:
                hidden_states = layer(hidden_states, None, position_embeddings=position_embeddings, **kwargs)
            hidden_states = self.norm(hidden_states.to(self.norm.weight.dtype))
            pooler_output = self.pool(hidden_states, grid)
            return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooler_output)

        # Keep the tokens that hold body, in front; the rest of a crop's row is padding that nobody attends to.
        body = patches.amax(-1).flatten(1) > self.config.air_patch_level  # (b, d, h, w, voxels) -> (b, n)
        kept = nn.functional.pad(body, (prefix, 0), value=True)  # -> (b, p + n)
        length = int(kept.sum(1).max())
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, :length]  # -> (b, length)
        packed = hidden_states.take_along_dim(order[..., None], 1)  # (b, p + n, e) -> (b, length, e)
        cos, sin = (table[order][:, None] for table in position_embeddings)  # (p + n, head) -> (b, 1, length, head)
        mask = create_bidirectional_mask(self.config, packed, kept.take_along_dim(order, 1))
        for layer in self.layers:
            packed = layer(packed, mask, position_embeddings=(cos, sin), **kwargs)
        packed = self.norm(packed.to(self.norm.weight.dtype))
        hidden_states = torch.zeros_like(hidden_states, dtype=packed.dtype).scatter(
            1, order[..., None].expand_as(packed), packed
        )
        hidden_states = hidden_states * kept[..., None].to(hidden_states.dtype)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.pool(hidden_states, grid, body)
        )

    def pool(self, hidden_states: Tensor, grid: tuple[int, int, int], body: Tensor | None = None) -> Tensor:
        """Descriptors: the class token beside the mean patch token of every cell of `pooled_grid`, `(b, t, 2e)`."""
        cells = tuple(self.config.pooled_grid)
        if any(size % count for size, count in zip(grid, cells, strict=True)):
            raise ValueError(f"The token grid {tuple(grid)} of a crop does not divide into pooled_grid {cells}.")
        sizes = [n for size, count in zip(grid, cells, strict=True) for n in (count, size // count)]
        tokens = hidden_states[:, self.config.num_prefix_tokens :].unflatten(1, sizes)  # (b, n, e) -> (b, 2x3 axes, e)
        if body is None:
            means = tokens.mean((2, 4, 6))
        else:
            counts = body.unflatten(1, sizes).sum((2, 4, 6)).clamp(min=1)
            means = tokens.sum((2, 4, 6)) / counts[..., None].to(tokens.dtype)
        means = means.flatten(1, 3)  # -> (b, t, e)
        return torch.cat((hidden_states[:, :1].expand_as(means), means), -1)


class CTFMBackbone(BackboneMixin, CTFMPreTrainedModel):
    """Crops `(b, c, D, H, W)` -> feature maps `(b, e, d, h, w)` of chosen layers, for dense heads from elsewhere."""

    config: CTFMVisionConfig
    config_class = CTFMVisionConfig
    _auto_class = "AutoBackbone"
    base_model_prefix = "vision_model"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [r"^(vision_model\.)?global_model", *JOINT_SPACE, *CLASSIFIER, *DECODER]

    def __init__(self, config: CTFMVisionConfig):
        super().__init__(config)
        self.local_model = CTFMLocalModel._from_config(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.local_model.get_input_embeddings()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        kwargs["output_hidden_states"] = True
        output = self.local_model(pixel_values, return_dict=True, **kwargs)
        grid = [s // p for s, p in zip(pixel_values.shape[2:], self.config.patch_size, strict=True)]
        maps = []
        for name, states in zip(self.stage_names, output.hidden_states, strict=True):
            if name in self.out_features:
                tokens = self.local_model.norm(states.to(self.local_model.norm.weight.dtype))[
                    :, self.config.num_prefix_tokens :
                ]
                maps.append(tokens.transpose(1, 2).unflatten(2, grid).contiguous())  # (b, n, e) -> (b, e, d, h, w)
        return BackboneOutput(
            feature_maps=tuple(maps), hidden_states=output.hidden_states, attentions=output.attentions
        )


class CTFMModelBackbone(CTFMBackbone):
    """`CTFMBackbone` from the folder of a whole model. Calling it gives a `CTFMBackbone`.

    It exists because `AutoBackbone` takes only a class whose `config_class` is that of the folder.
    """

    config: CTFMConfig
    config_class = CTFMConfig

    def __new__(
        cls, config: CTFMConfig, out_features: list[str] | None = None, out_indices: list[int] | None = None
    ) -> CTFMBackbone:
        if out_features is not None or out_indices is not None:
            config.vision_config.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        return CTFMBackbone(config.vision_config)


# ---- global: descriptors of a scan -> scan features ----


class CTFMGlobalModel(CTFMPreTrainedModel):
    """Crop descriptors -> scan features. Knows the crop grid; knows no voxels."""

    config: CTFMGlobalConfig
    config_class = CTFMGlobalConfig
    base_model_prefix = "global_model"
    main_input_name = "descriptors"
    input_modalities = ["image"]
    _can_record_outputs = {"hidden_states": CTFMLayer, "attentions": CTFMAttention}

    def __init__(self, config: CTFMGlobalConfig):
        super().__init__(config)
        self.projection = nn.Linear(config.input_size, config.hidden_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.layers = nn.ModuleList([CTFMLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.projection

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        descriptors: Tensor,
        coordinates: Tensor,
        descriptor_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Mixes the descriptors of a scan.

        Args:
            descriptors: `(b, n, 2e)` from the local transformer.
            coordinates: `(b, n, 3)`, each axis of the scan's crop grid spanning -1 to 1.
            descriptor_mask: `(b, n)`, True where a descriptor is real and not padding.
        """
        hidden_states = self.projection(descriptors)
        hidden_states = torch.cat((self.class_token.expand(hidden_states.shape[0], -1, -1), hidden_states), 1)
        head_size = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary_tables(coordinates, head_size, self.config.rope_theta, 1)  # (b, 1 + n, head)
        mask = None
        if descriptor_mask is not None:
            mask = nn.functional.pad(descriptor_mask, (1, 0), value=True)  # (b, n) -> (b, 1 + n)
            mask = create_bidirectional_mask(self.config, hidden_states, mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, position_embeddings=(cos[:, None], sin[:, None]), **kwargs)
        hidden_states = self.norm(hidden_states)
        tokens = hidden_states[:, 1:]
        if descriptor_mask is None:
            mean = tokens.mean(1)
        else:
            weights = descriptor_mask[..., None].to(tokens.dtype)
            mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        pooler_output = torch.cat((hidden_states[:, 0], mean), -1)  # -> (b, 2e)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooler_output)


class CTFMVisionModel(CTFMPreTrainedModel):
    """A grid of crops -> features of the whole scan, of every crop and, on request, of every patch."""

    config: CTFMVisionConfig
    config_class = CTFMVisionConfig
    _auto_class = "AutoModel"
    base_model_prefix = "vision_model"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [*JOINT_SPACE, *CLASSIFIER, *DECODER]

    def __init__(self, config: CTFMVisionConfig):
        super().__init__(config)
        self.local_model = CTFMLocalModel._from_config(config)
        if config.global_config is not None:
            self.global_model = CTFMGlobalModel._from_config(config.global_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.local_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        crop_grid: Tensor | None = None,
        crop_mask: Tensor | None = None,
        output_dense_features: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CTFMVisionOutput:
        """Encodes scans, as `CTFMImageProcessor` prepares them.

        Args:
            pixel_values: `(b, g, c, D, H, W)`, the crops of each scan, width fastest; 0 is air.
            crop_grid: `(b, 3)`, crops along depth, height and width. Needed when `g > 1`.
            crop_mask: `(b, g)`, True where a crop belongs to the scan and is not padding of the batch.
            output_dense_features: also return the patch tokens, `(b, g, d, h, w, e)`.
        """
        if pixel_values.ndim != 6:
            raise ValueError(
                f"pixel_values must have shape (b, g, c, D, H, W), the crops of each scan, not "
                f"{tuple(pixel_values.shape)}. CTFMImageProcessor makes them."
            )
        b, g = pixel_values.shape[:2]
        if crop_grid is None:
            if g != 1:
                raise ValueError(f"A scan of {g} crops needs crop_grid, its crops along (depth, height, width).")
            crop_grid = torch.ones(b, 3, dtype=torch.long, device=pixel_values.device)
        elif not torch.compiler.is_compiling():
            check_crop_grid(crop_grid, crop_mask, (b, g))
        local = self.encode_crops(pixel_values, output_dense_features, **kwargs)
        descriptors = local.pooler_output  # (b, g, t, 2e)
        output = self.mix_descriptors(descriptors, self.descriptor_coordinates(crop_grid, g), crop_mask)
        return CTFMVisionOutput(
            last_hidden_state=output.last_hidden_state,
            pooler_output=output.pooler_output,
            crop_embeds=descriptors,
            dense_features=self.to_grid(local.last_hidden_state, pixel_values) if output_dense_features else None,
            occupied=pixel_values.flatten(2).any(2).to(descriptors.dtype),
            hidden_states=local.hidden_states,
            attentions=local.attentions,
        )

    def encode_crops(
        self, pixel_values: Tensor, output_tokens: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Local transformer over `(b, g, c, D, H, W)`; every output gets the leading axes `(b, g)`.

        Where no gradient is kept, crops go through in chunks, and the crops that hold nothing but air, padding
        included, are encoded once: the same numbers from less memory and work.
        """
        lead = pixel_values.shape[:2]
        crops = pixel_values.flatten(0, 1)  # -> (b*g, c, D, H, W)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            output = self.local_model(crops, return_dict=True, **kwargs)
            output.pooler_output = output.pooler_output.unflatten(0, lead)
            output.last_hidden_state = output.last_hidden_state.unflatten(0, lead)
            for name in ("hidden_states", "attentions"):
                if output.get(name):
                    output[name] = tuple(s if s is None else s.unflatten(0, lead) for s in output[name])
            return output

        occupied = torch.stack([crop.any() for crop in crops])
        chosen = torch.cat(
            (occupied.nonzero()[:, 0], (~occupied).nonzero()[:1, 0])
        )  # the first air crop stands for all
        slots = torch.where(occupied, occupied.cumsum(0) - 1, len(chosen) - 1)
        chunks = []
        for indices in chosen.split(self.config.crops_per_chunk):
            chunk = self.local_model(crops[indices], return_dict=True, **kwargs)
            if not output_tokens:
                chunk.last_hidden_state = None
            chunks.append(chunk)

        def gather(parts: Sequence[Tensor | None]) -> Tensor | None:
            kept = [part for part in parts if part is not None]  # none of a layer that was not asked for
            return torch.cat(kept)[slots].unflatten(0, lead) if kept else None

        output = BaseModelOutputWithPooling(pooler_output=gather([chunk.pooler_output for chunk in chunks]))
        if output_tokens:
            output.last_hidden_state = gather([chunk.last_hidden_state for chunk in chunks])
        for name in ("hidden_states", "attentions"):
            if chunks[0].get(name):
                output[name] = tuple(gather(parts) for parts in zip(*(c[name] for c in chunks), strict=True))
        return output

    def mix_descriptors(
        self, descriptors: Tensor, coordinates: Tensor, crop_mask: Tensor | None
    ) -> BaseModelOutputWithPooling:
        """Descriptors `(b, g, t, 2e)` and their places `(b, g*t, 3)` -> scan features: what follows the local transformer."""
        mask = None if crop_mask is None else crop_mask.bool().repeat_interleave(descriptors.shape[2], 1)  # (b, g*t)
        if self.config.global_config is None:
            return BaseModelOutputWithPooling(pooler_output=largest(descriptors.flatten(1, 2), mask))
        return self.global_model(descriptors.flatten(1, 2), coordinates, mask, return_dict=True)

    def descriptor_coordinates(self, crop_grid: Tensor, num_crops: int) -> Tensor:
        """Centres of the descriptors in a scan's crop grid, each axis spanning -1 to 1: `(b, g*t, 3)`."""
        crop = torch.arange(num_crops, device=crop_grid.device)
        height, width = crop_grid[:, 1:2], crop_grid[:, 2:3]  # (b, 1)
        index = torch.stack((crop // (height * width), crop // width % height, crop % width), -1)  # (b, g, 3)
        offsets = (
            grid_coordinates(tuple(self.config.pooled_grid), crop_grid.device) + 1
        ) / 2  # (t, 3), 0 to 1 in a crop
        centres = index[:, :, None] + offsets  # -> (b, g, t, 3)
        return (2 * centres / crop_grid[:, None, None] - 1).flatten(1, 2)

    def to_grid(self, hidden_states: Tensor, pixel_values: Tensor) -> Tensor:
        """Patch tokens in place: `(b, g, p + n, e) -> (b, g, d, h, w, e)`."""
        grid = [s // p for s, p in zip(pixel_values.shape[3:], self.config.patch_size, strict=True)]
        return hidden_states[:, :, self.config.num_prefix_tokens :].unflatten(2, grid)


def check_crop_grid(crop_grid: Tensor, crop_mask: Tensor | None, lead: tuple[int, int]) -> None:
    """Refuses a grid that does not hold as many crops as the scan has: every crop would be in another's place."""
    b, g = lead
    if crop_grid.shape != (b, 3):
        raise ValueError(f"crop_grid must have shape {(b, 3)}, crops along three axes, not {tuple(crop_grid.shape)}.")
    if crop_grid.device.type != "cpu" and torch.is_grad_enabled():
        return  # asking an accelerator would make every step of a training wait for it
    counts, real = crop_grid.prod(1), torch.full((b,), g, device=crop_grid.device)
    fits = counts == g
    if crop_mask is not None:  # training may leave crops of a scan out, so the last one tells
        real = (crop_mask.bool() * torch.arange(1, g + 1, device=crop_mask.device)).amax(1)
        fits = (real <= counts) & (counts <= g)
    if not fits.all():
        raise ValueError(
            f"crop_grid {crop_grid.tolist()} multiplies to {counts.tolist()} crops, and the scans have {real.tolist()} of {g}. "
            f"Pass crop_grid and crop_mask as CTFMImageProcessor gives them with pixel_values."
        )


def largest(descriptors: Tensor, mask: Tensor | None) -> Tensor:
    """The largest value of every channel over the real descriptors, `(b, n, 2e) -> (b, 2e)`."""
    if mask is not None:
        descriptors = descriptors.masked_fill(~mask[..., None], -torch.inf)
    return descriptors.amax(1)


# ---- scans against texts ----


class CTFMProjectionHead(nn.Module):
    """Features -> joint space, through a bottleneck. The bottleneck bounds the rank of the embedding."""

    def __init__(self, input_size: int, config: CTFMConfig):
        super().__init__()
        self.fc1 = nn.Linear(input_size, config.projection_hidden_size)
        self.fc2 = nn.Linear(config.projection_hidden_size, config.projection_hidden_size)
        self.fc3 = nn.Linear(config.projection_hidden_size, config.projection_bottleneck_size)
        self.out = nn.Linear(config.projection_bottleneck_size, config.projection_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        features = nn.functional.gelu(self.fc1(features))
        features = nn.functional.gelu(self.fc2(features))
        return self.out(self.fc3(features))


TOKEN_BIAS = -4.0  # most findings are in few tokens: the first answers are near that
POOLED_TOKENS = 64  # the largest scores of a scan, which speak for it


class CTFMTokenHead(nn.Module):
    """Patch tokens, each beside what the global transformer says of its crop, -> one vector a token.

    A token knows what it holds; which side of which patient it lies on, it learns from the crop's global token.
    """

    def __init__(self, config: CTFMConfig, num_outputs: int):
        super().__init__()
        vision, width = config.vision_config, config.projection_hidden_size
        self.tokens = nn.Linear(vision.hidden_size, width)
        self.context = nn.Linear(vision.global_config.hidden_size, width)
        self.out = nn.Linear(width, num_outputs)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """`(b, g, d, h, w, e)` and `(b, g, global e)` -> `(b, g, d, h, w, outputs)`."""
        context = self.context(context)[:, :, None, None, None]
        return self.out(nn.functional.gelu(self.tokens(tokens) + context))


def crop_context(last_hidden_state: Tensor, num_crops: int) -> Tensor:
    """What the global transformer says of each crop, the mean over its descriptors: `(b, 1 + g*t, e) -> (b, g, e)`."""
    return last_hidden_state[:, 1:].unflatten(1, (num_crops, -1)).mean(2)


def pool_token_scores(scores: Tensor, occupied: Tensor) -> Tensor:
    """A soft maximum over the tokens of a scan: log-sum-exp of the largest, `(b, k, g, d, h, w) -> (b, k)`.

    A mean would drown a finding of one token among thousands (arXiv:2606.11606); the largest alone would let a scan with
    more of a finding count no more than one with less.

    Args:
        occupied: `(b, g)`, 0 for crops of air and padding, which have no say.
    """
    scores = scores.float().masked_fill(occupied[:, None, :, None, None, None] == 0, -torch.inf).flatten(2)
    return scores.topk(min(POOLED_TOKENS, scores.shape[2]), 2).values.logsumexp(2)


class CTFMModel(CTFMPreTrainedModel):
    """Scans and texts in one space; `logits_per_image` says how well each text fits each scan."""

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [*CLASSIFIER, *DECODER]

    def __init__(self, config: CTFMConfig):
        super().__init__(config)
        self.vision_model = CTFMVisionModel._from_config(config.vision_config)
        self.text_model = AutoModel.from_config(config.text_config)
        if getattr(self.text_model, "pooler", None) is not None:
            self.text_model.pooler = None  # the text is pooled here, so that every encoder is pooled alike
        self.visual_projection = CTFMProjectionHead(config.vision_config.feature_size, config)
        self.text_projection = CTFMProjectionHead(config.text_config.hidden_size, config)
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.logit_bias = nn.Parameter(torch.full((1,), float(config.logit_bias_init_value)))
        if config.token_scores:
            self.token_projection = CTFMTokenHead(config, config.projection_dim)
            self.token_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
            self.token_bias = nn.Parameter(torch.full((1,), TOKEN_BIAS))
            self.score_weights = nn.Parameter(torch.ones(2))  # of the whole scan's similarity, of its tokens'
            self.score_bias = nn.Parameter(torch.zeros(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        crop_grid: Tensor | None = None,
        crop_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CTFMVisionOutput:
        """The vision tower's output with `pooler_output` `(b, projection_dim)` in the joint space, not normalised."""
        output = self.vision_model(pixel_values, crop_grid, crop_mask, return_dict=True, **kwargs)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """The text tower's output with `pooler_output` `(texts, projection_dim)` in the joint space, not normalised."""
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        pooled = pool_text(output.last_hidden_state, attention_mask, self.config.text_pooling)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self.text_projection(pooled),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def score_texts(self, image: CTFMVisionOutput, directions: Tensor) -> tuple[Tensor, Tensor | None]:
        """How well each text fits each scan, as a logit, and with token scores where.

        Args:
            image: of `get_image_features`; with `config.token_scores` it needs `output_dense_features=True`.
            directions: `(texts, e)` in the joint space: a text's embedding of length 1, or a present prompt's minus an
                absent one's, whose score is then the logit of present against absent.

        Returns:
            `(b, texts)` and, with `config.token_scores`, each token's own score `(b, texts, g, d, h, w)`: the log odds that
            this patch shows what the text says.
        """
        embeds = nn.functional.normalize(image.pooler_output, dim=-1)
        similarities = (embeds @ directions.to(embeds).t()).float() * self.logit_scale.exp()
        if not self.config.token_scores:
            return similarities, None
        if image.dense_features is None:
            raise ValueError("The vision output has no dense features; ask for output_dense_features=True.")
        context = crop_context(image.last_hidden_state, image.dense_features.shape[1])
        scores = self.score_tokens(image.dense_features, context, directions)
        pooled = pool_token_scores(scores, image.occupied)
        return similarities * self.score_weights[0] + pooled * self.score_weights[1] + self.score_bias, scores

    def score_tokens(self, tokens: Tensor, context: Tensor, directions: Tensor) -> Tensor:
        """`(b, g, d, h, w, e)` patch tokens, `(b, g, global e)` of `crop_context`, `(texts, e)` -> `(b, texts, g, d, h, w)`."""
        embeds = nn.functional.normalize(self.token_projection(tokens, context), dim=-1)
        cosines = (embeds @ directions.to(embeds).t()).movedim(-1, 1)
        return cosines.float() * self.token_scale.exp() + self.token_bias

    def get_text_maps(
        self,
        vision_output: CTFMVisionOutput,
        crop_grid: Tensor,
        crop_mask: Tensor | None,
        directions: Tensor,
    ) -> Tensor:
        """Where a scan is like a text: how much every patch adds to the similarity, `(b, texts, g, d, h, w)`.

        With `config.token_scores` these are the tokens' own scores, see `score_texts`.

        Without, the crop descriptors hold the mean of the patch tokens, so the similarity's gradient with respect to that
        mean, times what a patch departs from the scan's mean patch, is the patch's share to first order. Only the global
        transformer is differentiated, so this is quick. Positive supports the text. `to_patient_space` brings maps to the
        scan's voxels.

        Args:
            vision_output: of `get_image_features(..., output_dense_features=True)`.
            crop_grid, crop_mask: as it was called with.
            directions: `(texts, e)` in the joint space: a text's embedding, or a present minus an absent prompt's.
        """
        dense, descriptors = vision_output.dense_features, vision_output.crop_embeds
        if dense is None or descriptors is None:
            raise ValueError("The vision output has no dense features; ask for output_dense_features=True.")
        coordinates = self.vision_model.descriptor_coordinates(crop_grid, descriptors.shape[1])
        if self.config.token_scores:
            mixed = self.vision_model.mix_descriptors(descriptors, coordinates, crop_mask)
            context = crop_context(mixed.last_hidden_state, dense.shape[1])
            return self.score_tokens(dense, context, directions)
        counts = torch.ones_like(
            dense[..., :1], dtype=torch.bool
        )  # (b, g, d, h, w, 1), the patches that descriptors hold
        if crop_mask is not None:
            counts = counts & crop_mask.bool()[:, :, None, None, None, None]
        if self.config.vision_config.air_patch_level is not None:
            counts = counts & dense.any(-1, keepdim=True)  # patches of air were left out and are zero
        mean = (dense * counts).sum((1, 2, 3, 4), keepdim=True) / counts.sum((1, 2, 3, 4), keepdim=True).clamp(min=1)
        cells = tuple(self.config.vision_config.pooled_grid)
        sizes = [n for size, count in zip(dense.shape[2:5], cells, strict=True) for n in (count, size // count)]
        departures = ((dense - mean) * counts).flatten(2, 4).unflatten(2, sizes)  # -> (b, g, 3 x (cells, in a cell), e)
        counts = counts.flatten(2, 4).unflatten(2, sizes).sum((3, 5, 7), keepdim=True).clamp(min=1)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
        ):  # copies, since what inference mode made keeps no gradient
            descriptors, directions = descriptors.detach().clone().requires_grad_(), directions.detach().clone()
            mask = None if crop_mask is None else crop_mask.clone()
            features = self.vision_model.mix_descriptors(descriptors, coordinates.clone(), mask).pooler_output
            embeds = nn.functional.normalize(self.visual_projection(features), dim=-1)
            similarities = (embeds @ directions.to(embeds).t()).sum(0)  # over scans, which do not mix
            gradients = [torch.autograd.grad(one, descriptors, retain_graph=True)[0] for one in similarities]
        maps = []
        for gradient in gradients:
            gradient = gradient[..., dense.shape[-1] :].unflatten(2, cells)  # (b, g, t, 2e) -> (b, g, 3 cells, e)
            gradient = gradient[:, :, :, None, :, None, :, None] / counts
            maps.append((gradient * departures).sum(-1).flatten(6, 7).flatten(4, 5).flatten(2, 3).detach())
        return torch.stack(maps, 1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        crop_grid: Tensor | None = None,
        crop_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool = False,
        output_dense_features: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CTFMOutput:
        """Compares scans with texts.

        Args:
            pixel_values, crop_grid, crop_mask: scans, see `CTFMVisionModel.forward`.
            input_ids, attention_mask: `(texts, tokens)`, from the tokenizer.
            return_loss: add the sigmoid loss of scan i belonging to text i alone (arXiv:2303.15343, equation 1).
            output_dense_features: fill `vision_model_output.dense_features`.
        """
        image = self.get_image_features(
            pixel_values,
            crop_grid,
            crop_mask,
            output_dense_features=output_dense_features or self.config.token_scores,
            return_dict=True,
            **kwargs,
        )
        text = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        image_embeds = nn.functional.normalize(image.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text.pooler_output, dim=-1)
        logits_per_text = self.score_texts(image, text_embeds)[0].t() + self.logit_bias
        loss = None
        if return_loss:
            belongs = 2 * torch.eye(len(logits_per_text), device=logits_per_text.device) - 1
            loss = -nn.functional.logsigmoid(belongs * logits_per_text).sum(-1).mean()
        return CTFMOutput(
            loss=loss,
            logits_per_image=logits_per_text.t().contiguous(),
            logits_per_text=logits_per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            vision_model_output=image,
            text_model_output=text,
        )


def pool_text(hidden_states: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """One vector a text, `(texts, tokens, e) -> (texts, e)`: the mean of its tokens or the last of them."""
    if attention_mask is None:
        return hidden_states.mean(1) if pooling == "mean" else hidden_states[:, -1]
    if pooling == "mean":
        weights = attention_mask[..., None].to(hidden_states.dtype)
        return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * attention_mask).argmax(1)  # padding may stand on either side
    return hidden_states[torch.arange(len(hidden_states), device=last.device), last]


# ---- heads ----


class CTFMForImageClassification(CTFMPreTrainedModel):
    """Findings of a scan: one logit a finding, named in `config.id2label`."""

    _auto_class = "AutoModelForImageClassification"
    base_model_prefix = "vision_model"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [*JOINT_SPACE, *DECODER]

    def __init__(self, config: CTFMConfig):
        super().__init__(config)
        self.vision_model = CTFMVisionModel._from_config(config.vision_config)
        self.classifier = nn.Linear(config.vision_config.feature_size, config.num_labels)
        if config.token_scores:
            self.token_head = CTFMTokenHead(config, config.num_labels)
            self.token_weights = nn.Parameter(torch.ones(config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    def score(self, output: CTFMVisionOutput) -> tuple[Tensor, Tensor | None]:
        """Logits `(b, findings)` of the scan, and with `config.token_scores` `(b, findings, g, d, h, w)` of its tokens."""
        logits = self.classifier(output.pooler_output).float()
        if not self.config.token_scores:
            return logits, None
        context = crop_context(output.last_hidden_state, output.dense_features.shape[1])
        scores = self.token_head(output.dense_features, context).movedim(-1, 1)
        return logits + pool_token_scores(scores, output.occupied) * self.token_weights, scores

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        crop_grid: Tensor | None = None,
        crop_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Grades findings.

        Args:
            pixel_values, crop_grid, crop_mask: scans, see `CTFMVisionModel.forward`.
            labels: `(b, findings)`, 1 present, 0 absent, NaN not stated; the loss is the mean binary cross entropy over
                what is stated. With another `config.problem_type`, what `transformers` defines for it.
        """
        output = self.vision_model(
            pixel_values,
            crop_grid,
            crop_mask,
            output_dense_features=self.config.token_scores,
            return_dict=True,
            **kwargs,
        )
        logits = self.score(output)[0].to(output.pooler_output.dtype)
        loss = None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = multi_label_loss(logits, labels)
        elif labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


def multi_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross entropy over the labels that are stated, `(b, findings)` both; NaN is not stated."""
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels must have shape {tuple(logits.shape)}, for each finding 1 (present), 0 (absent) or NaN (not stated), not "
            f'{tuple(labels.shape)}. For one class a scan, set config.problem_type = "single_label_classification".'
        )
    stated = ~labels.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels.nan_to_num(0.0).float(), reduction="none"
    )
    return (losses * stated).sum() / stated.sum().clamp(min=1)


class CTFMFineDecoder(nn.Module):
    """Patch tokens and raw voxels -> one logit a voxel and label.

    A stem on the raw voxels carries the structures that a 16-voxel patch blurs; the tokens say what they are. Both meet
    at a quarter of the resolution and go up through two steps, each beside the stem's features of its size.
    """

    def __init__(self, config: CTFMConfig, width: int = 16):
        super().__init__()
        vision = config.vision_config
        self.windows = vision.windows
        self.tokens = nn.Linear(vision.hidden_size, 4 * width)
        self.context = nn.Linear(vision.global_config.hidden_size, 4 * width)
        self.stem1 = nn.Conv3d(vision.windowed_channels, width, 3, stride=config.decoder_stride, padding=1)
        self.stem2 = nn.Conv3d(width, 2 * width, 3, stride=2, padding=1)
        self.stem4 = nn.Conv3d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.up4 = nn.Conv3d(4 * width, 2 * width, 3, padding=1)
        self.up2 = nn.Conv3d(2 * width, width, 3, padding=1)
        self.up1 = nn.Conv3d(width, width, 3, padding=1)
        self.classifier = nn.Conv3d(
            width, config.num_labels if config.structures is None else len(config.structures), 1
        )

    def forward(self, crops: Tensor, tokens: Tensor, context: Tensor) -> Tensor:
        """`(m, c, D, H, W)`, `(m, d, h, w, e)` and `(m, e)` of m crops -> `(m, labels, D, H, W)`."""
        activation, resize = nn.functional.gelu, nn.functional.interpolate
        crops = apply_windows(crops, self.windows, 1).to(self.stem1.weight.dtype)
        fine = activation(self.stem1(crops))
        middle = activation(self.stem2(fine))
        coarse = self.stem4(middle)
        meaning = (self.tokens(tokens) + self.context(context)[:, None, None, None]).movedim(-1, 1)
        coarse = activation(coarse + resize(meaning, coarse.shape[2:], mode="trilinear"))
        middle = activation(self.up4(resize(coarse, middle.shape[2:], mode="trilinear")) + middle)
        fine = activation(self.up2(resize(middle, fine.shape[2:], mode="trilinear")) + fine)
        logits = self.classifier(activation(self.up1(fine)))
        return logits if logits.shape[2:] == crops.shape[2:] else resize(logits, crops.shape[2:], mode="trilinear")


class CTFMForSemanticSegmentation(CTFMPreTrainedModel):
    """A label for every voxel of every crop; `CTFMImageProcessor.to_patient_space` brings them back to the scan."""

    _auto_class = "AutoModelForSemanticSegmentation"
    base_model_prefix = "vision_model"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [*JOINT_SPACE, *CLASSIFIER]

    def __init__(self, config: CTFMConfig):
        super().__init__(config)
        if config.vision_config.global_config is None:
            raise ValueError(
                "CTFMForSemanticSegmentation needs the global transformer, and vision_config.global_config is None."
            )
        self.vision_model = CTFMVisionModel._from_config(config.vision_config)
        self.decoder = CTFMFineDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        crop_grid: Tensor | None = None,
        crop_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segments scans. For label maps of whole scans see `segment`, which keeps no logits.

        Args:
            pixel_values, crop_grid, crop_mask: scans, see `CTFMVisionModel.forward`.
            labels: `(b, g, D, H, W)` label of each voxel, -100 where it does not count; the loss is cross entropy plus
                soft Dice (Milletari et al. 2016, arXiv:1606.04797).

        Returns:
            `logits` `(b, g, labels, D, H, W)`.
        """
        output = self.vision_model(
            pixel_values, crop_grid, crop_mask, output_dense_features=True, return_dict=True, **kwargs
        )
        inputs = decoder_inputs(pixel_values, output)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            logits = self.decoder(*inputs)
        else:
            logits = torch.cat([self.decoder(*crop) for crop in zip(*(part.split(1) for part in inputs), strict=True)])
        logits = logits.unflatten(0, pixel_values.shape[:2])
        return SemanticSegmenterOutput(
            loss=None if labels is None else segmentation_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @torch.no_grad()
    def segment(self, pixel_values: Tensor, crop_grid: Tensor | None = None, crop_mask: Tensor | None = None) -> Tensor:
        """The label of every voxel, `(b, g, D, H, W)` int16: the largest of `forward`'s logits.

        Of one crop after the other, and of none are logits kept: those of 64 crops of 64 x 128 x 128 voxels with 58 labels
        would be 15.6 GB. `CTFMImageProcessor.to_patient_space` brings the labels back to the scan.
        """
        output = self.vision_model(pixel_values, crop_grid, crop_mask, output_dense_features=True, return_dict=True)
        b, g, _, *size = pixel_values.shape
        labels = torch.empty(b, g, *size, dtype=torch.int16, device=pixel_values.device)
        crops = zip(*(part.split(1) for part in decoder_inputs(pixel_values, output)), strict=True)
        for place, crop in zip(labels.flatten(0, 1), crops, strict=True):
            place.copy_(self.decoder(*crop)[0].argmax(0))
        return labels


def decoder_inputs(pixel_values: Tensor, output: CTFMVisionOutput) -> tuple[Tensor, Tensor, Tensor]:
    """What `CTFMFineDecoder` takes of all crops, `(b*g, ...)`."""
    context = crop_context(output.last_hidden_state, pixel_values.shape[1])
    return pixel_values.flatten(0, 1), output.dense_features.flatten(0, 1), context.flatten(0, 1)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy plus soft Dice, `(b, g, labels, D, H, W)` against `(b, g, D, H, W)`; -100 does not count, and where
    nothing counts the loss is 0."""
    logits, counts = logits.float(), labels != -100  # bfloat16 would round sums over a million voxels
    cross_entropy = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(0, 1), ignore_index=-100, reduction="sum"
    )
    cross_entropy = cross_entropy / counts.sum().clamp(min=1)
    probabilities = logits.softmax(2) * counts[:, :, None]
    targets = nn.functional.one_hot(labels.clamp(min=0), logits.shape[2]).movedim(-1, 2) * counts[:, :, None]
    axes = (0, 1, 3, 4, 5)
    overlap = (probabilities * targets).sum(axes)
    size = probabilities.sum(axes) + targets.sum(axes)
    present = targets.sum(axes) > 0
    dice = ((2 * overlap + 1) / (size + 1))[present]
    return cross_entropy + 1 - dice.mean() if present.any() else cross_entropy


__all__ = [
    "CTFMBackbone",
    "CTFMForImageClassification",
    "CTFMForSemanticSegmentation",
    "CTFMGlobalModel",
    "CTFMLocalModel",
    "CTFMModel",
    "CTFMModelBackbone",
    "CTFMOutput",
    "CTFMPreTrainedModel",
    "CTFMVisionModel",
    "CTFMVisionOutput",
]
