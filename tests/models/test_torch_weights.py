"""PyTorch weights in the places of safetensors: Hugging Face's, open_clip's and OpenAI's models load the same."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tajax.models import load, load_finetuned
from tajax.models.convert import tensors_from_params
from tajax.trees import flatten_paths

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")


@pytest.fixture(scope="module")
def base(saved):
    return load(saved)


def equal(ours, wanted):
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for path, leaf in flatten_paths(wanted).items():
        np.testing.assert_array_equal(flatten_paths(ours)[path], leaf, err_msg=path)


@pytest.fixture
def unsafe(saved, tmp_path):
    """A copy of the model without its safetensors, and their tensors."""
    directory = shutil.copytree(saved, tmp_path / "clip")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    return directory, tensors


def test_directories_with_pickled_weights_load(unsafe, base, caplog):
    directory, tensors = unsafe
    held = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save(held, directory / "pytorch_model.bin")
    torch.save({"seed": 1}, directory / "training_args.bin")
    with caplog.at_level("INFO", "tajax.models.files"):
        equal(load(directory).params, base.params)
    assert f"{directory / 'pytorch_model.bin'} (PyTorch)" in caplog.text
    save_file(tensors | {"logit_scale": np.array(7.5, np.float32)}, directory / "model.safetensors")
    assert load(directory).params["logit_scale"] == 7.5  # safetensors come first


def test_sharded_pickled_weights_load(unsafe, base):
    directory, tensors = unsafe
    names = sorted(tensors)
    where = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save({n: torch.tensor(tensors[n]) for n in names if where[n] == shard}, directory / shard)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    equal(load(directory).params, base.params)
    equal(load_finetuned(directory, base).params, base.params["image"])


@pytest.mark.parametrize("inside", ["", "state_dict.module."])
def test_open_clip_s_pickled_weights_load(unsafe, base, inside):
    directory, _ = unsafe
    tensors = {n: torch.tensor(v) for n, v in tensors_from_params(base.params, base.config, naming="open_clip").items()}
    held = {f"module.{n}": v for n, v in tensors.items()}
    torch.save({"epoch": 3, "state_dict": held} if inside else tensors, directory / "open_clip_pytorch_model.bin")
    equal(load(directory).params, base.params)
    equal(load(directory / "open_clip_pytorch_model.bin").params, base.params)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_weights_load_as_openai_published_them(base, unsafe):
    """A scripted module with the attributes of OpenAI's, its weights half precision."""
    directory, _ = unsafe
    state = tensors_from_params(base.params, base.config, naming="open_clip")

    def scripted(prefix=""):
        module = torch.nn.Module()
        for name in dict.fromkeys(n.removeprefix(prefix).split(".")[0] for n in state if n.startswith(prefix)):
            if prefix + name in state:
                module.register_parameter(name, torch.nn.Parameter(torch.tensor(state[prefix + name]).half()))
            else:
                module.add_module(name, scripted(f"{prefix}{name}."))
        if not prefix:
            for name in ("input_resolution", "context_length", "vocab_size"):
                module.register_buffer(name, torch.tensor(16))
        return module

    torch.jit.save(torch.jit.script(scripted()), directory / "ViT-tiny.pt")
    clip = load(directory)
    equal(clip.params, jax.tree.map(lambda leaf: leaf.astype("float16").astype("float32"), base.params))
