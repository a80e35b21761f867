"""RegMean++: RegMean on what the layers of the merged model are given, one layer after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from tajax import tracing, trees
from tajax.linearization import Linearized
from tajax.merging.method import check_data
from tajax.merging.methods.regmean import (
    HIGHEST,
    Grams,
    counted,
    fit_regmean,
    least_squares_mean,
    regmean,
    second_moments,
)
from tajax.task_vectors import apply_task_vector, combine
from tajax.tracing import Block
from tajax.types import ApplyFn, Batch, Head, Params


def regmean_plusplus(pretrained: Params, taus: Sequence[Params], *, grams: Grams, off_diagonal: float = 0.95) -> Params:
    """`regmean` with other second moments: of what each dense layer is given by the merged layers before it.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        grams: from `fit_regmean_plusplus`, which must have had the same `off_diagonal`.
        off_diagonal: γ in [0, 1]. A Python number, known when compiling.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: as `regmean`.

    Source:
        Nguyen et al. 2025, "RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model
        Merging", arXiv 2508.03121.
        There a transformer block is a layer: within it the inputs are those of the fine-tuned model's own layers. Here
        every dense layer is one.

    Example:
        >>> grams = {"w": jnp.array([[[[1.0]]], [[[3.0]]]])}
        >>> taus = [{"w": jnp.array([[2.0]])}, {"w": jnp.array([[6.0]])}]
        >>> regmean_plusplus({"w": jnp.zeros((1, 1))}, taus, grams=grams)
        {'w': Array([[5.]], dtype=float32)}
    """
    return regmean(pretrained, taus, grams=grams, off_diagonal=off_diagonal)


def fit_regmean_plusplus(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    off_diagonal: float = 0.95,
) -> dict[str, Grams]:
    """The second moments of what each dense layer is given, by task, in the model whose layers before it are merged.

    All examples of all tasks go through the model together, once: where they meet a dense layer its merged matrix is
    found, and what it gives goes on. That costs the forward passes of `fit_regmean` and one eigendecomposition a layer,
    and memory for the inputs of one layer on all examples at once. What is no dense layer is averaged before. In a
    linearised model no layer moves what another is given: there they are those of `fit_regmean`. Texts are made as long
    as the longest by padding, which counts for nothing.

    Args:
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task, all with inputs of one shape but for the length of texts; no label is read.
        heads: not read.
        off_diagonal: γ in [0, 1].

    Returns:
        `grams` for `regmean_plusplus`, means over examples.

    Raises:
        ValueError: inputs have different shapes, such as images of different sizes, or as `check_data`.
    """
    if isinstance(encode, Linearized):
        return fit_regmean(encode, pretrained, taus, batches, heads)
    check_data(pretrained, taus, batches)
    inputs, mask = _together({task: list(batches[task]) for task in taus})
    mean = apply_task_vector(pretrained, combine(list(taus.values()), [1 / len(taus)] * len(taus)))
    kernels = _kernels(encode, mean, jax.tree.map(lambda leaf: leaf[0, :1], inputs))
    moved = [{path: trees.flatten_paths(tau)[path] for path in kernels} for tau in taus.values()]

    @jax.jit
    def moments(
        mean: Params, moved: Sequence[Mapping[str, Array]], every: PyTree[Array], mask: Array
    ) -> dict[tuple[str, int], Array]:
        count = jnp.sum(mask, axis=1)[:, None, None]

        def of_example(inputs: PyTree[Array]) -> dict[tuple[str, int], Array]:
            grams: dict[tuple[str, int], Array] = {}

            def tap(block: Block, rows: Array, outputs: Array) -> Array:
                path, number, k, m = block
                if path not in kernels:
                    return outputs
                # Of all examples of all tasks: the same to each of them, and so computed once.
                everyone = jax.lax.all_gather(jax.lax.all_gather(rows, "examples"), "tasks")  # [T, B, N, K]
                grams[path, number] = second_moments(everyone, counted(every, mask, everyone.shape[-2])) / count
                each = jnp.stack([jnp.asarray(tau[path]).reshape(-1, k, m)[number] for tau in moved])
                step = least_squares_mean(grams[path, number], each, off_diagonal) - jnp.mean(each, axis=0)
                return outputs + jnp.matmul(rows, step, precision=HIGHEST).astype(outputs.dtype)

            tracing.run(encode, mean, jax.tree.map(lambda leaf: leaf[None], inputs), tap)
            return grams

        of_task = jax.vmap(of_example, axis_name="examples", out_axes=None)
        return jax.vmap(of_task, axis_name="tasks", out_axes=None)(every)

    found = moments(mean, moved, inputs, mask)
    return {"grams": {p: jnp.stack([found[p, n] for n in range(one.layers)], axis=1) for p, one in kernels.items()}}


def _together(batches: Mapping[str, Sequence[Batch]]) -> tuple[PyTree[Array], Array]:
    """The inputs [T, B, ...] of all tasks, and which of them count [T, B]; tasks with fewer are padded."""
    every = [batch for of_task in batches.values() for batch in of_task]
    counts = [sum(len(batch.mask) for batch in of_task) for of_task in batches.values()]

    def stacked(leaves: Sequence[np.ndarray]) -> Array:
        each, most = np.split(np.concatenate(leaves), np.cumsum(counts)[:-1]), max(counts)
        return jnp.asarray(
            np.stack(
                [np.concatenate([rows, np.zeros((most - len(rows), *rows.shape[1:]), rows.dtype)]) for rows in each]
            )
        )

    columns = zip(*(jax.tree.leaves(batch.inputs) for batch in every), strict=True)
    inputs = [stacked(_of_one_shape([np.asarray(leaf) for leaf in column])) for column in columns]
    structure = jax.tree.structure(every[0].inputs)
    return jax.tree.unflatten(structure, inputs), stacked([np.asarray(batch.mask) for batch in every])


def _of_one_shape(leaves: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """The inputs of all batches; rows of token ids, which are signed integers, as long as the longest, by −1."""
    if all(leaf.ndim == 2 and np.issubdtype(leaf.dtype, np.signedinteger) for leaf in leaves):
        longest = max(leaf.shape[1] for leaf in leaves)
        return [np.pad(leaf, ((0, 0), (0, longest - leaf.shape[1])), constant_values=-1) for leaf in leaves]
    shapes = {leaf.shape[1:] for leaf in leaves}
    if len(shapes) > 1:
        raise ValueError(
            f"the examples have different shapes, {sorted(shapes)}: layer after layer they must go through the model "
            "together. Give examples of one shape, or take regmean."
        )
    return leaves


def _kernels(encode: ApplyFn, params: Params, inputs: PyTree[Array]) -> dict[str, tracing.Matrices]:
    seen: list[tracing.Seen] = []

    def look(params: Params, inputs: PyTree[Array]) -> Array:
        outputs, found = tracing.run(encode, params, inputs)
        seen.append(found)
        return outputs

    jax.eval_shape(look, params, inputs)
    return tracing.matrices(seen[0], params)
