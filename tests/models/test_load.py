"""Loading and saving: equal after a round trip, and an error that helps for whatever can be wrong on disk."""

import dataclasses
import json
import os
import shutil
import stat

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tajax.models import ClipConfig, TextConfig, VisionConfig, load, open_clip, save_pretrained
from tajax.models.convert import tensors_from_params
from tajax.trees import flatten_paths
from tajax.types import Preprocessing, Resize


def assert_equal_trees(a, b, **tolerance):
    flat = flatten_paths(b)
    assert flatten_paths(a).keys() == flat.keys()
    for path, leaf in flatten_paths(a).items():
        np.testing.assert_allclose(leaf, flat[path], **({"rtol": 0} | tolerance), err_msg=path)


def test_what_was_saved_is_loaded(saved, config, params, preprocessing, tokenizer):
    clip = load(saved)
    assert (clip.config, clip.name) == (config, str(saved))
    assert clip.preprocessing.size == preprocessing.size
    np.testing.assert_allclose(clip.preprocessing.mean + clip.preprocessing.std, preprocessing.mean + preprocessing.std)
    assert_equal_trees(clip.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(clip.params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(clip.tokenizer.tokenize("a red square"), tokenizer.tokenize("a red square"))
    assert stat.S_IMODE(saved.stat().st_mode) & 0o500 == 0o500
    assert not [file for file in saved.parent.iterdir() if file.name.startswith(".")]


def test_the_hash_tells_image_towers_apart_and_nothing_else(saved, copy, config, params, tokenizer, preprocessing):
    reference = load(saved).image_sha256
    text = jax.tree.map(lambda leaf: leaf + 1, params["text"])
    save_pretrained(copy, config, params | {"text": text}, tokenizer, preprocessing, overwrite=True)
    assert load(copy).image_sha256 == reference
    image = params["image"] | {"class_embedding": params["image"]["class_embedding"].at[3].add(1e-6)}
    save_pretrained(copy, config, params | {"image": image}, tokenizer, preprocessing, overwrite=True)
    assert load(copy).image_sha256 != reference


def test_a_random_image_tower_is_another_for_every_seed_and_leaves_the_text_tower(saved):
    clip = load(saved)
    first, again, second = (clip.with_random_image_tower(seed) for seed in (1, 1, 2))
    assert_equal_trees(first.params, again.params)
    assert_equal_trees(first.params["text"], clip.params["text"])
    assert len({clip.image_sha256, first.image_sha256, second.image_sha256}) == 3
    assert jax.tree.map(jnp.shape, first.params) == jax.tree.map(jnp.shape, clip.params)


def test_half_precision_on_disk_is_float32_in_memory(copy, config, params, tokenizer, preprocessing):
    save_pretrained(copy, config, params, tokenizer, preprocessing, dtype="float16", overwrite=True)
    assert load_file(copy / "model.safetensors")["logit_scale"].dtype == np.float16
    clip = load(copy, dtype=jnp.bfloat16)
    assert clip.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(clip.params)} == {jnp.dtype("float32")}
    assert_equal_trees(clip.params, params, atol=2e-3)  # 11 bits of values up to 4


def test_float64_needs_x64(saved):
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load(saved, dtype="float64")
    with jax.enable_x64(True):
        assert load(saved, dtype="float64").params["logit_scale"].dtype == jnp.float64
    with pytest.raises(TypeError, match="must be a float"):
        load(saved, dtype="int8")


def test_shards_are_one_checkpoint(copy, params):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == shard}, copy / shard)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert_equal_trees(load(copy).params, params)
    index.write_text(json.dumps({"weight_map": where | {names[0]: where[names[1]]}}))
    with pytest.raises(ValueError, match=f"disagree on 1 tensors, such as {names[0]}"):
        load(copy)
    index.write_text(json.dumps({"weight_map": where | {names[0]: "../model.safetensors"}}))
    with pytest.raises(ValueError, match="not a file beside it"):
        load(copy)
    index.write_text(json.dumps({"weight_map": where}))
    (copy / shard).unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard}, which is missing"):
        load(copy)


