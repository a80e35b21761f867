"""What the loops run on: an encoder of one block written out by hand, a head wider than its task, batches by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.types import Batch, Head

D, E, K = 6, 5, 6  # width, features, columns of the head
CLASSES = 4


def _dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def _scale(layer, x):
    return x / jnp.sqrt(1 + (x**2).sum(-1, keepdims=True)) * layer["scale"][None] + layer["bias"][None]


def _encode(params, images):
    """uint8 [B, 4, 4, 3] -> [B, E]: one token through one gated block, linear in none of its parameters."""
    dtype = params["projection"]["kernel"].dtype
    x = (images.astype(dtype) / 127.5 - 1).reshape(len(images), 48)
    x = x @ params["patch_embedding"]["kernel"] + params["position_embedding"]
    block, attn = params["blocks"], params["blocks"]["attn"]
    h = _scale(block["ln_1"], x)
    query, key, value = (_dense(attn[name], h) for name in ("query", "key", "value"))
    x = x + _dense(attn["out"], jax.nn.sigmoid(query * key) * value)
    h = jnp.tanh(_dense(block["mlp"]["fc_in"], _scale(block["ln_2"], x)))
    return (x + _dense(block["mlp"]["fc_out"], h)) @ params["projection"]["kernel"]


@pytest.fixture(scope="session")
def encode():
    return _encode


@pytest.fixture(scope="session")
def numbers(rng):
    """Parameters of `encode` in NumPy float64, with the paths of a CLIP; every bias holds a negative zero."""
    draw = rng(0).normal

    def dense(rows, columns):
        bias = draw(size=columns)
        bias[0] = -0.0
        return {"kernel": draw(size=(rows, columns)) / math.sqrt(rows), "bias": bias}

    norm = {"scale": np.ones(D) + 0.1 * draw(size=D), "bias": np.full(D, -0.0)}
    return {
        "patch_embedding": {"kernel": draw(size=(48, D)) / math.sqrt(48)},
        "position_embedding": draw(size=(1, D)),
        "blocks": {
            "ln_1": norm,
            "attn": {name: dense(D, D) for name in ("query", "key", "value", "out")},
            "ln_2": norm,
            "mlp": {"fc_in": dense(D, 2 * D), "fc_out": dense(2 * D, D)},
        },
        "projection": {"kernel": draw(size=(D, E))},
    }


@pytest.fixture
def params(numbers):
    """`numbers` as JAX arrays, in float64 under `x64` and else in float32."""
    return jax.tree.map(jnp.asarray, numbers)


@pytest.fixture(scope="session")
def taus(numbers, rng):
    """Two task vectors of `numbers`, large enough to change predictions."""

    def tau(number):
        draw = rng(number).normal
        return jax.tree.map(lambda leaf: np.float32(0.4 * draw(size=leaf.shape)), numbers)

    return [tau(1), tau(2)]


@pytest.fixture
def head(rng):
    """Four classes in six columns, float32."""
    return Head(jnp.asarray(4 * rng(3).normal(size=(E, K)), jnp.float32), jnp.int32(CLASSES))


@pytest.fixture(scope="session")
def make_batch(rng):
    """`make_batch(rows, number, masked=0)`: random images; the last `masked` rows are padding, filled with rubbish."""

    def make(rows, number, masked=0):
        draw = rng(100 + number)
        label = draw.integers(CLASSES, size=rows).astype(np.int32)
        label[rows - masked :] = draw.choice([-1, CLASSES, K, 999], size=masked)
        levels = draw.integers(256, size=(rows, 1, 1, 3)) + draw.integers(-60, 60, size=(rows, 4, 4, 3))
        return Batch(levels.clip(0, 255).astype(np.uint8), label, np.arange(rows) < rows - masked)

    return make


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
