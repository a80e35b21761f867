"""Forms of checkpoints: whatever wraps a model, every reader finds the same one, and says what else it found."""

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tajax import vector_files
from tajax.models import load, load_finetuned
from tajax.models.convert import tensors_from_params
from tajax.models.state_dicts import find_model
from tajax.trees import flatten_paths
from tests.models.pickles import archive, dictionary, named, storage, tensor, text


@pytest.fixture(scope="module")
def base(saved):
    return load(saved)


@pytest.fixture(params=["huggingface", "open_clip"])
def tensors(request, base):
    return tensors_from_params(base.params, base.config, naming=request.param)


def equal(ours, wanted):
    for path, leaf in flatten_paths(wanted).items():
        np.testing.assert_array_equal(flatten_paths(ours)[path], leaf, err_msg=path)


def pickled(path, tensors):
    """A file as `torch.save` writes it of a state dict, written without PyTorch."""
    kinds = {"float32": "torch.FloatStorage", "float16": "torch.HalfStorage"}
    entries, records = b"}(", {}
    for i, (name, value) in enumerate(tensors.items()):
        strides = tuple(s // value.itemsize for s in np.asarray(value, order="C").strides)
        held = storage(str(i), kinds[value.dtype.name], value.size)
        entries += text(name) + tensor(held, 0, value.shape, strides)
        records[f"data/{i}"] = value.tobytes()
    return archive(path, entries + b"u", records)


def wrapped(name, form):
    """The name of a tensor in a checkpoint of some form."""
    if form == "FSDP":  # the model, each block, and what is recomputed in it
        outer = "_fsdp_wrapped_module."
        for stack in ("layers.0.", "resblocks.1."):
            name = name.replace(stack, f"{stack}{outer}_checkpoint_wrapped_module.")
        return outer + name
    return form + name


FORMS = [
    "",
    "module.",
    "_orig_mod.",
    "FSDP",
    "state_dict.model.",
    "net.",
    "module._orig_mod.model.",
    "_forward_module.",
]


@pytest.mark.parametrize(
    ("file", "form"),
    [("model.safetensors", form) for form in FORMS]
    + [(file, form) for file in ("pytorch_model.bin", "index") for form in ("FSDP", "state_dict.model.")],
)
def test_every_form_is_read_by_every_reader_from_every_file(saved, base, tensors, tmp_path, form, file):
    directory = shutil.copytree(saved, tmp_path / "clip")
    (directory / "model.safetensors").unlink()
    stored = {wrapped(name, form): value for name, value in tensors.items()}
    stored["optimizer.state.0.exp_avg"] = stored["classification_head.weight"] = np.zeros((3, 4), np.float32)
    scale = wrapped("logit_scale", form)
    stored[scale] = stored[scale].reshape(1)  # FSDP shards no scalar
    if file == "index":
        half = dict(list(stored.items())[::2])
        parts = {"a.safetensors": half, "b.safetensors": {k: v for k, v in stored.items() if k not in half}}
        for name, part in parts.items():
            save_file(part, directory / name)
        where = {tensor: name for name, part in parts.items() for tensor in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        (pickled if file.endswith("bin") else lambda p, t: save_file(t, p))(directory / file, stored)
    clip, finetuned = load(directory), load_finetuned(directory, base)
    equal(clip.params, base.params)
    equal(finetuned.params, base.params["image"])
    assert finetuned.format in ("huggingface", "open_clip")
    for notes in (clip.notes, finetuned.notes):
        said = "; ".join(notes)
        assert "tensors of an optimiser are not read (1): optimizer.state.0.exp_avg" in said
        assert "are not read (1): classification_head.weight" in said
        assert ("wrappers removed" in said) == ("module" in form or "_orig" in form or form == "FSDP")


def test_what_stands_beside_the_towers_is_warned_of(saved, base, tensors, tmp_path, caplog):
    """It may belong to the model, unlike what stands outside the model's prefix."""
    shutil.copy(saved / "config.json", tmp_path)
    for prefix in ("", "model."):
        caplog.clear()
        stored = {prefix + name: value for name, value in tensors.items()} | {f"{prefix}gate.bias": np.zeros(2, "f4")}
        save_file(stored, tmp_path / "m.safetensors")
        equal(load_finetuned(tmp_path / "m.safetensors", base).params, base.params["image"])
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [f"beside its towers are not read (1): {prefix}gate.bias" in text for text in warned] == [True]


def test_the_content_of_a_file_says_what_it_is_and_not_its_suffix(saved, base, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    for name, write in (("a.safetensors", pickled), ("b.ckpt", lambda p, t: save_file(t, p)), ("c", pickled)):
        directory = tmp_path / name
        directory.mkdir()
        shutil.copy(saved / "config.json", directory)
        write(directory / name, tensors)
        equal(load_finetuned(directory / name, base).params, base.params["image"])


def two(tensors, change=1.0):
    ema = {name: np.asarray(value + np.float32(change), value.dtype) for name, value in tensors.items()}
    return {f"model.{n}": v for n, v in tensors.items()} | {f"model_ema.module.{n}": v for n, v in ema.items()}


def test_of_two_models_in_a_file_the_name_chooses(saved, base, tensors, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "clip")
    save_file(two(tensors), directory / "model.safetensors")
    for place in (directory, directory / "model.safetensors", str(directory)):
        for read in (load, lambda place: load_finetuned(place, base)):
            with pytest.raises(ValueError) as error:
                read(place)
            choices = [f"{place}#{name}" for name in ("model", "model_ema")]
            assert f"There are 2 image towers. Choose one: {' or '.join(choices)}." in str(error.value)
    for choice in choices:
        shift = np.float32(choice.endswith("ema"))
        moved = {name: value + shift for name, value in flatten_paths(base.params).items()}
        assert load(choice).name == choice
        equal(load(choice).params, moved)
        equal(load_finetuned(choice, base).params, {k[6:]: v for k, v in moved.items() if k.startswith("image/")})
    with pytest.raises(ValueError, match=r"#teacher names 0 of 2 image towers. Choose one: .*#model or .*#model_ema"):
        load(f"{directory}#teacher")


def test_of_a_hub_repository_a_model_can_be_chosen_too(hub, saved, base, tensors, tmp_path):
    save_file(two(tensors), tmp_path / "w.safetensors")
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    commit = hub.commit("owner/two", files | {"model.safetensors": (tmp_path / "w.safetensors").read_bytes()})
    clip = load(f"owner/two@{commit}#model")
    assert clip.revision == commit
    equal(clip.params, base.params)
    equal(load_finetuned("owner/two/model.safetensors#model", base).params, base.params["image"])


def test_names_that_begin_alike_and_towers_inside_others_are_told_apart():
    names = ["visual.class_embedding", "visual.proj", "ema.visual.class_embedding", "ema.visual.proj"]
    assert set(find_model(names, which="visual").names.values()) == set(names[:2])
    assert set(find_model(names, which="ema").names.values()) == set(names[2:])
    names = [
        "clip.visual.class_embedding",
        "clip.visual.proj",
        "clip.ema.visual.class_embedding",
        "clip.ema.visual.proj",
    ]
    assert set(find_model(names, which="clip").names.values()) == set(names[:2])
    names = ["clip_visual.class_embedding", "clip_visual.proj", "clip_head.weight"]
    assert find_model(names).names == {f"visual.{end}": f"clip_visual.{end}" for end in ("class_embedding", "proj")}
    with pytest.raises(ValueError, match=r"'visual.proj' and 'module.visual.proj' are one tensor of the model"):
        find_model(["visual.class_embedding", "visual.proj", "module.visual.proj"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", r"LoRA .*merge_and_unload"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight.SCB", "quantised by bitsandbytes"),
        ("visual.transformer.resblocks.0.mlp.c_fc.qweight", "GPTQ or AWQ"),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight_scale", "8-bit weights with scales"),
        ("visual._flat_param", "FSDP's flattened parameters"),
    ],
)
def test_what_changes_the_weights_beside_it_is_not_read_over(name, message):
    with pytest.raises(ValueError, match=message):
        find_model(["visual.class_embedding", "visual.proj", name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vision_model.head.probe", "a SigLIP"),
        ("visual.layer1.0.conv1.weight", "a CLIP with a ResNet"),
        ("visual.trunk.blocks.0.attn.qkv.weight", "image tower of timm"),
        ("blocks.0.ls1.gamma", "DINOv2"),
        ("patch_embed.proj.weight", "a ViT under the names of timm or DINO"),
        ("module.layer1.0.conv1.weight", "a ResNet"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "the text tower of a CLIP without its image tower"),
        ("bert.encoder.layer.0.attention.self.query.weight", "a BERT"),
        ("model.embed_tokens.weight", "a language model"),
        ("state.0.exp_avg", "the state of an optimiser"),
        ("classification_head.weight", "a classification head, not the encoder"),
        ("strange", "Give a CLIP with a ViT"),
    ],
)
def test_other_models_are_called_what_they_are(name, message):
    with pytest.raises(ValueError, match=rf"hold no image tower among {name}: .*{message}"):
        find_model([name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, .* `git lfs pull`"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "a web page that was saved in place of the weights"),
        (b"Entry not found", "the text of an error"),
        (b"GGUF\x03\0\0\0" + bytes(60), "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file of Keras or TensorFlow"),
        (b"\x08\x07\x12\x07pytorch", "an ONNX file"),
        (b"\x82\xaatext_model\x81", "a msgpack file of Flax"),
        (b"\x93NUMPY\x01\0", "a single NumPy array"),
        (b"\x1f\x8b\x08\0", "compressed: unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "weights"])
def test_files_of_other_kinds_are_called_what_they_are(base, tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_finetuned(tmp_path / name, base)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("modules.json", "sentence-transformers directory: .*/0_CLIPModel"),
        ("flax_model.msgpack", "weights of Flax"),
        ("tf_model.h5", "weights of TensorFlow"),
        ("model.onnx", "an ONNX file"),
        ("__0_0.distcp", "shards of torch.distributed"),
    ],
)
def test_directories_without_weights_are_called_what_they_are(base, tmp_path, beside, message):
    (tmp_path / beside).write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("")  # never taken for the model's own weights
    for read in (load, lambda place: load_finetuned(place, base)):
        with pytest.raises(FileNotFoundError, match=f"holds no weights that can be read(.|\n)*{message}"):
            read(tmp_path)


def test_an_adapter_is_no_model(hub, tmp_path):
    hub.commit("owner/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "README.md": b""})
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("")
    for place in ("owner/lora", tmp_path):
        with pytest.raises(FileNotFoundError, match="a LoRA adapter, .*load_finetuned .*merge_and_unload"):
            load(place)


def test_floats_of_eight_bits_are_called_what_they_are(base, saved, tmp_path):
    name, path = "vision_model.embeddings.class_embedding", tmp_path / "m.safetensors"
    header = json.dumps({name: {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=rf"'{name}' is F8_E4M3, floats of fewer than 16 bits, .*bfloat16 or wider"):
        load_finetuned(path, base)


def test_a_task_vector_is_never_taken_for_a_model(base, tmp_path):
    """Under a PyTorch model's names it has all the tensors of one."""
    path = tmp_path / "v.safetensors"
    about = vector_files.vector_metadata(model="x", base_sha256=base.image_sha256, task="pets")
    vector_files.save_task_vector(path, base.params["image"], about, naming="open_clip")
    for read in (load, lambda place: load_finetuned(place, base)):
        with pytest.raises(ValueError, match="a task vector of tajax, not a model: read it with load_task_vector"):
            read(path)


def test_one_part_of_a_checkpoint_is_not_the_checkpoint(saved, tmp_path):
    part = tmp_path / "model-00001-of-00002.safetensors"
    shutil.copy(saved / "model.safetensors", part)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=f"one of several parts of a checkpoint: give the directory {tmp_path}"):
        load(part)


def test_a_state_dict_beside_settings_is_no_module(base, tmp_path):
    tensors = tensors_from_params(base.params, base.config, naming="open_clip")
    pickled(tmp_path / "m.pt", tensors)
    found = load_finetuned(tmp_path / "m.pt", base)
    assert found.format == "open_clip" and found.notes == ()
    settings = dictionary(visual=named("argparse.Namespace") + b")\x81" + dictionary(lr=text("1")) + b"b")
    file = archive(tmp_path / "settings.pt", settings)
    with pytest.raises(ValueError, match="no image tower"):
        load_finetuned(file, base)