def test_open_clip_safetensors_with_either_configuration(copy, params, config, tmp_path):
    path = tmp_path / "weights" / "vit.safetensors"
    path.parent.mkdir()
    save_file(tensors_from_params(params, config, naming="open_clip"), path)
    with pytest.raises(ValueError, match="how many heads share the width 16"):
        load(path)
    shutil.copy(copy / "config.json", path.parent)
    assert_equal_trees(load(path).params, params)
    vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.5}
    text = {"context_length": 24, "vocab_size": config.text.vocab_size, "width": 20, "heads": 2, "layers": 2}
    model = {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text | {"mlp_ratio": 2.4}}
    preprocess = {"size": [16, 16], "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "interpolation": "bicubic"}
    open_clip = path.parent / "open_clip_config.json"
    open_clip.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    (path.parent / "config.json").unlink()
    clip = load(path)
    assert (clip.config, clip.preprocessing.mean) == (config, (0.1, 0.2, 0.3))
    assert_equal_trees(clip.params, params)
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        _ = clip.tokenizer


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_what_was_saved_for_open_clip_is_loaded_bit_for_bit(
    tmp_path, config, params, tokenizer, preprocessing, hidden_act
):
    both = {"vision": config.vision, "text": config.text}
    config = ClipConfig(**{k: dataclasses.replace(tower, hidden_act=hidden_act) for k, tower in both.items()})
    save_pretrained(tmp_path / "clip", config, params, tokenizer, preprocessing, format="open_clip")
    files = {file.name for file in (tmp_path / "clip").iterdir()}
    assert {"open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json", "merges.txt"} <= files
    assert not files & {"model.safetensors", "config.json", "preprocessor_config.json"}
    written = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    assert written["model_cfg"]["quick_gelu"] is (hidden_act == "quick_gelu")
    clip = load(tmp_path / "clip")
    assert clip.config == config
    assert clip.preprocessing == preprocessing
    assert_equal_trees(clip.params, params)
    np.testing.assert_array_equal(clip.tokenizer.tokenize("a red square"), tokenizer.tokenize("a red square"))
    save_pretrained(tmp_path / "clip", config, params, tokenizer, preprocessing, format="open_clip", overwrite=True)


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        ("vision", {"hidden_act": "gelu_new"}, "vision_config.hidden_act 'gelu_new' cannot be said in open_clip"),
        ("text", {"hidden_act": "gelu"}, "text_config.hidden_act 'gelu'"),
        ("text", {"layer_norm_eps": 1e-6}, "text_config.layer_norm_eps 1e-06"),
        ("text", {"eos_token_id": 7}, "text_config.eos_token_id 7 is not the highest"),
    ],
)
def test_what_open_clip_cannot_say_is_not_saved_for_it(
    tmp_path, config, params, tokenizer, preprocessing, tower, changes, message
):
    both = {"vision": config.vision, "text": config.text}
    other = ClipConfig(**both | {tower: dataclasses.replace(both[tower], **changes)})
    with pytest.raises(ValueError, match=message):
        save_pretrained(tmp_path / "clip", other, params, tokenizer, preprocessing, format="open_clip")
    with pytest.raises(ValueError, match="format 'onnx' is unknown; choose one of huggingface, open_clip"):
        save_pretrained(tmp_path / "clip", config, params, tokenizer, preprocessing, format="onnx")
    assert not list(tmp_path.iterdir())


def test_every_published_geometry_can_be_said_in_open_clips_words():
    preprocessing = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)
    shapes = {"B/32": {}, "L/14": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}}
    shapes["L/14"] |= {"num_attention_heads": 16, "patch_size": 14, "projection_dim": 768}
    shapes["g/14"] = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40, "patch_size": 14}
    shapes["g/14"] |= {"num_attention_heads": 16, "projection_dim": 1024}
    for name, sizes in shapes.items():
        text = TextConfig(projection_dim=sizes.get("projection_dim", 512))
        config = ClipConfig(vision=VisionConfig(**sizes), text=text)
        assert open_clip.from_open_clip(open_clip.to_open_clip(config, preprocessing)) == config, name


def test_a_truncated_file_is_named(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for part in (whole[:-100], whole[:5], b""):
        weights.write_bytes(part)
        with pytest.raises(ValueError, match=rf"{weights} \([\d,]+ bytes\) is truncated, damaged"):
            load(copy)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        load(copy)


@pytest.mark.parametrize("file", ["model.safetensors", "open_clip_model.safetensors"])
def test_a_header_that_names_a_tensor_twice_or_outside_its_directory_is_refused(copy, file):
    whole = (copy / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, tensors = whole[8 : 8 + length].decode(), whole[8 + length :]
    (copy / "model.safetensors").unlink()
    entries = header.strip()[1:-1]
    outside = entries.replace('"logit_scale"', '"../logit_scale"')
    for text, message in (
        (f"{{{entries}, {entries}}}", "its header names .* more than once"),
        (f"{{{outside}}}", "the name '../logit_scale' of a tensor leads out of its directory"),
    ):
        (copy / file).write_bytes(len(text).to_bytes(8, "little") + text.encode() + tensors)
        with pytest.raises(ValueError, match=message) as refused:
            load(copy)
        assert file in str(refused.value)


def test_weights_of_another_configuration_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"^{copy}: .* 16 missing: vision_model\.encoder\.layers\.2\."):
        load(copy)


def test_damaged_numbers_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["visual_projection.weight"][2, 3] = np.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="1 of the 192 entries of 'image/projection/kernel' are not finite"):
        load(copy)


