"""Exact parameter counts of the published geometries and of the rules; what a config.json says that is refused."""

import pytest

from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.tower import abstract_params
from tajax.trees import RULES, count_params, param_mask

DINO_S = {"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
S, B = {"hidden_size": 384, "num_attention_heads": 6}, {"hidden_size": 768, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
GIANT = {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 40, "use_swiglu_ffn": True}
V2 = {"model_type": "dinov2", "image_size": 518, "patch_size": 14}
REGISTERS = V2 | {"model_type": "dinov2_with_registers"}

PUBLISHED = {  # without pooler and classifier; of DINOv2 with the mask token, of D numbers, which is not read
    "google/vit-base-patch16-224": ({"model_type": "vit"}, 85_798_656),
    "google/vit-base-patch32-224-in21k": ({"model_type": "vit", "patch_size": 32}, 87_455_232),
    "google/vit-large-patch16-224": ({"model_type": "vit", "intermediate_size": 4096} | LARGE, 303_301_632),
    "facebook/dino-vits16": (DINO_S, 21_665_664),
    "facebook/dino-vits8": (DINO_S | {"patch_size": 8}, 21_670_272),
    "facebook/dino-vitb16": ({"model_type": "vit"}, 85_798_656),
    "facebook/dinov2-small": (V2 | S, 22_056_576),
    "facebook/dinov2-base": (V2 | B, 86_580_480),
    "facebook/dinov2-large": (V2 | LARGE, 304_368_640),
    "facebook/dinov2-giant": (V2 | GIANT, 1_136_480_768),
    "facebook/dinov2-with-registers-small": (REGISTERS | S, 22_058_112),
    "facebook/dinov2-with-registers-base": (REGISTERS | B, 86_583_552),
    "facebook/dinov2-with-registers-large": (REGISTERS | LARGE, 304_372_736),
    "facebook/dinov2-with-registers-giant": (REGISTERS | GIANT, 1_136_486_912),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_models_and_rules_follow_from_the_geometry(name):
    said, total = PUBLISHED[name]
    config = VitConfig.from_hf(said, input_size=224)
    params = abstract_params(config)
    total -= config.hidden_size * (config.model_type != "vit")
    assert count_params(params) == total
    depth, width, second = config.num_hidden_layers, config.hidden_size, 2 if config.gated else 1
    inner, embeddings = config.intermediate_size, width * (3 * config.patch_size**2 + 1 + 1 + config.table_size**2 + 1)
    attention, mlp = 4 * depth * width**2, depth * width * inner * (second + 1)
    biases = depth * (4 * width + second * inner + width + 2 * width) + 2 * width  # layer norms' and the patches' too
    layer_norms = 4 * depth * width + 2 * width
    counts = {rule: count_params(params, param_mask(params, rule)) for rule in RULES}
    assert counts["all"] == total
    assert counts["attention"] == attention == 4 * counts["attention_query"] == 2 * counts["attention_query_value"]
    assert counts["attention_with_bias"] == attention + 4 * depth * width
    assert counts["mlp"] == mlp and counts["linear_layers"] == attention + mlp
    assert counts["biases"] == biases and counts["layer_norms"] == layer_norms
    scales, registers = 2 * depth * width * (config.layer_scale is not None), (config.num_registers or 0) * width
    linear_biases = depth * (4 * width + second * inner + width)
    assert attention + mlp + linear_biases + layer_norms + embeddings + scales + registers == total
    assert count_params(params, param_mask(params, "attention", layers=(0, depth // 2))) == attention / 2


def test_the_hidden_width_of_the_giant_is_that_of_its_checkpoint():
    config = VitConfig.from_hf(V2 | GIANT, input_size=224)
    params = abstract_params(config)["blocks"]["mlp"]
    assert params["fc_in"]["kernel"].shape == (40, 1536, 8192) and params["fc_out"]["kernel"].shape == (40, 4096, 1536)


REFUSED = {
    "deit": ({"model_type": "deit"}, "'deit': it has a distillation token"),
    "beit": ({"model_type": "beit"}, "'beit': it has relative positions"),
    "swin": ({"model_type": "swin"}, "'swin': it attends within windows"),
    "dinov3": ({"model_type": "dinov3_vit"}, "'dinov3_vit': it has rotary positions"),
    "clip": ({"model_type": "clip"}, "it is of the family 'clip'"),
    "no type": ({}, "model_type None. The family 'vit' reads vit, dinov2, dinov2_with_registers"),
    "list": ({"model_type": ["vit"]}, r"model_type \['vit'\]"),
    "activation": (
        {"model_type": "vit", "hidden_act": "relu"},
        "hidden_act 'relu' is unknown; choose one of quick_gelu",
    ),
    "gates": ({"model_type": "vit", "use_swiglu_ffn": True}, "use_swiglu_ffn = True, which is not implemented"),
    "scales": ({"model_type": "vit", "layerscale_value": 0.1}, "layerscale_value = 0.1, which is not implemented"),
    "registers": ({"model_type": "dinov2", "num_register_tokens": 4}, "num_register_tokens = 4"),
    "quantised": ({"model_type": "vit", "quantization_config": {"bits": 4}}, "quantization_config"),
    "channels": ({"model_type": "vit", "num_channels": 1}, "num_channels = 1"),
    "heads": ({"model_type": "vit", "head_dim": 32}, "head_dim = 32"),
    "odd heads": ({"model_type": "vit", "num_attention_heads": 5}, "does not divide into 5 attention heads"),
    "oblong": ({"model_type": "vit", "image_size": [224, 192]}, r"image_size \[224, 192\] is not square"),
    "patches": ({"model_type": "vit", "patch_size": 300}, "patch_size 300 exceeds the images"),
    "an epsilon without a float32": (
        {"model_type": "dinov2", "layer_norm_eps": 1e308},
        "layer_norm_eps must lie between 0 and 1",
    ),
    "a width without end": ({"model_type": "dinov2", "mlp_ratio": 1e308}, "mlp_ratio 1e\\+308 of hidden_size"),
    "no layer": ({"model_type": "vit", "num_hidden_layers": 0}, "num_hidden_layers must be positive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(case):
    config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        VitConfig.from_hf(config)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": "768"}, {"qkv_bias": 1}, {"mlp_ratio": "4"}, {"layer_norm_eps": True}]
)
def test_values_of_another_kind_are_refused(wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        VitConfig.from_hf({"model_type": "dinov2"} | wrong)


def test_only_dinov2_takes_images_of_another_size_than_its_table():
    with pytest.raises(ValueError, match=r"takes images of 224 pixels .* but they would have 384"):
        VitConfig.from_hf({"model_type": "vit"}, input_size=384)
    for kind in ("dinov2", "dinov2_with_registers"):
        config = VitConfig.from_hf({"model_type": kind, "image_size": 518, "patch_size": 14}, input_size=224)
        assert (config.table_size, config.grid_size) == (37, 16)


def test_a_size_may_be_said_twice():
    assert VitConfig.from_hf({"model_type": "vit", "image_size": [384, 384], "patch_size": (32, 32)}).grid_size == 12


def test_images_that_no_memory_holds_are_refused():
    with pytest.raises(ValueError, match="images of 518 or 1099511627776 pixels a side; 16384 are the most"):
        VitConfig.from_hf({"model_type": "dinov2", "image_size": 518}, input_size=2**40)
