"""Parameter trees by path: flattening, comparison, and the masks that say which leaves and layers are trained.

A path is the leaf's key path joined by slashes, `image/attn/query/kernel`. Any pytree has such paths:
dictionaries, lists, dataclasses, NNX states, Equinox modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from tajax import host
from tajax.layers import in_layers, put_layers, simplified, take_layers
from tajax.rules import RULES, STACKED, claim_paths, nearest
from tajax.types import LeafMask, Mask, Params, Trained

__all__ = [
    "RULES",
    "check_finite",
    "check_same_tree",
    "check_taus",
    "count_params",
    "dtype_of",
    "float_leaves",
    "flatten_paths",
    "is_float",
    "map_leaves",
    "param_mask",
    "split",
    "trained_layers",
    "unflatten_paths",
]


def flatten_paths(tree: Params) -> dict[str, ArrayLike]:
    """The leaves of a tree by path, in the order of `jax.tree.leaves`.

    The attribute `value`, in which variables of `flax.nnx` and boxes of linen hold an array, is no part of its path.

    Raises:
        ValueError: two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.

    Example:
        >>> flatten_paths({"mlp": {"bias": 1, "kernel": 2}, "scale": [3, 4]})
        {'mlp/bias': 1, 'mlp/kernel': 2, 'scale/0': 3, 'scale/1': 4}
    """
    flat: dict[str, ArrayLike] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if len(key_path) > 1 and key_path[-1] == jax.tree_util.GetAttrKey("value"):
            key_path = key_path[:-1]
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if path in flat:
            raise ValueError(f"two leaves share the path {path!r}; rename one of them")
        flat[path] = leaf
    return flat


def unflatten_paths(flat: Mapping[str, ArrayLike]) -> Params:
    """Nested dictionaries from paths: the inverse of `flatten_paths` for trees of dictionaries.

    Raises:
        ValueError: a path is both a leaf and the parent of another.

    Example:
        >>> unflatten_paths({"mlp/bias": 1, "mlp/kernel": 2, "scale": 3})
        {'mlp': {'bias': 1, 'kernel': 2}, 'scale': 3}
    """
    if list(flat) == [""]:
        return flat[""]
    tree: dict[str, Params] = {}
    parents: dict[str, dict[str, Params]] = {"": tree}
    for path, leaf in flat.items():
        node, walked = tree, ""
        *above, name = path.split("/")
        for part in above:
            walked = f"{walked}/{part}" if walked else part
            if walked not in parents:
                if part in node:
                    raise ValueError(f"path {walked!r} is a leaf, and also the parent of {path!r}")
                node[part] = parents[walked] = {}
            node = parents[walked]
        if name in node:
            raise ValueError(f"path {path!r} is a leaf, and also the parent of another")
        node[name] = leaf
    return tree


def check_same_tree(a: Params, b: Params, *, what: tuple[str, str] = ("pretrained", "task vector")) -> None:
    """Raises unless both trees have the same paths, with the same shapes.

    Containers and dtypes may differ: a `FrozenDict` agrees with a `dict`, bfloat16 with float32.

    Args:
        a: the tree to hold the other against.
        b: the tree to check; leaves may be `jax.ShapeDtypeStruct` in either.
        what: what to call the two in the message.

    Raises:
        ValueError: the message names the first path that differs.

    Example:
        >>> check_same_tree({"w": np.ones(3)}, {"w": np.ones(2)})
        Traceback (most recent call last):
        ...
        ValueError: 'w' has shape (3,) in pretrained but (2,) in task vector
    """
    flat_a, flat_b = flatten_paths(a), flatten_paths(b)
    for present, absent, (name, other) in ((flat_a, flat_b, what), (flat_b, flat_a, what[::-1])):
        missing = [path for path in present if path not in absent]
        if missing:
            raise ValueError(
                f"{missing[0]!r} is in {name} but not in {other}"
                f" ({len(missing)} such {'path' if len(missing) == 1 else 'paths'},"
                f" of {len(present)} in {name} and {len(absent)} in {other})"
                + nearest(missing[0], absent, f". Nearest paths in {other}: ")
            )
    for path, leaf in flat_a.items():
        if np.shape(leaf) != np.shape(flat_b[path]):
            raise ValueError(
                f"{path!r} has shape {np.shape(leaf)} in {what[0]} but {np.shape(flat_b[path])} in {what[1]}"
            )


def map_leaves(
    fn: Callable[..., ArrayLike],
    tree: Params,
    *rest: Params,
    what: tuple[str, str] = ("pretrained", "task vector"),
) -> Params:
    """`fn(leaf, *leaves of the rest)` over trees matched by path; the result has the containers of `tree`.

    Unlike `jax.tree.map` it does not mind other containers, and says which path differs when one does.

    Raises:
        ValueError: the trees differ, as in `check_same_tree`.
    """
    for other in rest:
        check_same_tree(tree, other, what=what)
    flats = [flatten_paths(other) for other in rest]
    leaves = [fn(leaf, *(flat[path] for flat in flats)) for path, leaf in flatten_paths(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def check_same_names(what: str, wanted: Iterable[str], found: Iterable[str], where: str) -> None:
    """Raises `ValueError` that names the first of `wanted` that `what` lacks, or the first it holds beyond them."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    for verb, names, stands in (("lacks", missing, "is in"), ("holds", extra, "is not in")):
        if names:
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            raise ValueError(f"{what} {verb} {names[0]}{more}, which {stands} {where}")


