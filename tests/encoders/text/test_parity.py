"""Live parity with PyTorch's `transformers.BertModel` and with sentence-transformers, on the same weights.

A published model is compared where `TAJAX_TEXT_ENCODER` names the directory of one, such as all-MiniLM-L6-v2.
"""

import inspect
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from tajax.encoders.text.bert import Bert
from tajax.encoders.text.convert import tensors_from_params
from tajax.encoders.text.finetuned import load_finetuned
from tajax.encoders.text.loading import load_text
from tajax.encoders.text.saving import save
from tajax.encoders.text.tokenizer import padded
from tajax.trees import flatten_paths
from tests.encoders.text.conftest import TEXTS, features

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")


PUBLISHED = os.environ.get("TAJAX_TEXT_ENCODER", "")


def sentences():
    """A hundred English sentences that people wrote, some of them longer than any encoder takes."""
    modules = [json, re, inspect, os, np, torch.nn.functional]
    docs = [inspect.getdoc(value) or "" for module in modules for value in vars(module).values() if callable(value)]
    found = [" ".join(text.split()) for doc in docs for text in re.split(r"(?<=[.?!])\s", doc)]
    found = [text for text in dict.fromkeys(found) if len(text.split()) > 4][:98]
    return [*found, " ".join(found[:60]), "word " * 600]


