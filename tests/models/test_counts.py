"""Exact parameter counts of every published geometry, and of every rule for what is trained."""

import pytest

from tajax.models import ClipConfig, TextConfig, VisionConfig
from tajax.models.clip import abstract_params
from tajax.trees import RULES, count_params, param_mask


def _geometry(width, layers, heads, patch, size, text_width, text_layers, text_heads, embed):
    vision = VisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=size,
        projection_dim=embed,
    )
    text = TextConfig(
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=text_layers,
        num_attention_heads=text_heads,
        projection_dim=embed,
    )
    return ClipConfig(vision=vision, text=text)


GEOMETRIES = {
    "B/32": _geometry(768, 12, 12, 32, 224, 512, 12, 8, 512),
    "B/16": _geometry(768, 12, 12, 16, 224, 512, 12, 8, 512),
    "L/14": _geometry(1024, 24, 16, 14, 224, 768, 12, 12, 768),
    "L/14-336": _geometry(1024, 24, 16, 14, 336, 768, 12, 12, 768),
    "H/14": _geometry(1280, 32, 16, 14, 224, 1024, 24, 16, 1024),
}

RULE_NAMES = ("all", "attention", "attention_with_bias", "mlp", "linear_layers", "biases", "layer_norms")
COUNTS = {  # both towers and the temperature; then the image tower under each rule
    "B/32": (151_277_313, (87_849_216, 28_311_552, 28_348_416, 56_623_104, 84_934_656, 102_912, 39_936)),
    "B/16": (149_620_737, (86_192_640, 28_311_552, 28_348_416, 56_623_104, 84_934_656, 102_912, 39_936)),
    "L/14": (427_616_513, (303_966_208, 100_663_296, 100_761_600, 201_326_592, 301_989_888, 272_384, 102_400)),
    "L/14-336": (427_944_193, (304_293_888, 100_663_296, 100_761_600, 201_326_592, 301_989_888, 272_384, 102_400)),
    "H/14": (986_109_441, (632_076_800, 209_715_200, 209_879_040, 419_430_400, 629_145_600, 453_120, 168_960)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_parameter_counts_of_model_and_rules(name):
    params = abstract_params(GEOMETRIES[name])
    total, by_rule = COUNTS[name]
    assert count_params(params) == total
    image = params["image"]
    counts = {rule: count_params(image, param_mask(image, rule)) for rule in RULES}
    one = counts["attention"] // 4  # the four projections are of one size
    parts = {"query": one, "key": one, "value": one, "out": one, "query_value": 2 * one, "query_key_value": 3 * one}
    assert counts == dict(zip(RULE_NAMES, by_rule, strict=True)) | {f"attention_{name}": n for name, n in parts.items()}
    depth = GEOMETRIES[name].vision.num_hidden_layers
    for rule in ("attention", "attention_with_bias", "mlp", "linear_layers"):
        for layers in ((0, depth // 2), (depth // 2, depth)):
            assert count_params(image, param_mask(image, rule, layers=layers)) == counts[rule] / 2
    with pytest.raises(ValueError, match=f"no range of the {depth} layers"):
        param_mask(image, "attention", layers=(0, depth + 1))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_counts_follow_from_the_geometry(name):
    vision = GEOMETRIES[name].vision
    depth, width, patches = vision.num_hidden_layers, vision.hidden_size, vision.grid_size**2
    attention, mlp = 4 * depth * width**2, 8 * depth * width**2
    biases = depth * (4 + 5 + 2) * width + 2 * width  # attention, MLP and layer norms of a block; ln_pre and ln_post
    layer_norms = 4 * depth * width + 4 * width
    embeddings = width * (3 * vision.patch_size**2 + 1 + patches + 1)
    everything = attention + mlp + depth * 13 * width + 4 * width + embeddings + width * vision.projection_dim
    expected = (everything, attention, attention + 4 * depth * width, mlp, attention + mlp, biases, layer_norms)
    assert COUNTS[name][1] == expected
