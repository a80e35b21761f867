"""Every tensor is claimed or named, both ways, whatever wraps the model; what is saved is what was loaded."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax.encoders.vit.finetuned import load_finetuned
from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.loading import load_vit
from tajax.encoders.vit.saving import check_format, save_vit
from tajax.encoders.vit.tensors import find_vit, params_from_tensors, tensors_from_params
from tajax.trees import flatten_paths
from tests.encoders.vit.conftest import CONFIGS, PREPROCESSOR, shapes_of, tensors_of, write

EXTRAS = {
    "vit": {"pooler.dense.weight": (16, 16), "pooler.dense.bias": (16,)},
    "unbiased": {"classifier.weight": (5, 16), "classifier.bias": (5,), "embeddings.mask_token": (1, 1, 16)},
    "dinov2": {"embeddings.mask_token": (1, 16)},
    "gated": {"embeddings.mask_token": (1, 16), "classifier.weight": (5, 32), "classifier.bias": (5,)},
    "registers": {"embeddings.mask_token": (1, 16)},
}
PREFIXES = {"vit": "", "unbiased": "vit.", "dinov2": "", "gated": "dinov2.", "registers": ""}


def whole(kind, random, *, modern=False, number=np.float32):
    """A checkpoint as transformers' whole models have it: prefix, classifier, pooler, mask token."""
    tensors = tensors_of(CONFIGS[kind], random, modern=modern)
    tensors |= {name: random.normal(size=shape).astype(np.float32) for name, shape in EXTRAS[kind].items()}
    return {
        (name if name.startswith("classifier") else PREFIXES[kind] + name): value.astype(number)
        for name, value in tensors.items()
    }


def config_of(kind):
    return VitConfig.from_hf(CONFIGS[kind], input_size=8)


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_round_trip_loses_no_bit(kind, modern, rng):
    tensors = tensors_of(CONFIGS[kind], rng(740), modern=modern)
    params = params_from_tensors(tensors, config_of(kind), modern=modern)
    again = tensors_from_params(params, config_of(kind), modern=modern)
    assert again.keys() == tensors.keys() == shapes_of(CONFIGS[kind], modern=modern).keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_both_namings_are_one_model(rng):
    """The names of version 5 are those of 4, written down here again, and the two factors of a SwiGLU one tensor."""
    old = tensors_of(CONFIGS["gated"], rng(741))
    new = {}
    for name, value in old.items():
        name = name.replace("attention.attention.query", "attention.q_proj").replace("mlp.weights_out", "mlp.down_proj")
        name = name.replace("attention.attention.key", "attention.k_proj")
        name = name.replace("attention.attention.value", "attention.v_proj")
        name = name.replace("attention.output.dense", "attention.o_proj")
        if "weights_in" in name:
            new[name.replace("weights_in", "gate_proj")], new[name.replace("weights_in", "up_proj")] = np.split(
                value, 2
            )
        else:
            new[name] = value
    one = params_from_tensors(old, config_of("gated"))
    two = params_from_tensors(new, config_of("gated"), modern=True)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert find_vit(list(new)).modern and not find_vit(list(old)).modern


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_saved_is_the_file_that_was_loaded(kind, modern, tmp_path, rng):
    tensors = whole(kind, rng(742), modern=modern)
    vit = load_vit(write(tmp_path / "given", CONFIGS[kind] | {"architectures": ["Any"]}, tensors))
    assert any("not part of the encoder, carried along unchanged" in note for note in vit.notes)
    save_vit(tmp_path / "saved", vit, vit.params)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(saved[name], value, err_msg=name)
    told = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert told == CONFIGS[kind] | {"architectures": ["Any"], "dtype": "float32"}
    assert json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text()) == PREPROCESSOR
    again = load_vit(tmp_path / "saved")
    assert again.sha256 == vit.sha256 and again.config == vit.config and again.notes == vit.notes


def test_other_parameters_are_saved_and_the_rest_is_the_bases(tmp_path, rng):
    vit = load_vit(write(tmp_path / "given", CONFIGS["gated"], whole("gated", rng(743), number=np.float16)))
    moved = jax.tree.map(lambda leaf: 1.5 * leaf, vit.params)
    save_vit(tmp_path / "saved", vit, moved)
    jax.tree.map(np.testing.assert_array_equal, load_vit(tmp_path / "saved").params, moved)
    saved, given = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "given"))
    np.testing.assert_array_equal(saved["classifier.weight"], given["classifier.weight"])
    assert saved["classifier.weight"].dtype == np.float16 and saved["dinov2.layernorm.bias"].dtype == np.float32


