"""A tiny member of each family, with tasks of what it takes: what a contract over families runs on."""

import json

import numpy as np
from safetensors.numpy import save_file

from tajax.encoders.text.bert import abstract_params
from tajax.encoders.text.convert import tensors_from_params
from tajax.encoders.text.geometry import BertConfig
from tajax.trees import flatten_paths, unflatten_paths
from tests.encoders.vit import conftest as vit

WORDS = "the a is it of ox zebra saw axe bee good bad fast slow red blue this and an".split()
SUBJECTS = {
    "animals": ("ox", "zebra", "bee", "fast"),
    "tools": ("saw", "axe", "slow", "it"),
    "colors": ("red", "blue", "good", "bad"),
    "words": ("the", "of", "and", "an"),
}
"""Four tasks of texts, four classes each: as many as an analogy takes."""
CONTROL = "colors"


def save_bert(directory, random, *, positions=16):
    """A random sentence encoder of 2 layers and width 16 as Hugging Face keeps it, its classes apart."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    config = {
        "model_type": "bert",
        "vocab_size": len(special) + len(WORDS) + 1,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": positions,
        "hidden_act": "gelu",
    }
    geometry = BertConfig(**{key: value for key, value in config.items() if key != "model_type"})
    shapes = flatten_paths(abstract_params(geometry))
    leaves = {path: random.normal(size=leaf.shape).astype(np.float32) * 0.3 for path, leaf in shapes.items()}
    leaves["token_embedding"] *= 5
    tensors = tensors_from_params(unflatten_paths(leaves), geometry)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join([*special, *WORDS, "."]) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return directory


def save_texts(directory, random):
    """The tasks of `SUBJECTS`: the word of its class in each text, which is of 3 to 12 words."""
    directory.mkdir(parents=True)
    for name, classes in SUBJECTS.items():
        arrays = {"class_names": np.array(classes), "templates": np.array(["{}", "this is {} ."])}
        for split, count in {"train": 24, "val": 12, "test": 20}.items():
            labels = np.arange(count) % len(classes)
            fillers = [random.choice(WORDS, random.integers(2, 12)) for _ in labels]
            texts = [" ".join([classes[label], *words]) for label, words in zip(labels, fillers, strict=True)]
            arrays |= {f"{split}_texts": np.array(texts), f"{split}_labels": labels}
        np.savez(directory / f"{name}.npz", **arrays)
    return directory


def save_images(directory, random):
    """Four tasks of the same names, whose classes differ in colour."""
    directory.mkdir(parents=True)
    for name, classes in SUBJECTS.items():
        arrays = {"class_names": np.array(classes), "templates": np.array(["{}"])}
        colors = random.integers(40, 216, size=(len(classes), 1, 1, 3))
        for split, count in {"train": 24, "val": 12, "test": 20}.items():
            labels = np.arange(count) % len(classes)
            noise = random.integers(-40, 40, size=(count, 8, 8, 3))
            arrays |= {f"{split}_images": (colors[labels] + noise).astype(np.uint8), f"{split}_labels": labels}
        np.savez(directory / f"{name}.npz", **arrays)
    return directory


def save_vit(directory, random):
    """A random DINOv2 with registers."""
    return vit.write(directory, vit.CONFIGS["registers"], vit.tensors_of(vit.CONFIGS["registers"], random))
