"""The zero-shot head of a sentence encoder against the slow oracle."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tajax.encoders.text import FAMILY, heads
from tajax.encoders.text.heads import SCALE, made_from, zero_shot_head
from tests.encoders.text import oracle

NAMES = ["sports", "bank card", "good film", "world"]
TEMPLATES = ["the text is about {}.", "{}", "a {} and {}"]


def unit(x):
    return x / np.linalg.norm(x)


def test_columns_are_means_of_the_oracles_unit_features(text, tensors, config):
    head = zero_shot_head(text, NAMES, TEMPLATES)
    for k, name in enumerate(NAMES):
        rows = text.tokenizer.split([template.replace("{}", name) for template in TEMPLATES])
        features = [unit(oracle.pooled(oracle.tokens(tensors, config, row), "mean")) for row in rows]
        np.testing.assert_allclose(head.weights[:, k], SCALE * unit(np.mean(features, axis=0)), atol=2e-5)
    assert head.weights.dtype == jnp.float32 and int(head.num_classes) == len(NAMES)


def test_columns_follow_the_classes_whatever_the_chunks(text, monkeypatch):
    head = zero_shot_head(text, NAMES, TEMPLATES)
    monkeypatch.setattr(heads, "_ROWS", 5)
    flipped = zero_shot_head(text, NAMES[::-1], TEMPLATES[::-1])
    np.testing.assert_allclose(flipped.weights[:, ::-1], head.weights, atol=2e-5)


def test_tasks_share_one_compilation(text):
    heads._features.clear_cache()
    for names in (["a", "the"], ["sport", "team", "game"], ["bank", "news"]):
        zero_shot_head(text, names, ["{}"])
    assert heads._features._cache_size() == 1


@pytest.mark.parametrize(
    ("one", "other", "templates", "why"),
    [
        ("bank", "bank", ["{}"], "the name is given twice"),
        ("Bank", "bank", ["{}", "a {}"], "the names differ in capital letters or white space alone"),
        ("zebra", "quagga", ["about {}"], "the tokenizer makes the same of both"),
        ("a", "the", ["a " * 30 + "{}"], "the texts are cut at the context length, before they differ"),
    ],
)
def test_classes_of_the_same_tokens_are_refused(text, one, other, templates, why):
    with pytest.raises(ValueError, match=re.escape(f"cannot tell the classes {one!r} and {other!r} apart: {why}")):
        zero_shot_head(text, [one, other], templates)


@pytest.mark.parametrize(
    ("names", "templates", "error", "message"),
    [
        ([], ["{}"], ValueError, "class_names is empty"),
        (["a"], ["a text"], ValueError, r"has no '\{\}'"),
        (["a", " "], ["{}"], ValueError, r"class_names\[1\] is blank"),
        ("abc", ["{}"], TypeError, "single text 'abc'"),
    ],
)
def test_bad_names_and_templates_are_refused(text, names, templates, error, message):
    with pytest.raises(error, match=message):
        zero_shot_head(text, names, templates)


def test_what_a_head_is_made_from_tells_encoders_and_prompts_apart(text, saved):
    facts = made_from(text, ["a text", "the bank"])
    assert json.loads(json.dumps(facts)) == facts == made_from(text, ("a text", "the bank"))
    others = made_from(text, ["a text the", "bank"]), made_from(text.with_random_params(0), ["a text", "the bank"])
    assert others[0] != facts and others[1] != facts
    encoder = FAMILY.load(str(saved))
    assert encoder.zero_shot.made_from(["a text", "the bank"]) == facts
    np.testing.assert_array_equal(
        encoder.zero_shot.head(NAMES, TEMPLATES).weights, zero_shot_head(text, NAMES, TEMPLATES).weights
    )
