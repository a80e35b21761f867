"""Train states on disk, to go on from: the only file that imports Orbax.

A train state is whatever pytree the loop carries; it is restored against one of the same structure, so a file
that does not fit is an error and never a silent cast.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tajax.trees import check_same_names

State = TypeVar("State")

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
    check_same_names(f"checkpoint {path}", target, stored, "the state to restore")
    for name, leaf in target.items():
        there = stored[name]
        if tuple(there.shape) != leaf.shape or np.dtype(there.dtype) != leaf.dtype:
            raise ValueError(
                f"checkpoint {path}: {name} is {there.dtype}{list(there.shape)}, "
                f"the state to restore has {leaf.dtype}{list(leaf.shape)}"
            )
