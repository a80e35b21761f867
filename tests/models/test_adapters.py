"""LoRA adapters in PEFT's files: what is added to which kernel, by hand; and what is refused by name."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tajax
from tajax.models import load_finetuned
from tajax.models.adapters import Linear, Pair, is_adapter, read_adapter, write_adapter
from tajax.models.layout import ADAPTER
from tajax.trees import flatten_paths
from tests.models.conftest import equal

QUERY, FC1 = "vision_model.encoder.layers.1.self_attn.q_proj", "vision_model.encoder.layers.0.mlp.fc1"
WIDTH, INNER, RANK = 16, 40, 3
PREFIX = "base_model.model."


def tensors(prefix=PREFIX, *, strip="", dtype=np.float32):
    """A and B of two modules, as PEFT keeps them: [r, in] and [out, r]."""
    draw = np.random.default_rng(31).normal
    shapes = {QUERY: (WIDTH, WIDTH), FC1: (WIDTH, INNER)}
    return {
        f"{prefix}{module.removeprefix(strip)}.lora_{which}.weight": draw(size=shape).astype(dtype)
        for module, (inputs, outputs) in shapes.items()
        for which, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK)))
    }


def settings(**changes):
    """What PEFT 0.21 writes, shortened to what says something, and some of what does not."""
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj", "fc1"], "bias": "none"}
    plain |= {"use_rslora": False, "use_dora": False, "modules_to_save": None, "rank_pattern": {}, "loftq_config": {}}
    plain |= {"peft_version": "0.21.2", "init_lora_weights": True, "base_model_name_or_path": None, "task_type": None}
    return plain | {"qalora_group_size": 16, "megatron_core": "megatron.core", "lora_dropout": 0.1} | changes


def write(directory, held, **changes):
    directory.mkdir(exist_ok=True)
    save_file(held, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / ADAPTER).write_text(json.dumps(settings(**changes)))
    return directory


def expected(base, held, scale):
    """θ₀ + s·(BA)ᵀ, one product of numbers at a time, in float64."""
    leaves = {path: np.array(leaf) for path, leaf in flatten_paths(base.params["image"]).items()}
    for path, layer, module in (("attn/query", 1, QUERY), ("mlp/fc_in", 0, FC1)):
        a, b = (np.asarray(held[f"{PREFIX}{module}.lora_{which}.weight"], np.float64) for which in "AB")
        kernel = leaves[f"blocks/{path}/kernel"]
        for i in range(a.shape[1]):
            for o in range(b.shape[0]):
                kernel[layer, i, o] += scale * sum(b[o, r] * a[r, i] for r in range(RANK))
    return leaves


def compare(params, wanted, **tolerance):
    for path, leaf in flatten_paths(params).items():
        np.testing.assert_allclose(leaf, wanted[path], err_msg=path, **tolerance)


@pytest.mark.parametrize(("changes", "scale"), [({}, 2.0), ({"use_rslora": True, "lora_alpha": 6}, 6 / math.sqrt(3))])
def test_an_adapter_is_what_it_adds_to_the_kernels(base, tmp_path, changes, scale):
    held = tensors()
    found = load_finetuned(write(tmp_path / "lora", held, **changes), base)
    assert (found.linearized, found.format, found.rounding, found.notes) == (False, "adapter", None, ())
    assert found.path == tmp_path / "lora" / "adapter_model.safetensors"
    compare(found.params, expected(base, held, scale), rtol=0, atol=2e-6)  # one rounding of numbers up to 40
    tau = flatten_paths(tajax.task_vector(base.params["image"], found.params))
    moved = {(path, layer) for path, leaf in tau.items() for layer in range(len(leaf)) if np.any(leaf[layer])}
    assert moved == {("blocks/attn/query/kernel", 1), ("blocks/mlp/fc_in/kernel", 0)}
    equal(load_finetuned(found.path, base).params, found.params)  # the file in place of its directory


@pytest.mark.parametrize(
    ("prefix", "strip"), [("", ""), (PREFIX, "vision_model."), ("", "vision_model.")], ids=["bare", "tower", "both"]
)
def test_names_of_the_whole_model_and_of_the_tower_alone(base, tmp_path, prefix, strip):
    """As transformers 5 calls the modules of CLIPVisionModel, and with PEFT's own name in them as in training."""
    held = tensors(prefix, strip=strip)
    inner = {name.replace(".weight", ".default.weight"): value for name, value in held.items()}
    want = expected(base, tensors(), 2.0)
    for number, each in enumerate((held, inner)):
        compare(load_finetuned(write(tmp_path / str(number), each), base).params, want, rtol=0, atol=2e-6)


