"""Fixtures for every room: one key, and ranks that are never promoted silently."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    """The key from which a test draws; split it, never seed another."""
    return jax.random.key(20230522)
