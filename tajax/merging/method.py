"""What a merging method is to whoever calls it: its function, its options, and what holds of its models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from tajax.options import Option
from tajax.types import ApplyFn, Batch, Head, MergeFn, Params


@runtime_checkable
class FitFn(Protocol):
    """What a method finds out from the tasks' data before it merges."""

    # Any, because each method's function takes something else.
    def __call__(
        self,
        encode: ApplyFn,
        pretrained: Params,
        taus: Mapping[str, Params],
        batches: Mapping[str, Iterable[Batch]],
        heads: Mapping[str, Head],
    ) -> Mapping[str, Any]:
        """What `merge` takes besides its options, from the vector, batches and head of each task, by name.

        The labels are for methods that need them; others see inputs alone.
        """
        ...


AloneFn: TypeAlias = Callable[..., tuple[Params, Mapping[str, Any]]]
"""`(tau, **options) -> (tau, options that are left)`. Any, as in MergeFn."""


@dataclass(frozen=True, eq=False)  # hashed by identity, as functions are: jit compiles it like one
class Method:
    """A row of `METHODS`. It is called as its function is, `(pretrained, taus, *, …) -> params`.

    Attributes:
        merge: the function.
        options: by keyword, what configs may choose; not `scaling_coef`, which a run tunes, nor `key`.
        affine: whether its model is θ₀ + λ g(τ₁, …, τ_T) with one vector g for every θ₀ and λ, its model around zero.
            A run then measures all λ along that vector; else it merges anew, into the true θ₀, for each of them.
        scaled: whether it takes a λ, as `scaling_coef`. Where it does not, a run tunes none and measures its one model.
        random: whether it draws; it then takes a PRNG `key`.
        layered: whether it treats layers or their matrices one by one; it then takes `stacked`, the node below which
            leaves have the layers along their leading axis.
        by_leaf: whether its model is made leaf by leaf, and of stacked leaves layer by layer: entries of one have no
            say in another. Many large vectors can then be merged in little memory (`merge_by_leaf`).
        alone: what it first does to each vector as a whole, `(tau, *, key of that vector if it draws, stacked if it is
            layered, **options) -> (tau, options that are left)`, where what follows is `by_leaf`: a rank over all
            entries, say.
        usual_coef: λ where nothing is tuned, as its authors or fusion_bench have it.
        needs: what it needs of the tasks beside their vectors: nothing, images, or images with labels.
        fit: gets that; None where nothing is needed.
        check: `(number of vectors, **options)`: raises `ValueError` where options go ill with each other or with that
            number, so that a run is refused before it trains; None if any that are in range will do.

    Example:
        >>> import jax.numpy as jnp
        >>> halfway = Method(lambda pretrained, taus: {"w": pretrained["w"] + taus[0]["w"] / 2}, scaled=False)
        >>> halfway({"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}])
        {'w': Array([0.5, 0.5], dtype=float32)}
    """

    merge: MergeFn
    options: Mapping[str, Option] = field(default_factory=dict)
    affine: bool = False
    scaled: bool = True
    random: bool = False
    layered: bool = False
    by_leaf: bool = False
    alone: AloneFn | None = None
    usual_coef: float = 1.0
    needs: Literal["nothing", "inputs", "labels"] = "nothing"
    fit: FitFn | None = None
    check: Callable[..., None] | None = None

    # Any, as in MergeFn.
    def __call__(self, pretrained: Params, taus: Sequence[Params], **options: Any) -> Params:
        """The merged parameters: a tree like `pretrained`, with its dtypes."""
        return self.merge(pretrained, taus, **options)