def test_what_a_text_tower_has_is_left_and_said(base, tmp_path):
    held = tensors()
    text = {name.replace("vision_model", "text_model"): value for name, value in held.items()}
    found = load_finetuned(write(tmp_path / "both", held | text), base)
    compare(found.params, expected(base, held, 2.0), rtol=0, atol=2e-6)
    assert "tensors of the adapter outside the encoder are not read (4)" in found.notes[0]
    with pytest.raises(ValueError, match=r"text.adapter_model.safetensors: .*changes nothing of the encoder"):
        load_finetuned(write(tmp_path / "text", text), base)


def test_half_precision_is_read_and_said(base, tmp_path):
    held = tensors(dtype=np.float16)
    found = load_finetuned(write(tmp_path / "half", held), base)
    compare(found.params, expected(base, held, 2.0), rtol=0, atol=2e-6)
    assert found.notes == ("weights are float16 (4 of 4 tensors)",)


def test_what_is_written_is_read_and_the_base_is_known_again(base, tmp_path):
    draw = np.random.default_rng(32).normal
    pairs = {
        QUERY: Pair(draw(size=(WIDTH, 2)), draw(size=(2, WIDTH))),
        FC1: Pair(draw(size=(16, 2)), draw(size=(2, 40))),
    }
    about = {"rank": 2, "alpha": 5.0, "base": base.name, "base_sha256": base.image_sha256}
    write_adapter(tmp_path / "ours", pairs, **about)
    found = load_finetuned(tmp_path / "ours", base)
    tau = flatten_paths(tajax.task_vector(base.params["image"], found.params))
    np.testing.assert_allclose(tau["blocks/attn/query/kernel"][1], 2.5 * pairs[QUERY].a @ pairs[QUERY].b, atol=4e-6)
    np.testing.assert_allclose(tau["blocks/mlp/fc_in/kernel"][0], 2.5 * pairs[FC1].a @ pairs[FC1].b, atol=4e-6)
    config = json.loads((tmp_path / "ours" / ADAPTER).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 5, sorted(pairs))
    names = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert names[f"{PREFIX}{FC1}.lora_A.weight"].shape == (2, 16)
    assert names[f"{PREFIX}{FC1}.lora_B.weight"].shape == (40, 2)
    write_adapter(tmp_path / "ours", pairs, **about | {"base_sha256": "0" * 64})  # replaces it
    with pytest.raises(ValueError, match=r"adapter_model.safetensors was made from an encoder with sha256 0000"):
        load_finetuned(tmp_path / "ours", base)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    good = {"x": Pair(np.ones((4, 1)), np.ones((1, 3)))}
    write_adapter(tmp_path / "kept", good, rank=1, alpha=0.5, base="base")
    kept = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    assert json.loads(kept[ADAPTER])["lora_alpha"] == 0.5
    for pairs, message in (
        ({}, "there are no factors"),
        ({"x": Pair(np.ones((4, 2)), np.ones((1, 3)))}, r"x: factors \(4, 2\) and \(1, 3\) are not of rank 1"),
        ({"x": Pair(np.full((4, 1), np.nan), np.ones((1, 3)))}, "x: lora_A holds numbers that are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            write_adapter(tmp_path / "kept", pairs, rank=1, alpha=0.5, base="base")
    assert {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == kept


def test_modules_that_share_a_kernel_have_its_columns(tmp_path):
    """As the two halves of a gated MLP."""
    pretrained, naming = {"kernel": np.zeros((2, 4), np.float32)}, {"up": Linear("kernel", None, 1, 2)}
    write_adapter(tmp_path / "a", {"up": Pair(np.ones((2, 1)), np.array([[3.0, 5.0]]))}, rank=1, alpha=1.0, base="b")
    found = read_adapter(tmp_path / "a", pretrained, [naming], base="b")
    assert found.params["kernel"].tolist() == [[0, 0, 3, 5]] * 2


SETTINGS = {
    "peft_type": ("IA3", "peft_type is 'IA3', and of adapters those with 'LORA' are read"),
    "bias": ("lora_only", "bias is 'lora_only', and of adapters those with 'none' are read"),
    "use_dora": (True, "use_dora is True, which is not implemented"),
    "modules_to_save": (["classifier"], r"modules_to_save is \['classifier'\], which is not implemented"),
    "fan_in_fan_out": (True, "fan_in_fan_out is True"),
    "lora_bias": (True, "lora_bias is True"),
    "rank_pattern": ({"fc1": 8}, "rank_pattern is {'fc1': 8}"),
    "alpha_pattern": ({"fc1": 8}, "alpha_pattern is {'fc1': 8}"),
    "init_lora_weights": ("pissa", "init_lora_weights is 'pissa', and of adapters those with True or False or"),
    "layer_replication": ([[0, 2]], "layer_replication is"),
    "target_parameters": (["experts"], "target_parameters is"),
    "from_the_future": (1, "from_the_future is 1, which is not implemented"),
    "r": (0, "r is 0, want a rank of 1 or more"),
    "lora_alpha": ("6", "lora_alpha is '6', want a finite number"),
    "use_rslora": (1, "use_rslora is 1, want true or false"),
    "auto_mapping": ({"base_model_class": "CLIPTextModel"}, "the adapter is of a CLIPTextModel, not of the encoder"),
}


@pytest.mark.parametrize("field", SETTINGS)
def test_settings_that_mean_other_weights_are_refused_by_name(base, tmp_path, field):
    value, message = SETTINGS[field]
    with pytest.raises(ValueError, match=rf"lora.adapter_config.json: {message}"):
        load_finetuned(write(tmp_path / "lora", tensors(), **{field: value}), base)


def test_names_of_a_base_that_cannot_be_paths_are_named(base, tmp_path):
    for name in ("owner/" + "x" * 9999, "a\0b", 7):
        found = load_finetuned(write(tmp_path / "lora", tensors(), base_model_name_or_path=name), base)
        assert [note[:17] for note in found.notes] == ["the adapter names"] * isinstance(name, str)


def changed(**changes):
    held = tensors()
    for name, value in changes.items():
        name = name.replace("Q_", f"{PREFIX}{QUERY}.lora_") + ".weight"
        held.pop(name) if value is None else held.update({name: value})
    return held


TENSORS = {
    "dora": ({f"{PREFIX}{QUERY}.lora_magnitude_vector": np.ones(16, np.float32)}, "is no lora_A.weight or lora_B"),
    "embedding": ({f"{PREFIX}x.lora_embedding_A": np.ones((3, 4), np.float32)}, "is no lora_A.weight or lora_B"),
    "whole": ({f"{PREFIX}classifier.weight": np.ones((3, 4), np.float32)}, "classifier.weight is no lora_A.weight"),
    "half": (changed(Q_B=None), "q_proj has lora_A alone. A and B belong together"),
    "rank": (changed(Q_A=np.ones((4, 16), np.float32)), r"lora_A.weight is float32 \[4, 16\]; with r = 3"),
    "width": (changed(Q_B=np.ones((24, 3), np.float32)), r"of 16 inputs and 16 outputs it is float \[16, 3\]"),
    "convolution": (changed(Q_B=np.ones((16, 3, 1, 1), np.float32)), r"lora_B.weight is float32 \[16, 3, 1, 1\]"),
    "integers": (changed(Q_A=np.ones((3, 16), np.int32)), r"lora_A.weight is int32 \[3, 16\]"),
    "nan": (changed(Q_A=np.full((3, 16), np.nan, np.float32)), "holds numbers that are not finite"),
    "deeper": (
        {name.replace("layers.1", "layers.7"): value for name, value in tensors().items()},
        "changes vision_model.encoder.layers.7.self_attn.q_proj, which the base has not as a linear module",
    ),
    "other names": (
        {name.replace("vision_model.encoder.layers", "visual.resblocks"): v for name, v in tensors().items()},
        "changes visual.resblocks.0.mlp.fc1, .*which the base has not",
    ),
    "mixed": (  # under no one naming are both there
        changed(Q_A=None, Q_B=None) | {k: v for k, v in tensors(strip="vision_model.").items() if "q_proj" in k},
        "which the base has not as a linear module",
    ),
    "nothing": ({}, "the adapter changes nothing of the encoder: it has no tensors"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_mean_something_else_are_refused_by_name(base, tmp_path, case):
    held, message = TENSORS[case]
    if case in ("dora", "embedding", "whole"):
        held = tensors() | held
    with pytest.raises(ValueError, match=rf"lora.adapter_model.safetensors: (.|\n)*{message}"):
        load_finetuned(write(tmp_path / "lora", held), base)


def test_an_adapter_of_another_model_of_the_hub_is_refused(base, tmp_path):
    directory = write(tmp_path / "lora", tensors(), base_model_name_or_path="owner/other")
    naming = {module: Linear(f"blocks/{path}/kernel", layer) for module, path, layer in PLACES}
    for name in ("owner/clip", "owner/clip@1234567"):
        with pytest.raises(ValueError, match=r"trained on 'owner/other', and the base here is 'owner/clip"):
            read_adapter(directory, base.params["image"], [naming], base=name)
    found = read_adapter(directory, base.params["image"], [naming], base="owner/other@1234567")
    assert found.notes == ()
    assert "names 'owner/other' as its base" in load_finetuned(directory, base).notes[0]  # a path may hold the same


PLACES = ((QUERY, "attn/query", 1), (FC1, "mlp/fc_in", 0))


def test_a_directory_with_weights_of_its_own_is_no_adapter(base, copy):
    write(copy, tensors())
    assert not is_adapter(copy)
    found = load_finetuned(copy, base)
    equal(found.params, base.params["image"])
    assert any("an adapter lies beside the weights and is not read" in note for note in found.notes)


def test_tensors_without_their_settings_are_refused(base, tmp_path):
    directory = write(tmp_path / "lora", tensors())
    (directory / ADAPTER).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json: copy it there"):
        load_finetuned(directory / "adapter_model.safetensors", base)
    (directory / ADAPTER).write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config.json must hold a JSON object"):
        load_finetuned(directory, base)


def test_an_adapter_comes_from_the_hub(hub, base, tmp_path):
    directory = write(tmp_path / "lora", tensors())
    hub.commit("owner/lora", {file.name: file.read_bytes() for file in directory.iterdir()} | {"README.md": b""})
    want = load_finetuned(directory, base).params
    equal(load_finetuned("owner/lora", base).params, want)
    equal(load_finetuned("owner/lora/adapter_model.safetensors", base).params, want)


def test_pickled_adapters_are_read_without_running_them(torch, base, tmp_path):
    held = tensors()
    directory = write(tmp_path / "lora", held)
    (directory / "adapter_model.safetensors").unlink()
    torch.save({name: torch.tensor(value) for name, value in held.items()}, directory / "adapter_model.bin")
    compare(load_finetuned(directory, base).params, expected(base, held, 2.0), rtol=0, atol=2e-6)
