"""Merging methods in PyTorch, as their formulas read: loops over tensors by name, matrices [out, in] layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tajax import trees
from tajax.merging.matrices import in_layers, is_matrix
from tajax.rules import STACKED
from tajax.types import Params

State = dict[str, torch.Tensor]
Merge = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def state(tree: Params) -> State:
    """A tree's leaves, each layer its own, with matrices as PyTorch keeps them; names of matrices end with `weight`."""
    tensors = {}
    for path, leaf in trees.flatten_paths(tree).items():
        matrix, layered = is_matrix(path, leaf), in_layers(path, STACKED)
        for layer, part in enumerate(np.asarray(leaf) if layered else [np.asarray(leaf)]):
            name = f"{path}/{layer}" if layered else path
            tensors[f"{name}/weight" if matrix else name] = torch.tensor(np.asarray(part).T if matrix else part)
    return tensors


def ties(taus: Sequence[State], *, density: float = 0.2) -> State:
    """The mean of the largest entries of each vector that agree with the sign of their sum."""
    flat = torch.stack([torch.cat([leaf.flatten() for leaf in tau.values()]) for tau in taus])
    dropped = flat.shape[1] - round(density * flat.shape[1])
    thresholds = flat.abs().kthvalue(dropped + 1, dim=1, keepdim=True).values
    kept = torch.where(flat.abs() >= thresholds, flat, 0)
    agree = torch.sign(kept) == torch.sign(kept.sum(0))
    entries = torch.where(agree, kept, 0)
    merged = entries.sum(0) / (entries != 0).sum(0).clamp(min=1)
    ends = np.cumsum([leaf.numel() for leaf in taus[0].values()])[:-1].tolist()
    parts = torch.tensor_split(merged, ends)
    return {name: part.reshape(leaf.shape) for (name, leaf), part in zip(taus[0].items(), parts, strict=True)}


def dare(taus: Sequence[State], *, drop_rate: float = 0.5) -> State:
    """The sum of vectors of which entries are dropped at random, and the others scaled up."""
    return _each_leaf(taus, lambda leaves: sum(_thin(leaf, drop_rate) for leaf in leaves))


def tsv_m(taus: Sequence[State]) -> State:
    """Leading singular vectors of all tasks, made orthogonal to one another."""
    return _each_leaf(taus, lambda leaves: torch.stack(leaves).mean(0), _tsv_m)


def iso_c(taus: Sequence[State]) -> State:
    """The sum, with all singular values set to their mean."""
    return _each_leaf(taus, lambda leaves: torch.stack(leaves).mean(0), _iso_c)


def iso_cts(taus: Sequence[State], *, common: float = 0.8) -> State:
    """Common and task-specific directions, all of one length."""
    return _each_leaf(taus, lambda leaves: torch.stack(leaves).mean(0), lambda leaves: _iso_cts(leaves, common))


METHODS: dict[str, Callable[[Sequence[State]], State]] = {
    "dare": dare,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "ties": ties,
    "tsv_m": tsv_m,
}
"""From the vectors to the merged one, with the defaults of tajax."""


def merged_model(name: str, origin: State, taus: Sequence[State]) -> State:
    """θ₀ plus what a method makes of the vectors."""
    with torch.no_grad():
        return {path: origin[path] + step for path, step in METHODS[name](taus).items()}


def _each_leaf(taus: Sequence[State], other: Merge, matrix: Merge | None = None) -> State:
    return {
        name: (matrix if matrix and name.endswith("weight") else other)([tau[name] for tau in taus]) for name in taus[0]
    }


def _thin(leaf: torch.Tensor, drop_rate: float) -> torch.Tensor:
    return leaf * torch.bernoulli(torch.full_like(leaf, 1 - drop_rate)) / (1 - drop_rate)


def _procrustes(matrix: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def _tsv_m(leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    rank = max(1, min(leaves[0].shape) // len(leaves))
    found = [torch.linalg.svd(leaf, full_matrices=False) for leaf in leaves]
    u = torch.cat([each.U[:, :rank] for each in found], dim=1)
    s = torch.cat([each.S[:rank] for each in found])
    vh = torch.cat([each.Vh[:rank] for each in found])
    return _procrustes(u) @ torch.diag(s) @ _procrustes(vh)


def _iso_c(leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(torch.stack(leaves).sum(0), full_matrices=False)
    return s.mean() * u @ vh


def _iso_cts(leaves: Sequence[torch.Tensor], common: float) -> torch.Tensor:
    size = min(leaves[0].shape)
    own = min(round((size - int(common * size)) / len(leaves)), size // len(leaves))
    shared = size - own * len(leaves)
    found = torch.linalg.svd(torch.stack(leaves).sum(0), full_matrices=False)
    us, ss, vhs = [found.U[:, :shared]], [found.S[:shared]], [found.Vh[:shared]]
    for leaf in leaves:
        rest = torch.linalg.svd(leaf - us[0] @ (us[0].T @ leaf), full_matrices=False)
        us.append(rest.U[:, :own])
        ss.append(rest.S[:own])
        vhs.append(rest.Vh[:own])
    return torch.cat(ss).mean() * _procrustes(torch.cat(us, dim=1)) @ _procrustes(torch.cat(vhs))
