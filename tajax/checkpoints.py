"""What a run keeps on disk: train states to go on from (Orbax), and task vectors to share (safetensors).

A train state is whatever pytree the loop carries; it is restored against one of the same structure, so a file
that does not fit is an error and never a silent cast. A task vector is a file of named tensors without code,
readable by any safetensors library; leaves that were frozen are left out and come back as zeros.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.flax

from tajax import trees
from tajax.types import Mask, Params

State = TypeVar("State")

FORMAT = "tajax task vector 1"
RESERVED = ("format", "trained")
_STEP = re.compile(r"step_(\d{8})")


def save(directory: str | Path, state: State, *, step: int, keep: int | None = 2) -> Path:
    """Writes a train state to `directory/step_XXXXXXXX`, whole or not at all.

    Args:
        directory: of one run; created if absent.
        state: any pytree of arrays.
        step: steps taken. A checkpoint of the same step is replaced.
        keep: how many checkpoints stay, the latest ones; None keeps all.

    Returns:
        The directory written.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob("*orbax-checkpoint-tmp*"):  # of a run killed while it wrote
        shutil.rmtree(leftover)
    path = directory / f"step_{step:08d}"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _by_path(state), force=True)
        checkpointer.wait_until_finished()
    for old in _steps(directory)[:-keep] if keep is not None else ():
        shutil.rmtree(directory / f"step_{old:08d}")
    return path


def latest(directory: str | Path) -> int | None:
    """The number of steps of the latest checkpoint, None if there is none."""
    steps = _steps(Path(directory))
    return steps[-1] if steps else None


def restore(directory: str | Path, like: State, *, step: int) -> State:
    """The train state after `step` steps, bit for bit.

    Args:
        directory: as given to `save`.
        like: a state of the same structure; its values are not used.
        step: which checkpoint.

    Returns:
        A state with the structure, shapes and dtypes of `like`.

    Raises:
        FileNotFoundError: there is no such checkpoint; those that exist are named.
        ValueError: the checkpoint has other leaves, shapes or dtypes; the first difference is named.
    """
    directory = Path(directory).resolve()
    path = directory / f"step_{step:08d}"
    if not path.is_dir():
        found = ", ".join(map(str, _steps(directory))) or "none"
        raise FileNotFoundError(f"no checkpoint of step {step} in {directory}. Steps there: {found}.")
    target = {name: _abstract(leaf) for name, leaf in _by_path(like).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(path).item_metadata.tree
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"checkpoint {path} cannot be read: {error}. Delete it to start anew.") from error
        _check_leaves(path, stored, target)
        try:
            leaves = checkpointer.restore(path, target)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"checkpoint {path} cannot be read: {error}. Delete it to start anew.") from error
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in target])


def restore_latest(directory: str | Path, like: State) -> State:
    """The latest train state in a directory, `like` itself if there is none; errors as in `restore`."""
    step = latest(directory)
    return like if step is None else restore(directory, like, step=step)


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
    _check_names(Path(path), trained, leaves, "the mask")
    for name, leaf in leaves.items():
        if np.any(np.asarray(leaf)[np.logical_not(trained[name])]):  # one bool takes all of the leaf, or nothing
            raise ValueError(f"task vector for {path}: {name} is frozen by the mask and yet not zero")
    tensors = {name: jnp.asarray(leaf) for name, leaf in leaves.items() if np.any(trained[name])}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    texts |= {"format": FORMAT, "trained": json.dumps(sorted(tensors))}
    _write_atomically(Path(path), safetensors.flax.save(tensors, metadata=texts))


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
    _check_names(path, json.loads(metadata.pop("trained", "[]")), tensors, "the list in its metadata")
    _check_names(path, set(tensors) & set(leaves), tensors, "the model")
    for name, tensor in tensors.items():
        shape = jnp.shape(leaves[name])
        if tensor.shape != shape:
            raise ValueError(f"task vector {path}: {name} has shape {tensor.shape}, the model's is {shape}")
    whole = {name: tensors.get(name, jnp.zeros_like(leaf)) for name, leaf in leaves.items()}
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [whole[name] for name in leaves]), metadata


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(match[1]) for entry in directory.iterdir() if (match := _STEP.fullmatch(entry.name)))


def _by_path(state: object) -> dict[str, object]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "state": leaf for path, leaf in pairs}


def _abstract(leaf: object) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _check_leaves(path: Path, stored: Mapping, target: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    _check_names(path, target, stored, "the state to restore", what="checkpoint")
    for name, leaf in target.items():
        there = stored[name]
        if tuple(there.shape) != leaf.shape or np.dtype(there.dtype) != leaf.dtype:
            raise ValueError(
                f"checkpoint {path}: {name} is {there.dtype}{list(there.shape)}, "
                f"the state to restore has {leaf.dtype}{list(leaf.shape)}"
            )


def _check_names(
    path: Path, wanted: Iterable[str], found: Iterable[str], where: str, *, what: str = "task vector"
) -> None:
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    for verb, names, stands in (("lacks", missing, "is in"), ("holds", extra, "is not in")):
        if names:
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            raise ValueError(f"{what} {path} {verb} {names[0]}{more}, which {stands} {where}")


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:  # not mkstemp: others may read what this user may let them read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
