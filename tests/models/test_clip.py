"""The towers: goldens of the PyTorch reference, and symmetries that hold by design."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.models import CLIP, ClipConfig, ImageEncoder, TextConfig, TextEncoder, VisionConfig
from tajax.models.convert import params_from_tensors
from tajax.models.geometry import HIDDEN_ACTS
from tajax.models.transformer import ACTIVATIONS
from tajax.trees import flatten_paths, param_mask, unflatten_paths


@pytest.mark.parametrize("case", ["quick_gelu", "gelu_legacy_eos", "tanh_ragged_patches"])
def test_both_towers_agree_with_goldens_of_the_reference(goldens_script, case):
    goldens = np.load(goldens_script.GOLDENS, allow_pickle=False)
    shapes = [tuple(map(int, filter(None, shape.split(",")))) for shape in goldens[f"{case}/shapes"]]
    tensors = goldens_script.weights(list(goldens[f"{case}/names"]), shapes)
    images, tokens = goldens_script.inputs()
    config = ClipConfig.from_hf(goldens_script.CASES[case])
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params_from_tensors(tensors, config))
        image, text, _ = jax.jit(CLIP(config).apply)({"params": params}, images, tokens)
        # float64 on both sides, features of unit scale: only the order of sums differs
        np.testing.assert_allclose(image, goldens[f"{case}/image"], rtol=0, atol=1e-11)
        np.testing.assert_allclose(text, goldens[f"{case}/text"], rtol=0, atol=1e-11)


def test_unrolling_and_recomputing_change_neither_features_nor_gradients(config, params, key):
    images = jax.random.normal(key, (3, 16, 16, 3))

    def loss(encoder):
        evaluate = jax.value_and_grad(lambda p: jnp.sum(encoder.apply({"params": p}, images) ** 2))
        return jax.jit(evaluate)(params["image"])

    value, grads = loss(ImageEncoder(config.vision))
    other_value, other_grads = loss(ImageEncoder(config.vision, unroll=99, remat="layers"))
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    for path, grad in flatten_paths(grads).items():
        np.testing.assert_allclose(flatten_paths(other_grads)[path], grad, rtol=1e-3, atol=1e-3, err_msg=path)


def test_gradients_that_nobody_asks_for_cost_nothing():
    """Of a layer's 36·D² products a token (12 forward, 24 backward) attention-only training needs 28, or 0.78."""
    geometry = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 2}
    encoder = ImageEncoder(VisionConfig(**geometry, image_size=32, patch_size=8))
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)["params"]

    def flops(rule):
        mask = flatten_paths(param_mask(params, rule))
        trained = {path: leaf for path, leaf in flatten_paths(params).items() if mask[path]}
        frozen = {path: leaf for path, leaf in flatten_paths(params).items() if not mask[path]}

        def loss(trained, frozen, images):
            variables = {"params": unflatten_paths(trained | frozen)}
            return jnp.sum(encoder.apply(variables, images) ** 2)

        return jax.jit(jax.grad(loss)).lower(trained, frozen, images).compile().cost_analysis()["flops"]

    assert 0.7 < flops("attention") / flops("all") < 0.80


def test_bfloat16_computes_in_bfloat16_and_returns_float32(config, params, key):
    images = jax.random.normal(key, (3, 16, 16, 3))
    exact, rounded = (
        jax.jit(ImageEncoder(config.vision, dtype=dtype).apply)({"params": params["image"]}, images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    gap = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < gap < 3e-2  # bfloat16 keeps 8 bits: not the same, yet close


def test_text_after_the_end_is_not_seen_and_text_before_it_is(config, params, tokenizer):
    encode = jax.jit(lambda tokens: TextEncoder(config.text).apply({"params": params["text"]}, tokens))
    tokens = tokenizer.tokenize(["a photo of a red square."])
    end = int((tokens[0] == tokenizer.eos_token_id).argmax())
    behind, before = tokens.copy(), tokens.copy()
    behind[0, end + 1 :] = 5
    before[0, end - 1] = 5
    features = encode(tokens)
    np.testing.assert_allclose(encode(behind), features, atol=1e-6)
    np.testing.assert_allclose(encode(tokens[:, : end + 1]), features, atol=1e-6)
    assert np.abs(encode(before) - features).max() > 1e-3


def test_every_hidden_act_has_its_function():
    assert set(ACTIVATIONS) == set(HIDDEN_ACTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {"hidden_size": 100, "num_attention_heads": 3}}, "100 does not divide into 3"),
        ({"text_config": {"hidden_act": "swish"}}, "'swish' is unknown; choose one of quick_gelu"),
        ({"vision_config": {"image_size": [224, 336]}}, "only square images"),
        ({"vision_config": {"patch_size": 0}}, "patch_size must be positive"),
        ({"vision_config": {"patch_size": 64, "image_size": 32}}, "patch_size 64 exceeds image_size 32"),
        ({"model_type": "siglip"}, "'siglip'; only 'clip'"),
    ],
)
def test_impossible_geometry_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig.from_hf(change)


def test_sizes_must_be_whole_numbers():
    with pytest.raises(TypeError, match=r"hidden_size must be an integer, got 3\.5"):
        VisionConfig(hidden_size=3.5)


def test_towers_of_different_width_are_refused():
    with pytest.raises(ValueError, match="projection_dim is 8, text"):
        ClipConfig(vision=VisionConfig(projection_dim=8), text=TextConfig(projection_dim=16))


@pytest.mark.parametrize(
    ("images", "error"),
    [(np.zeros((2, 3, 16, 16), np.float32), ValueError), (np.zeros((2, 16, 16, 3), np.uint8), TypeError)],
)
def test_wrong_images_are_refused_before_compiling(config, params, images, error):
    with pytest.raises(error, match="Images must"):
        jax.eval_shape(ImageEncoder(config.vision).apply, {"params": params["image"]}, images)
