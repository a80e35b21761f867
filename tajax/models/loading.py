"""Loading CLIPs: the bundled one, Hugging Face's, open_clip's and OpenAI's formats, local or of the hub."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from tajax.models import files
from tajax.models.clip import ImageEncoder, TextEncoder
from tajax.models.convert import params_from_tensors
from tajax.models.geometry import LEGACY_EOS_TOKEN_ID, ClipConfig
from tajax.models.hub import commit_of, locate, split_choice
from tajax.models.preprocessor import OPENAI_MEAN, OPENAI_STD, default_preprocessing, read_preprocessing
from tajax.models.tokenizer import ClipTokenizer, load_tokenizer
from tajax.models.transformer import check_remat, default_unroll, features_at
from tajax.trees import flatten_paths
from tajax.types import Params, Preprocessing, Remat

__all__ = ["OPENAI_MEAN", "OPENAI_STD", "LoadedClip", "check_tokenizer", "load", "params_sha256", "to_device"]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedClip:
    """A CLIP as values: geometry, parameters, and the pure functions that apply them.

    Attributes:
        name: What it was loaded by.
        config: Geometry of both towers.
        params: `{'image': …, 'text': …, 'logit_scale': []}`, float32 (float64 where computed in float64).
        preprocessing: Size, mean and deviation of its input images.
        directory: Where its files, the tokenizer's too, lie.
        revision: The commit on the hub that the files are of; None for a local or the bundled model.
        dtype: Dtype of the computation.
        unroll: Layers unrolled per step of the scan, True for all.
        remat: How much of each layer the backward pass computes again.
        frozen: How many layers of the image tower, counted from the input, are constants.
        sources: Which file says 'config' and 'preprocessing'; `default (OpenAI's)` where none does.
        notes: What was not taken as it stands in the file: prefixes, tensors that are not read, half precision.
    """

    name: str
    config: ClipConfig
    params: Params
    preprocessing: Preprocessing
    directory: Path
    revision: str | None = None
    dtype: DTypeLike = jnp.float32
    unroll: int | bool = 1
    remat: Remat = "none"
    frozen: int = 0
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def encode_image(self, image_params: Params, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Features `[B, E]`, not normalised, of normalised images; an `ApplyFn` over `params['image']`."""
        encoder = ImageEncoder(self.config.vision, self.dtype, self.unroll, self.remat, self.frozen)
        return features_at(encoder, image_params, images)

    def encode_text(self, text_params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B E"]:
        """Features `[B, E]`, not normalised, of tokens int32; an `ApplyFn` over `params['text']`."""
        encoder = TextEncoder(self.config.text, self.dtype, self.unroll, self.remat)
        return features_at(encoder, text_params, tokens)

    @functools.cached_property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer beside the weights, read on first use.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it belongs to another text tower.
        """
        length = self.config.text.max_position_embeddings
        tokenizer = load_tokenizer(self.directory, context_length=length)
        check_tokenizer(self.config, tokenizer)
        return tokenizer

    @functools.cached_property
    def image_sha256(self) -> str:
        """SHA-256 of the image tower's paths, shapes and float32 values: whose task vectors these are."""
        return params_sha256(self.params["image"])

    @functools.cached_property
    def text_sha256(self) -> str:
        """The same of the text tower with the temperature: which zero-shot heads come out."""
        return params_sha256({key: leaf for key, leaf in self.params.items() if key != "image"})

    def with_random_image_tower(self, seed: int) -> LoadedClip:
        """The same CLIP before its image tower knew anything: parameters drawn anew, the text tower kept.

        Example:
            >>> clip = load("tiny")
            >>> clip.with_random_image_tower(0).image_sha256 == clip.image_sha256
            False
        """
        encoder, vision = ImageEncoder(self.config.vision), self.config.vision
        images = jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels))
        drawn = jax.jit(encoder.init)(jax.random.key(seed), images)["params"]
        drawn = jax.tree.map(lambda new, old: new.astype(old.dtype), drawn, self.params["image"])
        return dataclasses.replace(self, params=self.params | {"image": drawn})