def check_finite(tree: Params, what: str) -> None:
    """Raises if any entry is NaN or infinite. Waits for the device; not for use under `jit`.

    Raises:
        ValueError: names the first path with such an entry, and how many there are.

    Example:
        >>> check_finite({"b": np.zeros(2), "w": np.array([1.0, np.nan])}, "task vector of mnist")
        Traceback (most recent call last):
        ...
        ValueError: task vector of mnist: 1 of the 2 entries of 'w' is not finite (1 of 2 leaves affected)
    """
    flat = flatten_paths(tree)
    bad = {path: _nonfinite(flat[path]) for path, can_train in float_leaves(flat).items() if can_train}
    counts = {path: int(count) for path, count in jax.device_get(bad).items() if count}
    for path, count in counts.items():
        size = math.prod(np.shape(flat[path]))
        raise ValueError(
            f"{what}: {count} of the {size} entries of {path!r} {'is' if count == 1 else 'are'} not finite"
            f" ({len(counts)} of {len(flat)} leaves affected)"
        )


def _nonfinite(leaf: ArrayLike) -> ArrayLike:
    """How many entries are not finite; of what is in NumPy they are counted there, without a copy on the device."""
    if not isinstance(leaf, np.ndarray):
        return _count_nonfinite(leaf)
    bad = ~np.isfinite(host.distinct(leaf))
    return bad.sum() * leaf.size // max(bad.size, 1)


@jax.jit  # one pass over a leaf, no array of verdicts
def _count_nonfinite(leaf: ArrayLike) -> Array:
    return jnp.sum(~jnp.isfinite(leaf))


def check_taus(taus: Sequence[Params], like: Params | None = None, *, what: str = "pretrained") -> None:
    """Raises unless `taus` is a sequence of at least one task vector, each with the paths and shapes of `like`.

    Args:
        taus: the task vectors.
        like: the tree to hold them against, the first of them by default.
        what: what to call that tree in the message.

    Raises:
        ValueError: there are none, or one differs; the message names which, and where.
        TypeError: it is one tree, whose keys would be taken for vectors.
    """
    if isinstance(taus, Mapping) or not isinstance(taus, Sequence):
        raise TypeError(f"expected a list of task vectors, got one {type(taus).__name__}; write [tau] for one of them")
    if not taus:
        raise ValueError("the list of task vectors is empty")
    if like is None:
        like, what = taus[0], "task vector 0"
    for t, tau in enumerate(taus):
        check_same_tree(like, tau, what=(what, f"task vector {t}"))