def test_nothing_is_saved_over_another_nor_in_another_format_nor_if_it_is_not_finite(tmp_path, small):
    vit = load_vit(small("vit")[0])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="taken exists"):
        save_vit(tmp_path / "taken", vit, vit.params)
    with pytest.raises(ValueError, match="format 'open_clip' cannot hold a ViT; there is 'huggingface'"):
        save_vit(tmp_path / "new", vit, vit.params, format="open_clip")
    with pytest.raises(ValueError, match="open_clip"):
        check_format("open_clip")
    with pytest.raises(ValueError, match=r"embeddings.cls_token is not finite"):
        save_vit(tmp_path / "new", vit, vit.params | {"class_embedding": jnp.full(16, jnp.nan)})
    assert not (tmp_path / "new").exists()


def broken(tensors, change):
    name = "encoder.layer.1.attention.output.dense.weight"
    if change == "missing":
        return {key: value for key, value in tensors.items() if key != name}
    return tensors | {
        "shape": {name: np.zeros((16, 15), np.float32)},
        "integers": {name: np.zeros((16, 16), np.int32)},
        "nan": {name: np.full((16, 16), np.nan, np.float32)},
        "more": {"encoder.layer.3.norm1.bias": np.zeros(16, np.float32)},
        "distilled": {"embeddings.distillation_token": np.zeros((1, 1, 16), np.float32)},
        "relative": {"encoder.relative_position_bias.table": np.zeros((9, 2), np.float32)},
    }.get(change, {})


@pytest.mark.parametrize(
    "change, message",
    {
        "missing": "1 missing: encoder.layer.1.attention.output.dense.weight",
        "shape": r"encoder.layer.1.attention.output.dense.weight is float32 \[16, 15\], expected float \[16, 16\]",
        "integers": "is int32",
        "nan": "1 that do not fit: encoder.layer.1.attention.output.dense.weight has 256 entries that are not finite",
        "more": "1 left over: encoder.layer.3.norm1.bias",
        "distilled": "1 left over: embeddings.distillation_token",
        "relative": "1 left over: encoder.relative_position_bias.table",
    }.items(),
)
def test_what_does_not_fit_is_named(small, tmp_path, change, message):
    _, config, tensors = small("dinov2")
    with pytest.raises(ValueError, match=message) as error:
        load_vit(write(tmp_path / "broken", config, broken(tensors, change)))
    assert "model.safetensors" in str(error.value)
    assert load_vit(small("dinov2")[0]).params  # the file it was made from is whole


def test_more_layers_than_tensors_are_refused_before_their_names_are_made(small, tmp_path):
    _, config, tensors = small("vit")
    with pytest.raises(ValueError, match=rf"says {10**12} layers, the checkpoint has \d+ tensors in all"):
        load_vit(write(tmp_path / "deep", config | {"num_hidden_layers": 10**12}, tensors))


def test_tensors_beside_a_model_are_refused_when_it_is_to_be_a_base(small, tmp_path):
    _, config, tensors = small("vit")
    with pytest.raises(ValueError, match="1 tensors are neither the encoder's nor .*: head.weight"):
        load_vit(write(tmp_path / "more", config, tensors | {"head.weight": np.zeros((2, 16), np.float32)}))


@pytest.mark.parametrize(
    "names, message",
    [
        (["cls_token", "patch_embed.proj.weight"], "a ViT under the names of timm or of DINO's own code"),
        (["vision_model.embeddings.class_embedding"], "This is a CLIP: load it with the family 'clip'"),
        (["bert.weight"], "hold no 'embeddings.cls_token' among bert.weight. Give a ViT, a DINO or a DINOv2"),
        (["params.0", "params0.0"], "hold no 'embeddings.cls_token'"),
        (["a.embeddings.cls_token", "b.embeddings.cls_token"], "There are 2 ViTs. Choose one: NAME#a or NAME#b"),
        (["module.embeddings.cls_token", "embeddings.cls_token"], "are one tensor of the model"),
        (["embeddings.cls_token", "encoder.layer.0.attention.lora_A.weight"], "LoRA"),
    ],
)
def test_what_is_no_vit_or_several_is_said(names, message):
    with pytest.raises(ValueError, match=message):
        find_vit(names)


