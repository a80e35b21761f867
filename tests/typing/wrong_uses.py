"""Mistakes that a type checker finds in a program that uses tajax: one a line, with the code of its error."""

from jax import Array

import tajax


def mistakes(theta: dict[str, Array]) -> None:
    tajax.task_vector(theta)  # call-arg
    tajax.apply_task_vector(theta, theta, scaling_coef="a lot")  # arg-type
    tajax.apply_task_vector(theta, theta, coef=0.5)  # call-arg
    tajax.combine(3)  # arg-type
    tau = tajax.task_vector(theta, theta)
    tajax.combine([tau], tau)  # arg-type
    tajax.combine(tau, [0.5, 0.5])  # arg-type
    tajax.apply_task_vector(theta, tau).upper()  # attr-defined
    tajax.negate(tajax.combine([tau, tau])).upper()  # attr-defined
    tajax.analogy(tau, tau, tau).upper()  # attr-defined
    tajax.param_mask(theta, 3)  # arg-type
    tajax.param_mask(theta, "all", layers=(1, 2, 3))  # arg-type
    tajax.linearize("model", theta)  # arg-type
    tajax.norm(theta).upper()  # attr-defined
    tajax.mearging.METHODS.keys()  # attr-defined
    tajax.models.lod("tiny")  # attr-defined
