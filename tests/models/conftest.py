"""A small CLIP: geometry, tokenizer, parameters, the directory it is saved in, and a fine-tuned copy of it."""

import importlib.util
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.models import ClipConfig, TextConfig, VisionConfig, load, save_pretrained, train_bpe
from tajax.models.clip import abstract_params
from tajax.models.convert import tensors_from_params
from tajax.trees import flatten_paths, unflatten_paths
from tajax.types import Preprocessing

TEXTS = [
    f"a photo of a {colour} {shape}." for colour in ("red", "green", "dark blue") for shape in ("circle", "square")
]


@pytest.fixture(scope="session")
def goldens_script():
    """tests/models/goldens/make_goldens.py as a module."""
    path = Path(__file__).parent / "goldens" / "make_goldens.py"
    spec = importlib.util.spec_from_file_location("make_goldens", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe(TEXTS * 4, vocab_size=560, context_length=24)


@pytest.fixture(scope="session")
def config(tokenizer):
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 12}
    vision = VisionConfig(hidden_size=16, intermediate_size=40, image_size=16, patch_size=8, **depth)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = TextConfig(
        hidden_size=20,
        intermediate_size=48,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=24,
        **ids,
        **depth,
    )
    return ClipConfig(vision=vision, text=text)


@pytest.fixture(scope="session")
def params(config):
    random = np.random.RandomState(7)
    leaves = {path: random.standard_normal(leaf.shape) for path, leaf in flatten_paths(abstract_params(config)).items()}
    scaled = {path: x * (x.shape[-2] ** -0.5 if "kernel" in path else 0.3) for path, x in leaves.items()}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), unflatten_paths(scaled))


@pytest.fixture(scope="session")
def preprocessing():
    return Preprocessing(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="session")
def saved(tmp_path_factory, config, params, tokenizer, preprocessing):
    """The directory of the small CLIP; tests that change it work on a copy."""
    directory = tmp_path_factory.mktemp("clip") / "small"
    save_pretrained(directory, config, params, tokenizer, preprocessing)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")


@pytest.fixture(scope="module")
def base(saved):
    return load(saved)


@pytest.fixture(scope="module")
def tuned(base):
    """The base, moved a little, as somebody's fine-tuning would."""
    random = np.random.default_rng(5)
    image = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(random.normal(scale=0.02, size=leaf.shape), leaf.dtype), base.params["image"]
    )
    return base.params | {"image": image}


@pytest.fixture
def images():
    return np.random.default_rng(6).normal(size=(3, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def encode(base):
    return jax.jit(base.encode_image)


def equal(ours, wanted):
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for path, leaf in flatten_paths(wanted).items():
        np.testing.assert_array_equal(flatten_paths(ours)[path], leaf, err_msg=path)


def named(tuned, base, naming):
    return tensors_from_params(tuned, base.config, naming=naming)
