"""What a narrow dtype does to a task vector: which leaves only seem to have moved, what of the rest is rounding.

θ that was saved in bfloat16 differs from θ₀ in every entry, moved or not, by an error of about 0.0017 ‖θ₀‖ in sum, and
θ − θ₀ takes that for movement. Told by values and not by the file's dtype, since what was rounded once may have been
saved in float32 later:

- A leaf, or a layer of a stacked leaf, that equals the rounded θ₀ to the bit has not moved: θ₀'s own values are kept,
  and τ is exactly zero there.
- In all others the rounding stays in τ, and its expected length is reported. An error is spread evenly over a unit in
  the last place, so E‖error‖² = Σ ulp(θ)²/12.
- Where θ₀ is the narrower of the two and equals the rounded θ, nothing is changed: OpenAI's weights were half precision
  from the start, and a small step from them is a step. It is reported where the difference is as long as a rounding's.

Single entries that equal the rounded θ₀ say nothing of the kind: an entry may have moved by less than a unit. To take
them as unmoved would keep only moves that crossed a border between two values, so that for ‖τ‖/‖θ₀‖ = 0.001 in
bfloat16 a quarter of τ's length along its own direction is lost, where θ − θ₀ has all of it (and cosines of 0.60 and
0.52 to the true τ; from 0.003 on the cosine is worse, too).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tajax.rules import STACKED
from tajax.trees import check_finite, flatten_paths
from tajax.types import Params

__all__ = ["Rounding", "keep_unmoved", "like_pretrained", "settled"]

_NARROW = tuple(map(jnp.dtype, ("bfloat16", "float16", "float32")))  # the coarsest first


class Rounding(NamedTuple):
    """How much of a task vector is the rounding of the weights that it was made from.

    Attributes:
        dtype: In which the values of θ can be written, such as 'bfloat16'; those of θ₀ if θ is not rounded.
        unmoved: Leaves, and layers of stacked leaves, that differ from θ₀ by rounding alone.
        moved: Those that moved, whatever they are rounded to.
        mostly_rounding: Those of `moved` in which rounding is more than half of ‖τ‖².
        as_if_base_rounded: Those of `moved` that differ from θ₀ as θ₀'s rounding to a narrower dtype would.
        pretrained_norm: ‖θ₀‖.
        tau_norm: ‖τ‖, without what did not move.
        rounding_norm: The expected length of the rounding in it.
    """

    dtype: str
    unmoved: int
    moved: int
    mostly_rounding: int
    as_if_base_rounded: int
    pretrained_norm: float
    tau_norm: float
    rounding_norm: float

    @property
    def share(self) -> float:
        """Of ‖τ‖², that which rounding is expected to make; τ has a cosine of √(1 − share) to what training moved."""
        return min(1.0, (self.rounding_norm / self.tau_norm) ** 2) if self.tau_norm else 0.0

    @property
    def matters(self) -> bool:
        """Whether rounding is a hundredth of ‖τ‖² or more, or half of it in some leaf."""
        return self.share >= 0.01 or self.mostly_rounding > 0

    def __str__(self) -> str:
        tau, rounding = self.tau_norm / self.pretrained_norm, self.rounding_norm / self.pretrained_norm
        said = f"values have the precision of {self.dtype}. ‖τ‖/‖θ₀‖ is {tau:.2g}, of which rounding makes about "
        said += f"{rounding:.2g} ({self.share:.1%} of ‖τ‖²)"
        if self.matters:
            said += f": the cosine to what training changed is about {math.sqrt(1 - self.share):.2f}, and in "
            said += f"{self.mostly_rounding} of {self.moved} leaves and layers rounding is most of the difference"
        if self.unmoved:
            said += f". {self.unmoved} others equal θ₀ but for rounding and are taken as unmoved"
        if self.as_if_base_rounded:
            said += f". {self.as_if_base_rounded} differ from θ₀ as if it had been rounded to {self.dtype} when it was "
            said += "saved: if it was, load the base in float32"
        return said


def keep_unmoved(
    pretrained: Mapping[str, np.ndarray], finetuned: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Rounding | None]:
    """θ with θ₀'s own values where the two differ by rounding alone, and what rounding does to the rest.

    Args:
        pretrained: θ₀ by path.
        finetuned: θ by path, in the dtypes of θ₀.

    Returns:
        θ by path, the arrays that were given but for those in which something is taken as unmoved; and None where
        neither it nor θ₀ is rounded.

    Example:
        >>> pretrained = {"w": np.float32([0.1, 0.2]), "b": np.float32([0.3])}
        >>> rounded = {"w": pretrained["w"].astype(jnp.bfloat16).astype("f4"), "b": np.float32([0.5])}
        >>> kept, rounding = keep_unmoved(pretrained, rounded)
        >>> bool(np.all(kept["w"] == pretrained["w"])), rounding.dtype, rounding.unmoved, rounding.moved
        (True, 'bfloat16', 1, 1)
    """
    kept: dict[str, np.ndarray] = {}
    narrow: dict[str, None] = {}
    narrow_base: dict[str, None] = {}
    unmoved = as_if_base_rounded = 0
    moves: list[tuple[float, float, float]] = []  # ‖τ‖², and the rounding of θ and of θ₀ in it, of a leaf or layer
    for path, theta0 in pretrained.items():
        whole = finetuned[path]
        stacked = STACKED in path.split("/")
        alike: list[int] = []
        layers = zip(theta0 if stacked else theta0[None], whole if stacked else whole[None], strict=True)
        for layer, (base, theta) in enumerate(layers):
            if np.array_equal(base, theta):
                continue
            fits = _precisions(theta)
            narrow |= dict.fromkeys(dtype.name for dtype in fits[:1])
            if any(np.array_equal(_rounded(base, dtype), theta) for dtype in fits):
                alike.append(layer)
                continue
            square, of_base = _square(theta - base), 0.0
            for dtype in [] if fits else _precisions(base)[:1]:
                of_base = _expected(base, dtype)
                if np.array_equal(_rounded(theta, dtype), base) and 0.8 < square / max(of_base, 1e-99) < 1.25:
                    narrow_base[dtype.name] = None
                    as_if_base_rounded += 1
            moves.append((square, _expected(theta, fits[0]) if fits else 0.0, of_base))
        if alike:  # a copy of no other leaf, because all of them together are large
            whole = np.array(whole)
            (whole if stacked else whole[None])[alike] = (theta0 if stacked else theta0[None])[alike]
            unmoved += len(alike)
        kept[path] = whole
    if not narrow and not narrow_base:
        return kept, None
    errors = [of_theta + of_base * bool(as_if_base_rounded) for _, of_theta, of_base in moves]
    return kept, Rounding(
        dtype=" and ".join(narrow or narrow_base),
        unmoved=unmoved,
        moved=len(moves),
        mostly_rounding=sum(error > square / 2 for error, (square, _, _) in zip(errors, moves, strict=True)),
        as_if_base_rounded=as_if_base_rounded,
        pretrained_norm=math.sqrt(sum(map(_square, pretrained.values()))),
        tau_norm=math.sqrt(sum(square for square, _, _ in moves)),
        rounding_norm=math.sqrt(sum(errors)),
    )


def like_pretrained(leaves: Params, pretrained: Params, what: str) -> dict[str, np.ndarray]:
    """The leaves by path, in the order and the dtypes of θ₀'s.

    Raises:
        ValueError: an entry is not finite; `what` says of which tree.
    """
    flat = flatten_paths(leaves)
    cast = {path: np.asarray(flat[path], jnp.result_type(leaf)) for path, leaf in flatten_paths(pretrained).items()}
    check_finite(cast, what)
    return cast


def settled(leaves: dict[str, np.ndarray], pretrained: Params) -> tuple[Params, Rounding | None]:
    """The tree of some leaves by path, with θ₀'s own values where the two differ by rounding alone; see `keep_unmoved`.

    The dictionary is empty afterwards: each leaf is let go when the tree has it, so that one copy is in memory.

    Example:
        >>> settled({"w": np.float32([0.1, 0.2])}, {"w": np.float32([0.1, 0.3])})
        ({'w': Array([0.1, 0.2], dtype=float32)}, None)
    """
    known = {path: np.asarray(leaf) for path, leaf in flatten_paths(pretrained).items()}
    kept, rounding = keep_unmoved(known, leaves)
    leaves.clear()
    # a leaf is let go when it has been copied, which JAX does later if nobody waits
    whole = [jnp.asarray(kept.pop(path)).block_until_ready() for path in known]
    return jax.tree.unflatten(jax.tree.structure(pretrained), whole), rounding


def _precisions(values: np.ndarray) -> list[np.dtype]:
    """The narrower dtypes in which all values can be written."""
    narrower = [dtype for dtype in _NARROW if jnp.finfo(dtype).nmant < jnp.finfo(values.dtype).nmant]
    parts = values.flat[:256], values  # of full precision a few entries tell
    return [dtype for dtype in narrower if all(np.array_equal(_rounded(part, dtype), part) for part in parts)]


def _rounded(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(values.dtype)


def _expected(values: np.ndarray, dtype: np.dtype) -> float:
    """The expected square of the error of values that were rounded to a dtype."""
    info = jnp.finfo(dtype)
    _, exponents = np.frexp(values)
    last = np.maximum(np.ldexp(1.0, exponents - 1 - info.nmant), float(info.smallest_subnormal))
    return _square(np.where(values == 0, 0.0, last)) / 12


def _square(values: np.ndarray) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))
