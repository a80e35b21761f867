"""Conversion is total: every leaf and every tensor once, in both directions, under both namings."""

import dataclasses

import jax
import numpy as np
import pytest

from tajax.models.convert import NAMINGS, ROWS, detect_naming, params_from_tensors, tensors_from_params
from tajax.models.open_clip import from_open_clip, infer_config
from tajax.trees import flatten_paths


@pytest.fixture(params=NAMINGS)
def naming(request):
    return request.param


@pytest.fixture
def tensors(params, config, naming):
    return tensors_from_params(params, config, naming=naming)


def test_there_and_back_is_the_identity(tensors, params, config, naming):
    assert detect_naming(tensors) == naming
    back = params_from_tensors(tensors, config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for path, leaf in flatten_paths(params).items():
        np.testing.assert_array_equal(flatten_paths(back)[path], leaf, err_msg=path)
    again = tensors_from_params(back, config, naming=naming)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_the_table_names_each_leaf_and_each_tensor_once(params, naming):
    names = [getattr(row, naming) for row in ROWS]
    assert len(set(names)) == len(names)
    assert sorted(row.path for row in ROWS) == sorted(flatten_paths(params))


def test_every_number_is_carried_once(params, config, naming):
    sizes = [tensor.size for tensor in tensors_from_params(params, config, naming=naming).values()]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_open_clip_orientation(params, config):
    """The layouts by hand: fused qkv, [out, in] linear layers, [D, 3, p, p] patches, [D, E] projections."""
    tensors = tensors_from_params(params, config, naming="open_clip")
    block = jax.tree.map(lambda leaf: np.asarray(leaf[1]), params["image"]["blocks"])
    fused = np.concatenate([block["attn"][name]["kernel"].T for name in ("query", "key", "value")])
    np.testing.assert_array_equal(tensors["visual.transformer.resblocks.1.attn.in_proj_weight"], fused)
    fused = np.concatenate([block["attn"][name]["bias"] for name in ("query", "key", "value")])
    np.testing.assert_array_equal(tensors["visual.transformer.resblocks.1.attn.in_proj_bias"], fused)
    fc_in = tensors["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    np.testing.assert_array_equal(fc_in, block["mlp"]["fc_in"]["kernel"].T)
    patches = tensors["visual.conv1.weight"]
    assert patches[3, 2, 1, 0] == params["image"]["patch_embedding"]["kernel"][1, 0, 2, 3]
    np.testing.assert_array_equal(tensors["visual.proj"], params["image"]["projection"]["kernel"])
    np.testing.assert_array_equal(tensors["text_projection"], params["text"]["projection"]["kernel"])


def test_missing_left_over_and_misshapen_tensors_are_named_together(tensors, config):
    names = sorted(tensors)
    renamed, reshaped, integer = names[0], names[1], names[2]
    tensors[renamed + ".ema"] = tensors.pop(renamed)
    tensors[reshaped] = np.zeros((3, 5), np.float32)
    tensors[integer] = tensors[integer].astype(np.int32)
    with pytest.raises(ValueError) as error:
        params_from_tensors(tensors, config)
    message = str(error.value)
    assert f"1 missing: {renamed}." in message
    assert f"1 left over: {renamed}.ema" in message
    assert f"{reshaped} is float32 [3, 5], expected float" in message
    assert f"{integer} is int32" in message
    assert f"({len(names)} tensors" in message


def test_long_lists_of_problems_are_counted_not_printed(tensors, config):
    kept = {name: tensor for name, tensor in tensors.items() if "blocks" not in name and "layers" not in name}
    kept["transformer.x" if detect_naming(tensors) == "open_clip" else "text_model.x"] = np.zeros(1)
    with pytest.raises(ValueError, match=rf"{len(tensors) - len(kept) + 1} missing: .*… \(\d+ more\)") as error:
        params_from_tensors(kept, config)
    assert len(str(error.value)) < 900


def test_known_buffers_are_tolerated_and_others_are_not(params, config):
    tensors = tensors_from_params(params, config)
    tensors["vision_model.embeddings.position_ids"] = np.arange(5)[None]
    params_from_tensors(tensors, config)
    tensors["vision_model.encoder.position_ids"] = np.arange(5)[None]
    with pytest.raises(ValueError, match=r"1 left over: vision_model\.encoder\.position_ids"):
        params_from_tensors(tensors, config)


def test_more_layers_than_tensors_are_refused_before_their_names_are_made(tensors, config):
    vision = dataclasses.replace(config.vision, num_hidden_layers=10**12)
    with pytest.raises(ValueError, match=rf"says {10**12} layers, the checkpoint has {len(tensors)} tensors in all"):
        params_from_tensors(tensors, dataclasses.replace(config, vision=vision))


def test_tensors_of_something_else_are_recognised():
    with pytest.raises(ValueError, match=r"neither naming of a CLIP: bert\.embeddings"):
        detect_naming(["bert.embeddings", "bert.pooler"])


def test_parameters_that_do_not_fit_are_not_written(params, config):
    pruned = {**params, "text": {k: v for k, v in params["text"].items() if k != "ln_final"}}
    with pytest.raises(ValueError, match="text/ln_final/bias"):
        tensors_from_params(pruned, config)
    with pytest.raises(ValueError, match="'keras' is unknown; choose one of huggingface, open_clip"):
        tensors_from_params(params, config, naming="keras")


def test_shapes_tell_the_geometry_of_published_models():
    def geometry(width, patch, size, layers, text_width, text_layers, embed):
        def tower(prefix, width, layers):
            return {f"{prefix}resblocks.{i}.mlp.c_fc.weight": (4 * width, width) for i in range(layers)}

        shapes = {
            "visual.conv1.weight": (width, 3, patch, patch),
            "visual.positional_embedding": ((size // patch) ** 2 + 1, width),
            "visual.proj": (width, embed),
            "token_embedding.weight": (49408, text_width),
            "positional_embedding": (77, text_width),
            "text_projection": (text_width, embed),
            **tower("visual.transformer.", width, layers),
            **tower("transformer.", text_width, text_layers),
        }
        return infer_config({name: np.broadcast_to(np.float16(0), shape) for name, shape in shapes.items()})

    base = geometry(768, 32, 224, 12, 512, 12, 512)
    large = geometry(1024, 14, 336, 24, 768, 12, 768)
    huge = geometry(1280, 14, 224, 32, 1024, 24, 1024)
    assert (base.vision.num_attention_heads, base.text.num_attention_heads) == (12, 8)
    assert (base.vision.image_size, base.text.eos_token_id, base.vision.hidden_act) == (224, 49407, "quick_gelu")
    assert (large.vision.num_attention_heads, large.vision.image_size, large.vision.num_hidden_layers) == (16, 336, 24)
    assert (huge.vision.num_attention_heads, huge.text.num_hidden_layers, huge.projection_dim) == (16, 24, 1024)
    with pytest.raises(ValueError, match="how many heads share the width 100"):
        geometry(100, 32, 224, 12, 512, 12, 512)


def test_open_clip_configuration_of_h14():
    vision = {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}
    config = from_open_clip({"model_cfg": {"embed_dim": 1024, "vision_cfg": vision, "text_cfg": text}})
    assert (config.vision.num_attention_heads, config.vision.intermediate_size) == (16, 5120)
    assert (config.vision.hidden_act, config.text.eos_token_id) == ("gelu", 49407)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"embed_dim": 8, "vision_cfg": {"timm_model_name": "convnext"}}, "timm_model_name='convnext'"),
        ({"embed_dim": 8, "vision_cfg": {"layers": [3, 4, 6, 3]}}, "is a ResNet"),
        (
            {"embed_dim": 8, "text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}},
            "text_cfg has tokenizer_kwargs=",
        ),
        ({"vision_cfg": {}}, "no embed_dim"),
    ],
)
def test_open_clip_configurations_of_other_models_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        from_open_clip({"model_cfg": model})
