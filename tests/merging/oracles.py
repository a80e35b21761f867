"""What each merging method makes of small trees, written as on paper: slow, in NumPy and float64, without tajax."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.merging import spectral, with_data
from tests.merging.entrywise import (
    by_tensor,
    slow_breadcrumbs,
    slow_consensus,
    slow_karcher,
    slow_lines,
    slow_magmax,
    slow_model_stock,
    slow_pcb,
    slow_slerp,
)
from tests.merging.spectral import by_matrix

Tree = Mapping[str, np.ndarray]  # by path

SHAPES = {
    "blocks/attn/key/bias": (2, 4),
    "blocks/attn/key/kernel": (2, 3, 4),
    "blocks/attn/query/bias": (2, 4),
    "blocks/attn/query/kernel": (2, 3, 4),
    "blocks/attn/value/bias": (2, 4),
    "blocks/attn/value/kernel": (2, 3, 4),
    "blocks/mlp/kernel": (2, 4, 2),
    "empty": (0, 3),
    "patch_embedding/kernel": (2, 2, 1, 3),
    "position_embedding": (2, 3),
    "projection/kernel": (4, 3),
    "scale": (),
}
"""Two stacked layers with matrices and biases, a convolution, a table, a matrix, a scalar, and nothing."""


class Case(NamedTuple):
    """A row of `ORACLES`."""

    options: Mapping[str, Any]
    """Of the method, besides `stacked`."""
    oracle: Callable[[Tree, list[Tree]], Tree]
    """From θ₀ and the vectors, in float64, to the merged parameters."""
    exact: bool = True
    """Whether the order of tasks changes no bit where all sums are exact; else nothing but rounding."""
    tasks: int = 3
    """How many vectors it is tried with."""
    unit: float = 1.0
    """What its vectors of small integers are multiplied by, a power of two, where a method has a scale of its own."""
    fitted: Callable[[Tree, int], Mapping[str, Any]] = lambda like, tasks: {}
    """Of a method that needs data, what its `fit` might have found for a tree like this and so many tasks."""


def entrywise(oracle: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Tree, list[Tree]], Tree]:
    """For methods that see no shapes: from `(θ₀ [N], τ [T, N]) -> θ [N]`, all leaves in one vector."""

    def of_trees(theta: Tree, taus: list[Tree]) -> Tree:
        merged = oracle(vector_of(theta), np.stack([vector_of(tau) for tau in taus]))
        ends = np.cumsum([leaf.size for leaf in theta.values()])[:-1]
        return {p: part.reshape(theta[p].shape) for p, part in zip(theta, np.split(merged, ends), strict=True)}

    return of_trees


def vector_of(tree: Tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in tree.values()])


def zeros_like(tree: Tree) -> Tree:
    return {path: np.zeros_like(leaf) for path, leaf in tree.items()}


def slow_ties(theta, taus, density, scaling_coef, merge="mean"):
    """TIES entry by entry, as a person would do it on paper: the mean of who agrees, or with fusion_bench the sum."""
    merged = theta.copy()
    kept = []
    for tau in taus:
        smallest = sorted(abs(tau))[::-1][round(density * len(tau)) - 1]
        kept.append([entry if abs(entry) >= smallest else 0.0 for entry in tau])
    for i in range(len(theta)):
        entries = [tau[i] for tau in kept]
        winners = [entry for entry in entries if entry * sum(entries) > 0]
        if winners:
            merged[i] += scaling_coef * sum(winners) / (len(winners) if merge == "mean" else 1)
    return merged


def slow_stitch(theta, taus, density):
    """Localize-and-Stitch without data, entry by entry: the mean of who keeps it."""
    kept = []
    for tau in taus:
        smallest = sorted(abs(tau))[::-1][round(density * len(tau)) - 1]
        kept.append([abs(entry) >= smallest and entry != 0 for entry in tau])
    merged = theta.copy()
    for i in range(len(theta)):
        if any(keeps[i] for keeps in kept):
            merged[i] += np.mean([tau[i] for tau, keeps in zip(taus, kept, strict=True) if keeps[i]])
    return merged


ORACLES = {
    "adamerging": Case({}, with_data.moved, fitted=with_data.coefs),
    "atlas": Case({}, with_data.moved, fitted=with_data.coefs),
    "breadcrumbs": Case(
        {"smallest": 0.35, "largest": 0.2, "scaling_coef": 0.5},
        slow_breadcrumbs(smallest=0.35, largest=0.2, scaling_coef=0.5),
    ),
    "cart": Case(
        {"rank": 0.5, "scaling_coef": 0.6}, by_matrix(lambda tasks: spectral.cart(tasks, 0.5, 0.6)), exact=False
    ),
    "consensus": Case(
        {"tasks": 2, "threshold": 0.37, "scaling_coef": 0.5},
        entrywise(lambda theta, taus: slow_consensus(theta, taus, 2, 0.37, 0.5)),
    ),
    "core_space": Case(
        {"merge": "ties", "rank": 3, "density": 0.4, "scaling_coef": 0.5},
        spectral.in_core_space(
            lambda taus: entrywise(lambda zero, rows: slow_ties(zero, rows, 0.4, 1.0))(zeros_like(taus[0]), taus),
            rank=3,
            scaling_coef=0.5,
        ),
        exact=False,
    ),
    "dare": Case({"drop_rate": 0.0, "key": jax.random.key(0)}, entrywise(lambda theta, taus: theta + taus.sum(0))),
    "della": Case(
        {"drop_rate": 0.0, "window": 0.0, "key": jax.random.key(0), "scaling_coef": 1.5},
        entrywise(lambda theta, taus: slow_ties(theta, taus, 1.0, 1.5)),
    ),
    "exact_coefficients": Case({}, with_data.moved_by_task, fitted=with_data.task_coefs),
    "fisher": Case({"floor": 2.0}, with_data.fisher, fitted=with_data.fishers),
    "iso_c": Case({"scaling_coef": 1.5}, by_matrix(spectral.iso_c, scaling_coef=1.5), exact=False),
    "iso_cts": Case(
        {"common": 0.3, "scaling_coef": 1.5},
        by_matrix(lambda tasks: spectral.iso_cts(tasks, 0.3), scaling_coef=1.5),
        exact=False,
        tasks=2,
    ),
    "karcher": Case(
        {"iterations": 100, "tolerance": 1e-12, "scaling_coef": 0.5}, slow_karcher(scaling_coef=0.5), exact=False
    ),
    "lines": Case({"shallow": 0.75, "scaling_coef": 0.5}, slow_lines(shallow=0.75, scaling_coef=0.5)),
    "localize_and_stitch": Case({"density": 0.3}, entrywise(lambda theta, taus: slow_stitch(theta, taus, 0.3))),
    "localize_few_shot": Case({}, with_data.stitched, fitted=with_data.masks),
    "magmax": Case({"scaling_coef": 0.5}, entrywise(lambda theta, taus: slow_magmax(theta, taus, 0.5))),
    "model_stock": Case({}, by_tensor(slow_model_stock), exact=False),
    "pcb": Case(
        {"ratio": 0.3, "outliers": 0.05, "scaling_coef": 1.5},
        entrywise(lambda theta, taus: slow_pcb(theta, taus, 0.3, 0.05, 1.5)),
        exact=False,
        unit=1 / 16,
    ),
    "regmean": Case({"off_diagonal": 0.7}, with_data.regmean, exact=False, fitted=with_data.grams),
    "regmean_plusplus": Case({"off_diagonal": 0.7}, with_data.regmean, exact=False, fitted=with_data.grams),
    "slerp": Case({"scaling_coef": 0.5}, slow_slerp(share=0.5, scaling_coef=0.5), exact=False, tasks=2),
    "star": Case(
        {"share": 0.6, "scaling_coef": 0.7},
        by_matrix(lambda tasks: spectral.star(tasks, 0.6), scaling_coef=0.7),
        exact=False,
    ),
    "svc": Case(
        {"merge": "task_arithmetic", "scaling_coef": 0.7},
        by_matrix(
            lambda tasks: spectral.calibrated(sum(tasks), tasks, 1 / 3), lambda leaves: leaves.sum(0), scaling_coef=0.7
        ),
        exact=False,
    ),
    "task_arithmetic": Case({"scaling_coef": 0.5}, entrywise(lambda theta, taus: theta + 0.5 * taus.sum(0))),
    "ties": Case(
        {"density": 0.3, "scaling_coef": 1.5}, entrywise(lambda theta, taus: slow_ties(theta, taus, 0.3, 1.5))
    ),
    "tsv_m": Case({"scaling_coef": 0.5}, by_matrix(spectral.tsv_m, scaling_coef=0.5), exact=False),
    "weight_average": Case({}, entrywise(lambda theta, taus: theta + taus.mean(0))),
    "wudi": Case(
        {"ridge": 0.1, "scaling_coef": 0.5},
        by_matrix(lambda tasks: spectral.wudi(tasks, "norm", 0.1), scaling_coef=0.5),
        exact=False,
    ),
}
"""Options, and the oracle in float64. A method that draws is tried where its draws decide nothing."""