def test_pickles_are_read_without_running_them(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of model\.safetensors"):
        load(copy)
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for path in (copy, copy / "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin(.|\n)*the name 'os\.system' is refused"):
            load(path)


def test_files_that_do_not_describe_a_clip_are_named(copy):
    (copy / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match=r"config\.json: .*'blip'; only 'clip'"):
        load(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(copy)
    (copy / "config.json").write_text('{"embed_dim": 512, "quick_gelu": false, "vision_cfg": {}, "text_cfg": {}}')
    with pytest.raises(
        ValueError, match=r"config\.json: .* neither model_type .*, but embed_dim, quick_gelu, vision_cfg"
    ):
        load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load(copy)


def test_names_that_are_nothing_say_what_could_be_named(tmp_path):
    with pytest.raises(ValueError, match=r"No model 'tinny'.*'tiny'.*'owner/name'"):
        load("tinny")
    with pytest.raises(FileNotFoundError, match="no such path exists"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="revision='main' is for hub ids"):
        load(tmp_path, revision="main")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_without_network_says_what_to_download(hub_cache):
    with pytest.raises(FileNotFoundError) as error:
        load("openai/clip-vit-base-patch32", revision="refs/pr/1")
    message = str(error.value)
    assert "hf download openai/clip-vit-base-patch32 --revision refs/pr/1 --include" in message
    assert "--local-dir clip-vit-base-patch32" in message
    with pytest.raises(ValueError, match="cannot be a hub id"):
        load("openai/clip vit*")


@pytest.mark.parametrize("naming", ["huggingface", "open_clip"])
def test_a_cached_hub_id_is_loaded_without_network(hub_cache, copy, config, params, naming):
    repository, commit = hub_cache / "models--owner--clip", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    if naming == "open_clip":
        (copy / "model.safetensors").unlink()
        save_file(tensors_from_params(params, config, naming=naming), copy / "open_clip_model.safetensors")
    copy.rename(repository / "snapshots" / commit)
    clip = load("owner/clip")
    assert clip.name == "owner/clip"
    assert_equal_trees(clip.params, params)


def test_a_model_in_the_way_stays_unless_told(copy, saved, config, params, tokenizer, preprocessing):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_pretrained(copy, config, other, tokenizer, preprocessing)
    broken = other | {"logit_scale": jnp.float32(np.nan)}
    with pytest.raises(ValueError, match="logit_scale is not finite"):
        save_pretrained(copy, config, broken, tokenizer, preprocessing, overwrite=True)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    save_pretrained(copy, config, other, tokenizer, preprocessing, overwrite=True)
    assert_equal_trees(load(copy).params, other)
    assert os.listdir(copy.parent) == [copy.name]


def test_an_interrupted_save_leaves_what_was_there(copy, config, params, preprocessing, tokenizer, monkeypatch):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}

    def interrupted(self, directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tokenizer), "save", interrupted)
    for directory in (copy, copy.with_name("new")):
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(directory, config, params, tokenizer, preprocessing, overwrite=True)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert os.listdir(copy.parent) == [copy.name]


def test_a_directory_of_something_else_is_never_replaced(tmp_path, config, params, tokenizer, preprocessing):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something other than a model"):
        save_pretrained(tmp_path, config, params, tokenizer, preprocessing, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_parts_that_do_not_belong_together_are_not_saved(tmp_path, config, params, tokenizer, preprocessing):
    target = tmp_path / "model"
    with pytest.raises(ValueError, match=r"preprocessing\.size is 99"):
        save_pretrained(target, config, params, tokenizer, preprocessing._replace(size=99))
    squashed = preprocessing._replace(resize=Resize(preprocessing.size, squash=True))
    with pytest.raises(ValueError, match=r"preprocessing\.resize is Resize\(side=16, squash=True"):
        save_pretrained(target, config, params, tokenizer, squashed)
    with pytest.raises(ValueError, match="float32 or float16, got int8"):
        save_pretrained(target, config, params, tokenizer, preprocessing, dtype="int8")
    large = params | {"logit_scale": jnp.float32(1e6)}
    with pytest.raises(ValueError, match=r"logit_scale overflows float16 \(max \|x\| 1e\+06\)"):
        save_pretrained(target, config, large, tokenizer, preprocessing, dtype="float16")
    assert not target.exists()


def test_a_tokenizer_of_another_model_is_refused(copy, tokenizer):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"pools at id 7 .* ends texts with {tokenizer.eos_token_id}"):
        _ = load(copy).tokenizer
