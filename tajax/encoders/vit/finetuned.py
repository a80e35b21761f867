"""ViTs that others fine-tuned, as parameters of our encoder."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.loading import LoadedVit, read_described, read_own
from tajax.encoders.vit.preprocessing import read_prepared
from tajax.encoders.vit.tensors import find_vit, linear_modules, params_from_tensors
from tajax.models import Finetuned, files, hub
from tajax.models.adapters import is_adapter, read_adapter
from tajax.models.convert import few
from tajax.models.geometry import differing
from tajax.models.layout import CONFIG
from tajax.models.rounding import like_pretrained, settled

__all__ = ["load_finetuned"]


def load_finetuned(name_or_path: str | Path, base: LoadedVit) -> Finetuned:
    """The ViT that somebody fine-tuned from a base, read without running anything in its file.

    Read are directories in Hugging Face's format (`ViTForImageClassification`, `Dinov2Model`, …), and state dicts in
    safetensors or PyTorch files, under another prefix, inside a training checkpoint, or wrapped by data parallelism,
    FSDP, activation checkpointing or torch.compile. A classifier, a pooler, a mask token and an optimiser are left out,
    and a note says so. Leaves and layers that equal θ₀ but for the rounding of half precision are those of θ₀. LoRA
    adapters in PEFT's directories are read, too (`tajax.models.adapters`).

    Args:
        name_or_path: A hub id, a directory, a `.safetensors` file, or a PyTorch file; where it holds several models,
            with `#model_ema` at the end, which takes that whose names begin so.
        base: The model that it was fine-tuned from.

    Raises:
        FileNotFoundError: nothing there, or no weights in it.
        ValueError: a damaged file, a pickle that asks for code, another geometry or preprocessing than the base's,
            tensors that are missing, left over, not finite or there twice, several models, quantised weights, an
            adapter of another kind, or a linearised encoder.
    """
    place, which = hub.split_choice(name_or_path)
    path = hub.locate(place)
    if is_adapter(path):
        return _read_adapter(path, base)
    file, stored = files.open_tensors(path)
    found = files.describe(file, lambda: find_vit(stored.names, which=which, place=str(place)))
    files.describe(file, lambda: _check_described(file.parent, base))
    own = [name for name in found.names if name not in found.carried]
    tensors = read_own(stored, found, own)

    def read() -> dict[str, np.ndarray]:
        leaves = params_from_tensors(tensors, base.config, modern=found.modern)
        return like_pretrained(leaves, base.params, "the encoder")

    params, rounding = settled(files.describe(file, read), base.params)
    left_out = [found.names[name] for name in found.carried] + list(found.outside)
    notes = [f"tensors beside the encoder are left out ({len(left_out)}): {few(left_out)}"] if left_out else []
    notes += files.dtype_notes(tensors)
    for note in notes:
        logging.getLogger(__name__).info("%s: %s.", file, note)
    if rounding is not None:
        notes.append(str(rounding))
        level = logging.WARNING if rounding.matters else logging.INFO
        logging.getLogger(__name__).log(level, "%s: %s.", file, rounding)
    return Finetuned(params, False, file, "huggingface", rounding, tuple(notes))


def _read_adapter(path: Path, base: LoadedVit) -> Finetuned:
    found = read_adapter(
        path, base.params, linear_modules(base.config), base=base.name, base_sha256=base.sha256, ignored=_HEADS
    )
    files.describe(found.path, lambda: _check_described(found.path.parent, base))
    for note in found.notes:
        logging.getLogger(__name__).warning("%s: %s.", found.path, note)
    return Finetuned(found.params, False, found.path, "adapter", None, found.notes)


_HEADS = ("classifier.", "decoder.", "pooler.")
"""How the names begin of modules beside the encoder."""


def _check_described(directory: Path, base: LoadedVit) -> None:
    """Refuse a ViT whose files say that its geometry is another than the base's, or its images prepared otherwise."""
    described = read_described(directory)
    if described is not None:
        wanted = base.config
        found = files.describe(directory / CONFIG, lambda: VitConfig.from_hf(described, input_size=wanted.input_size))
        if wanted.layer_scale is not None:  # its initial value, which nobody needs any more
            found = dataclasses.replace(found, layer_scale=found.layer_scale and wanted.layer_scale)
        if differences := differing(found, wanted):
            raise ValueError(
                f"this ViT is another than {base.name}: {'; '.join(differences)}. Give the base that it was made from."
            )
    told = read_prepared(directory, model_type=base.config.model_type)
    ours = base.prepared.preprocessing
    if told and not (
        (told.preprocessing.size, told.preprocessing.resize) == (ours.size, ours.resize)
        and np.allclose(told.preprocessing.mean + told.preprocessing.std, ours.mean + ours.std, atol=1e-6)
    ):
        raise ValueError(
            f"{directory / told.source} says {told.preprocessing}, but images of {base.name} are prepared with {ours}. "
            "Give the base that it was made from, or remove the file if it is wrong."
        )
