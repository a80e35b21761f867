"""Live parity with PyTorch's ViTs of `transformers`, on equal random weights (the `parity` extra installs PyTorch)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from tajax.encoders.vit.family import of_vit
from tajax.encoders.vit.finetuned import load_finetuned
from tajax.encoders.vit.loading import load_vit
from tajax.encoders.vit.tower import VisionTransformer, abstract_params
from tajax.trees import count_params, flatten_paths
from tests.encoders.vit.conftest import PREPROCESSOR
from tests.encoders.vit.test_preprocessing import FILES

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")

S = {"hidden_size": 384, "num_attention_heads": 6}
V2 = {"image_size": 518, "patch_size": 14}
PLAIN, V2_PLAIN = (transformers.ViTConfig, transformers.ViTModel), (transformers.Dinov2Config, transformers.Dinov2Model)
V2_REGISTERS = transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel
REAL = {  # their widths and tables, two layers of them
    "vit-base-patch16": (*PLAIN, {}, "google/vit-base-patch16-224"),
    "dino-vits16": (*PLAIN, S | {"intermediate_size": 1536}, "facebook/dino-vits16"),
    "dinov2-small": (*V2_PLAIN, S | V2, "facebook/dinov2-small"),
    "dinov2-with-registers-small": (*V2_REGISTERS, S | V2, "facebook/dinov2-small"),
    "dinov2-giant's MLP": (*V2_PLAIN, S | V2 | {"use_swiglu_ffn": True}, "facebook/dinov2-small"),
}


@pytest.fixture(autouse=True)
def seed():
    """transformers draws the initial values."""
    torch.manual_seed(20230522)


def shaken(model):
    """Every parameter away from its initial value, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.3 if parameter.ndim == 1 or "token" in name or "position" in name else 0.02
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.eval()


def saved(model, directory, preprocessor):
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return directory


def class_tokens(model, pixels):
    """What a model of transformers makes of normalised pixels [B, H, W, 3]."""
    with torch.no_grad():
        return model(torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))).last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize("name", REAL)
def test_real_widths_in_float32(tmp_path, rng, name):
    config, kind, geometry, file = REAL[name]
    model = shaken(kind(config(**geometry, num_hidden_layers=2)))
    encoder = of_vit(load_vit(saved(model, tmp_path, FILES[file][0]), unroll=1))
    images = rng(760).integers(0, 256, size=(2, 224, 224, 3)).astype(np.uint8)
    mean, std = (np.array(values) for values in (encoder.inputs.mean, encoder.inputs.std))
    theirs = class_tokens(model, ((images / 255 - mean) / std).astype(np.float32))
    ours = np.asarray(jax.jit(encoder.apply)(encoder.params, images))
    gap, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
    print(f"{name} float32: {gap:.1e} of {scale:.2f}")
    assert gap <= 1e-5 * scale
    theirs_count = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("pooler") and "mask" not in n)
    assert count_params(encoder.params) == theirs_count


