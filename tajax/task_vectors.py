"""Task vectors: differences of parameters, and the arithmetic on them (Ilharco et al. 2023).

All of it works on any pytree, under `jit`, `grad` and `vmap`, and on sharded arrays. A task vector is a float
tree: its leaves are float32 or wider whatever the dtype of the parameters, so that adding many vectors to
bfloat16 weights rounds once. Leaves of the parameters that are not floating point, such as position indices,
are never moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from tajax import host, trees
from tajax.rules import STACKED
from tajax.types import Params, Tree


def task_vector(pretrained: Tree, finetuned: Params) -> Tree:
    """What fine-tuning changed, τ = θ₁ − θ₀ (Ilharco et al. 2023, §2).

    Args:
        pretrained: θ₀.
        finetuned: θ₁, a tree with the paths and shapes of `pretrained`.

    Returns:
        τ, a tree like `pretrained`, in float32 or wider. It is zero at leaves that are not floating point.

    Raises:
        ValueError: the trees differ, or a leaf that is not floating point changed. Names the first such path.

    Example:
        >>> task_vector({"w": jnp.ones(2)}, {"w": jnp.array([1.0, 3.0])})
        {'w': Array([0., 2.], dtype=float32)}
    """
    trees.check_same_tree(pretrained, finetuned, what=("pretrained", "finetuned"))
    _check_constants(pretrained, finetuned)

    def difference(before: ArrayLike, after: ArrayLike) -> Array:
        if not trees.is_float(before):
            return jnp.zeros(jnp.shape(before), jnp.float32)
        return _widen(after) - _widen(before)

    return trees.map_leaves(difference, pretrained, finetuned)


def apply_task_vector(pretrained: Tree, tau: Params, scaling_coef: ArrayLike = 1.0) -> Tree:
    """Parameters moved along a task vector, θ + λτ (Ilharco et al. 2023, §2).

    Args:
        pretrained: θ, usually the pre-trained parameters.
        tau: τ, a tree with the paths and shapes of `pretrained`.
        scaling_coef: λ, a scalar. 1 restores the fine-tuned model, a negative value forgets the task.

    Returns:
        A new tree with the dtypes of `pretrained`; sums are taken in float32 or wider.

    Raises:
        ValueError: the trees differ, and the message names the first path that does; or `scaling_coef` is several
            numbers, which would scale the entries of a leaf and not the vectors of tasks.
        TypeError: `scaling_coef` is not a real number.

    Example:
        >>> apply_task_vector({"w": jnp.ones(2)}, {"w": jnp.full(2, 4.0)}, scaling_coef=0.5)
        {'w': Array([3., 3.], dtype=float32)}
    """
    check_scalar(scaling_coef, "scaling_coef")

    def move(theta: ArrayLike, step: ArrayLike) -> ArrayLike:
        if not trees.is_float(theta):
            return theta
        wide = _widen(theta)
        return (wide + _scaled(scaling_coef, _widen(step))).astype(jnp.asarray(theta).dtype)

    return trees.map_leaves(move, pretrained, tau)


def combine(taus: Sequence[Tree], coefs: Sequence[ArrayLike] | Float[Array, " T"] | None = None) -> Tree:
    """A linear combination of task vectors, Σ_t c_t τ_t.

    Args:
        taus: T trees with the same paths and shapes.
        coefs: c [T], one for each; all ones by default.

    Returns:
        A tree like the first, in float32 or wider.

    Raises:
        ValueError: there are no vectors, not as many coefficients as vectors, the trees differ, or a coefficient is
            several numbers.
        TypeError: `taus` is one tree instead of a sequence of them, or a coefficient is not a real number.

    Example:
        >>> combine([{"w": jnp.ones(2)}, {"w": jnp.arange(2.0)}], coefs=[1.0, -2.0])
        {'w': Array([ 1., -1.], dtype=float32)}
    """
    trees.check_taus(taus)
    if coefs is None:
        coefs = [1.0] * len(taus)
    shape = getattr(coefs, "shape", None) if not isinstance(coefs, Sequence) else (len(coefs),)
    if shape != (len(taus),):
        got = f"{coefs!r}" if shape is None else f"shape {shape}"
        raise ValueError(f"{len(taus)} task vectors need {len(taus)} coefficients, one each; got {got}")
    each = list(coefs)
    for t, coef in enumerate(each):
        check_scalar(coef, f"coefs[{t}]")

    def weighted_sum(*leaves: ArrayLike) -> Array:
        first, *rest = (_scaled(c, _widen(leaf)) for c, leaf in zip(each, leaves, strict=True))
        return sum(rest, start=first)

    return trees.map_leaves(weighted_sum, *taus)


def check_scalar(coef: ArrayLike, what: str) -> None:
    """Raises unless a coefficient is one real number: several would broadcast over the entries of each leaf.

    Holds for traced values as for Python's.

    Args:
        coef: the coefficient.
        what: what to call it in the message.

    Raises:
        ValueError: it is several numbers.
        TypeError: it is a bool, a string, a complex number or no number at all.

    Example:
        >>> check_scalar(jnp.array([0.1, 0.2]), "scaling_coef")
        Traceback (most recent call last):
        ...
        ValueError: scaling_coef has shape (2,), want one number. Coefficients of several task vectors, one each, are
        for `combine(taus, coefs)` or `task_arithmetic(pretrained, taus, coefs=coefs)`.
    """
    if shape := (len(coef),) if isinstance(coef, (list, tuple)) else np.shape(coef):
        raise ValueError(
            f"{what} has shape {shape}, want one number. Coefficients of several task vectors, one each, are for "
            "`combine(taus, coefs)` or `task_arithmetic(pretrained, taus, coefs=coefs)`."
        )
    dtype = coef.dtype if hasattr(coef, "dtype") else np.asarray(coef).dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{what} is {coef!r} of type {type(coef).__name__}, want a real number.")


def negate(tau: Tree) -> Tree:
    """The opposite of a task vector, −τ: it forgets the task (Ilharco et al. 2023, §3)."""
    return jax.tree.map(lambda leaf: -leaf, tau)


def analogy(a: Params, b: Params, c: Tree) -> Tree:
    """What is to c as b is to a: c + (b − a), of task vectors or of parameters (Ilharco et al. 2023, §5).

    Returns:
        A tree with the dtypes of `c`.

    Raises:
        ValueError: the trees differ. The message names the first path that does.

    Example:
        >>> analogy({"w": jnp.zeros(1)}, {"w": jnp.full(1, 2.0)}, {"w": jnp.ones(1)})
        {'w': Array([3.], dtype=float32)}
    """
    return apply_task_vector(c, task_vector(a, b))


def dot(a: Params, b: Params) -> Num[Array, ""]:
    """Inner product of two task vectors over all entries, in float32 or wider; of complex ones the real part, Re⟨a, b⟩.

    Raises:
        ValueError: the trees differ. The message names the first path that does.

    Example:
        >>> dot({"w": jnp.ones(2), "b": 1.0}, {"w": jnp.full(2, 3.0), "b": -1.0})
        Array(5., dtype=float32)
    """
    products = trees.map_leaves(lambda x, y: jnp.sum(_real_product(_widen(x), _widen(y))), a, b, what=("a", "b"))
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def norm(tau: Params) -> Num[Array, ""]:
    """Euclidean norm over all entries, ‖τ‖, in float32 or wider.

    Example:
        >>> norm({"w": jnp.array([3.0]), "b": jnp.array(4.0)})
        Array(5., dtype=float32)
    """
    return jnp.sqrt(dot(tau, tau))


def cosine_similarity(a: Params, b: Params) -> Num[Array, ""]:
    """Cosine of the angle between two task vectors, ⟨a, b⟩ / ‖a‖‖b‖ in [−1, 1]; NaN if either is zero.

    Raises:
        ValueError: the trees differ. The message names the first path that does.

    Example:
        >>> cosine_similarity({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-2.0, 0.0])})
        Array(-1., dtype=float32)
    """
    return dot(a, b) / (norm(a) * norm(b))


def gram_by_module(taus: Sequence[Params], *, stacked: str | None = STACKED) -> dict[str, Float[Array, "T T *L"]]:
    """Inner products of task vectors, module by module, and layer by layer where layers are stacked.

        G_m[s, t] = Σ_{leaves of module m} ⟨τ_s, τ_t⟩

    A module is what owns a leaf: `attn/query` its kernel and its bias. The modules together make up the whole
    vector, so the sum of all G is the matrix of `dot`, the roots of the diagonals are norms, and quotients are cosines
    (`cosine_matrix`).

    Args:
        taus: T trees with the same paths and shapes.
        stacked: of modules below this path every leaf has a leading axis of L layers, which is kept; None if there is
            no such path; that of a CLIP by default.

    Returns:
        By the module's path [T, T], or [T, T, L] where stacked, in the order of the tree; float32 or wider. A leaf at
        the top of the tree is a module of its own.

    Raises:
        ValueError: there are no vectors, or the trees differ.
        TypeError: `taus` is one tree instead of a sequence of them.

    Example:
        >>> tau = {"blocks": {"ln": {"scale": jnp.array([[3.0], [0.0]]), "bias": jnp.array([[4.0], [1.0]])}}, "w": 2.0}
        >>> {module: gram.squeeze().tolist() for module, gram in gram_by_module([tau]).items()}
        {'blocks/ln': [25.0, 1.0], 'w': 4.0}
    """
    trees.check_taus(taus)
    flats = [trees.flatten_paths(tau) for tau in taus]
    grams: dict[str, Array] = {}
    for path in flats[0]:
        module = path.rpartition("/")[0] or path
        depth = 1 if stacked and f"/{stacked}/" in f"/{path}" else 0
        leaves = [_widen(flat[path]) for flat in flats]
        rows = [[jnp.sum(a * b, axis=tuple(range(depth, a.ndim))) for b in leaves] for a in leaves]
        gram = jnp.stack([jnp.stack(row) for row in rows])
        grams[module] = grams[module] + gram if module in grams else gram
    return grams


def cosine_matrix(gram: Float[ArrayLike, "T T *L"]) -> Float[Array, "T T *L"]:
    """Cosines from inner products, G[s, t] / √(G[s, s] G[t, t]): 1 on the diagonal, NaN where a vector is zero.

    Args:
        gram: from `gram_by_module`, or the sum of several of its values.

    Example:
        >>> cosine_matrix(jnp.array([[4.0, -3.0], [-3.0, 9.0]]))
        Array([[ 1. , -0.5],
               [-0.5,  1. ]], dtype=float32)
    """
    lengths = jnp.sqrt(jnp.moveaxis(jnp.diagonal(gram, axis1=0, axis2=1), -1, 0))  # [T, *L]
    return jnp.divide(gram, lengths[:, None] * lengths[None])


def _widen(leaf: ArrayLike) -> Array:
    array = jnp.asarray(leaf)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4  # JAX promotes no 8-bit floats
    return array.astype(jnp.float32 if narrow else jnp.promote_types(array.dtype, jnp.float32))


def _real_product(x: Array, y: Array) -> Array:
    return x.real * y.real + x.imag * y.imag if jnp.iscomplexobj(x) or jnp.iscomplexobj(y) else x * y


def _scaled(coef: ArrayLike, leaf: Array) -> Array:
    return jnp.asarray(coef).astype(leaf.dtype) * leaf


def _check_constants(before: Params, after: Params) -> None:
    flat, later = trees.flatten_paths(before), trees.flatten_paths(after)
    for path, can_move in trees.float_leaves(flat).items():
        leaf = flat[path]
        traced = isinstance(leaf, jax.core.Tracer) or isinstance(later[path], jax.core.Tracer)
        if not can_move and not traced and not bool(jnp.all(leaf == later[path])):
            raise ValueError(
                f"{path!r} is {trees.dtype_of(leaf)} and differs between pretrained and finetuned: it has no"
                " direction to move along. Leave it out of both trees"
            )


def moved_leaves(taus: Sequence[Params]) -> list[dict[str, ArrayLike]]:
    """The leaves, by path, in which any of the vectors is not zero: what there is to carry to a device.

    Waits for the device; not for use under `jit`.

    Example:
        >>> moved_leaves([{"w": np.ones(1), "b": np.zeros(1)}, {"w": np.zeros(1), "b": np.zeros(1)}])
        [{'w': array([1.])}, {'w': array([0.])}]
    """
    flats = [trees.flatten_paths(tau) for tau in taus]
    moved = jax.device_get([{path: _any_nonzero(leaf) for path, leaf in flat.items()} for flat in flats])
    return [{path: leaf for path, leaf in flat.items() if any(m[path] for m in moved)} for flat in flats]


def _any_nonzero(leaf: ArrayLike) -> ArrayLike:
    return host.moves(leaf) if isinstance(leaf, np.ndarray) else _device_moves(leaf)


@jax.jit
def _device_moves(leaf: ArrayLike) -> Array:
    return jnp.any(jnp.asarray(leaf) != 0)
