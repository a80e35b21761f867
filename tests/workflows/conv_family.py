"""A family that tajax does not know: two convolutions without a text tower. Its row is put in by test_families.py."""

import jax
import jax.numpy as jnp
import numpy as np

from tajax.encoders.encoder import Encoder, Family, Identity
from tajax.types import Preprocessing

RULES = {"all": ".*", "kernels": "kernel"}
FEATURES = 6


def apply(params, images):
    """uint8 [B, 8, 8, 3] -> [B, 6]."""
    x = images.astype(jnp.float32) / 127.5 - 1
    for name in ("first", "second"):
        layer = params[name]
        moved = jax.lax.conv_general_dilated(
            x, layer["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(moved + layer["bias"].reshape(1, 1, 1, -1))
    return x.mean((1, 2))


def outline():
    def layer(inputs, outputs):
        return {
            "kernel": jax.ShapeDtypeStruct((3, 3, inputs, outputs), jnp.float32),
            "bias": jax.ShapeDtypeStruct((outputs,), jnp.float32),
        }

    return {"first": layer(3, 5), "second": layer(5, FEATURES)}


def check_name(name):
    if name != "conv":
        raise ValueError(f"unknown convolution {name!r}; there is 'conv'")


def save(directory, params, /, *, format):
    directory.mkdir()
    np.savez(directory / f"{format}.npz", **{f"{a}/{b}": leaf for a, of in params.items() for b, leaf in of.items()})


def load_finetuned(place):
    raise ValueError(f"{place} is no convolution")


def load(name, /, *, random_seed=None, dtype=np.float32):
    draw = np.random.default_rng(random_seed or 0).normal
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * draw(size=leaf.shape), jnp.float32), outline())
    identity = Identity(name, None, f"{random_seed or 0:064d}", {"strides": 2}, {"base_notes": []})
    return Encoder(
        family="conv",
        identity=identity,
        params=params,
        apply=apply,
        apply_for_responses=apply,
        feature_dim=FEATURES,
        inputs=Preprocessing(8, (0.5,) * 3, (0.5,) * 3),
        rules=RULES,
        stacked=None,
        zero_shot=None,
        load_finetuned=load_finetuned,
        save=save,
        check_format=lambda format: None,
    )


FAMILY = Family(load, check_name, outline, RULES)
