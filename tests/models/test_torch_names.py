"""A task vector under PyTorch's names is the same vector, back bit for bit, and PyTorch's models take it as it is."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from tajax import apply_task_vector, trees
from tajax.models import load, save_pretrained
from tajax.models.torch_names import leaves_from_tensors, tensors_from_leaves
from tajax.trees import flatten_paths
from tajax.vector_files import is_task_vector, load_task_vector, save_task_vector

RULES = {
    "all": {"rule": "all"},
    "attention": {"rule": "attention"},
    "query of the second layer": {"rule": "attention_query", "layers": (1, 2)},
    "biases of the first layer": {"rule": "biases", "layers": (0, 1)},
}
LINEAR = "visual.transformer.resblocks.{}.attn.in_proj_weight"


@pytest.fixture(scope="module")
def theta(params):
    return params["image"]


def vector(theta, rule, layers=None):
    """A task vector that moves what a rule trains, and the mask."""
    mask, random = trees.param_mask(theta, rule, layers=layers), np.random.RandomState(5)

    def moved(leaf, trained):
        trained = np.reshape(trained, np.shape(trained) + (1,) * (leaf.ndim - np.ndim(trained)))
        return jnp.asarray(np.where(trained, 0.1 * random.standard_normal(leaf.shape), 0), jnp.float32)

    return jax.tree.map(moved, theta, mask), mask


def read(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.mark.parametrize("naming", ["huggingface", "open_clip"])
@pytest.mark.parametrize("trained", RULES)
def test_a_vector_comes_back_bit_for_bit_from_pytorchs_names(tmp_path, theta, naming, trained):
    tau, mask = vector(theta, **RULES[trained])
    save_task_vector(tmp_path / "tau", tau, {"task": "digits"}, mask=mask, naming=naming)
    loaded, metadata = load_task_vector(tmp_path / "tau", theta)
    jax.tree.map(np.testing.assert_array_equal, loaded, tau)
    assert (metadata["naming"], metadata["task"], is_task_vector(tmp_path / "tau")) == (naming, "digits", True)
    held = {"all": "ln_", "attention": "attn", "query of the second layer": "attn", "biases of the first layer": "bias"}
    tensors, _ = read(tmp_path / "tau")
    if trained != "all":
        assert all(held[trained] in name.replace("layer_norm", "ln_") for name in tensors)


def test_only_trained_layers_are_stored_and_what_was_filled_with_zeros_is_said(tmp_path, theta):
    tau, mask = vector(theta, "attention_query", (1, 2))
    query = np.asarray(tau["blocks"]["attn"]["query"]["kernel"][1]).T
    save_task_vector(tmp_path / "hf", tau, {}, mask=mask, naming="huggingface")
    tensors, metadata = read(tmp_path / "hf")
    assert list(tensors) == ["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(tensors.popitem()[1], query)
    assert "zero_rows" not in metadata
    save_task_vector(tmp_path / "oc", tau, {}, mask=mask, naming="open_clip")
    tensors, metadata = read(tmp_path / "oc")
    assert list(tensors) == [LINEAR.format(1)]
    np.testing.assert_array_equal(tensors.popitem()[1], np.concatenate([query, 0 * query, 0 * query]))
    assert json.loads(metadata["zero_rows"]) == {LINEAR.format(1): ["key", "value"]}


@pytest.mark.parametrize("naming", ["huggingface", "open_clip"])
def test_a_vector_of_another_architecture_is_refused(tmp_path, theta, naming):
    tau, mask = vector(theta, "attention")
    save_task_vector(tmp_path / "tau", tau, {}, mask=mask, naming=naming)
    attn = theta["blocks"]["attn"]
    narrow = jax.tree.map(lambda leaf: leaf[..., :8, :8] if leaf.ndim == 3 else leaf, attn)
    with pytest.raises(ValueError, match=r"tau: \S+weight has shape \(\d+, 16\), the model's is \(\d+, 8\)"):
        load_task_vector(tmp_path / "tau", theta | {"blocks": theta["blocks"] | {"attn": narrow}})
    shallow = jax.tree.map(lambda leaf: leaf[:1], theta["blocks"])
    with pytest.raises(ValueError, match=r"tau: holds \S+\.1\.\S+.* which the model's image tower does not have"):
        load_task_vector(tmp_path / "tau", theta | {"blocks": shallow})
    with pytest.raises(ValueError, match="w: no such parameter of a CLIP's image tower"):
        save_task_vector(tmp_path / "x", {"w": jnp.ones(2)}, {}, naming=naming)
    with pytest.raises(ValueError, match="naming 'timm' is unknown; choose one of tajax, huggingface, open_clip"):
        save_task_vector(tmp_path / "x", tau, {}, naming="timm")
    for call in (tensors_from_leaves, leaves_from_tensors):
        with pytest.raises(ValueError, match="naming 'timm' is unknown"):
            call({}, "timm", {})
    assert not (tmp_path / "x").exists()


def inputs(clip):
    random = np.random.RandomState(1)
    images = random.standard_normal((3, 16, 16, 3)).astype(np.float32)
    return images, clip.tokenizer.tokenize(["a red square", "a photo of a dark blue circle.", "green"])


def as_torch(torch, images):
    return torch.tensor(images.transpose(0, 3, 1, 2).copy())


def added(torch, state, path, coef):
    """What somebody with PyTorch and without tajax does."""
    tau = {name: torch.tensor(value) for name, value in read(path)[0].items()}
    for name, value in tau.items():
        state[name] += coef * value
    return state


@pytest.mark.parametrize("trained", ["all", "biases of the first layer"])
def test_huggingfaces_model_takes_the_vector(torch, tmp_path, saved, theta, trained):
    from transformers import CLIPModel

    tau, mask = vector(theta, **RULES[trained])
    save_task_vector(tmp_path / "tau", tau, {}, mask=mask, naming="huggingface")
    clip, model = load(saved), CLIPModel.from_pretrained(saved).eval()
    model.load_state_dict(added(torch, model.state_dict(), tmp_path / "tau", 0.5))
    edited = apply_task_vector(clip.params["image"], load_task_vector(tmp_path / "tau", theta)[0], scaling_coef=0.5)
    images, _ = inputs(clip)
    with torch.no_grad():
        theirs = model.get_image_features(as_torch(torch, images)).pooler_output.numpy()
    np.testing.assert_allclose(jax.jit(clip.encode_image)(edited, images), theirs, atol=2e-5)
    model.save_pretrained(tmp_path / "edited")
    close = {
        path: np.abs(leaf - flatten_paths(edited)[path]).max() for path, leaf in loaded(tmp_path / "edited").items()
    }
    assert max(close.values()) <= 1e-6  # a fused multiply-add may round the last bit otherwise


def loaded(directory):
    return flatten_paths(load(directory).params["image"])


def open_clip_model(torch, config):
    """A CLIP with open_clip's module names, of PyTorch's own layers."""
    nn = torch.nn
    act = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": nn.functional.gelu}[config.vision.hidden_act]

    class Block(nn.Module):
        def __init__(self, tower):
            super().__init__()
            width, hidden = tower.hidden_size, tower.intermediate_size
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.MultiheadAttention(width, tower.num_attention_heads, batch_first=True)
            layers = {"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)}
            self.mlp = nn.ModuleDict(layers)

        def forward(self, x, mask):
            h = self.ln_1(x)
            x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
            return x + self.mlp["c_proj"](act(self.mlp["c_fc"](self.ln_2(x))))

    def transformer(tower):
        module = nn.Module()
        module.resblocks = nn.ModuleList(Block(tower) for _ in range(tower.num_hidden_layers))
        return module

    def run(module, x, mask=None):
        for block in module.resblocks:
            x = block(x, mask)
        return x

    v, t, embed = config.vision, config.text, config.projection_dim
    visual, model = nn.Module(), nn.Module()
    visual.conv1 = nn.Conv2d(3, v.hidden_size, v.patch_size, v.patch_size, bias=False)
    visual.class_embedding = nn.Parameter(torch.zeros(v.hidden_size))
    visual.positional_embedding = nn.Parameter(torch.zeros(v.grid_size**2 + 1, v.hidden_size))
    visual.ln_pre, visual.ln_post = nn.LayerNorm(v.hidden_size), nn.LayerNorm(v.hidden_size)
    visual.transformer, visual.proj = transformer(v), nn.Parameter(torch.zeros(v.hidden_size, embed))
    model.visual, model.transformer, model.ln_final = visual, transformer(t), nn.LayerNorm(t.hidden_size)
    model.token_embedding = nn.Embedding(t.vocab_size, t.hidden_size)
    model.positional_embedding = nn.Parameter(torch.zeros(t.max_position_embeddings, t.hidden_size))
    model.text_projection = nn.Parameter(torch.zeros(t.hidden_size, embed))
    model.logit_scale = nn.Parameter(torch.zeros([]))

    def encode_image(images):
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        return visual.ln_post(run(visual.transformer, visual.ln_pre(x))[:, 0]) @ visual.proj

    def encode_text(tokens):
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = run(model.transformer, model.token_embedding(tokens) + model.positional_embedding[:length], mask)
        return model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection

    return types.SimpleNamespace(module=model.eval(), encode_image=encode_image, encode_text=encode_text)


@pytest.mark.parametrize("trained", ["all", "query of the second layer"])
def test_a_module_with_open_clips_names_takes_model_and_vector(
    torch, tmp_path, saved, theta, config, params, tokenizer, preprocessing, trained
):
    save_pretrained(tmp_path / "clip", config, params, tokenizer, preprocessing, format="open_clip")
    clip, theirs = load(saved), open_clip_model(torch, config)
    state = {
        name: torch.tensor(value) for name, value in read(tmp_path / "clip" / "open_clip_model.safetensors")[0].items()
    }
    theirs.module.load_state_dict(state)  # strict: no name is missing, none left over
    images, tokens = inputs(clip)
    with torch.no_grad():
        image, text = (
            theirs.encode_image(as_torch(torch, images)),
            theirs.encode_text(torch.tensor(tokens.astype(np.int64))),
        )
    np.testing.assert_allclose(jax.jit(clip.encode_image)(params["image"], images), image.numpy(), atol=2e-5)
    np.testing.assert_allclose(jax.jit(clip.encode_text)(params["text"], tokens), text.numpy(), atol=2e-5)
    tau, mask = vector(theta, **RULES[trained])
    save_task_vector(tmp_path / "tau", tau, {}, mask=mask, naming="open_clip")
    theirs.module.load_state_dict(added(torch, theirs.module.state_dict(), tmp_path / "tau", -0.5))
    with torch.no_grad():
        image = theirs.encode_image(as_torch(torch, images))
    edited = apply_task_vector(theta, tau, scaling_coef=-0.5)
    np.testing.assert_allclose(jax.jit(clip.encode_image)(edited, images), image.numpy(), atol=2e-5)
