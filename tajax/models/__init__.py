"""CLIP: both towers in Flax linen, conversion, tokenisation, loading and the zero-shot head."""

from tajax.models.clip import CLIP, ClipConfig, ImageEncoder, TextConfig, TextEncoder, VisionConfig
from tajax.models.load import LoadedClip, load, save_pretrained
from tajax.models.tokenizer import ClipTokenizer, load_tokenizer, train_bpe

__all__ = [
    "CLIP",
    "ClipConfig",
    "ClipTokenizer",
    "ImageEncoder",
    "LoadedClip",
    "TextConfig",
    "TextEncoder",
    "VisionConfig",
    "load",
    "load_tokenizer",
    "save_pretrained",
    "train_bpe",
]