def is_float(leaf: ArrayLike) -> bool:
    """Whether a leaf can be trained: real or complex floating point, not an integer, a bool or a PRNG key."""
    return jnp.issubdtype(dtype_of(leaf), jnp.inexact)


@no_type_check  # JAX has no public type for the dtype of PRNG keys
def dtype_of(leaf: ArrayLike) -> DTypeLike:
    """The dtype JAX gives a leaf: an array, a Python number, or a `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: the leaf is no number, such as an activation function kept in a module.
    """
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None:
        return dtype
    try:
        return jnp.result_type(leaf)
    except TypeError:
        raise TypeError(
            f"a leaf is {leaf!r} of type {type(leaf).__name__}, not an array. Keep the arrays apart first: "
            "`nnx.split(model, nnx.Param, ...)` or `equinox.partition(model, equinox.is_inexact_array)`"
        ) from None


def float_leaves(flat: Mapping[str, ArrayLike]) -> dict[str, bool]:
    """Whether each leaf can be trained (`is_float`), by path.

    Raises:
        TypeError: a leaf is no number. The message names its path.
    """
    verdicts = {}
    for path, leaf in flat.items():
        try:
            verdicts[path] = is_float(leaf)
        except TypeError as error:
            raise TypeError(f"{path!r}: {error}") from None
    return verdicts


def param_mask(
    params: Params,
    rule: str | Sequence[str] | Mapping[str, bool],
    *,
    layers: tuple[int, int] | None = None,
    rules: Mapping[str, str] = RULES,
    stacked: str | None = STACKED,
) -> Mask:
    """Which leaves are trained, as a pytree of bool like `params`; with `layers`, which of their layers.

    A pattern is a regular expression that must match the whole path of a leaf, or all of it that follows a
    slash: `query/kernel` finds `image/attn/query/kernel`. Leaves that are not floating point are never
    trained.

    Args:
        params: the tree; leaves may be arrays or `jax.ShapeDtypeStruct`.
        rule: a name in `rules`; or one pattern, or several, whose leaves are trained; or a mapping from
            pattern to bool in which the first match decides and every leaf must be claimed.
        layers: the half-open range (first, end) of the layers that are trained, counted from the input; all by
            default. It concerns the leaves below the node `stacked`; what belongs to no layer, such as embeddings, is
            then frozen.
        rules: named patterns, those of the model's family; of a CLIP by default.
        stacked: the node below which all leaves stack the layers along their leading axis, None if there is none; that
            of a CLIP by default.

    Returns:
        True, False, or for a leaf of which some layers are trained a bool array [L].

    Raises:
        ValueError: a pattern is not a valid regular expression or claims no leaf, the mapping leaves one unclaimed, or
            `layers` is no range of the layers there are, or leaves nothing to train.
        TypeError: the rule is none of the above, or `layers` is not two whole numbers.

    Example:
        >>> params = {"attn": {"key": {"kernel": 1.0, "bias": 0.0}}, "ln_1": {"scale": 1.0}}
        >>> param_mask(params, "attention")
        {'attn': {'key': {'bias': False, 'kernel': True}}, 'ln_1': {'scale': False}}
        >>> param_mask(params, {"ln_.*": False, ".*": True})
        {'attn': {'key': {'bias': True, 'kernel': True}}, 'ln_1': {'scale': False}}
        >>> stacked = {"blocks": {"mlp": {"bias": np.zeros((4, 8))}}, "ln_post": {"bias": np.zeros(8)}}
        >>> param_mask(stacked, "biases", layers=(2, 4))
        {'blocks': {'mlp': {'bias': array([False, False,  True,  True])}}, 'ln_post': {'bias': False}}
    """
    flat = flatten_paths(params)
    claims = claim_paths(rule, [path for path, can_train in float_leaves(flat).items() if can_train], rules)
    chosen: dict[str, LeafMask] = {path: claims.get(path, False) for path in flat}
    if layers is not None:
        if stacked is None:
            raise ValueError(
                f"layers={layers}, but no node of this model stacks layers; choose what is trained by paths"
            )
        for path, trained in chosen.items():
            chosen[path] = trained and in_layers(path, flat[path], layers, stacked=stacked)
        if not any(map(np.any, chosen.values())):
            raise ValueError(
                f"the trainable rule {rule!r} claims no leaf below a node {stacked!r}, so layers={layers} leaves"
                " nothing to train; leave the layers out, or choose another rule"
            )
    return jax.tree.unflatten(jax.tree.structure(params), list(chosen.values()))


