"""Saving sentence encoders as directories that sentence-transformers, transformers and `load` open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tajax import atomic
from tajax.encoders.text.convert import tensor_views
from tajax.encoders.text.loading import LoadedText
from tajax.encoders.text.pooling import pooling_to_config
from tajax.models import files
from tajax.models.layout import CONFIG, MODULES, PROMPTS, SENTENCE
from tajax.types import Params

__all__ = ["FORMATS", "check_format", "save"]

FORMATS = ("huggingface",)

_MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)


def check_format(format: str) -> None:
    """Raises `ValueError` for a format in which no sentence encoder is written."""
    if format not in FORMATS:
        raise ValueError(
            f"format {format!r} is none that a text encoder is written in; choose {' or '.join(map(repr, FORMATS))}."
        )


def save(text: LoadedText, directory: str | Path, params: Params, /, *, format: str = "huggingface") -> None:
    """Write a directory that `sentence_transformers.SentenceTransformer(directory)` opens.

    It has the pooling, tokenizer and prompts of the encoder that was loaded, the tensors of BERT's own pooler, and
    normalisation at the end where that had it. The files are written to a sibling directory that is renamed when it is
    whole.

    Args:
        text: The encoder that was loaded.
        directory: Where to; its parents are made.
        params: In place of its own.
        format: 'huggingface'.

    Raises:
        FileExistsError: `directory` is taken.
        ValueError: another format; a leaf that does not fit or is not finite.
    """
    check_format(format)
    directory = Path(directory).expanduser().resolve()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists. Choose another directory, or remove it.")
    described, config = text.described, text.described.config
    tensors = dict(_float32(tensor_views(params, config) | text.pooler, directory))
    modules = _MODULES if described.modules.normalize else _MODULES[:2]
    with atomic.directory(directory) as partial:
        files.write_tensors(partial / "model.safetensors", tensors)
        files.write_json(partial / CONFIG, config.to_hf() | described.kept | {"dtype": "float32"})
        listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
        (partial / MODULES).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        for path, _ in modules[1:]:  # git and archives do not keep a directory without a file
            (partial / path).mkdir()
        files.write_json(partial / "1_Pooling" / CONFIG, pooling_to_config(described.pooling, width=config.hidden_size))
        if described.modules.normalize:
            files.write_json(partial / "2_Normalize" / CONFIG, {})
        lengths = {"max_seq_length": text.tokenizer.max_length, "do_lower_case": text.tokenizer.lower_case}
        files.write_json(partial / SENTENCE, lengths)
        if described.prompting.told:
            files.write_json(partial / PROMPTS, described.prompting.told)
        text.tokenizer.save(partial)


def _float32(tensors: Mapping[str, np.ndarray], directory: Path) -> Mapping[str, np.ndarray]:
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite: not saved to {directory}.")
    return {name: value.astype(np.float32, copy=False) for name, value in tensors.items()}
