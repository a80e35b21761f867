"""Whole pickled modules and linearised encoders, as the papers' code leaves them: read without their packages."""

import collections
import dataclasses
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tajax.models import ClipConfig, TextConfig, VisionConfig, load, load_finetuned
from tajax.models.convert import tensors_from_params
from tajax.models.finetuned import _parameter_orders
from tests.models.conftest import equal, named


@pytest.fixture
def packages(torch, monkeypatch):
    """Packages `open_clip` and `src` with modules of the layout of theirs, as far as an image tower goes."""
    from torch import nn

    class QuickGELU(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    class ResidualAttentionBlock(nn.Module):
        def __init__(self, width, hidden, heads, act):
            super().__init__()
            self.ln_1 = nn.LayerNorm(width)
            self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            self.ln_2 = nn.LayerNorm(width)
            layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", act()), ("c_proj", nn.Linear(hidden, width))]
            self.mlp = nn.Sequential(collections.OrderedDict(layers))

        def forward(self, x):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class Transformer(nn.Module):
        def __init__(self, config, act):
            super().__init__()
            sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads)
            blocks = [ResidualAttentionBlock(*sizes, act) for _ in range(config.num_hidden_layers)]
            self.resblocks = nn.ModuleList(blocks)

    class VisionTransformer(nn.Module):
        def __init__(self, config, act):
            super().__init__()
            width, patch = config.hidden_size, config.patch_size
            self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(width))
            self.positional_embedding = nn.Parameter(torch.zeros(config.grid_size**2 + 1, width))
            self.ln_pre = nn.LayerNorm(width)
            self.transformer = Transformer(config, act)
            self.ln_post = nn.LayerNorm(width)
            self.proj = nn.Parameter(torch.zeros(width, config.projection_dim))

        def forward(self, x):
            x = self.conv1(x).flatten(2).transpose(1, 2)
            start = self.class_embedding.expand(len(x), 1, -1)
            x = self.ln_pre(torch.cat([start, x], dim=1) + self.positional_embedding)
            for block in self.transformer.resblocks:
                x = block(x)
            return self.ln_post(x[:, 0]) @ self.proj

    class CLIP(nn.Module):
        def __init__(self, config, act):
            super().__init__()
            text = config.text
            self.visual = VisionTransformer(config.vision, act)
            self.transformer = Transformer(text, act)
            self.token_embedding = nn.Embedding(text.vocab_size, text.hidden_size)
            self.positional_embedding = nn.Parameter(torch.zeros(text.max_position_embeddings, text.hidden_size))
            self.ln_final = nn.LayerNorm(text.hidden_size)
            self.text_projection = nn.Parameter(torch.zeros(text.hidden_size, text.projection_dim))
            self.register_buffer("attn_mask", torch.zeros(24, 24), persistent=False)
            self.logit_scale = nn.Parameter(torch.zeros([]))

    class ImageEncoder(nn.Module):
        def __init__(self, clip, keep_lang=False):
            super().__init__()
            self.model, self.cache_dir = clip, "somewhere"
            self.train_preprocess = self.val_preprocess = _convert_to_rgb
            if not keep_lang:
                del self.model.transformer

    class ImageClassifier(nn.Module):
        def __init__(self, image_encoder):
            super().__init__()
            self.image_encoder = image_encoder
            self.classification_head = nn.Linear(12, 5)

    class LinearizedModel(nn.Module):
        def __init__(self, encoder, init_encoder):
            super().__init__()
            self.params = nn.ParameterList([p.detach().clone() for p in encoder.parameters()])
            self.params0 = nn.ParameterList([p.detach().clone() for p in init_encoder.parameters()])

    def _convert_to_rgb(image):
        return image

    made = types.SimpleNamespace(GELU=nn.GELU)
    where = {
        "open_clip": (),
        "open_clip.model": (QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer, CLIP),
        "open_clip.transform": (_convert_to_rgb,),
        "src": (),
        "src.modeling": (ImageEncoder, ImageClassifier),
        "src.linearize": (LinearizedModel,),
    }
    for package, objects in where.items():
        module = types.ModuleType(package)
        monkeypatch.setitem(sys.modules, package, module)
        for thing in objects:
            thing.__module__, thing.__qualname__ = package, thing.__name__
            setattr(module, thing.__name__, thing)
            setattr(made, thing.__name__, thing)
    return made


@pytest.fixture
def make(torch, packages, base):
    """An `ImageEncoder` with some parameters."""

    def make(params, *, act=None, **options):
        clip = packages.CLIP(base.config, act or packages.QuickGELU)
        tensors = tensors_from_params(params, base.config, naming="open_clip")
        clip.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
        return packages.ImageEncoder(clip, **options).eval()

    return make


