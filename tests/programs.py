"""Equations of a program, wherever they stand in it; needs JAX alone."""

import jax
from jax.extend import core as jex


def equations(jaxpr, name):
    """Every equation of a primitive that stands in a program, those in its loops and inner programs, too."""
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from equations(getattr(value, "jaxpr", value), name)
        if eqn.primitive.name == name:
            yield eqn


def is_program(value):
    return isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr))
