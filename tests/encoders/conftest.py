"""Encoders of tests spend their time in the compiler, which is told to be quick here and as it was after them."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