def save(torch, value, path, monkeypatch, **options):
    """Save, and forget the packages that the file names."""
    torch.save(value, path, **options)
    for package in ("open_clip", "open_clip.model", "open_clip.transform", "src", "src.modeling", "src.linearize"):
        monkeypatch.delitem(sys.modules, package)
    return path


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", ["encoder", "classifier", "with text"])
def test_the_papers_pickled_modules(
    torch, packages, make, base, tuned, images, encode, tmp_path, monkeypatch, zipped, whole
):
    encoder = make(tuned, keep_lang=whole == "with text")
    with torch.no_grad():
        theirs = encoder.model.visual(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()
    module = packages.ImageClassifier(encoder) if whole == "classifier" else encoder
    path = save(torch, module, tmp_path / "finetuned.pt", monkeypatch, _use_new_zipfile_serialization=zipped)
    found = load_finetuned(path, base)
    assert not {"src", "open_clip"} & sys.modules.keys()
    assert (found.format, found.linearized) == ("module", False)
    equal(found.params, tuned["image"])
    np.testing.assert_allclose(encode(found.params, images), theirs, atol=2e-5)  # float32; order of sums


def test_the_activation_of_a_pickled_module_is_told_by_its_class(
    torch, packages, make, base, tuned, tmp_path, monkeypatch
):
    path = save(torch, make(tuned, act=packages.GELU), tmp_path / "finetuned.pt", monkeypatch)
    with pytest.raises(ValueError, match=r"finetuned\.pt: .*hidden_act is 'gelu', the base's is 'quick_gelu'"):
        load_finetuned(path, base)


@pytest.mark.parametrize("act", ["GELU", "QuickGELU"])
def test_of_a_whole_pickled_model_the_activation_is_told_too(torch, packages, tmp_path, monkeypatch, act, caplog):
    sizes = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = VisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=12)
    text = TextConfig(**sizes, vocab_size=40, max_position_embeddings=8, projection_dim=12)
    model = packages.CLIP(ClipConfig(vision=vision, text=text), getattr(packages, act))
    clip = load(save(torch, model, tmp_path / "clip.pt", monkeypatch))
    assert clip.config.vision == dataclasses.replace(vision, hidden_act={"GELU": "gelu"}.get(act, "quick_gelu"))
    assert clip.sources == {"config": "a pickled module", "preprocessing": "default (OpenAI's)"}
    assert "activation" not in caplog.text  # it had not to be guessed


@pytest.mark.parametrize("options", [{}, {"keep_lang": True}])
def test_linearised_checkpoints_of_the_tangent_paper(
    torch, packages, make, base, tuned, tmp_path, monkeypatch, options
):
    """The order of the parameters is PyTorch's own, of modules registered as open_clip registers them."""
    encoder = packages.LinearizedModel(make(tuned, **options), make(base.params, **options))
    state = torch.nn.ModuleDict({"model": encoder}).state_dict()
    assert "model.params.0" in state and "model.params0.0" in state
    state["model_name"] = "ViT-B-32"
    path = save(torch, state, tmp_path / "linear_finetuned.pt", monkeypatch)
    found = load_finetuned(path, base)
    assert (found.format, found.linearized) == ("linearized", True)
    equal(found.params, tuned["image"])


def lists(order, tuned, base, shift=0.0):
    theta, theta0 = (named(params, base, "open_clip") for params in (tuned, base.params))
    return {f"model.params.{i}": theta[name] for i, name in enumerate(order)} | {
        f"model.params0.{i}": np.asarray(theta0[name] + np.float32(shift)) for i, name in enumerate(order)
    }


def test_linearised_checkpoints_must_be_around_the_base(tmp_path, base, tuned):
    order, path = _parameter_orders(base.config)[0], tmp_path / "linear.safetensors"
    save_file(lists(order, tuned, base), path)
    equal(load_finetuned(path, base).params, tuned["image"])
    save_file(lists(order, tuned, base, shift=1e-5), path)  # another rounding of the base
    rounded = load_finetuned(path, base).params
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(tuned["image"]), strict=True):
        np.testing.assert_allclose(a, np.asarray(b) - 1e-5, atol=1e-6)  # base + (θ − θ₀) of the file, not its θ
    other = dataclasses.replace(base, params=tuned, name="other")
    with pytest.raises(ValueError, match=r"linear\.safetensors: .*another θ₀ than other: \S+ differs by up to"):
        load_finetuned(path, other)
    whole = lists(order, tuned, base)
    for change, message in [
        ({"model.params0.3": None}, "number 3 of one has no counterpart"),
        ({f"model.params{z}.{len(order)}": np.zeros(2, np.float32) for z in ("", "0")}, f"of {len(order) + 1} param"),
        ({"model.params.4": np.zeros((2, 2), np.float32)}, r"visual\.proj|visual\S+ is float32 \[2, 2\]"),
    ]:
        save_file({name: value for name, value in (whole | change).items() if value is not None}, path)
        with pytest.raises(ValueError, match=message):
            load_finetuned(path, base)
