"""CLIP: both towers in Flax linen, conversion, tokenisation, loading, zero-shot heads and linear probes."""

from tajax.models.clip import CLIP, ImageEncoder, TextEncoder
from tajax.models.finetuned import Finetuned, load_finetuned
from tajax.models.geometry import ClipConfig, TextConfig, VisionConfig
from tajax.models.heads import pad_head, zero_shot_head
from tajax.models.loading import LoadedClip, load
from tajax.models.preprocessor import OPENAI_MEAN, OPENAI_STD
from tajax.models.probe import LinearProbe, linear_probe
from tajax.models.rounding import Rounding
from tajax.models.save import save_pretrained
from tajax.models.tokenizer import ClipTokenizer, load_tokenizer, train_bpe

__all__ = [
    "CLIP",
    "ClipConfig",
    "ClipTokenizer",
    "Finetuned",
    "ImageEncoder",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "LinearProbe",
    "LoadedClip",
    "Rounding",
    "TextConfig",
    "TextEncoder",
    "VisionConfig",
    "linear_probe",
    "load",
    "load_finetuned",
    "load_tokenizer",
    "pad_head",
    "save_pretrained",
    "train_bpe",
    "zero_shot_head",
]
