"""The zero-shot head against a slow float64 oracle, and its independence of chunks and order."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.data.table import TASKS
from tajax.losses import head_logits
from tajax.models import TextEncoder, heads, load, load_tokenizer, pad_head, zero_shot_head

NAMES = ["red circle", "green square", "dark blue square", "photo"]
TEMPLATES = ["a photo of a {}.", "{}", "a {} {{}} on a {}"]


@pytest.fixture(scope="module")
def clip(saved):
    return load(saved)


def test_head_is_the_scaled_mean_of_unit_text_features(clip):
    head = zero_shot_head(clip, NAMES, TEMPLATES)
    encode = jax.jit(TextEncoder(clip.config.text).apply)
    for k, name in enumerate(NAMES):
        total = np.zeros(12)
        for template in TEMPLATES:
            text = name.join(template.split("{}"))
            feature = np.asarray(encode({"params": clip.params["text"]}, clip.tokenizer.tokenize(text)), np.float64)[0]
            total += feature / np.sqrt((feature**2).sum())
        expected = np.exp(float(clip.params["logit_scale"])) * total / np.sqrt((total**2).sum())
        np.testing.assert_allclose(head.weights[:, k], expected, rtol=1e-5, atol=1e-5)
    assert head.weights.dtype == jnp.float32
    assert (int(head.num_classes), head.num_classes.dtype) == (len(NAMES), jnp.int32)


def test_columns_follow_the_classes_whatever_the_chunks(clip, monkeypatch):
    head = zero_shot_head(clip, NAMES, TEMPLATES)
    monkeypatch.setattr(heads, "_ROWS", 5)
    flipped = zero_shot_head(clip, NAMES[::-1], TEMPLATES[::-1])
    np.testing.assert_allclose(flipped.weights[:, ::-1], head.weights, rtol=1e-5, atol=1e-5)


def test_one_compilation_serves_tasks_of_any_size(clip):
    heads._features.clear_cache()
    for count in (2, 9, 70):
        zero_shot_head(clip, [f"class {i}" for i in range(count)], ["a {}."])
    assert heads._features._cache_size() == 1


def test_padding_changes_no_probability(clip, key):
    head = zero_shot_head(clip, NAMES, TEMPLATES)
    padded = pad_head(head, 7)
    features = jax.random.normal(key, (5, 12))
    np.testing.assert_allclose(head_logits(features, padded)[:, :4], head_logits(features, head), rtol=1e-6)
    assert np.isneginf(head_logits(features, padded)[:, 4:]).all()
    with pytest.raises(ValueError, match="4 columns to 3"):
        pad_head(head, 3)


@pytest.mark.parametrize(
    ("names", "templates", "error", "message"),
    [
        ([], ["{}"], ValueError, "class_names is empty"),
        (["a", " "], ["{}"], ValueError, r"class_names\[1\] is blank"),
        (["a"], [], ValueError, "templates is empty"),
        (["a"], ["a photo"], ValueError, r"'a photo' has no '\{\}'"),
        ("abc", ["{}"], TypeError, "single text 'abc'"),
        (["a", 5], ["{}"], TypeError, r"class_names\[1\] must be a text, got int 5"),
    ],
)
def test_bad_names_and_templates_are_refused(clip, names, templates, error, message):
    with pytest.raises(error, match=message):
        zero_shot_head(clip, names, templates)


@pytest.mark.parametrize(
    ("one", "other", "templates", "why"),
    [
        ("a", "a", ["{}"], "the name is given twice"),
        ("Turkey", "turkey", ["{}", "a photo of a {}."], "the names differ in capital letters or white space alone"),
        ("red  circle", "red\tcircle ", ["a {}."], "the names differ in capital letters or white space alone"),
        ("caf\u00e9", "cafe\u0301", ["{}"], "the names differ in how accents are composed alone"),
        ("CAF\u00c9", "cafe\u0301", ["{}"], "the names differ in capital letters or white space alone"),
        ("x" * 30 + "a", "x" * 30 + "b", ["{}"], "the texts are cut at the context length, before they differ"),
        ("one", "two", ["x " * 30 + "{}"], "the texts are cut at the context length, before they differ"),
        ("a <|endoftext|> b", "a <|endoftext|> c", ["{}"], "the tokenizer makes the same of both"),
    ],
)
def test_classes_that_the_model_cannot_tell_apart_are_refused(clip, one, other, templates, why):
    message = f"The model cannot tell the classes {one!r} and {other!r} apart: {why}"
    with pytest.raises(ValueError, match=re.escape(message)):
        zero_shot_head(clip, [one, other], templates)


def test_every_class_of_the_table_is_told_apart():
    """By any tokenizer of CLIP's kind, in 77 tokens: it loses nothing but letter case, white space and composition."""
    tiny = load("tiny")
    tokenizer = load_tokenizer(tiny.directory, context_length=77)
    longer = SimpleNamespace(config=tiny.config, tokenizer=tokenizer)
    for row in TASKS.values():
        names, template = list(row.class_names.values()), row.templates[0]
        heads._check_distinct(longer, names, [template], tokenizer.tokenize([template.replace("{}", n) for n in names]))


def test_one_template_that_tells_classes_apart_is_enough(clip):
    head = zero_shot_head(clip, ["one", "two"], ["x " * 30 + "{}", "{}"])
    assert np.abs(head.weights[:, 0] - head.weights[:, 1]).max() > 1e-3
    with pytest.raises(ValueError, match="As many as 2 classes repeat another so"):
        zero_shot_head(clip, ["a", "A", "b", "B"], ["{}"])


def test_damaged_text_features_are_named(clip):
    text = clip.params["text"] | {"projection": {"kernel": jnp.full((20, 12), jnp.nan)}}
    broken = dataclasses.replace(clip, params=clip.params | {"text": text})
    with pytest.raises(ValueError, match="class 'red circle' is not finite"):
        zero_shot_head(broken, NAMES, TEMPLATES)
