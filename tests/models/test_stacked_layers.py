"""What Flax does to a module reaches every layer, though their parameters are stacked: values, names of axes, remat."""

import dataclasses

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.models import ImageEncoder, TextEncoder
from tajax.models.clip import Block

DEPTH = 3
AXES = ("in", "out")


@pytest.fixture(scope="module")
def vision(config):
    return dataclasses.replace(config.vision, num_hidden_layers=DEPTH)


@pytest.fixture(scope="module")
def drawn(vision):
    images = jax.random.normal(jax.random.key(1), (2, vision.image_size, vision.image_size, 3))
    return jax.jit(ImageEncoder(vision).init)(jax.random.key(2), images)["params"], images


def layer_by_layer(block, stacked, x):
    """What each layer makes of the one before it, one at a time."""
    for index in range(DEPTH):
        x = block.apply({"params": jax.tree.map(lambda leaf, index=index: leaf[index], stacked)}, x)
        yield x


def agree(captured, outputs, num_outputs):
    (body,), (last,) = captured["body"]["__call__"], captured["last"]["__call__"]
    # float32 on both sides, compiled together or alone: only the order of sums differs
    np.testing.assert_allclose(body, jnp.stack(outputs[:-1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, outputs[-1][:, :num_outputs], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"unroll": True, "remat": "layers"}], ids=str)
def test_what_a_layer_sows_comes_out_of_the_image_tower(vision, drawn, how):
    params, images = drawn
    encoder = ImageEncoder(vision, **how)

    def evaluate(params):
        features, sown = encoder.apply(
            {"params": params}, images, mutable=["intermediates"], capture_intermediates=True
        )
        return jnp.sum(features**2), sown["intermediates"]

    # under a gradient, as while training
    _, captured = jax.jit(jax.grad(evaluate, has_aux=True))(params)
    outputs = layer_by_layer(Block(vision, False, None), params["blocks"], captured["ln_pre"]["__call__"][0])
    agree(captured["blocks"], list(outputs), 1)


def test_what_a_layer_sows_comes_out_of_the_text_tower(config):
    text = dataclasses.replace(config.text, num_hidden_layers=DEPTH)
    encoder, tokens = TextEncoder(text), np.random.default_rng(3).integers(3, 20, (2, 7)).astype(np.int32)
    params = jax.jit(encoder.init)(jax.random.key(2), tokens)["params"]
    capture = jax.jit(lambda p: encoder.apply(p, tokens, mutable=["intermediates"], capture_intermediates=True)[1])
    captured = capture({"params": params})["intermediates"]
    x = params["token_embedding"][tokens] + params["position_embedding"][None, :7]
    agree(captured["blocks"], list(layer_by_layer(Block(text, True, None), params["blocks"], x)), None)


def test_metadata_of_initial_kernels_is_that_of_the_stack(vision, drawn, monkeypatch):
    normal = nn.initializers.normal
    monkeypatch.setattr(nn.initializers, "normal", lambda std: nn.with_partitioning(normal(std), AXES))
    boxed = jax.jit(ImageEncoder(vision).init)(jax.random.key(2), drawn[1])["params"]["blocks"]
    assert boxed["attn"]["out"]["kernel"].names == boxed["mlp"]["fc_in"]["kernel"].names == ("layers", *AXES)
    jax.tree.map(np.testing.assert_array_equal, nn.unbox(boxed), drawn[0]["blocks"])


def test_metadata_of_a_stack_is_that_of_each_layer(vision, drawn):
    """A boxed leaf of the stack `[L, D, D]` is constrained as `[D, D]` in the body and in the last layer."""
    params, images = drawn
    mesh = jax.make_mesh((1, 1), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    query = params["blocks"]["attn"]["query"]
    box = nn.Partitioned(query["kernel"], ("layers", *AXES), mesh)
    attention = params["blocks"]["attn"] | {"query": query | {"kernel": box}}
    boxed = params | {"blocks": params["blocks"] | {"attn": attention}}

    def encode(params):
        return ImageEncoder(vision).apply({"params": params}, images)

    width = vision.hidden_size
    constraints = [line for line in str(jax.make_jaxpr(encode)(boxed)).splitlines() if "sharding_constraint" in line]
    assert len(constraints) == 2 and all(f"f32[{width},{width}]" in line for line in constraints)
    np.testing.assert_allclose(jax.jit(encode)(boxed), jax.jit(encode)(params), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("remat", "times"), [("none", 0), ("dots", 2), ("layers", 2)])
def test_each_layer_is_recomputed_by_itself(vision, drawn, remat, times):
    """Once in the body, which stands for all its layers, and once for the last."""
    encoder = ImageEncoder(vision, remat=remat)
    program = str(jax.make_jaxpr(lambda params: encoder.apply({"params": params}, drawn[1]))(drawn[0]))
    assert program.count("remat") == times


def test_a_tower_without_its_layers_is_refused_by_the_path_that_lacks(vision, drawn):
    rest = {name: leaf for name, leaf in drawn[0].items() if name != "blocks"}
    with pytest.raises(flax.errors.ScopeCollectionNotFound, match="blocks"):
        jax.eval_shape(ImageEncoder(vision).apply, {"params": rest}, drawn[1])
