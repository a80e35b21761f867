"""A program of somebody who uses tajax: `mypy --strict` has nothing to say about it. It is read, and runs, too."""

import jax.numpy as jnp
from jax import Array

import tajax
from tajax.merging import METHODS
from tajax.types import ApplyFn, Params


def model(params: Params, x: Array) -> Array:
    """[B, 2] -> [B]."""
    outputs: Array = x @ params["kernel"] + params["bias"]
    return outputs


def edit(pretrained: Params, finetuned: list[Params]) -> Params:
    taus = [tajax.task_vector(pretrained, theta) for theta in finetuned]
    forgotten = tajax.apply_task_vector(pretrained, tajax.negate(taus[0]), scaling_coef=0.5)
    weighted = tajax.combine(taus, coefs=[0.3, jnp.asarray(0.7)])
    merged = METHODS["ties"](forgotten, [weighted, tajax.analogy(taus[0], taus[1], taus[1])], density=0.5)
    mask = tajax.param_mask(pretrained, "kernel")
    tangent: ApplyFn = tajax.linearize(model, pretrained, mask=mask)
    features, responses = tajax.linear_responses(model, pretrained, taus, jnp.ones((1, 2)))
    lengths: Array = tajax.norm(taus[0]) + tajax.cosine_similarity(taus[0], taus[1])
    moved: Array = tangent(merged, jnp.ones((1, 2))) + features + responses.sum(0) + lengths
    return {"kernel": merged["kernel"], "bias": merged["bias"] + moved[0]}


def back_and_forth(theta: dict[str, Array], other: dict[str, Array]) -> dict[str, Array]:
    tau = tajax.task_vector(theta, other)  # what comes out has the type of what went in: nothing here is Any
    half = tajax.combine([tau, tau], coefs=[0.25, 0.25])
    return tajax.analogy(theta, other, tajax.apply_task_vector(theta, tajax.negate(half)))


start = {"kernel": jnp.ones(2), "bias": jnp.zeros(())}
restored = back_and_forth(start, start)
edited = edit(restored, [{"kernel": jnp.full(2, k), "bias": jnp.asarray(k)} for k in (2.0, 3.0)])
