"""The curvature of a task at θ₀, in factors: second moments of what dense layers are given, and of gradients there.

For a response Jτ of the features f(x; θ) to a change τ of θ₀ and v ~ N(0, I), E_v (vᵀJτ)² = ‖Jτ‖². Of one dense layer,
y_n = Wᵀa_n for the tokens n of an example, with g_n = (∂f/∂y_n)ᵀ v,

    vᵀJτ = Σ_n a_nᵀ ΔW g_n        ‖Jτ‖² = E_v (Σ_n a_nᵀ ΔW g_n)².                                                 (1)

Written out this is a sum over pairs of tokens. Two steps make two small matrices of it:

    E Σ_n (a_nᵀ ΔW g_n)²     pairs n ≠ m are left out, as if what v sends to two tokens were uncorrelated;        (2)
    tr(B ΔWᵀ A ΔW)           A = E [1/N Σ_n a_n a_nᵀ], B = E Σ_n g_n g_nᵀ, as if a_n and g_n were independent.     (3)

A is a mean over tokens and B a sum: in (2) there are N terms, and a mean in both would be too small by N. The number of
tokens of each layer is kept (`Kronecker.tokens`), for whoever wants the mean. Where (3) is exact: with one token (2)
leaves nothing out, so that a layer with one token and g independent of a has its exact curvature. The output
projection is one, where g = v: B = I and A = E aaᵀ. So are several tokens that v reaches through different features,
with one distribution of a g each. Where tokens act alike, as before a mean over them, (2) is smaller than (1), up to N
times; where what they do cancels, it is larger. Between layers, products of gradients are left out everywhere.

A token whose g_n is exactly zero has no way to the features, padding for example: it is counted in neither A nor N.

Source: "Kronecker-factored approximate curvature" for shared weights, Eschenhagen et al. 2023 ("expand"), and for task
arithmetic arXiv 2602.17385 (TAK), which takes the mean over tokens in B as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from tajax import tracing, trees
from tajax.curvature.roles import Roles, roles
from tajax.types import ApplyFn, Params


class Kronecker(NamedTuple):
    """A and B of a leaf in each of its L layers; a bias is the last row of its kernel, with 1 for its input."""

    inputs: Float[Array, "L K K"] | Float[Array, "L V"]
    """A. Of a table of vectors its diagonal, the share of each row: a row is given 1, and tokens other rows."""
    outputs: Float[Array, "L M M"]
    """B."""
    tokens: Float[Array, " L"]
    """The mean number of tokens that reach the features."""


class Factors(NamedTuple):
    """The curvature of one task: E‖Jτ‖² is about what `tajax.curvature.penalty.energies` makes of it."""

    kronecker: dict[str, Kronecker]
    """By the path of a leaf, or by those of a kernel and its bias (`Dense.name`)."""
    gram: dict[str, Float[Array, "L n n"]]
    """E ggᵀ of all numbers of a leaf, g the gradient of vᵀf, by path: exact."""
    feature_square: Float[Array, ""]
    """E‖f(x; θ₀)‖²."""
    examples: Float[Array, ""]
    """Examples that all this is a mean over."""


SumsFn: TypeAlias = Callable[[Params, PyTree[Array], Float[Array, "B E"], Float[Array, " B"]], Factors]


def make_sums(
    apply: ApplyFn, params: Params, example: PyTree[Array], trained: Collection[str], *, stacked: str | None
) -> SumsFn:
    """`(params, inputs, cotangents, weights) -> Factors`, compiled: sums over a batch, for `mean_of`.

    Args:
        apply: `(params, inputs) -> features [B, E]`, of which no row depends on another's inputs.
        params: θ₀, for its shapes.
        example: inputs of one example, [1, ...].
        trained: paths of the leaves that the factors are for.
        stacked: as in `roles`.

    Returns:
        A function of θ₀, inputs [B, ...], the v of each example [B, E], and 1 for each example that counts, else 0.
        One backward pass an example, and memory for what all layers are given and send back.

    Raises:
        ValueError: as `roles`, before anything is compiled.
    """
    shapes: dict[tracing.Block, jax.ShapeDtypeStruct] = {}
    found: list[tracing.Seen] = []

    def look(params: Params, inputs: PyTree[Array]) -> Array:
        def tap(block: tracing.Block, rows: Array, outputs: Array) -> Array:
            shapes[block] = jax.ShapeDtypeStruct(outputs.shape, outputs.dtype)
            return outputs

        features, seen = tracing.run(apply, params, inputs, tap)
        found.append(seen)
        return features

    jax.eval_shape(look, params, example)
    taken = roles(found[0], params, trained, stacked=stacked)
    kernels = {one.kernel for one in taken.dense}
    tapped = {_key(block): shape for block, shape in shapes.items() if block.path in kernels}
    small = (*taken.rows, *taken.gram)

    def of_example(params: Params, inputs: PyTree[Array], cotangent: Array) -> tuple[Array, Given, Given, Given]:
        """‖f‖², and of one example the rows that dense layers are given, gradients there, and those of small leaves."""
        flat, structure = trees.flatten_paths(params), jax.tree.structure(params)

        def shifted(shifts: Given, moved: Given) -> tuple[Array, Given]:
            given: Given = {}

            def tap(block: tracing.Block, rows: Array, outputs: Array) -> Array:
                if _key(block) not in shifts:
                    return outputs
                given[_key(block)] = rows
                return outputs + shifts[_key(block)]

            leaves = [moved.get(path, leaf) for path, leaf in flat.items()]
            one = jax.tree.map(lambda leaf: leaf[None], inputs)
            features, _ = tracing.run(apply, jax.tree.unflatten(structure, leaves), one, tap)
            return features[0], given

        zeros = {key: jnp.zeros(shape.shape, shape.dtype) for key, shape in tapped.items()}
        moved = {path: flat[path] for path in small}
        features, pull, given = jax.vjp(shifted, zeros, moved, has_aux=True)
        back, gradients = pull(cotangent.astype(features.dtype))
        return jnp.sum(features**2), given, back, gradients

    @jax.jit
    def sums(params: Params, inputs: PyTree[Array], cotangents: Array, weights: Array) -> Factors:
        squares, given, back, gradients = jax.vmap(of_example, (None, 0, 0))(params, inputs, cotangents)
        back, gradients = (
            {key: leaf * jnp.expand_dims(weights, range(1, leaf.ndim)) for key, leaf in of.items()}
            for of in (back, gradients)
        )
        return Factors(
            _dense_factors(taken, given, back) | _row_factors(taken, gradients),
            {
                path: _product("bln,blm->lnm", leaf := gradients[path].reshape(-1, *shape), leaf)
                for path, shape in taken.gram.items()
            },
            jnp.sum(squares * weights),
            jnp.sum(weights),
        )

    return sums


def mean_of(sums: Factors) -> Factors:
    """The means that sums over examples are for.

    Raises:
        ValueError: no example counts.
    """
    if not float(sums.examples):
        raise ValueError("the factors are means over no example at all")
    return jax.tree.map(lambda leaf: leaf / sums.examples, sums)._replace(examples=sums.examples)


Given: TypeAlias = dict[str, Array]


def _key(block: tracing.Block) -> str:
    return f"{block.path}#{block.number}"


def _dense_factors(taken: Roles, given: Given, back: Given) -> dict[str, Kronecker]:
    factors = {}
    for one in taken.dense:
        layers = []
        for number in range(one.layers):
            rows, sent = (of[f"{one.kernel}#{number}"] for of in (given, back))
            if one.bias is not None:
                rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
            reached = jnp.any(sent != 0, axis=-1).astype(rows.dtype)  # [B, N]
            tokens = jnp.sum(reached, axis=1)
            share = reached / jnp.maximum(tokens, 1)[:, None]
            outputs = _product("bnm,bnk->mk", sent, sent)
            layers.append(Kronecker(_product("bnk,bnj->kj", rows * share[..., None], rows), outputs, jnp.sum(tokens)))
        factors[one.name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return factors


def _row_factors(taken: Roles, gradients: Given) -> dict[str, Kronecker]:
    factors = {}
    for path, shape in taken.rows.items():
        gradient = gradients[path].reshape(-1, *shape)
        reached = jnp.any(gradient != 0, axis=-1).astype(gradient.dtype)  # [B, L, V]
        tokens = jnp.sum(reached, axis=-1)
        share = jnp.sum(reached / jnp.maximum(tokens, 1)[..., None], axis=0)
        factors[path] = Kronecker(share, _product("blvd,blve->lde", gradient, gradient), jnp.sum(tokens, axis=0))
    return factors


def _product(equation: str, *arrays: Array) -> Array:
    """Summed in float32 at least: once a task, and of which all digits count."""
    arrays = tuple(array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in arrays)
    return jnp.einsum(equation, *arrays, precision=jax.lax.Precision.HIGHEST)
