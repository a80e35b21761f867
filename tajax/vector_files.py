"""Task vectors on disk, to share: safetensors without code, which any safetensors library reads.

Leaves that were frozen are left out and come back as zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax

from tajax import atomic, trees
from tajax.trees import check_same_names
from tajax.types import Mask, Params

FORMAT = "tajax task vector 1"
RESERVED = ("format", "trained")


def save_task_vector(
    path: str | Path, tau: Params, metadata: Mapping[str, object], *, mask: Mask | None = None
) -> None:
    """Writes a task vector as a safetensors file, whole or not at all.

    Args:
        path: the file; its directory is created if absent.
        tau: a tree of arrays, float.
        metadata: what the vector is: base model, task, regime, seed, version. Values that are not strings are
            written as JSON.
        mask: as of `param_mask`, like `tau`. What it freezes must be zero; leaves that are frozen in all their
            layers are not stored.

    Raises:
        ValueError: an entry is NaN or infinite, what is frozen is not zero, or a key of `metadata` is taken.
    """
    taken = [key for key in RESERVED if key in metadata]
    if taken:
        raise ValueError(f"metadata of {path} uses the reserved key {taken[0]!r}. Reserved: {', '.join(RESERVED)}.")
    trees.check_finite(tau, f"task vector for {path}")
    leaves = trees.flatten_paths(tau)
    trained = trees.flatten_paths(mask) if mask is not None else dict.fromkeys(leaves, True)
    check_same_names(f"task vector for {path}", trained, leaves, "the mask")
    for name, leaf in leaves.items():
        if np.any(np.asarray(leaf)[np.logical_not(trained[name])]):  # one bool takes all of the leaf, or nothing
            raise ValueError(f"task vector for {path}: {name} is frozen by the mask and yet not zero")
    tensors = {name: jnp.asarray(leaf) for name, leaf in leaves.items() if np.any(trained[name])}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    texts |= {"format": FORMAT, "trained": json.dumps(sorted(tensors))}
    atomic.write(path, safetensors.flax.save(tensors, metadata=texts))


def load_task_vector(path: str | Path, like: Params) -> tuple[Params, dict[str, str]]:
    """A task vector and its metadata, from a file of `save_task_vector`.

    Args:
        path: the file.
        like: parameters of the model it belongs to; their values are not used.

    Returns:
        τ as a tree like `like`, zero in the leaves that were frozen, and the metadata as strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or no task vector, or its tensors are missing, unknown to the model,
            or of another shape. The message names file, tensor and shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no task vector {path}.")
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"task vector {path} is truncated or not a safetensors file: {error}") from error
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a task vector of tajax: its metadata does not say {FORMAT!r}.")
    leaves = trees.flatten_paths(like)
    what = f"task vector {path}"
    check_same_names(what, json.loads(metadata.pop("trained", "[]")), tensors, "the list in its metadata")
    check_same_names(what, set(tensors) & set(leaves), tensors, "the model")
    for name, tensor in tensors.items():
        shape = jnp.shape(leaves[name])
        if tensor.shape != shape:
            raise ValueError(f"{what}: {name} has shape {tensor.shape}, the model's is {shape}")
    whole = {name: tensors.get(name, jnp.zeros_like(leaf)) for name, leaf in leaves.items()}
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [whole[name] for name in leaves]), metadata
