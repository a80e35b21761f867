"""Loading ViTs, DINOs and DINOv2s: directories in Hugging Face's format, local or of the hub."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.preprocessing import Prepared, read_prepared
from tajax.encoders.vit.tensors import Found, find_vit, params_from_tensors
from tajax.encoders.vit.tower import VisionTransformer
from tajax.models import files, hub
from tajax.models.convert import few
from tajax.models.layout import CONFIG, PREPROCESSOR
from tajax.models.loading import params_sha256, to_device
from tajax.models.transformer import check_remat, default_unroll, features_at
from tajax.types import JsonObject, Params, Remat

__all__ = ["LoadedVit", "check_name", "load_vit"]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedVit:
    """A ViT as values: geometry, parameters, and the pure function that applies them.

    Attributes:
        name: What it was loaded by.
        config: Geometry.
        params: Parameters, float32 (float64 where computed in float64).
        prepared: How its images are prepared.
        described: What its `config.json` holds, which `save` writes back.
        carried: Tensors of the file that belong to the model and not to the encoder (pooler, classifier, mask token),
            by the names that the model has.
        found: Under which names the file has the encoder.
        revision: The commit on the hub that the files are of; None for a local directory.
        dtype: Dtype of the computation.
        unroll: Layers unrolled per step of the scan, True for all.
        remat: How much of each layer the backward pass computes again.
        frozen: How many layers, counted from the input, are constants.
        notes: What was not taken as it stands in the files.
    """

    name: str
    config: VitConfig
    params: Params
    prepared: Prepared
    described: JsonObject
    carried: Mapping[str, np.ndarray]
    found: Found
    revision: str | None = None
    dtype: DTypeLike = jnp.float32
    unroll: int | bool = 1
    remat: Remat = "none"
    frozen: int = 0
    notes: tuple[str, ...] = ()

    def encode(self, params: Params, images: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """Features `[B, D]`, not normalised, of normalised images."""
        return features_at(
            VisionTransformer(self.config, self.dtype, self.unroll, self.remat, self.frozen), params, images
        )

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of paths, shapes and float32 values: whose task vectors these are."""
        return params_sha256(self.params)

    def with_random_params(self, seed: int) -> LoadedVit:
        """The same ViT before it knew anything: all parameters drawn anew."""
        size = self.config.input_size
        drawn = jax.jit(VisionTransformer(self.config).init)(jax.random.key(seed), jnp.zeros((1, size, size, 3)))
        drawn = jax.tree.map(lambda new, old: new.astype(old.dtype), drawn["params"], self.params)
        return dataclasses.replace(self, params=drawn)


def check_name(name: str) -> None:
    """Raises if a name is neither a path that exists nor formed like a hub name, as `tajax.models.hub.check_name`.

    Raises:
        ValueError: the model of another family that tajax brings, or no name of a model.
        FileNotFoundError: no such path.
    """
    if name in hub.BUNDLED and not os.path.lexists(name):
        raise ValueError(
            f"{name!r} is a CLIP, of the family 'clip'. The family 'vit' takes a directory in Hugging Face's format, "
            "or a hub id such as 'google/vit-base-patch16-224-in21k', 'facebook/dino-vits16', 'facebook/dinov2-small'."
        )
    hub.check_name(name)


def load_vit(
    name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    unroll: int | bool | None = None,
    remat: Remat = "none",
) -> LoadedVit:
    """A ViT and its parameters.

    Args:
        name: A hub id, with a revision `facebook/dinov2-small@main`; a directory; or a file of weights with its
            `config.json` and `preprocessor_config.json` beside it. Nothing in a PyTorch file is run. Where a file holds
            several models, `#model_ema` at the end takes that whose names begin so.
        dtype: Dtype of the computation. The parameters stay float32, whatever the file holds; only float64 makes them
            float64 too.
        unroll: Layers unrolled per step of the scan, True for all. None: all on a CPU without `remat`,
            else 1.
        remat: How much of each layer the backward pass computes again, to save memory: `ImageEncoder` in
            `tajax.models`.

    Raises:
        FileNotFoundError: nothing there, no weights in it, no configuration, or nothing that says how images are
            prepared, which is not guessed; or a hub id without network.
        ValueError: a model of another kind, a damaged file, or tensors that do not fit the configuration.
    """
    check_remat(remat)
    check_name(str(name))
    place, which = hub.split_choice(name)
    path = hub.locate(place)
    directory = path if path.is_dir() else path.parent
    described = read_described(directory)
    if described is None:
        raise FileNotFoundError(f"{directory / CONFIG} is missing: the weights need it beside them.")
    model_type = files.describe(directory / CONFIG, lambda: VitConfig.from_hf(described)).model_type
    prepared = read_prepared(directory, model_type=model_type)
    if prepared is None:
        raise FileNotFoundError(
            f"{directory / PREPROCESSOR} is missing: nothing says with which mean and deviation images are prepared, "
            "and ViTs differ there (0.5 for Google's, ImageNet's for DINO's). Put the model's file beside its weights."
        )
    size = prepared.preprocessing.size
    config = files.describe(directory / CONFIG, lambda: VitConfig.from_hf(described, input_size=size))
    file, stored = files.open_tensors(path)
    found = files.describe(file, lambda: find_vit(stored.names, which=which, place=str(place)))
    if found.outside and which is None:
        raise ValueError(
            f"{file}: {len(found.outside)} tensors are neither the encoder's nor a pooler's or a classifier's: "
            f"{few(found.outside)}. Remove them from the file, or read it with load_finetuned."
        )
    carried = {name: np.array(tensor) for name, tensor in read_own(stored, found, found.carried).items()}
    own = [name for name in found.names if name not in found.carried]
    tensors = read_own(stored, found, own)
    leaves = files.describe(file, lambda: params_from_tensors(tensors, config, modern=found.modern))
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    notes = [f"{few(list(carried))}: not part of the encoder, carried along unchanged"] if carried else []
    notes += [f"tensors of others are not read ({len(found.outside)}): {few(found.outside)}"] if found.outside else []
    notes += files.dtype_notes(tensors)
    return LoadedVit(
        name=str(name),
        config=config,
        params=to_device(leaves, param_dtype),
        prepared=prepared,
        described=described,
        carried=carried,
        found=found,
        revision=hub.commit_of(directory),
        dtype=dtype,
        unroll=default_unroll(remat) if unroll is None else unroll,
        remat=remat,
        notes=tuple(notes),
    )


def read_described(directory: Path) -> JsonObject | None:
    """What the `config.json` in a directory holds; None if there is none."""
    path = directory / CONFIG
    return files.read_json(path) if files.is_there(path) else None


def read_own(stored: files.Stored, found: Found, names: Collection[str]) -> dict[str, np.ndarray]:
    """Some tensors of a file, by the names that the model has."""
    held = stored.read([found.names[name] for name in names])
    return {name: held[found.names[name]] for name in names}
