"""RegMean: for each dense layer the matrix whose outputs are nearest to those of all fine-tuned models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, PyTree

from tajax import tracing, trees
from tajax.linearization import Linearized
from tajax.merging.method import check_data
from tajax.task_vectors import apply_task_vector
from tajax.tracing import Block
from tajax.types import ApplyFn, Batch, Head, Params

Grams = Mapping[str, ArrayLike]
"""By the path of each dense layer's kernel [T, L, K, K]: of T tasks and L layers the second moments of its inputs."""
HIGHEST = jax.lax.Precision.HIGHEST  # bfloat16 products, the default on TPU, would spoil the solution


def regmean(pretrained: Params, taus: Sequence[Params], *, grams: Grams, off_diagonal: float = 0.95) -> Params:
    """The least-squares mean of the models' dense layers, (Σ_t G̃_t)⁻¹ Σ_t G̃_t W_t, and the mean of all else.

    W minimises Σ_t ‖X_t W − X_t W_t‖² over the inputs X_t of the layer in each fine-tuned model, with G_t = X_tᵀX_t; in
    G̃_t entries off the diagonal are multiplied by γ. In directions that no input has, W is the mean of the W_t.

    A linearised model sees W_t in f(θ₀) + J τ_t alone, in which the layer has the inputs X_t that it has at θ₀ and adds
    X_t (W_t − W_0): with the moments of these W is the least-squares mean there, θ₀ + (Σ_t G̃_t)⁺ Σ_t G̃_t τ_t.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`; W_t is that of θ₀ + τ_t.
        grams: G from `fit_regmean`, by the path of a kernel [T, L, K, K]. Leaves that are not named are averaged.
        off_diagonal: γ in [0, 1]. A Python number, known when compiling.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `off_diagonal` is out of range, there are no vectors, one differs from `pretrained`, or `grams` has
            an unknown path or a shape that does not fit.

    Source:
        Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", §3; γ is their α. That of
        linearised models is our extension.

    Example:
        >>> grams = {"w": jnp.array([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 0.0], [0.0, 4.0]]]])}
        >>> taus = [{"w": jnp.full((2, 1), 2.0)}, {"w": jnp.full((2, 1), 6.0)}]
        >>> regmean({"w": jnp.zeros((2, 1))}, taus, grams=grams)["w"].tolist()  # only the second has the second input
        [[4.0], [6.0]]
    """
    if not 0 <= off_diagonal <= 1:
        raise ValueError(f"off_diagonal multiplies the products of different inputs, in [0, 1]; got {off_diagonal}")
    trees.check_taus(taus, pretrained)
    flats = [trees.flatten_paths(tau) for tau in taus]
    trees.check_same_names("grams", (), set(grams) - set(flats[0]), "the task vectors")

    def merged(path: str, entries: Array) -> Array:
        if path not in grams:
            return jnp.mean(entries, axis=0)
        gram = jnp.asarray(grams[path])
        tasks, (layers, k) = len(taus), gram.shape[1:3] if gram.ndim == 4 else (1, 0)
        if gram.shape != (tasks, layers, k, k) or not k * layers or entries[0].size % (layers * k):
            shape = entries.shape[1:]
            raise ValueError(
                f"grams has shape {gram.shape} at {path!r}, want [T, L, K, K] for {tasks} tasks and a kernel of shape "
                f"{shape}, L layers of K inputs"
            )
        by_layer = jnp.swapaxes(gram, 0, 1), jnp.swapaxes(entries.reshape(tasks, layers, k, -1), 0, 1)
        # Not vmap: on CPUs two decompositions of several matrices each, at one time, can wait for each other for ever.
        solved = jax.lax.map(lambda one: least_squares_mean(one[0], one[1], off_diagonal), by_layer)
        return solved.reshape(entries.shape[1:])

    step = {}
    for path in flats[0]:
        leaves = [jnp.asarray(flat[path]) for flat in flats]
        step[path] = merged(path, jnp.stack([leaf.astype(jnp.result_type(jnp.float32, *leaves)) for leaf in leaves]))
    return apply_task_vector(pretrained, jax.tree.unflatten(jax.tree.structure(taus[0]), list(step.values())))


