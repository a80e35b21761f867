"""Loading sentence encoders: sentence-transformers' and Hugging Face's directories, local or of the hub."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tajax.encoders.text.bert import Bert, Tokens
from tajax.encoders.text.convert import find_model, params_from_tensors
from tajax.encoders.text.layout import Description, read_description
from tajax.encoders.text.tokenizer import TextTokenizer, load_tokenizer
from tajax.models import files
from tajax.models.convert import few
from tajax.models.hub import BUNDLED, commit_of, hub_name, locate, split_choice
from tajax.models.layout import ADAPTER, is_there
from tajax.models.loading import params_sha256, to_device
from tajax.models.transformer import check_remat, default_unroll, features_at
from tajax.trees import check_finite
from tajax.types import Params, Remat

__all__ = ["LoadedText", "check_name", "load_text"]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedText:
    """A sentence encoder as values: geometry, pooling, parameters, and the pure function that applies them.

    Attributes:
        name: What it was loaded by.
        described: What its files say: geometry, pooling, what is done to texts.
        params: float32 (float64 where computed in float64).
        pooler: Tensors of BERT's own pooler, which is not computed, as they are in the file; empty without.
        tokenizer: Of the files beside the weights.
        directory: Where its files lie.
        revision: The commit on the hub that the files are of; None for a local model.
        dtype: Dtype of the computation.
        unroll: Layers unrolled per step of the scan, True for all.
        remat: How much of each layer the backward pass computes again.
        frozen: How many layers, counted from the input, are constants.
        notes: What was not taken as it stands in the files, and what they leave open.
    """

    name: str
    described: Description
    params: Params
    pooler: dict[str, np.ndarray]
    tokenizer: TextTokenizer
    directory: Path
    revision: str | None = None
    dtype: DTypeLike = jnp.float32
    unroll: int | bool = 1
    remat: Remat = "none"
    frozen: int = 0
    notes: tuple[str, ...] = ()

    def encode(self, params: Params, tokens: Tokens) -> Float[Array, "B E"]:
        """Features `[B, E]`, not normalised, of tokens; an `ApplyFn` over `params`."""
        encoder = Bert(self.described.config, self.described.pooling, self.dtype, self.unroll, self.remat, self.frozen)
        return features_at(encoder, params, tokens)

    @property
    def feature_dim(self) -> int:
        """E: the width, once for each mode of pooling."""
        return self.described.config.hidden_size * len(self.described.pooling)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the parameters' paths, shapes and float32 values: whose task vectors these are."""
        return params_sha256(self.params)

    def with_random_params(self, seed: int) -> LoadedText:
        """The same encoder before it knew anything: parameters drawn anew, matrices with a deviation of 0.02."""
        tokens = Tokens(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
        drawn = jax.jit(Bert(self.described.config).init)(jax.random.key(seed), tokens)["params"]
        drawn = jax.tree.map(lambda new, old: new.astype(old.dtype), drawn, self.params)
        return dataclasses.replace(self, params=drawn)


def load_text(
    name_or_path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    unroll: int | bool | None = None,
    remat: Remat = "none",
) -> LoadedText:
    """A sentence encoder and its parameters.

    Args:
        name_or_path: A directory of sentence-transformers or Hugging Face, or a hub id such as
            `sentence-transformers/all-MiniLM-L6-v2`, with a revision `owner/name@commit`. Nothing in a PyTorch file is
            run, and safetensors are taken where both are there.
        dtype: Dtype of the computation. The parameters stay float32, whatever the file holds, so that task vectors
            keep their digits; only float64 makes them float64 too.
        unroll: Layers unrolled per step of the scan, True for all. None: all on a CPU without `remat`,
            else 1.
        remat: How much of each layer the backward pass computes again, to save memory: `ImageEncoder` in
            `tajax.models`.

    Raises:
        FileNotFoundError: nothing there, or no weights, configuration or tokenizer in it, or a hub id without network.
        ValueError: a damaged file, another architecture or step than is computed here, tensors that do not fit the
            configuration, or entries that are not finite; all named.
        TypeError: `dtype` is not a float.
    """
    check_remat(remat)
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a float, such as float32 or bfloat16, got {dtype}.")
    if dtype == jnp.float64 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True) before anything is computed.")
    check_name(str(name_or_path))
    place, which = split_choice(name_or_path)
    path = locate(Path(place) if os.path.lexists(os.path.expanduser(place)) else place)
    directory = path if path.is_dir() else path.parent
    described = read_description(directory)
    config, prompting = described.config, described.prompting
    weights = described.modules.transformer if path.is_dir() else path
    file, stored = files.open_tensors(weights)
    found = files.describe(file, lambda: find_model(stored.names, which=which, place=str(path)))
    if found.outside:
        raise ValueError(f"{file} holds tensors outside the model that are not known: {few(found.outside)}.")
    held = stored.read(found.names.values())
    tensors = {name: held[own] for name, own in found.names.items()}
    leaves, pooler = files.describe(file, lambda: params_from_tensors(tensors, config))
    files.describe(file, lambda: check_finite(leaves, "the model"))
    tokenizer = load_tokenizer(
        described.modules.transformer,
        vocab_size=config.vocab_size,
        positions=config.max_position_embeddings,
        max_length=prompting.max_length,
        lower_case=prompting.lower_case,
        prompt=prompting.prompt,
    )
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    params = to_device(leaves, param_dtype)
    notes = (*described.notes, *found.notes, *files.dtype_notes(tensors))
    if is_there(file.parent / ADAPTER):
        notes += ("an adapter lies beside the weights and is not read",)
    for note in notes:
        logging.getLogger(__name__).info("%s: %s.", file, note)
    return LoadedText(
        name=str(name_or_path),
        described=described,
        params=params,
        pooler=pooler,
        tokenizer=tokenizer,
        directory=directory,
        revision=commit_of(directory),
        dtype=dtype,
        unroll=default_unroll(remat) if unroll is None else unroll,
        remat=remat,
        notes=notes,
    )


def check_name(name: str) -> None:
    """Raises if a name is neither a path that exists nor formed like a hub id; loads and fetches nothing.

    Raises:
        FileNotFoundError: it looks like a path.
        ValueError: anything else, such as the name of the bundled CLIP.
    """
    place = str(split_choice(name)[0])
    if os.path.lexists(os.path.expanduser(place)) or hub_name(place) is not None:
        return
    what = f"{name!r} is a CLIP that comes with tajax" if place in BUNDLED else f"no such path exists as {name!r}"
    raise (FileNotFoundError if "/" in name else ValueError)(
        f"No text encoder {name!r}: {what}. Give a directory of sentence-transformers or Hugging Face, or a hub id "
        "such as 'sentence-transformers/all-MiniLM-L6-v2' or 'owner/name@revision'."
    )
