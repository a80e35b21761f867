"""Loading: which files say what, and what is refused by name."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tajax import encoders
from tajax.encoders.text import FAMILY
from tajax.encoders.text.loading import check_name, load_text
from tajax.encoders.text.tokenizer import padded
from tajax.trees import flatten_paths
from tests.encoders.text import oracle
from tests.encoders.text.conftest import TEXTS, stored


@pytest.fixture(scope="module")
def encoder(saved):
    return encoders.load(str(saved), family="text")


def test_features_of_texts_are_the_oracles(encoder, tensors, config):
    tokens = padded(encoder.inputs, TEXTS)
    rows = np.where(tokens.mask, tokens.ids, -1)
    for apply in (encoder.apply, encoder.apply_for_responses):
        features = np.asarray(jax.jit(apply)(encoder.params, rows))
        assert features.shape == (len(TEXTS), encoder.feature_dim) and features.dtype == np.float32
        for ids, mask, feature in zip(*tokens, features, strict=True):
            want = oracle.pooled(oracle.tokens(tensors, config, ids[mask]), "mean")
            np.testing.assert_allclose(feature, want, atol=1e-5)


def test_what_a_run_records(encoder, saved):
    identity = encoder.identity
    assert identity.name == str(saved) and identity.revision is None and len(identity.sha256) == 64
    assert identity.geometry["pooling"] == ["mean"] and identity.geometry["num_attention_heads"] == 4
    assert identity.facts["base_notes"] == [] and identity.facts["tokenization"]["max_length"] == 20
    json.dumps(identity.geometry | identity.facts)
    assert (encoder.family, encoder.stacked, encoder.inputs.max_length) == ("text", "blocks", 20)
    assert flatten_paths(encoder.params).keys() == flatten_paths(FAMILY.outline()).keys()


def test_a_seed_draws_parameters_anew(encoder, saved):
    one, same, other = (FAMILY.load(str(saved), random_seed=seed) for seed in (1, 1, 2))
    assert one.identity.sha256 == same.identity.sha256 != other.identity.sha256
    assert encoder.identity.sha256 not in (one.identity.sha256, other.identity.sha256)
    kernel = one.params["blocks"]["mlp"]["fc_in"]["kernel"]
    assert abs(float(np.std(kernel)) - 0.02) < 2e-3 and not np.any(one.params["blocks"]["attn"]["out"]["bias"])
    assert np.all(np.asarray(one.params["ln_embedding"]["scale"]) == 1)


def test_a_plain_directory_is_pooled_by_the_mean_and_says_so(copy, text):
    (copy / "modules.json").unlink()
    plain = FAMILY.load(str(copy))
    assert plain.identity.facts["base_notes"] == ["no modules.json says how tokens are pooled: their mean is taken"]
    assert plain.identity.sha256 == text.sha256


def test_several_modes_are_concatenated(change, config):
    width = config.hidden_size
    loaded = load_text(change("1_Pooling/config.json", pooling_mode=["lasttoken", "cls"]))
    assert loaded.described.pooling == ("lasttoken", "cls") and loaded.feature_dim == 2 * width


def test_the_default_prompt_is_put_before_and_said(change):
    prompts = {"query": "news: ", "document": ""}
    loaded = load_text(change("config_sentence_transformers.json", prompts=prompts, default_prompt_name="query"))
    assert loaded.tokenizer.prompt == "news: "
    assert "the prompt 'query', 'news: ', goes before each text" in loaded.notes[0]
    assert load_text(change("config_sentence_transformers.json", default_prompt_name=None)).tokenizer.prompt == ""


def test_a_transformer_in_a_directory_of_its_own(copy, text):
    (copy / "0_Transformer").mkdir()
    for file in [f for f in copy.iterdir() if f.is_file() and f.name != "modules.json"]:
        file.rename(copy / "0_Transformer" / file.name)
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (copy / "modules.json").write_text(json.dumps(modules))
    moved = load_text(copy)
    assert moved.sha256 == text.sha256 and moved.tokenizer.facts() == text.tokenizer.facts()


def test_half_precision_is_widened_and_said(copy, tensors, text):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(half, copy / "model.safetensors")
    loaded = load_text(copy)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"float32"}
    assert "weights are float16 (55 of 55 tensors)" in loaded.notes and loaded.sha256 != text.sha256


def test_weights_of_a_masked_language_model_are_read_below_their_prefix(copy, tensors, text):
    named = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    save_file(named | {"cls.predictions.bias": np.zeros(4, np.float32)}, copy / "model.safetensors")
    loaded = load_text(copy)
    assert loaded.sha256 == text.sha256 and "not read (1): cls.predictions.bias" in " ".join(loaded.notes)
    save_file(named | {"mystery.bias": np.zeros(4, np.float32)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="tensors outside the model that are not known: mystery.bias"):
        load_text(copy)


def module(kind, path):
    return {"idx": 0, "name": "0", "path": path, "type": kind}


ST = "sentence_transformers.models."
FIRST = [module(f"{ST}Transformer", ""), module(f"{ST}Pooling", "1_Pooling")]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([*FIRST, module(f"{ST}Dense", "2_Dense")], "module 'sentence_transformers.models.Dense', which is not"),
        ([*FIRST, module("mine.Normalize", "2_Normalize")], "'mine.Normalize'"),
        ([FIRST[0]], "lists Transformer; Transformer, Pooling and perhaps Normalize"),
        (FIRST[::-1], "lists Pooling, Transformer;"),
        ([module(f"{ST}Transformer", "../other"), FIRST[1]], "'../other' leads out of the directory"),
        ([FIRST[0], module(f"{ST}Pooling", "/1_Pooling")], "'/1_Pooling' leads out of the directory"),
        ({"type": 5}, "is not a list of modules"),
        ([{"path": ""}], "is not a list of modules"),
    ],
)
def test_other_modules_are_refused_by_name(copy, modules, message):
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=message):
        load_text(copy)


def test_modules_as_they_are_named_now(copy, text):
    base, own = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    kinds = [f"{base}.transformer.Transformer", f"{own}.pooling.Pooling", f"{base}.normalize.Normalize"]
    places = ["", "1_Pooling", "2_Normalize"]
    (copy / "modules.json").write_text(json.dumps([module(k, p) for k, p in zip(kinds, places, strict=True)]))
    assert load_text(copy).described == text.described._replace(modules=load_text(copy).described.modules)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"position_embedding_type": "relative_key"}, "config.json.*relative_key"),
        ("config.json", {"model_type": "mpnet"}, "config.json.*'mpnet'"),
        ("config.json", {"num_hidden_layers": 2}, "16 left over: encoder.layer.2"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "1_Pooling/config.json.*'median'"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("sentence_bert_config.json", {"max_seq_length": "20"}, "max_seq_length must be an integer"),
        ("sentence_bert_config.json", {"max_seq_length": 49}, "max_seq_length is 49"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case must be true or false"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length is 32, which may change features"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "'q', but prompts has no text"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "describes a SparseEncoder"),
    ],
)
def test_what_changes_features_is_refused_and_the_file_is_named(change, file, values, message):
    with pytest.raises(ValueError, match=message):
        load_text(change(file, **values))


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "model.safetensors", "vocab.txt"])
def test_missing_files_are_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(
        FileNotFoundError, match="no weights" if "model" in name else "vocab.txt|config.json is missing"
    ):
        load_text(copy)


def test_damaged_weights_are_named(copy):
    broken = stored(copy)
    broken["encoder.layer.1.output.dense.bias"][3] = np.nan
    save_file(broken, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors.*blocks/mlp/fc_out/bias"):
        load_text(copy)


def test_names(saved):
    for name in (str(saved), "sentence-transformers/all-MiniLM-L6-v2", "owner/name@v1"):
        check_name(name)
    with pytest.raises(ValueError, match="No text encoder 'tiny': 'tiny' is a CLIP that comes with tajax"):
        FAMILY.check_name("tiny")
    with pytest.raises(ValueError, match="no such path exists as 'minilm'"):
        load_text("minilm")
    with pytest.raises(FileNotFoundError, match="no such path"):
        check_name("../nowhere/else")


def test_float64_needs_to_be_switched_on(saved):
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load_text(saved, dtype="float64")
    with pytest.raises(TypeError, match="must be a float"):
        load_text(saved, dtype="int32")
    with jax.enable_x64(True):
        loaded = load_text(saved, dtype="float64")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"float64"}


def test_from_the_hub_all_files_are_fetched(hub, saved, text):
    files = {str(f.relative_to(saved)): f.read_bytes() for f in saved.rglob("*") if f.is_file()}
    commit = hub.commit("owner/encoder", files)
    fetched = load_text("owner/encoder")
    assert fetched.sha256 == text.sha256 and fetched.tokenizer.facts() == text.tokenizer.facts()
    assert fetched.described.pooling == ("mean",) and fetched.revision == commit
