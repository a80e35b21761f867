"""Models linearised in their parameters: the first-order Taylor expansion around θ₀."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from tajax import trees
from tajax.forward import push_all
from tajax.layers import take_layers
from tajax.trees import split
from tajax.types import ApplyFn, Mask, Params


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as functions are: jit compiles it like one
class Linearized:
    """A tangent model, from `linearize`: a function of parameters and inputs that knows what it is the expansion of.

    Attributes:
        apply_fn: f.
        params0: θ₀.
        mask: leaves and layers to expand in; None for all.
    """

    apply_fn: ApplyFn
    params0: Params
    mask: Mask | None = None

    # Any, as in ApplyFn; what comes out may be any tree, as with f.
    def __call__(self, params: Params, /, *inputs: Any, **options: Any) -> Any:
        """The outputs f(θ₀, x) + J(x) (θ − θ₀)."""
        theta0, restore = split(self.params0, self.mask)
        trees.check_same_tree(self.params0, params, what=("params0", "params"))
        theta, trained = trees.flatten_paths(params), trees.trained_layers(self.params0, self.mask)
        step = {p: (take_layers(theta[p], trained[p]) - leaf).astype(leaf.dtype) for p, leaf in theta0.items()}
        outputs, push = jax.linearize(lambda trained: self.apply_fn(restore(trained), *inputs, **options), theta0)
        return jax.tree.map(jnp.add, outputs, push(step))


def around(apply_fn: ApplyFn, params0: Params) -> ApplyFn:
    """A tangent model as a function of the point of expansion, too; any other model as it is.

    Under `jit` it keeps θ₀ an argument of the program, where it would be a constant in it.
    """
    return dataclasses.replace(apply_fn, params0=params0) if isinstance(apply_fn, Linearized) else apply_fn


def linearize(apply_fn: ApplyFn, params0: Params, *, mask: Mask | None = None) -> Linearized:
    """The tangent model at θ₀, f_lin(θ, x) = f(θ₀, x) + J(x) (θ − θ₀), with J the Jacobian at θ₀.

    Args:
        apply_fn: f, any JAX function of parameters and inputs, differentiable in the parameters.
        params0: θ₀.
        mask: leaves and layers to expand in, all of them by default. The others stay at θ₀ whatever the tangent
            model is given: they cost nothing and their gradient is exactly zero.

    Returns:
        A function with the signature of `apply_fn`, affine in its parameters, that equals it at θ₀ and has
        its gradient there. A call costs three forward passes, a training step about 1.7 ordinary ones.

    Raises:
        ValueError: the mask has other paths than `params0`; on the call, that the parameters have.

    Source:
        Ortiz-Jimenez, Favero and Frossard 2023, "Task Arithmetic in the Tangent Space", §3.

    Example:
        >>> square = linearize(lambda params, x: x * params["w"] ** 2, {"w": jnp.array(3.0)})
        >>> square({"w": jnp.array(4.0)}, jnp.ones(1))  # 9 + 6 (4 − 3)
        Array([15.], dtype=float32)
    """
    split(params0, mask)  # a bad mask is an error here, not inside somebody's jit
    return Linearized(apply_fn, params0, mask)


def linear_responses(
    apply_fn: ApplyFn, params0: Params, taus: Sequence[Params], *inputs: Array, mask: Mask | None = None
) -> tuple[Float[Array, " *out"], Float[Array, " T *out"]]:
    """Outputs at θ₀ and the first-order response to each task vector, (f(θ₀), [J τ₁, …, J τ_T]).

    Outputs of the tangent model for any coefficients follow without another pass: f(θ₀) + Σ_t c_t J τ_t. When all
    coefficients are equal, the response to `combine(taus)` alone is enough.

    Args:
        apply_fn: f.
        params0: θ₀.
        taus: T trees with the paths and shapes of `params0`.
        *inputs: what f takes after the parameters.
        mask: leaves to expand in, as in `linearize`; what the task vectors hold elsewhere is ignored.

    Returns:
        f(θ₀) and the responses, stacked on a leading axis T. The cost is one linearisation and T tangent passes,
        each of about two forward passes. A loop over layers (`jax.lax.scan`) carries all tangents, and keeps residuals
        of one layer at a time. Gradients of the responses are better taken of `linearize`, which has its loops whole.

    Raises:
        ValueError: there are no vectors, or one differs from `params0` in a path or shape.
        TypeError: `taus` is one tree instead of a sequence of them.

    Example:
        >>> f = lambda params, x: x * params["w"] ** 2
        >>> taus = [{"w": jnp.array(1.0)}, {"w": jnp.array(-0.5)}]
        >>> linear_responses(f, {"w": jnp.array(3.0)}, taus, jnp.ones(1))
        (Array([9.], dtype=float32), Array([[ 6.],
               [-3.]], dtype=float32))
    """
    trees.check_taus(taus, params0, what="params0")
    theta0, restore = split(params0, mask)
    flats, trained = [trees.flatten_paths(tau) for tau in taus], trees.trained_layers(params0, mask)
    steps = [{p: take_layers(flat[p], trained[p]).astype(leaf.dtype) for p, leaf in theta0.items()} for flat in flats]
    outputs, pushed = push_all(lambda trained: apply_fn(restore(trained), *inputs), theta0, steps)
    return outputs, jax.tree.map(lambda *responses: jnp.stack(responses), *pushed)
