"""SPECTRE's published files -> one CTFM folder that `from_pretrained` loads.

    ctfm convert-spectre --backbone spectre_backbone_vit_large_patch16_128.pt \\
        --combiner spectre_combiner_feature_vit_large.pt --image-head SigLIP_projection_head_image.pt \\
        --text-head SigLIP_projection_head_text.pt --text-tower spectre_qwen3_embedding_0.6B_lora.pt \\
        --text-config Qwen/Qwen3-Embedding-0.6B --out spectre-large

Every file may be a path or `hf://owner/repo/file`. `--backbone` also takes the safetensors layout of cclaess/SPECTRE-Large,
which holds the combiner. The conversion is exact: SPECTRE's axes run (right, anterior, head) and ours (head, posterior,
left), so patch kernels are permuted and flipped, and the query and key channels that RoPE turns are permuted and, on the two
flipped axes, conjugated. Every key of every file must find its place, and every number of the model must come from a file;
the exceptions are the mask token, which SPECTRE never published (0), and the loss's scale and bias (their initial values).

The weights are CC-BY-NC-SA-4.0, and so is what this writes. Code and paper: github.com/cclaess/SPECTRE, arXiv:2511.17209.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, Qwen3Config

from ..configuration_ctfm import CTFMConfig, CTFMVisionConfig
from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMModel, CTFMVisionModel
from ..processing_ctfm import CTFMProcessor

StateDict = dict[str, Tensor]

# SPECTRE's axes, as positions of (right, anterior, head) that (depth, height, width) come from; height and width run backwards.
AXES, FLIPPED = (2, 1, 0), (False, True, True)

# Two backbones were published with the same keys and shapes, and nothing in them says which is which: whether reports trained
# it, by name. The combiner belongs to the first (github.com/cclaess/SPECTRE, issue 34).
BACKBONES = {
    "spectre_backbone_vit_large_patch16_128.pt": True,
    "spectre_backbone_vit_large_patch16_128_no_vla.pt": False,
}


class ConversionError(ValueError):
    """A file does not hold what SPECTRE publishes; the message names the file, the key and the cure."""


@dataclass(frozen=True, kw_only=True)
class SpectreFiles:
    """Where the published parts lie: paths or `hf://owner/repo/file`.

    `backbone_saw_reports` says of a backbone under another name than its published one that it is the one that a combiner
    may follow.
    """

    backbone: str
    backbone_saw_reports: bool = False
    combiner: str | None = None
    image_head: str | None = None
    text_head: str | None = None
    text_tower: str | None = None
    text_config: PreTrainedConfig | None = None
    lora_alpha: float = 64.0
    combiner_layer_norm_eps: float = 1e-6


@dataclass
class Part:
    """One file's tensors; what `take` has not taken at the end is refused."""

    name: str
    tensors: StateDict
    taken: set[str] = field(default_factory=set)

    def take(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise ConversionError(f'{self.name} has no "{key}": it is not the SPECTRE file that it was given as.')
        self.taken.add(key)
        return self.tensors[key].float()

    def finish(self) -> None:
        left = sorted(set(self.tensors) - self.taken)
        if left:
            raise ConversionError(
                f"{self.name} holds {len(left)} tensors that CTFM has no place for, such as {left[:3]}."
            )

    def count_blocks(self) -> int:
        return 1 + max(
            (int(match[1]) for key in self.tensors if (match := re.match(r"blocks\.(\d+)\.", key))), default=-1
        )


def load_part(source: str) -> Part:
    """Reads a `.pt` (weights only, never code) or `.safetensors` file from a path or the Hub."""
    path = Path(source)
    if source.startswith("hf://"):
        owner, repo, file = source.removeprefix("hf://").split("/", 2)
        path = Path(hf_hub_download(f"{owner}/{repo}", file))
    if not path.is_file():
        raise ConversionError(f"{source} is not a file. Give a path, or hf://owner/repo/file.")
    try:
        is_safe = path.suffix == ".safetensors"
        tensors = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ConversionError(f"{path.name} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ConversionError(
            f"{path.name} is no plain dictionary of tensors; training checkpoints are not published weights."
        )
    return Part(name=path.name, tensors=dict(tensors))


def split_hub_layout(part: Part) -> tuple[Part, Part | None]:
    """The safetensors layout of cclaess/SPECTRE-Large -> backbone and combiner; any other file is a backbone alone."""
    prefixes = {"backbone": "model.backbone.", "combiner": "model.feature_combiner."}
    if not any(key.startswith(tuple(prefixes.values())) for key in part.tensors):
        return part, None
    parts = {}
    for name, prefix in prefixes.items():
        found = {key.removeprefix(prefix): value for key, value in part.tensors.items() if key.startswith(prefix)}
        parts[name] = Part(name=f"{part.name}:{name}", tensors=found)
    if sum(len(p.tensors) for p in parts.values()) != len(part.tensors):
        raise ConversionError(f"{part.name} holds tensors outside {list(prefixes.values())}.")
    return parts["backbone"], parts["combiner"] if parts["combiner"].tensors else None


# ---- the transformers ----


def rotary_facts(part: Part, hidden_size: int) -> tuple[int, float]:
    """Number of heads and longest period, both read from the periods that every checkpoint carries."""
    periods = part.take("rope.periods").double()
    count = len(periods)
    theta = float(periods[-1] ** (count / (count - 1))) if count > 1 else 1.0
    theta = round(theta, 2)
    expected = theta ** (torch.arange(count, dtype=torch.float64) / count)
    if hidden_size % (6 * count) or not torch.allclose(periods, expected, rtol=1e-4):
        raise ConversionError(
            f"{part.name}: rope.periods {periods.tolist()} are not those of a head of {6 * count} channels."
        )
    return hidden_size // (6 * count), theta


def turn_heads(projection: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of a query or key projection, `(heads * head, ...)`, from SPECTRE's axes to ours.

    A head holds a channel pair (j, j + head/2) for every frequency of every axis, axis by axis. Running an axis backwards
    turns the pair the other way round, which is the same as turning it as before with the second channel negated; queries
    and keys both are, so their products stay.
    """
    rows = projection.unflatten(0, (num_heads, 2, 3, -1))[:, :, list(AXES)]  # (k, half, axis, frequency, ...)
    sign = torch.ones(2, 3)
    sign[1, list(FLIPPED)] = -1
    return (rows * sign.view(1, 2, 3, 1, *[1] * (projection.ndim - 1))).flatten(0, 3)


def convert_layer(part: Part, index: int, num_heads: int) -> StateDict:
    old, new = f"blocks.{index}.", f"layers.{index}."
    layer = {}
    for kind in ("weight", "bias"):
        query = turn_heads(part.take(f"{old}attn.q.{kind}"), num_heads)
        key, value = part.take(f"{old}attn.kv.{kind}").chunk(2)
        layer[f"{new}attention.qkv.{kind}"] = torch.cat((query, turn_heads(key, num_heads), value))
        layer[f"{new}attention.out.{kind}"] = part.take(f"{old}attn.proj.{kind}")
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            layer[f"{new}{name}.{kind}"] = part.take(f"{old}{name}.{kind}")
    for number in (1, 2):
        layer[f"{new}layer_scale{number}.scale"] = part.take(f"{old}ls{number}.gamma")
    return layer


def convert_backbone(part: Part) -> tuple[dict, StateDict]:
    """Local transformer: its config fields and its state dict."""
    kernel = part.take("patch_embed.proj.weight")  # (e, c, right, anterior, head)
    hidden_size, num_channels = kernel.shape[:2]
    num_heads, theta = rotary_facts(part, hidden_size)
    kernel = kernel.permute(0, 1, *(2 + axis for axis in AXES)).flip([2 + i for i, flip in enumerate(FLIPPED) if flip])
    prefix = part.take("cls_token")
    if "reg_token" in part.tensors:
        prefix = torch.cat((prefix, part.take("reg_token")), 1)
    state = {
        "embeddings.projection.weight": kernel.flatten(1),
        "embeddings.projection.bias": part.take("patch_embed.proj.bias"),
        "embeddings.prefix_tokens": prefix,
        "embeddings.mask_token": torch.zeros(1, 1, hidden_size),
        "norm.weight": part.take("norm.weight"),
        "norm.bias": part.take("norm.bias"),
    }
    for index in range(part.count_blocks()):
        state |= convert_layer(part, index, num_heads)
    part.finish()
    config = {
        "patch_size": list(kernel.shape[2:]),
        "num_channels": num_channels,
        "hidden_size": hidden_size,
        "num_hidden_layers": part.count_blocks(),
        "num_attention_heads": num_heads,
        "intermediate_size": len(state["layers.0.mlp.fc1.bias"]),
        "layer_norm_eps": 1e-5,
        "rope_theta": theta,
        "num_register_tokens": prefix.shape[1] - 1,
    }
    return config, state


def convert_combiner(part: Part, eps: float, descriptor_size: int) -> tuple[dict, StateDict]:
    """Global transformer: its config fields and its state dict."""
    projection = part.take("patch_proj.weight")
    hidden_size, input_size = projection.shape
    if input_size != descriptor_size:
        raise ConversionError(
            f"{part.name} takes descriptors of {input_size} channels and the backbone makes {descriptor_size}: "
            "they are not of one model."
        )
    num_heads, theta = rotary_facts(part, hidden_size)
    state = {
        "projection.weight": projection,
        "projection.bias": part.take("patch_proj.bias"),
        "class_token": part.take("cls_token"),
        "norm.weight": part.take("norm.weight"),
        "norm.bias": part.take("norm.bias"),
    }
    for index in range(part.count_blocks()):
        state |= convert_layer(part, index, num_heads)
    part.finish()
    config = {
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": part.count_blocks(),
        "num_attention_heads": num_heads,
        "intermediate_size": len(state["layers.0.mlp.fc1.bias"]),
        "layer_norm_eps": eps,
        "rope_theta": theta,
    }
    return config, state


# ---- the way to the joint space ----


def convert_head(part: Part) -> StateDict:
    """Projection head; the weight norm of its last layer is folded in."""
    state = {}
    for old, new in (("layers.0", "fc1"), ("layers.2", "fc2"), ("layers.4", "fc3")):
        for kind in ("weight", "bias"):
            state[f"{new}.{kind}"] = part.take(f"{old}.{kind}")
    old_names = "last_layer.weight_g" in part.tensors
    prefix = "last_layer." if old_names else "last_layer.parametrizations.weight."
    length = part.take(prefix + ("weight_g" if old_names else "original0"))
    direction = part.take(prefix + ("weight_v" if old_names else "original1"))
    state["out.weight"] = length * direction / direction.norm(dim=1, keepdim=True)
    part.finish()
    return state


def merge_lora(part: Part, alpha: float) -> StateDict:
    """Qwen3 with loralib's low-rank updates -> plain Qwen3: `W + alpha / r * B @ A`.

    The file must have been saved with the updates unmerged, as the published one was; loralib's eval mode leaves them in
    the weights *and* beside them, which cannot be told from the file.
    """
    state = {}
    for key in part.tensors:
        if key.endswith((".lora_A", ".lora_B")):
            continue
        weight = part.take(key)
        stem = key.removesuffix(".weight")
        if f"{stem}.lora_A" in part.tensors:
            down, up = part.take(f"{stem}.lora_A"), part.take(f"{stem}.lora_B")
            weight = weight + alpha / len(down) * (up @ down)
        state[key] = weight
    part.finish()
    return state


def infer_text_config(part: Part) -> Qwen3Config:
    """Qwen3's sizes from its tensors, with Qwen3-Embedding-0.6B's constants (rope base 1e6, context 32,768)."""
    shapes = {key: tuple(value.shape) for key, value in part.tensors.items()}
    try:
        vocab_size, hidden_size = shapes["embed_tokens.weight"]
        head_dim = shapes["layers.0.self_attn.q_norm.weight"][0]
        query, key = shapes["layers.0.self_attn.q_proj.weight"][0], shapes["layers.0.self_attn.k_proj.weight"][0]
        intermediate_size = shapes["layers.0.mlp.gate_proj.weight"][0]
    except KeyError as error:
        raise ConversionError(f"{part.name} has no {error}: it is not a Qwen3 text tower.") from error
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1 + max(int(match[1]) for name in shapes if (match := re.match(r"layers\.(\d+)\.", name))),
        num_attention_heads=query // head_dim,
        num_key_value_heads=key // head_dim,
        head_dim=head_dim,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        use_cache=False,
    )


# ---- all together ----


def check_pair(backbone: str, combiner: str, saw_reports: bool) -> None:
    """Refuses a combiner on a backbone that is not, or is not said to be, the one that it was trained on."""
    published = next(name for name, saw in BACKBONES.items() if saw)
    if not BACKBONES.get(backbone, "no_vla" not in backbone):
        raise ConversionError(
            f"{combiner} was trained on the backbone with report alignment, and {backbone} is the one without: "
            "together they give meaningless features (github.com/cclaess/SPECTRE, issue 34). Use "
            f"{published}, or leave out the combiner for crop features."
        )
    if backbone not in BACKBONES and not saw_reports:
        raise ConversionError(
            f"{combiner} fits one of the two published backbones alone, and nothing in {backbone} says which it is. If it "
            f"is {published} under another name, add --backbone-saw-reports; if not, leave out the combiner."
        )


def convert(files: SpectreFiles) -> CTFMModel | CTFMVisionModel:
    """Builds the model from whatever parts are given.

    All five parts give a `CTFMModel`; the backbone, with or without the combiner, a `CTFMVisionModel`.

    Raises:
        ConversionError: parts that are incomplete, not SPECTRE's, or do not belong together.
    """
    backbone, combiner = split_hub_layout(load_part(files.backbone))
    if files.combiner is not None:
        if combiner is not None:
            raise ConversionError(f"{backbone.name} brings its own combiner; leave out {files.combiner}.")
        combiner = load_part(files.combiner)
        check_pair(backbone.name, combiner.name, files.backbone_saw_reports)
    joint = {"image_head": files.image_head, "text_head": files.text_head, "text_tower": files.text_tower}
    missing = [name for name, source in joint.items() if source is None]
    if missing and len(missing) < 3:
        raise ConversionError(f"The joint space needs {', '.join(joint)}; {', '.join(missing)} not given.")
    if not missing and combiner is None:
        raise ConversionError("The joint space needs the combiner: its image head takes whole-scan features.")

    config, local = convert_backbone(backbone)
    config["global_config"] = None
    state = {f"local_model.{key}": value for key, value in local.items()}
    if combiner is not None:
        config["global_config"], global_state = convert_combiner(
            combiner, files.combiner_layer_norm_eps, 2 * config["hidden_size"]
        )
        state |= {f"global_model.{key}": value for key, value in global_state.items()}
    vision_config = CTFMVisionConfig(**config)
    if missing:
        return fill(CTFMVisionModel._from_config(vision_config), state)
    return add_joint_space(files, vision_config, state)


def add_joint_space(
    files: SpectreFiles, vision_config: CTFMVisionConfig, vision: StateDict
) -> CTFMModel | CTFMVisionModel:
    image_head = convert_head(load_part(str(files.image_head)))
    text_head = convert_head(load_part(str(files.text_head)))
    tower = load_part(str(files.text_tower))
    text_config = files.text_config or infer_text_config(tower)
    config = CTFMConfig(
        vision_config=vision_config.to_dict(),
        text_config=text_config.to_dict(),
        text_pooling="last",
        projection_hidden_size=image_head["fc1.weight"].shape[0],
        projection_bottleneck_size=image_head["fc3.weight"].shape[0],
        projection_dim=image_head["out.weight"].shape[0],
    )
    state = {
        "logit_scale": torch.tensor([float(config.logit_scale_init_value)]),
        "logit_bias": torch.tensor([float(config.logit_bias_init_value)]),
    }
    parts = {
        "vision_model": vision,
        "text_model": merge_lora(tower, files.lora_alpha),
        "visual_projection": image_head,
        "text_projection": text_head,
    }
    for prefix, tensors in parts.items():
        state |= {f"{prefix}.{key}": value for key, value in tensors.items()}
    return fill(CTFMModel(config), state)


def fill(model: CTFMModel | CTFMVisionModel, state: StateDict) -> CTFMModel | CTFMVisionModel:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ConversionError(f"The parts do not fit together: {error}") from error
    return model.eval()


def write_card(model: CTFMModel | CTFMVisionModel, files: SpectreFiles, out: Path, spacing: Iterable[object]) -> None:
    """README.md from spectre_card.md: licence, what was converted, a snippet that fits what is there."""
    has_tokenizer = (out / "tokenizer_config.json").is_file()
    call = 'model(**processor("study.zip"))'
    if isinstance(model, CTFMModel):
        call = 'model.get_image_features(**processor("study.zip"))'
    if has_tokenizer:
        call = 'model(**processor(images="study.zip", text=["Pleural effusion."]))'
    parts = (files.backbone, files.combiner, files.image_head, files.text_head, files.text_tower)
    card = Path(__file__).with_name("spectre_card.md").read_text()
    text = card.format(
        pipeline_tag="zero-shot-image-classification" if has_tokenizer else "image-feature-extraction",
        sources=", ".join(Path(part).name for part in parts if part is not None),
        folder=out.name,
        processor="AutoProcessor" if has_tokenizer else "AutoImageProcessor",
        call=call,
        spacing=" x ".join(str(size) for size in spacing),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    (out / "README.md").write_text(text)


def save(model: CTFMModel | CTFMVisionModel, files: SpectreFiles, out: Path, tokenizer: str | None) -> None:
    """Writes weights, code, processor and card to `out`, which `from_pretrained` then loads."""
    model.save_pretrained(out)
    vision = model.vision_model if isinstance(model, CTFMModel) else model
    spacing = "scan" if hasattr(vision, "global_model") else "fine"  # of the reports' alignment, of self-supervision
    # SPECTRE saw scanner noise in air, so it stays, and scans that were resampled without a low-pass
    image_processor = CTFMImageProcessor(spacing=spacing, air_hu=-1000.0, resampling="linear")
    if isinstance(model, CTFMModel) and tokenizer is not None:
        CTFMProcessor(image_processor, AutoTokenizer.from_pretrained(tokenizer, padding_side="left")).save_pretrained(
            out
        )
    else:
        image_processor.save_pretrained(out)
    write_card(model, files, out, image_processor.spacing)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm convert-spectre", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--combiner")
    parser.add_argument(
        "--backbone-saw-reports",
        action="store_true",
        help="a renamed backbone is the one with report alignment, so that the combiner may follow it",
    )
    parser.add_argument("--image-head")
    parser.add_argument("--text-head")
    parser.add_argument("--text-tower")
    parser.add_argument("--text-config", help="config and tokenizer of the text tower: a folder or a Hub id")
    parser.add_argument("--lora-alpha", type=float, default=64.0)
    parser.add_argument(
        "--combiner-eps", type=float, default=1e-6, help="1e-6 as trained; 1e-5 as their package runs it"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    files = SpectreFiles(
        backbone=options.backbone,
        backbone_saw_reports=options.backbone_saw_reports,
        combiner=options.combiner,
        image_head=options.image_head,
        text_head=options.text_head,
        text_tower=options.text_tower,
        text_config=AutoConfig.from_pretrained(options.text_config) if options.text_config else None,
        lora_alpha=options.lora_alpha,
        combiner_layer_norm_eps=options.combiner_eps,
    )
    try:
        model = convert(files)
    except ConversionError as error:
        print(f"ctfm convert-spectre: {error}", file=sys.stderr)
        return 2
    save(model, files, options.out, options.text_config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} with {parameters:,} parameters in {options.out}")
    return 0