def least_squares_mean(
    gram: Float[Array, "T K K"], matrices: Float[Array, "T K M"], off_diagonal: float
) -> Float[Array, "K M"]:
    """W̄ + (Σ_t G̃_t)⁺ Σ_t G̃_t (W_t − W̄): equal G give the mean W̄, to the bit, and so do inputs that never occur.

    The sum is inverted after each input has been scaled to a second moment of 1: its condition number is then at most
    K / (1 − γ), whatever the inputs' sizes.
    """
    k = gram.shape[-1]
    weights = jnp.where(jnp.eye(k, dtype=bool)[None], 1.0, off_diagonal).astype(matrices.dtype) * gram
    mean = jnp.mean(matrices, axis=0)
    pull = jnp.einsum("tij,tjm->im", weights, matrices - mean[None], precision=HIGHEST)
    total = jnp.sum(weights, axis=0)
    moments = jnp.diagonal(total)
    scale = jnp.where(moments > 0, jax.lax.rsqrt(jnp.where(moments > 0, moments, 1)), 0)
    values, vectors = jnp.linalg.eigh(scale[:, None] * total * scale[None])
    kept = values > 10 * jnp.finfo(values.dtype).eps * jnp.max(values, initial=0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    along = jnp.matmul(vectors.T, scale[:, None] * pull, precision=HIGHEST)
    return mean + scale[:, None] * jnp.matmul(vectors, inverse[:, None] * along, precision=HIGHEST)


def fit_regmean(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
) -> dict[str, Grams]:
    """The second moments of what the dense layers of each fine-tuned model are given, G_t = X_tᵀX_t / n.

    Which leaves are kernels of dense layers is read off the program of `encode` (`tajax.tracing`). A row is a token, of
    texts one that is no padding. One forward pass an example; the result is K² numbers a layer and task, which is
    more than the vectors have where layers are narrowing. Of a linearised model, whose inputs no vector moves, they are
    those of the layers at θ₀.

    Args:
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task; no label is read.
        heads: not read.

    Returns:
        `grams` for `regmean`, means over examples.

    Raises:
        ValueError: as `check_data`.
    """
    check_data(pretrained, taus, batches)
    forward, at_start = (encode.apply_fn, True) if isinstance(encode, Linearized) else (encode, False)

    @jax.jit
    def moments(model: Params, batch: Batch) -> dict[str, list[Array]]:
        def given(inputs: object) -> dict[str, list[Array]]:
            rows: dict[tuple[str, int], Array] = {}

            def tap(block: Block, x: Array, outputs: Array) -> Array:
                rows[block.path, block.number] = x
                return outputs

            _, found = tracing.run(forward, model, jax.tree.map(lambda leaf: leaf[None], inputs), tap)
            return {
                path: [rows[path, n] for n in range(one.layers)] for path, one in tracing.matrices(found, model).items()
            }

        return jax.tree.map(
            lambda x: second_moments(x, counted(batch.inputs, batch.mask, x.shape[-2])), jax.vmap(given)(batch.inputs)
        )

    grams: list[dict[str, Array]] = []
    for task, tau in taus.items():
        model, count, total = pretrained if at_start else apply_task_vector(pretrained, tau), 0, None
        for batch in batches[task]:
            part = moments(model, jax.tree.map(jnp.asarray, batch))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
            count += int(np.sum(batch.mask))
        assert total is not None  # `check_data`
        grams.append({path: jnp.stack(layers) / count for path, layers in total.items()})
    return {"grams": {path: jnp.stack([one[path] for one in grams]) for path in grams[0]}}


def counted(inputs: PyTree[Array], mask: ArrayLike, rows: int) -> Bool[Array, "*T B N"]:
    """Which of the N rows that a dense layer is given of each example count: neither padded examples nor padded tokens.

    Ids of tokens, signed integers [*T, B, L], are −1 in padding (`tajax.types.Batch`); a layer that is given L rows of
    such an example is given one for each token.

    Example:
        >>> counted(jnp.array([[5, -1], [7, 8]]), jnp.array([True, True]), 2).tolist()
        [[True, False], [True, True]]
        >>> counted(jnp.ones((2, 8, 8, 3)), jnp.array([True, False]), 1).tolist()
        [[True], [False]]
    """
    kept = jnp.broadcast_to(jnp.asarray(mask)[..., None], (*jnp.shape(mask), rows))
    for leaf in jax.tree.leaves(inputs):
        if leaf.shape == kept.shape and jnp.issubdtype(leaf.dtype, jnp.signedinteger):
            kept &= leaf != -1
    return kept


def second_moments(rows: Float[Array, "*T B N K"], kept: Bool[Array, "*T B N"]) -> Float[Array, "*T K K"]:
    """Σ xxᵀ over the rows that count."""
    x = jnp.where(kept[..., None], rows, 0).astype(jnp.result_type(jnp.float32, rows))
    return jnp.einsum("...bnk,...bnl->...kl", x, x, precision=HIGHEST)