def load(
    name_or_path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
    unroll: int | bool | None = None,
    remat: Remat = "none",
) -> LoadedClip:
    """A CLIP and its parameters.

    Args:
        name_or_path: `"tiny"` for the bundled model (`"./tiny"` is a path); a hub id such as
            `openai/clip-vit-base-patch32`, with a revision `openai/clip-vit-base-patch32@3d74acf`; a directory in
            Hugging Face's or open_clip's format; a `.safetensors` or PyTorch file with its configuration beside it.
            Nothing in a PyTorch file is run, and safetensors are taken where both are there. Where a file holds several
            models, `#model_ema` at the end takes that whose names begin so.
        dtype: Dtype of the computation. The parameters stay float32, whatever the file holds, so that task
            vectors keep their digits; only float64 makes them float64 too.
        revision: Branch, tag or commit of a hub repository, in place of `@revision`. What it stands for now is
            `LoadedClip.revision`.
        unroll: Layers unrolled per step of the scan, True for all. None: all on a CPU, where steps then run faster
            and compile as quickly; 1 elsewhere, where two dozen layers take minutes to compile, and with `remat`.
        remat: How much of each layer the backward pass computes again, to save memory: `ImageEncoder` in
            `tajax.models`.

    Raises:
        FileNotFoundError: nothing there, or no weights in it, or a hub id without network. Says what to
            do.
        ValueError: a file that is damaged, or tensors that do not fit the configuration; both named.
        TypeError: `dtype` is not a float.

    Example:
        >>> clip = load("tiny")
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> jax.jit(clip.encode_image)(clip.params["image"], images).shape
        (2, 128)
    """
    check_remat(remat)
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a float, such as float32 or bfloat16, got {dtype}.")
    if dtype == jnp.float64 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True) before anything is computed.")
    place, which = split_choice(name_or_path)
    path = locate(place, revision=revision)
    directory = path if path.is_dir() else path.parent
    tensors, config, config_source, notes = files.read_model(path, which=which)
    size = config.vision.image_size
    told = read_preprocessing(directory, image_size=size)
    preprocessing, source = told or default_preprocessing(directory, image_size=size)
    try:
        leaves = params_from_tensors(tensors, config)
        _check_finite(leaves)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    params = to_device(leaves, param_dtype)
    return LoadedClip(
        name=str(name_or_path),
        config=config,
        params=params,
        preprocessing=preprocessing,
        directory=directory,
        revision=commit_of(directory),
        dtype=dtype,
        unroll=default_unroll(remat) if unroll is None else unroll,
        remat=remat,
        sources={"config": config_source, "preprocessing": source},
        notes=notes,
    )


def to_device(leaves: Params, dtype: DTypeLike) -> Params:
    """Leaves in NumPy as arrays of JAX, of one dtype; each is copied before the next one is.

    JAX keeps what it has copied until it is asked for another copy: without waiting, most of a model stays in memory.

    Example:
        >>> to_device({"w": np.ones(2)}, jnp.float32)
        {'w': Array([1., 1.], dtype=float32)}
    """
    # cast in NumPy: under JAX each shape would be compiled for
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, dtype)).block_until_ready(), leaves)


def params_sha256(params: Params) -> str:
    """SHA-256 of paths, shapes and float32 values: whose task vectors these are."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_paths(params).items()):
        value = np.ascontiguousarray(np.asarray(leaf, "<f4"))
        digest.update(f"{path}{list(value.shape)}".encode())
        digest.update(value.data)
    return digest.hexdigest()


def _check_finite(leaves: Params) -> None:
    for leaf_path, leaf in flatten_paths(leaves).items():
        damaged = int(np.size(leaf) - np.isfinite(leaf).sum())
        if damaged:
            raise ValueError(f"{damaged} of the {np.size(leaf):,} entries of {leaf_path!r} are not finite.")


def check_tokenizer(config: ClipConfig, tokenizer: ClipTokenizer) -> None:
    """Raises `ValueError` if a tokenizer gives ids or rows that a text tower does not take, or ends texts otherwise."""
    text = config.text
    if tokenizer.vocab_size > text.vocab_size or tokenizer.context_length > text.max_position_embeddings:
        raise ValueError(
            f"The tokenizer ({tokenizer.vocab_size} ids, rows of {tokenizer.context_length}) exceeds the text "
            f"tower ({text.vocab_size} ids, rows of {text.max_position_embeddings})."
        )
    if text.eos_token_id not in (tokenizer.eos_token_id, LEGACY_EOS_TOKEN_ID):
        raise ValueError(
            f"The text tower pools at id {text.eos_token_id} (text_config.eos_token_id), "
            f"but the tokenizer ends texts with {tokenizer.eos_token_id}."
        )
