"""A small BERT: geometry, tensors under Hugging Face's names, and the sentence-transformers directory it lies in."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tajax.encoders.text.geometry import BertConfig
from tajax.encoders.text.loading import load_text
from tests.encoders.text import oracle

WORDS = """the a of text is about and it was good bad film question what where who city sport team game bank card money
news world science food place person ##s ##ing ##ed ##er ca ##fe ##fé 0 1 2 3 ##0 ##1 . , ! ? : ' - x ##x""".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = [
    "The text is about sports.",
    "What is the text about?",
    "It was a good film, and it was about a bank.",
    "Who was the person?",
    "a",
    "",
    "news: the world was good and bad , " * 9,
]
BARE = {name: {} for name in ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")}


@pytest.fixture(scope="session")
def config():
    return BertConfig(
        vocab_size=len(VOCAB) + 3,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=48,
    )


@pytest.fixture(scope="session")
def tensors(config):
    return oracle.draw(config, np.random.default_rng(11))


@pytest.fixture(scope="session")
def saved(tmp_path_factory, config, tensors):
    """Its directory, written by hand; tests that change it work on a copy."""
    directory = tmp_path_factory.mktemp("bert") / "small"
    write(directory, config, tensors)
    return directory


def write(directory, config, tensors, *, pooling=None):
    """A directory as sentence-transformers has written them for years."""
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "2_Normalize").mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    tokenizer |= {name: f"[{name.split('_')[0].upper()}]" for name in BARE}
    pooling = pooling or {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    types = ["Transformer", "Pooling", "Normalize"]
    places = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{name}"}
        for i, (place, name) in enumerate(zip(places, types, strict=True))
    ]
    contents = {
        "config.json": {**config.to_hf(), "hidden_dropout_prob": 0.25, "use_cache": True},
        "tokenizer_config.json": tokenizer,
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 20, "do_lower_case": False},
    }
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCAB), encoding="utf-8")


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the directory, to be changed."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def change(copy):
    """`change(name, **values)` sets keys of a JSON file in the copy (None removes them) and returns the directory."""

    def change(name, **values):
        path = copy / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        content = {key: value for key, value in (content | values).items() if value is not None}
        path.write_text(json.dumps(content), encoding="utf-8")
        return copy

    return change


@pytest.fixture(scope="module")
def text(saved):
    return load_text(saved)


@pytest.fixture(scope="module")
def tuned(tensors):
    """The tensors moved a little, as somebody's fine-tuning would, the pooler's but not the last layer norm's."""
    random = np.random.default_rng(5)
    moved = {name: tensor + random.normal(scale=0.02, size=tensor.shape) for name, tensor in tensors.items()}
    still = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.layer.2.output.LayerNorm")}
    return {name: tensor.astype(np.float32) for name, tensor in (moved | still).items()}


def features(text, params, tokens):
    return np.asarray(jax.jit(text.encode)(params, tokens))


def stored(directory):
    return load_file(directory / "model.safetensors")