def test_one_of_several_is_chosen_by_how_its_names_begin():
    names = ["model.vit.embeddings.cls_token", "ema.vit.embeddings.cls_token", "ema.classifier.bias"]
    found = find_vit(names, which="ema")
    assert found.names == {"embeddings.cls_token": names[1], "classifier.bias": names[2]}
    assert found.outside == (names[0],) and found.written("classifier.bias") == "classifier.bias"
    assert found.written("embeddings.cls_token") == "vit.embeddings.cls_token"


@pytest.fixture(scope="module")
def base(small):
    return load_vit(small("registers")[0])


def moved(tensors, random):
    return {name: (value + 0.1 * random.normal(size=value.shape)).astype(np.float32) for name, value in tensors.items()}


def test_a_directory_that_others_fine_tuned_without_its_classifier(base, small, tmp_path, rng):
    _, config, tensors = small("registers")
    theirs = moved(tensors, rng(750))
    whole_model = {f"dinov2_with_registers.{name}": value for name, value in theirs.items()}
    whole_model |= {"classifier.weight": np.ones((3, 32), np.float32), "classifier.bias": np.ones(3, np.float32)}
    found = load_finetuned(write(tmp_path / "theirs", config, whole_model), base)
    jax.tree.map(np.testing.assert_array_equal, found.params, params_from_tensors(theirs, base.config))
    assert (found.format, found.linearized, found.rounding) == ("huggingface", False, None)
    assert found.notes == ("tensors beside the encoder are left out (2): classifier.bias, classifier.weight",)


def test_a_state_dict_in_wrappers_beside_an_optimiser(base, small, tmp_path, rng):
    theirs = moved(small("registers")[2], rng(751))
    wrapped = {f"state_dict.module.{name}": value for name, value in theirs.items()}
    wrapped |= {"optimizer.state.0.exp_avg": np.zeros(4, np.float32), "state_dict.head.weight": np.zeros(4, np.float32)}
    file = write(tmp_path / "alone", {}, wrapped, preprocessor=None) / "model.safetensors"
    (file.parent / "config.json").unlink()
    found = load_finetuned(file, base)
    jax.tree.map(np.testing.assert_array_equal, found.params, params_from_tensors(theirs, base.config))
    assert "optimizer.state.0.exp_avg" in found.notes[0] and "head.weight" in found.notes[0]


def test_what_only_rounding_moved_did_not_move(base, small, tmp_path, rng):
    _, config, tensors = small("registers")
    changed = "encoder.layer.2.attention.output.dense.weight"
    theirs = tensors | {changed: moved(tensors, rng(752))[changed]}
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in theirs.items()}
    found = load_finetuned(write(tmp_path / "half", config, halves), base)
    flat, ours = flatten_paths(found.params), flatten_paths(base.params)
    for path, leaf in flat.items():
        same = np.array_equal(leaf, ours[path])
        assert same == (path != "blocks/attn/out/kernel"), path
    np.testing.assert_array_equal(flat["blocks/attn/out/kernel"][:2], ours["blocks/attn/out/kernel"][:2])
    assert found.rounding.dtype == "bfloat16" and found.rounding.moved == 1
    assert any("weights are bfloat16" in note for note in found.notes)


@pytest.mark.parametrize(
    "change, preprocessor, message",
    [
        ({"num_attention_heads": 4}, PREPROCESSOR, "num_attention_heads is 4, the base's is 2"),
        ({"hidden_act": "gelu_new"}, PREPROCESSOR, "hidden_act is 'gelu_new', the base's is 'gelu'"),
        ({"model_type": "dinov2", "num_register_tokens": None}, PREPROCESSOR, "model_type is 'dinov2', the base's is"),
        ({}, PREPROCESSOR | {"image_mean": [0.5] * 3}, "Give the base that it was made from, or remove the file"),
        (
            {},
            PREPROCESSOR | {"size": {"shortest_edge": 11}},
            "resize=Resize.side=11, .* Give the base that it was made",
        ),
        ({"model_type": "deit"}, PREPROCESSOR, "'deit': it has a distillation token"),
    ],
)
def test_what_was_made_from_another_base_is_refused(base, small, tmp_path, change, preprocessor, message):
    _, config, tensors = small("registers")
    with pytest.raises(ValueError, match=message):
        load_finetuned(write(tmp_path / "other", config | change, tensors, preprocessor), base)


def test_the_initial_value_of_scales_does_not_matter_to_who_is_fine_tuned(base, small, tmp_path):
    _, config, tensors = small("registers")
    found = load_finetuned(write(tmp_path / "same", config | {"layerscale_value": 1e-5}, tensors), base)
    jax.tree.map(np.testing.assert_array_equal, found.params, base.params)
