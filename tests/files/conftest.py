"""What is saved and read back in several of these tests."""

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def params(key):
    """A small model: a matrix, a bias of zeros, a leaf of 16 bits and a scalar."""
    a, b = jax.random.split(key)
    return {
        "blocks": {"kernel": jax.random.normal(a, (3, 4)), "bias": jnp.zeros(4)},
        "scale": jax.random.normal(b, (2,)).astype(jnp.bfloat16),
        "logit_scale": jnp.float32(4.6),
    }