SMALL = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "image_size": 12, "patch_size": 4}
VARIANTS = {
    "vit": (*PLAIN, {"intermediate_size": 40}),
    "no biases": (*PLAIN, {"intermediate_size": 40, "qkv_bias": False}),
    "tanh": (*PLAIN, {"intermediate_size": 40, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5}),
    "ragged": (*PLAIN, {"intermediate_size": 40, "image_size": 15}),
    "one layer": (*PLAIN, {"intermediate_size": 40, "num_hidden_layers": 1}),
    "dinov2": (*V2_PLAIN, {}),
    "gated": (*V2_PLAIN, {"use_swiglu_ffn": True}),
    "registers": (*V2_REGISTERS, {"num_register_tokens": 5}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_small_variants_in_float64(tmp_path, rng, name):
    config, kind, geometry = VARIANTS[name]
    geometry = SMALL | geometry
    side = geometry["image_size"]
    model = shaken(kind(config(**geometry)).double())
    preprocessor = PREPROCESSOR | {"size": {"shortest_edge": side}, "crop_size": side}
    directory = saved(model, tmp_path, preprocessor)
    pixels, directions = rng(761).normal(size=(2, 3, side, side, 3))
    with jax.enable_x64(True):
        vit = load_vit(directory, dtype=jnp.float64)

        def both(pixels, directions):
            return jax.jvp(lambda pixels: vit.encode(vit.params, pixels), (pixels,), (directions,))

        ours, tangent = map(np.asarray, jax.jit(both)(pixels, directions))
    assert ours.dtype == tangent.dtype == np.float64
    gap = np.abs(ours - class_tokens(model, pixels)).max()
    h = 1e-4
    differences = (class_tokens(model, pixels + h * directions) - class_tokens(model, pixels - h * directions)) / (
        2 * h
    )
    print(f"{name} float64: {gap:.1e}")
    assert gap <= 1e-9
    np.testing.assert_allclose(tangent, differences, atol=1e-5 * np.abs(differences).max())  # O(h²) of theirs


WHOLE = {
    "vit": (transformers.ViTConfig, transformers.ViTForImageClassification, {"intermediate_size": 40}),
    "vit with pooler": (transformers.ViTConfig, transformers.ViTModel, {"intermediate_size": 40}),
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2ForImageClassification, {"use_swiglu_ffn": True}),
    "registers": (
        transformers.Dinov2WithRegistersConfig,
        transformers.Dinov2WithRegistersForImageClassification,
        {},
    ),
}
HERE = PREPROCESSOR | {"size": {"shortest_edge": 12}, "crop_size": 12}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_saved_transformers_opens_and_the_rest_of_the_model_is_as_it_was(tmp_path, rng, name):
    config, kind, geometry = WHOLE[name]
    model = shaken(kind(config(**SMALL | geometry, num_labels=4)))
    encoder = of_vit(load_vit(saved(model, tmp_path / "given", HERE)))
    moved = jax.tree.map(lambda leaf: leaf + 0.05 * rng(762).normal(size=leaf.shape).astype("f4"), encoder.params)
    encoder.save(tmp_path / "merged", moved, format="huggingface")
    opened, report = kind.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()), report
    images = rng(763).integers(0, 256, size=(3, 12, 12, 3)).astype(np.uint8)
    pixels = ((images / 255 - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]).astype(np.float32)
    theirs = class_tokens(opened.eval().base_model, pixels)
    ours = np.asarray(jax.jit(encoder.apply)(moved, images))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
    kept = {n: t for n, t in model.state_dict().items() if n.startswith(("classifier", "pooler")) or "mask_token" in n}
    assert kept
    for tensor, value in kept.items():
        assert torch.equal(opened.state_dict()[tensor], value), tensor


@pytest.mark.parametrize("name", WHOLE)
def test_a_state_dict_has_other_names_and_is_the_same_model(tmp_path, name):
    """PyTorch's file of the modules as transformers 5 calls them; safetensors have the names of version 4."""
    config, kind, geometry = WHOLE[name]
    model = shaken(kind(config(**SMALL | geometry, num_labels=4)))
    base = load_vit(saved(model, tmp_path / "given", HERE))
    assert not base.found.modern
    shaken(model)
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "epoch_3.pt")
    found = load_finetuned(tmp_path / "epoch_3.pt", base)
    again = load_vit(saved(model, tmp_path / "again", HERE))
    jax.tree.map(np.testing.assert_array_equal, found.params, again.params)
    assert any("left out" in note for note in found.notes)
    for path, leaf in flatten_paths(found.params).items():
        assert np.abs(leaf - flatten_paths(base.params)[path]).max() > 0, path
    torch.save(model.state_dict(), tmp_path / "again" / "pytorch_model.bin")
    (tmp_path / "again" / "model.safetensors").unlink()
    from_pickle = load_vit(tmp_path / "again")
    assert from_pickle.found.modern and from_pickle.sha256 == again.sha256


def test_every_leaf_is_drawn_by_its_own_module():
    """The shapes that are drawn are those of transformers' whole base model, counted by PyTorch without memory."""
    from tajax.encoders.vit.geometry import VitConfig

    with torch.device("meta"):
        theirs = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    config = VitConfig()
    assert sum(p.numel() for p in theirs.parameters()) == count_params(abstract_params(config)) == 85_798_656
    assert VisionTransformer(config).config == config
