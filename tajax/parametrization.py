"""What training moves: the coordinates of the parameters in which gradients, moments and clipping live."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tajax.trees import split
from tajax.types import Mask, Params, Trained


class Parametrization(NamedTuple):
    """Parameters as a function of what is trained, θ = restore(θ₀, t), with θ₀ = restore(θ₀, init(θ₀)).

    All are pure, and `restore` is differentiable in t. A leaf that it takes from θ₀ is bit for bit the pre-trained one.
    """

    init: Callable[[Params], Trained]
    """From θ₀ to where training starts, t₀."""
    restore: Callable[[Params, Trained], Params]
    """From θ₀ and t to θ, a tree like θ₀: the model whose loss is minimised."""
    outcome: Callable[[Params, Trained], Params] | None = None
    """From θ₀ and the last t to the fine-tuned parameters, of which τ is the difference to θ₀; None: `restore`. Another
    one where the tangent space of t is not that of θ, or where more is trained than the model that is kept."""

    def finetuned(self, pretrained: Params, trained: Trained) -> Params:
        """The parameters that training ends with."""
        return (self.outcome or self.restore)(pretrained, trained)


def masked(mask: Mask | None = None) -> Parametrization:
    """The leaves and layers that a mask names, as they are; the others stay at θ₀.

    Args:
        mask: like the parameters, from `tajax.param_mask`; None: every floating-point leaf.

    Returns:
        A parametrization whose functions raise as `tajax.trees.split` for a mask that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> pretrained = {"a": jnp.ones(2), "b": jnp.zeros(2)}
        >>> first = masked({"a": True, "b": False})
        >>> first.init(pretrained)
        {'a': Array([1., 1.], dtype=float32)}
        >>> first.restore(pretrained, {"a": jnp.array([3.0, 4.0])})
        {'a': Array([3., 4.], dtype=float32), 'b': Array([0., 0.], dtype=float32)}
    """
    return Parametrization(
        init=lambda pretrained: split(pretrained, mask)[0],
        restore=lambda pretrained, trained: split(pretrained, mask)[1](trained),
    )
