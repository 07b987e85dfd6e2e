"""The smallest models that still have every part, shared by the tests."""

from pathlib import Path

import torch
from ctfm import CTFMConfig, CTFMForSemanticSegmentation, CTFMImageProcessor, CTFMModel
from ctfm.processing_ctfm import CTFMProcessor
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import PreTrainedTokenizerFast

VISION = {
    "patch_size": (4, 8, 8),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "layerscale_value": 1.0,
    "global_config": {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "layerscale_value": 1.0,
    },
}
TEXT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}


def tiny_config(**vision: object) -> CTFMConfig:
    return CTFMConfig(
        vision_config=VISION | vision,
        text_config=TEXT,
        projection_hidden_size=32,
        projection_bottleneck_size=16,
        projection_dim=24,
        initializer_range=0.2,
        num_labels=3,
    )


def tiny_crops(scans: int = 2, crops: int = 8, seed: int = 0) -> torch.Tensor:
    """`(b, g, 1, 8, 16, 16)`, a 2 x 2 x 2 grid of crops, each 2 x 2 x 2 patches."""
    return torch.rand(scans, crops, 1, 8, 16, 16, generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words of a few letters, pieces of one letter for the rest."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "no", "pleural", "effusion", "lung", ".", ","]
    pieces += [chr(code) for code in range(ord("a"), ord("z") + 1)] + [
        f"##{chr(c)}" for c in range(ord("a"), ord("z") + 1)
    ]
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = Lowercase(), BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def save_tiny(folder: Path) -> Path:
    """The dual encoder of seed 0 with its processor, as pretrain.py exports one."""
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(folder)
    CTFMProcessor(CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native"), tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_tiny_segmenter(folder: Path, structures: dict[int, str]) -> Path:
    """A segmenter of seed 0 with its image processor."""
    torch.manual_seed(0)
    config = tiny_config()
    config.structures = structures
    CTFMForSemanticSegmentation(config).save_pretrained(folder)
    CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native").save_pretrained(folder)
    return folder
