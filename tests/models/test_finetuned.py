"""Encoders that others fine-tuned: their task vector and their features, from every format they come in."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tajax
from tajax.models import load, load_finetuned, save_pretrained
from tajax.models.preprocessor import preprocessor_config
from tests.models.conftest import equal, named


def vision_config(base, **changes):
    """What `transformers` writes beside a `CLIPVisionModel`."""
    return dataclasses.asdict(base.config.vision) | {"model_type": "clip_vision_model"} | changes


@pytest.fixture
def tower(tmp_path, base, tuned):
    """A fusion_bench checkpoint: the vision tower alone, without a projection."""
    tensors = named(tuned, base, "huggingface")
    save_file({k: v for k, v in tensors.items() if k.startswith("vision_model.")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(vision_config(base)))
    return tmp_path


def test_a_vision_tower_alone_keeps_the_projection_of_the_base(tower, base, tuned):
    found = load_finetuned(tower, base)
    assert (found.linearized, found.format, found.path) == (False, "huggingface", tower / "model.safetensors")
    equal(found.params, tuned["image"] | {"projection": base.params["image"]["projection"]})
    tau = tajax.task_vector(base.params["image"], found.params)
    assert not np.any(tau["projection"]["kernel"]) and tajax.norm(tau) > 0
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match="image tower without its text tower: read it with load_finetuned"):
        load(tower)


@pytest.mark.parametrize("naming", ["huggingface", "open_clip"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.image_encoder.model.", "state_dict.module."])
def test_any_prefix_is_found_and_what_is_beside_the_model_is_left(tmp_path, base, tuned, naming, prefix):
    tensors = {prefix + name: value for name, value in named(tuned, base, naming).items()}
    if prefix:
        tensors |= {"classification_head.weight": np.zeros((3, 4), np.float32), "optimizer.step": np.zeros(1)}
    save_file(tensors, tmp_path / "m.safetensors")
    equal(load_finetuned(tmp_path / "m.safetensors", base).params, tuned["image"])


@pytest.mark.parametrize("naming", ["huggingface", "open_clip"])
@pytest.mark.parametrize("cut", [0, 1])
def test_a_tower_that_says_not_that_it_is_one(tmp_path, base, tuned, naming, cut):
    """As transformers 5 writes `CLIPVisionModel`, and as the state dict of open_clip's `model.visual` is."""
    lead = ("vision_model.", "visual.")[naming == "open_clip"]
    tensors = {k[len(lead) * cut :]: v for k, v in named(tuned, base, naming).items() if k.startswith(lead)}
    save_file(tensors, tmp_path / "m.safetensors")
    found = load_finetuned(tmp_path / "m.safetensors", base).params
    kept = base if naming == "huggingface" else None
    equal(found, tuned["image"] | ({"projection": base.params["image"]["projection"]} if kept else {}))


def test_our_own_merged_models_and_half_precision(tmp_path, base, tuned):
    args = (base.config, tuned, base.tokenizer, base.preprocessing)
    for dtype in ("float32", "float16"):
        save_pretrained(tmp_path / dtype, *args, dtype=dtype)
        rounded = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype).astype("float32"), tuned["image"])
        equal(load_finetuned(tmp_path / dtype, base).params, rounded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, the base's is 2"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', the base's is 'quick_gelu'"),
        ({"image_size": 32, "patch_size": 4}, "image_size is 32, the base's is 16; patch_size is 4, the base's is 8"),
        ({"model_type": "siglip_vision_model"}, "config.json: .*only 'clip' can be loaded"),
    ],
)
def test_another_architecture_is_named(tower, base, changes, message):
    (tower / "config.json").write_text(json.dumps(vision_config(base, **changes)))
    with pytest.raises(ValueError, match=message) as error:
        load_finetuned(tower, base)
    assert str(tower) in str(error.value)


