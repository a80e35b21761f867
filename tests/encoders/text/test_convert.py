"""Tensors to parameters and back: each of them claimed once, whatever prefix their names have."""

import dataclasses

import numpy as np
import pytest

from tajax.encoders.text.convert import find_model, params_from_tensors, tensors_from_params
from tests.encoders.text import oracle

WORDS = "embeddings.word_embeddings.weight"


def test_there_and_back_is_exact(tensors, config):
    params, pooler = params_from_tensors(tensors, config)
    back = tensors_from_params(params, config) | pooler
    assert back.keys() == oracle.shapes(config).keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
        assert back[name].flags.c_contiguous


def test_leaves_are_the_tensors_they_are_named_after(tensors, config):
    params, pooler = params_from_tensors(tensors, config)
    layer, name = 1, "encoder.layer.1.attention.self.key.weight"
    np.testing.assert_array_equal(params["blocks"]["attn"]["key"]["kernel"][layer], tensors[name].T)
    np.testing.assert_array_equal(params["type_embedding"], tensors["embeddings.token_type_embeddings.weight"])
    assert sorted(pooler) == ["pooler.dense.bias", "pooler.dense.weight"]


def test_buffers_and_the_pooler_may_be_there_or_not(tensors, config):
    with_ids = tensors | {"embeddings.position_ids": np.arange(48)[None]}
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    assert params_from_tensors(with_ids, config)[1] and not params_from_tensors(without, config)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({WORDS: None}, "1 missing: embeddings.word_embeddings.weight"),
        ({WORDS: np.zeros((5, 24), np.float32)}, r"embeddings.weight is float32 \[5, 24\], expected float \[59, 24\]"),
        ({WORDS: np.zeros((59, 24), np.int8)}, "is int8"),
        ({"encoder.layer.3.output.dense.bias": np.zeros(24)}, "1 left over: encoder.layer.3.output.dense.bias"),
        ({"pooler.dense.bias": None}, "1 missing: pooler.dense.bias"),
        ({"embeddings.mystery": np.zeros(3)}, "left over: embeddings.mystery"),
    ],
)
def test_what_does_not_fit_is_named(tensors, config, change, message):
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        params_from_tensors(changed, config)


def test_more_layers_than_tensors_are_refused_before_their_names_are_made(tensors, config):
    with pytest.raises(ValueError, match=rf"says {10**12} layers, the checkpoint has {len(tensors)} tensors in all"):
        params_from_tensors(tensors, dataclasses.replace(config, num_hidden_layers=10**12))


def test_parameters_of_another_geometry_are_not_written(tensors, config):
    params, _ = params_from_tensors(tensors, config)
    with pytest.raises(ValueError, match="type_embedding"):
        tensors_from_params({**params, "type_embedding": np.zeros((3, 24))}, config)


@pytest.mark.parametrize("prefix", ["", "bert.", "0.auto_model.", "0.model.", "module.bert.", "model.encoder."])
def test_prefixes_and_wrappers_are_removed(tensors, prefix):
    found = find_model([f"{prefix}{name}" for name in tensors])
    assert found.names == {name: f"{prefix}{name}" for name in tensors}
    assert bool(found.notes) == (prefix not in ("", "module."))


def test_heads_and_optimisers_are_named_and_not_read(tensors):
    beside = ["cls.predictions.bias", "optimizer.state.0.exp_avg", "something.else"]
    found = find_model([*(f"bert.{name}" for name in tensors), *beside])
    assert found.names.keys() == tensors.keys() and found.outside == ("something.else",)
    assert "tensors of a head are not read (1): cls.predictions.bias" in found.notes
    assert "tensors of an optimiser are not read (1): optimizer.state.0.exp_avg" in found.notes


def test_the_older_names_of_layer_norms():
    found = find_model([WORDS, "embeddings.LayerNorm.gamma", "embeddings.LayerNorm.beta"])
    assert found.names["embeddings.LayerNorm.weight"] == "embeddings.LayerNorm.gamma"
    assert found.names["embeddings.LayerNorm.bias"] == "embeddings.LayerNorm.beta"
    assert "gamma and beta" in found.notes[0]


@pytest.mark.parametrize(
    ("names", "which", "message"),
    [
        (["visual.proj"], None, "hold no BERT among visual.proj"),
        ([f"a.{WORDS}", f"b.{WORDS}"], None, "There are 2 BERTs .* Choose one: NAME#a or NAME#b"),
        ([f"a.{WORDS}", f"b.{WORDS}"], "c", "#c names 0 BERTs"),
        ([WORDS, "embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"], None, "are one tensor of the model"),
        ([WORDS, f"module.{WORDS}"], None, "There are 2 BERTs"),
        (["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight", WORDS], None, "a LoRA adapter"),
    ],
)
def test_what_is_no_single_model_is_refused(names, which, message):
    with pytest.raises(ValueError, match=message):
        find_model(names, which=which)


def test_one_of_several_can_be_chosen():
    found = find_model([f"student.{WORDS}", f"teacher.{WORDS}"], which="teacher")
    assert found.names == {WORDS: f"teacher.{WORDS}"} and found.outside == (f"student.{WORDS}",)
