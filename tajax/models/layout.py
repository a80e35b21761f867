"""The files of a model's directory: their names, one list for who reads and who downloads, and whether one is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = [
    "ADAPTER",
    "ADAPTER_WEIGHTS",
    "CONFIG",
    "CONFIGS",
    "DEFAULT",
    "DESCRIPTIONS",
    "MODULES",
    "OPEN_CLIP_CONFIG",
    "PICKLED_WEIGHTS",
    "PREPROCESSOR",
    "PROCESSOR",
    "PROMPTS",
    "SENTENCE",
    "TOKENIZER",
    "TOKENIZER_PARTS",
    "TOKENIZER_WHOLE",
    "TEXT_ENCODER",
    "WEIGHTS",
    "WORD_PIECES",
    "is_there",
]

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
CONFIGS = (CONFIG, OPEN_CLIP_CONFIG)
"""By one of which a directory is known to hold a model."""

PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
"""How images are prepared, as transformers 5 and as its earlier versions write it; open_clip says it in `CONFIGS`."""

TOKENIZER_WHOLE, TOKENIZER_PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
TOKENIZER = (TOKENIZER_WHOLE, *TOKENIZER_PARTS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""All that `transformers.CLIPTokenizer` reads."""

WORD_PIECES = "vocab.txt"
MODULES, SENTENCE, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
TEXT_ENCODER = (WORD_PIECES, MODULES, SENTENCE, PROMPTS, "1_Pooling/config.json")
"""What sentence-transformers' directories have besides."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")
"""In the order in which they are taken; safetensors before pickles."""

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
"""PEFT's: by the first a directory is known to hold an adapter, the others are its tensors, in the order of choice."""

DESCRIPTIONS = (*CONFIGS, PROCESSOR, PREPROCESSOR, *TOKENIZER, *TEXT_ENCODER, ADAPTER)
"""What is read of a directory beside its weights."""

DEFAULT = "default (OpenAI's)"
"""What stands in a record in place of a file's name where no file says it."""


def is_there(path: Path) -> bool:
    """Whether a file is there to be read. What is there but cannot be read is an error: it is not absent.

    Raises:
        FileNotFoundError: a link to nothing.
        PermissionError: it may not be read, or its directory may not be searched.
        ValueError: a directory, a pipe or a device.

    Example:
        >>> is_there(Path("no/such/directory/config.json"))
        False
    """
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return False
        raise FileNotFoundError(
            f"{path} is a link to {os.readlink(path)}, which is not there. Restore that file, or remove the link."
        ) from None
    if not stat.S_ISREG(kind):
        what = "a directory" if stat.S_ISDIR(kind) else "a pipe or a device"
        raise ValueError(f"{path} is {what} where a file should be. Put the file in its place, or remove it.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read by this user. Change its permissions, or remove it.")
    return True