def count_params(params: Params, mask: Mask | None = None) -> int:
    """How many numbers a tree holds, or those of them that a mask trains.

    Example:
        >>> count_params({"b": np.zeros(3), "w": np.zeros((2, 3))}, {"b": True, "w": np.array([False, True])})
        6
    """
    flat = flatten_paths(params)
    if mask is None:
        return sum(math.prod(np.shape(leaf)) for leaf in flat.values())
    # The share of layers that are trained, of one bool all or nothing.
    sizes = {path: math.prod(np.shape(leaf)) for path, leaf in flat.items()}
    return sum(sizes[path] * int(np.sum(t)) // np.size(t) for path, t in trained_layers(params, mask).items())


def split(params: Params, mask: Mask | None) -> tuple[Trained, Callable[[Trained], Params]]:
    """What a mask trains, by path, and the function that puts such leaves back among the others.

    Differentiate in the first, call the model on what the second returns. Of a leaf of which some layers are trained
    it holds those layers alone. Without a mask all leaves that are floating point are trained.

    Raises:
        ValueError: the mask has other paths than the parameters, or not as many layers as a leaf.
        TypeError: a leaf of the mask is neither a bool nor a bool array.

    Example:
        >>> theta, restore = split({"w": jnp.ones(1), "index": 7}, None)
        >>> restore({"w": theta["w"] + 1})
        {'index': 7, 'w': Array([2.], dtype=float32)}
        >>> theta, restore = split({"w": jnp.array([1.0, 2.0, 3.0])}, {"w": np.array([False, False, True])})
        >>> restore({"w": -theta["w"]})
        {'w': Array([ 1.,  2., -3.], dtype=float32)}
    """
    flat, structure, chosen = flatten_paths(params), jax.tree.structure(params), trained_layers(params, mask)

    def restore(trained: Trained) -> Params:
        leaves = [put_layers(leaf, chosen[p], trained[p]) if p in trained else leaf for p, leaf in flat.items()]
        return jax.tree.unflatten(structure, leaves)

    return {path: take_layers(flat[path], trained) for path, trained in chosen.items() if np.any(trained)}, restore


def trained_layers(params: Params, mask: Mask | None) -> dict[str, LeafMask]:
    """What a mask says of each leaf, by path: True, False, or a bool array [L] if both occur among its layers.

    Without a mask all leaves are trained, but leaves that are not floating point never are.

    Raises:
        ValueError: the mask has other paths than the parameters, or not as many layers as a leaf.
        TypeError: a leaf of the mask is neither a bool nor a bool array.
    """
    flat = flatten_paths(params)
    can_train = float_leaves(flat)
    if mask is None:
        return dict(can_train)
    given = flatten_paths(mask)
    check_same_tree(dict.fromkeys(flat, True), dict.fromkeys(given, True), what=("params", "mask"))
    return {path: can_train[path] and _leaf_mask(path, leaf, given[path]) for path, leaf in flat.items()}


def _leaf_mask(path: str, leaf: ArrayLike, given: ArrayLike) -> LeafMask:
    if isinstance(given, bool | np.bool_):
        return bool(given)
    if getattr(given, "dtype", None) != np.bool_:
        raise TypeError(f"the mask at {path!r} is {given!r}; each leaf of a mask is a bool, or a bool array [L]")
    if np.shape(given) != np.shape(leaf)[:1]:
        raise ValueError(
            f"the mask at {path!r} has shape {np.shape(given)}; want one bool for each layer of the leaf,"
            f" which has shape {np.shape(leaf)}"
        )
    return simplified(np.asarray(given))