def test_an_encoder_of_images_prepared_otherwise_is_refused(tower, base):
    (tower / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(base.preprocessing)))
    load_finetuned(tower, base)
    other = preprocessor_config(base.preprocessing._replace(mean=(0.48, 0.46, 0.41)))
    (tower / "preprocessor_config.json").rename(tower / "processor_config.json")
    (tower / "processor_config.json").write_text(json.dumps({"image_processor": other}))
    message = (
        r"processor_config.json says mean \(0.48, .* prepared with \(0.5, 0.4, 0.3\) .* \(preprocessor_config.json\)"
    )
    with pytest.raises(ValueError, match=message):
        load_finetuned(tower, base)


def test_tensors_that_do_not_fit_are_named(tower, base):
    path = tower / "model.safetensors"
    whole = load_file(path)
    layer = "vision_model.encoder.layers.0.mlp.fc1"
    for change, message in [
        ({f"{layer}.weight": None}, f"1 missing: {layer}.weight"),
        ({f"{layer}.gate": np.zeros(2, np.float32)}, f"1 left over: {layer}.gate"),
        ({f"{layer}.bias": np.zeros(7, np.float32)}, rf"{layer}.bias is float32 \[7\], expected float \[40\]"),
        ({f"{layer}.bias": np.full(40, np.nan, np.float32)}, "40 of the 80 entries of 'blocks/mlp/fc_in/bias'"),
        ({"ema.embeddings.class_embedding": whole["vision_model.embeddings.class_embedding"]}, "2 image towers"),
        (dict.fromkeys(whole) | {"bert.pooler": np.zeros(2, np.float32)}, "no image tower among bert.pooler"),
        (dict.fromkeys(whole) | {"blocks/attn/query/kernel": np.zeros(2, np.float32)}, "a task vector of tajax"),
    ]:
        save_file({name: value for name, value in (whole | change).items() if value is not None}, path)
        with pytest.raises(ValueError, match=message) as error:
            load_finetuned(tower, base)
        assert str(tower) in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such path"):
        load_finetuned(tower / "absent", base)


def test_of_a_hub_repository_pickles_are_fetched_only_where_nothing_else_is(hub, tower, base):
    files = {file.name: file.read_bytes() for file in tower.iterdir()}
    hub.commit("owner/safe", files | {"pytorch_model.bin": b"\x80", "finetuned.pt": b"\x80"})
    found = load_finetuned("owner/safe", base)
    assert {file.name for file in found.path.parent.iterdir()} == {"config.json", "model.safetensors"}
    hub.commit("owner/unsafe", {"config.json": files["config.json"], "pytorch_model.bin": b"cos\nsystem\n."})
    for name in ("owner/unsafe", "owner/unsafe/pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin .*'os\.system' is refused"):
            load_finetuned(name, base)


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
@pytest.mark.parametrize("file", ["safetensors", "bin", "module"])
def test_what_transformers_saves(torch, base, saved, tuned, images, encode, tmp_path, kind, file):
    import transformers

    reference = transformers.CLIPModel.from_pretrained(saved)
    tensors = {name: torch.tensor(value) for name, value in named(tuned, base, "huggingface").items()}
    reference.load_state_dict(tensors)
    model = reference
    if kind != "CLIPModel":
        model = getattr(transformers, kind)(reference.config.vision_config).eval()
        model.load_state_dict(
            {n: tensors[m] for n in model.state_dict() for m in (n, f"vision_model.{n}") if m in tensors}
        )
    model.save_pretrained(tmp_path)
    if file != "safetensors":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict() if file == "bin" else model, tmp_path / "pytorch_model.bin")
    found = load_finetuned(tmp_path, base)
    kept = {"projection": base.params["image"]["projection"]} if kind == "CLIPVisionModel" else {}
    equal(found.params, tuned["image"] | kept)
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
        pooled = model.vision_model(pixels) if hasattr(model, "vision_model") else model(pixels)
        weight = torch.tensor(np.asarray(found.params["projection"]["kernel"]))
        theirs = (pooled.pooler_output @ weight).numpy()
    np.testing.assert_allclose(encode(found.params, images), theirs, atol=2e-5)  # float32; order of sums
