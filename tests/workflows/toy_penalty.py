"""A penalty that tajax does not know: the squared distance from θ₀, times the number of other tasks."""

import jax
import jax.numpy as jnp

from tajax.task_vectors import task_vector
from tajax.training import TrainingMethod


def penalty(trained, seen):
    tau = task_vector(seen.pretrained, seen.restore(trained))
    return seen.data * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tau))


METHOD = TrainingMethod(penalty=lambda options: penalty, data=lambda context: jnp.float32(len(context.others)))
