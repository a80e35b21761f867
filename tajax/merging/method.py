"""What a merging method is to whoever calls it: its function, its options, and what holds of its models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax

from tajax import trees
from tajax.options import Option
from tajax.types import ApplyFn, Batch, Head, MergeFn, Params


@runtime_checkable
class FitFn(Protocol):
    """What a method finds out from the tasks' data before it merges."""

    # Any, because each method has other options, and its function takes something else.
    def __call__(
        self,
        encode: ApplyFn,
        pretrained: Params,
        taus: Mapping[str, Params],
        batches: Mapping[str, Iterable[Batch]],
        heads: Mapping[str, Head],
        *args: Any,
        **options: Any,
    ) -> Mapping[str, Any]:
        """What `merge` takes besides its options, from the vector, batches and head of each task, by name.

        Args:
            encode: `(params, inputs) -> features [B, E]`: the encoder, or its expansion around `pretrained`.
            pretrained: θ₀.
            taus: the task vector of each task. What is found has the tasks in this order.
            batches: of each task, examples that can be gone through any number of times. The labels are for methods
                that need them; others see zeros in their place.
            heads: of each task.
            *args: none; to a type checker this and the next stand for "whatever follows".
            **options: keyword-only, those of `Method.fit_options`, and `stacked` where the method is layered.

        Returns:
            By keyword, nested dictionaries of arrays; what is of a task stands along their leading axis.

        Raises:
            ValueError: as `check_data`.
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
        eager: whether it looks at the vectors' values to find shapes. A run then calls it as it is, in place of what
            `compiled` makes of it; it compiles its parts itself.
        usual_coef: λ where nothing is tuned, as its authors or fusion_bench have it where they name one.
        needs: what it needs of the tasks beside their vectors: nothing, images, or images with labels.
        fit: gets that; None where nothing is needed.
        check: `(number of vectors, **options)`: raises `ValueError` where options go ill with each other or with that
            number, so that a run is refused before it trains; None if any that are in range will do.
        fit_options: by keyword, what configs may choose of `fit`.
        models: which models it merges: all, none that are evaluated linearised, or those alone.

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
    eager: bool = False
    usual_coef: float = 1.0
    needs: Literal["nothing", "inputs", "labels"] = "nothing"
    fit: FitFn | None = None
    check: Callable[..., None] | None = None
    fit_options: Mapping[str, Option] = field(default_factory=dict)
    models: Literal["all", "ordinary", "linearized"] = "all"

    @property
    def settings(self) -> Mapping[str, Option]:
        """All that configs may choose, of the function and of `fit`."""
        return {**self.options, **self.fit_options}

    # Any, as in MergeFn.
    def __call__(self, pretrained: Params, taus: Sequence[Params], **options: Any) -> Params:
        """The merged parameters: a tree like `pretrained`, with its dtypes."""
        return self.merge(pretrained, taus, **options)


def check_data(
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head] | None = None,
) -> None:
    """Raises unless every task has a vector that fits, batches and, where `heads` are given, a head.

    Raises:
        ValueError: there are no tasks, one lacks its batches or head or has no example, or a vector does not fit.

    Example:
        >>> check_data({"w": 1.0}, {"signs": {"w": 2.0}}, {})
        Traceback (most recent call last):
        ...
        ValueError: batches lacks signs, which is in taus
    """
    trees.check_taus(list(taus.values()), pretrained)
    trees.check_same_names("batches", taus, batches, "taus")
    if heads is not None:
        trees.check_same_names("heads", taus, heads, "taus")
    for task, examples in batches.items():
        if isinstance(examples, Sized) and not len(examples):
            raise ValueError(f"task {task!r} has no example to fit a merging method to")


def compiled(method: MergeFn, *, donate: bool = False, **options: Any) -> MergeFn:
    """A method under `jax.jit`: one fused pass over the parameters, without a copy of any vector.

    Args:
        method: one of `METHODS`, or any function with their signature.
        donate: let the result take the memory of `pretrained`, which is gone afterwards. For the last merge of a run.
        **options: options that are known when compiling, such as the `density` of TIES.

    Returns:
        `(pretrained, taus, **options) -> params`. Options given to it, such as `scaling_coef`, are arguments of the
        program: one compilation serves all their values.

    Raises:
        ValueError, TypeError: on the call, what the method raises for trees that differ. Nothing is compiled then, and
            nothing donated.

    Example:
        >>> import jax.numpy as jnp
        >>> from tajax.merging import ties
        >>> merge = compiled(ties, density=0.5)
        >>> tau = {"w": jnp.array([4.0, 2.0])}
        >>> [merge({"w": jnp.zeros(2)}, [tau], scaling_coef=c)["w"].tolist() for c in (1.0, 0.5)]
        [[4.0, 0.0], [2.0, 0.0]]
    """
    return jax.jit(partial(method, **options), donate_argnums=(0,) if donate else ())
