"""Models small enough to check by hand or by an explicit Jacobian, and double precision."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from hypothesis import settings

from tests.core import shapes

# The same cases on every run and machine, nothing kept on disk.
settings.register_profile("core", derandomize=True, database=None, deadline=None, max_examples=40)
settings.load_profile("core")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def wrong_on_purpose(request, monkeypatch):
    """Where shapes are checked (`--jaxtyping-packages`), they are not in what a test wants tajax itself to refuse."""
    if not request.config.getoption("--jaxtyping-packages", None):
        return
    raises = pytest.raises

    @contextlib.contextmanager
    def unchecked(*expected, **options):
        with raises(*expected, **options) as error, shapes.unchecked():
            yield error

    monkeypatch.setattr(pytest, "raises", unchecked)


def mlp(params, x):
    """A two-layer network with a norm inside, so that it is linear in nothing: [B, 3] -> [B, 2]."""
    hidden = jnp.tanh(x @ params["attn"]["query"]["kernel"] + params["attn"]["query"]["bias"][None])
    hidden = hidden / jnp.sqrt(1 + jnp.sum(hidden**2, axis=-1, keepdims=True)) * params["ln_1"]["scale"][None]
    return hidden @ params["mlp"]["fc_in"]["kernel"]


def mlp_params(key, dtype=None):
    """Parameters of `mlp`: 12 + 4 + 4 + 8 numbers in four leaves, with the paths of a CLIP block."""
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "attn": {"query": {"kernel": jax.random.normal(k1, (3, 4), dtype), "bias": jax.random.normal(k2, (4,), dtype)}},
        "ln_1": {"scale": jnp.ones(4, dtype)},
        "mlp": {"fc_in": {"kernel": jax.random.normal(k3, (4, 2), dtype)}},
    }