def reference(directory, texts, max_length, *, double=False):
    """Ids, mask and the last layer's tokens of PyTorch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.BertModel.from_pretrained(directory).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        hidden = (model.double() if double else model)(**encoded).last_hidden_state
    return encoded["input_ids"].numpy(), encoded["attention_mask"].numpy().astype(bool), hidden.numpy()


def mean(hidden, mask):
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]


def compare(text, texts, *, token_gap, feature_gap, double=False):
    ids, mask, hidden = reference(text.directory, texts, text.tokenizer.max_length, double=double)
    ours = padded(text.tokenizer.tokenization(), texts)
    length = ids.shape[1]
    np.testing.assert_array_equal(np.where(ours.mask, ours.ids, 0)[:, :length], ids)
    np.testing.assert_array_equal(ours.mask[:, :length], mask)
    encoder = Bert(text.described.config, (), text.dtype, unroll=text.unroll)
    tokens = np.asarray(jax.jit(encoder.apply)({"params": text.params}, ours))[:, :length]
    gaps = np.abs(tokens - hidden)[mask].max(), np.abs(features(text, text.params, ours) - mean(hidden, mask)).max()
    print(f"{text.directory.name}: tokens {gaps[0]:.1e}, features {gaps[1]:.1e}")
    assert gaps[0] <= token_gap and gaps[1] <= feature_gap


@pytest.mark.skipif(not PUBLISHED, reason="TAJAX_TEXT_ENCODER names no directory of a published sentence encoder")
def test_a_published_encoder_in_float32():
    compare(load_text(PUBLISHED), sentences(), token_gap=1e-5, feature_gap=1e-5)  # 7e-6 and 1e-6 were seen


def test_a_small_encoder_in_float64(saved):
    with jax.enable_x64(True):
        compare(load_text(saved, dtype="float64"), TEXTS, token_gap=1e-9, feature_gap=1e-9, double=True)


def test_gradients_and_directional_derivatives_are_pytorchs(saved):
    """Of every parameter, through mean pooling; and forward mode along a direction, by `torch.func.jvp`."""
    model = transformers.BertModel.from_pretrained(saved, attn_implementation="eager").eval().double()
    with jax.enable_x64(True):
        text = load_text(saved, dtype="float64")
        tokens = padded(text.tokenizer.tokenization(), TEXTS)
        weights = np.random.default_rng(0).normal(size=(len(TEXTS), text.feature_dim))
        encode_ours = jax.jit(lambda params: text.encode(params, tokens))
        gradient = jax.grad(lambda params: jnp.sum(weights * encode_ours(params)))(text.params)
        random = np.random.default_rng(1)
        tangent = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), text.params)
        pushed = jax.jvp(encode_ours, (text.params,), (tangent,))[1]
    config = text.described.config
    ids, mask = torch.tensor(np.where(tokens.mask, tokens.ids, 0)).long(), torch.tensor(tokens.mask)
    names = tensors_from_params(text.params, config).keys()
    own = {name: parameter for name, parameter in model.named_parameters() if name in names}

    def encode(parameters):
        hidden = torch.func.functional_call(model, parameters, (ids, mask.long())).last_hidden_state
        kept = mask[:, :, None].double()
        return (hidden * kept).sum(1) / kept.sum(1)

    loss = (torch.tensor(weights) * encode(own)).sum()
    wanted = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    ours = tensors_from_params(gradient, config)
    for name, gradient in wanted.items():
        np.testing.assert_allclose(ours[name], gradient.numpy(), rtol=1e-8, atol=1e-9, err_msg=name)
    along = {name: torch.tensor(tensor) for name, tensor in tensors_from_params(tangent, config).items()}
    point = {name: parameter.detach() for name, parameter in own.items()}
    theirs = torch.func.jvp(encode, (point,), ({name: along[name] for name in point},))[1]
    np.testing.assert_allclose(pushed, theirs.numpy(), rtol=1e-8, atol=1e-9)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(params=["as it was", "all poolings", "cls, prompt, no end"])
def variant(request, change, config):
    if request.param == "all poolings":
        modes = ["max", "cls", "weightedmean", "mean_sqrt_len_tokens", "lasttoken", "mean"]
        return change(
            "1_Pooling/config.json", word_embedding_dimension=None, pooling_mode=modes, embedding_dimension=24
        )
    if request.param == "as it was":
        return change("sentence_bert_config.json", do_lower_case=True)
    change("1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    directory = change("config_sentence_transformers.json", prompts={"q": "news: "}, default_prompt_name="q")
    (directory / "modules.json").write_text(json.dumps(json.loads((directory / "modules.json").read_text())[:2]))
    return directory


def test_what_is_saved_encodes_the_same_in_sentence_transformers(variant, tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="needs sentence_transformers: pip install -e '.[parity]'")
    text = load_text(variant)
    moved = jax.tree.map(lambda leaf: 1.05 * leaf, text.params)
    save(text, tmp_path / "saved", moved)
    ours = features(text, moved, padded(text.tokenizer.tokenization(), TEXTS))
    model = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    theirs = model.encode(TEXTS)
    np.testing.assert_allclose(unit(ours) if text.described.modules.normalize else ours, theirs, atol=1e-5)
    model.save(str(tmp_path / "theirs"))  # under the names of its newest version
    back = load_text(tmp_path / "theirs")
    assert back.described.pooling == text.described.pooling
    assert back.tokenizer.facts()["sha256"] == text.tokenizer.facts()["sha256"]
    assert (back.tokenizer.max_length, back.tokenizer.prompt) == (text.tokenizer.max_length, text.tokenizer.prompt)
    found = load_finetuned(tmp_path / "theirs", text)
    for path, leaf in flatten_paths(moved).items():
        np.testing.assert_array_equal(flatten_paths(back.params)[path], leaf, err_msg=path)
        np.testing.assert_array_equal(flatten_paths(found.params)[path], leaf, err_msg=path)


@pytest.mark.skipif(not PUBLISHED, reason="TAJAX_TEXT_ENCODER names no directory of a published sentence encoder")
def test_a_published_encoder_in_sentence_transformers(tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="needs sentence_transformers: pip install -e '.[parity]'")
    text, texts = load_text(PUBLISHED), sentences()
    save(text, tmp_path / "saved", text.params)
    ours = features(text, text.params, padded(text.tokenizer.tokenization(), texts))
    for directory in (Path(PUBLISHED), tmp_path / "saved"):
        theirs = st.SentenceTransformer(str(directory), device="cpu").encode(texts)
        gap = np.abs(unit(ours) - unit(theirs)).max()
        print(f"{directory.name}: {gap:.1e}")
        assert gap <= 1e-5
