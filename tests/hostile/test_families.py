"""Directories of sentence encoders and ViTs: whatever a JSON file of theirs says, it is read or refused by its path."""

import json

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from tajax.encoders.text.loading import load_text
from tajax.encoders.vit.loading import load_vit
from tests.encoders.text import conftest as text
from tests.encoders.text import oracle
from tests.encoders.vit import conftest as vit
from tests.hostile.conftest import attack, little_memory
from tests.hostile.inputs import DEEP, JSON, changed, encoded, meddled

NAMES = {
    "text": [
        "config.json",
        "modules.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
    ],
    "vit": ["config.json", "preprocessor_config.json"],
}
KINDS = ["text", "vit", "gated", "registers"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A sound directory of each kind, and the bytes of its JSON files."""
    random, places = np.random.default_rng(180), {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp("families") / kind
        if kind == "text":
            config = text.BertConfig(
                **{"vocab_size": len(text.VOCAB), "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"intermediate_size": 8, "max_position_embeddings": 48},
            )
            text.write(directory, config, oracle.draw(config, random))
        else:
            vit.write(directory, vit.CONFIGS[kind], vit.tensors_of(vit.CONFIGS[kind], random))
        files = NAMES["text" if kind == "text" else "vit"]
        places[kind] = directory, {name: (directory / name).read_bytes() for name in files}
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_directory_is_read(kind, places):
    loaded = (load_text if kind == "text" else load_vit)(places[kind][0])
    assert jax.tree.leaves(loaded.params)


@pytest.mark.parametrize("kind", KINDS)
@attack(20, data=st.data())
def test_directories_of_families(kind, data, attempt, places):
    directory, kept = places[kind]
    name = data.draw(st.sampled_from(sorted(kept)))
    whole = changed(json.loads(kept[name])).map(encoded)
    content = data.draw(st.one_of(whole, whole, meddled(kept[name]), JSON.map(encoded), DEEP))
    load = load_text if kind == "text" else load_vit
    try:
        (directory / name).write_bytes(content)
        with little_memory():
            attempt(f"families, {kind}, {name}", lambda: load(directory), directory)
    finally:
        (directory / name).write_bytes(kept[name])
