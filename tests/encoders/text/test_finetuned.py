"""Encoders that others fine-tuned: read from every wrapping, refused where they are another encoder."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tajax.encoders.text import FAMILY
from tajax.encoders.text.convert import params_from_tensors
from tajax.encoders.text.finetuned import load_finetuned
from tajax.trees import flatten_paths
from tests.encoders.text.conftest import write


@pytest.fixture
def directory(config, tuned, tmp_path):
    """A sentence-transformers directory of the fine-tuned encoder."""
    write(tmp_path / "tuned", config, tuned)
    return tmp_path / "tuned"


@pytest.fixture
def wanted(tuned, config):
    return flatten_paths(params_from_tensors(tuned, config)[0])


def agrees(found, wanted):
    leaves = flatten_paths(found.params)
    assert leaves.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(leaves[path], leaf, err_msg=path)


def test_a_directory_of_sentence_transformers(text, saved, directory, wanted):
    found = load_finetuned(directory, text)
    agrees(found, wanted)
    assert found.path == directory / "model.safetensors" and not found.linearized and found.rounding is None
    assert found.notes == ("tensors of BERT's own pooler differ from the base's and are not read",)
    agrees(FAMILY.load(str(saved)).load_finetuned(str(directory)), wanted)
    still = load_finetuned(saved, text)
    agrees(still, flatten_paths(text.params))
    assert still.notes == ()


@pytest.mark.parametrize("prefix", ["", "bert.", "0.auto_model.", "0.model.", "module.0.auto_model."])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_files_of_tensors_under_any_prefix(text, tuned, wanted, tmp_path, prefix, kind):
    named = {f"{prefix}{name}": tensor for name, tensor in tuned.items()}
    file = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(named, file)
    else:
        torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")
        state = {name: torch.tensor(tensor) for name, tensor in named.items()}
        torch.save({"epoch": 3, "state_dict": state} if prefix else state, file)
    agrees(load_finetuned(file, text), wanted)


def test_a_classifier_keeps_its_head_to_itself(text, tuned, wanted, directory):
    named = {f"bert.{name}": tensor for name, tensor in tuned.items()}
    beside = {"classifier.weight": np.zeros((3, 24), np.float32), "temperature": np.ones(1, np.float32)}
    save_file(named | beside, directory / "model.safetensors")
    (directory / "modules.json").unlink()
    found = load_finetuned(directory, text)
    agrees(found, wanted)
    assert any("tensors of a head are not read (1): classifier.weight" in note for note in found.notes)
    assert any("tensors outside the model are not read (1): temperature" in note for note in found.notes)


def test_rounding_alone_is_no_movement(text, tensors, tuned, directory):
    save_file({name: tensor.astype(jnp.bfloat16) for name, tensor in tuned.items()}, directory / "model.safetensors")
    found = load_finetuned(directory, text)
    kept = flatten_paths(found.params)["blocks/ln_2/scale"]
    np.testing.assert_array_equal(kept[2], flatten_paths(text.params)["blocks/ln_2/scale"][2])
    assert found.rounding.dtype == "bfloat16" and found.rounding.unmoved == 2
    assert str(found.rounding) in found.notes


def test_one_of_several(text, tensors, tuned, wanted, tmp_path):
    both = {f"teacher.{n}": t for n, t in tensors.items()} | {f"student.{n}": t for n, t in tuned.items()}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="both.safetensors#student or .*both.safetensors#teacher"):
        load_finetuned(tmp_path / "both.safetensors", text)
    agrees(load_finetuned(f"{tmp_path}/both.safetensors#student", text), wanted)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"num_attention_heads": 2}, "num_attention_heads is 2, the base's is 4"),
        ("config.json", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', the base's is 'gelu'"),
        ("config.json", {"model_type": "roberta"}, "config.json.*'roberta'"),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}, "pooling is cls, the base's is mean"),
        ("tokenizer_config.json", {"do_lower_case": False}, "the tokenizer is another than the base"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"q": "news: "}, "default_prompt_name": "q"},
            "the prompt before each text is 'news: ', where it is '' for the base",
        ),
    ],
)
def test_another_encoder_than_the_base_is_refused(text, directory, file, values, message):
    path = directory / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))
    with pytest.raises(ValueError, match=message):
        load_finetuned(directory, text)


def test_lower_casing_that_changes_nothing_is_no_other_tokenizer(text, directory, wanted):
    (directory / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    agrees(load_finetuned(directory, text), wanted)


def test_without_a_tokenizer_beside_it_lower_casing_is_compared(text, directory):
    (directory / "vocab.txt").unlink()
    (directory / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(ValueError, match="do_lower_case is True, where it is False for the base"):
        load_finetuned(directory, text)


def test_another_length_is_said(text, directory):
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    assert "max_seq_length is 12, texts are cut at the base's 20" in load_finetuned(directory, text).notes


def test_what_cannot_be_read_is_named(text, tuned, directory, tmp_path):
    short = {name: tensor for name, tensor in tuned.items() if "layer.1" not in name}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"short.safetensors: .*16 missing: encoder.layer.1"):
        load_finetuned(tmp_path / "short.safetensors", text)
    broken = tuned | {"pooler.dense.bias": tuned["pooler.dense.bias"], "embeddings.LayerNorm.bias": np.full(24, np.nan)}
    save_file({name: tensor.astype("f4") for name, tensor in broken.items()}, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"broken.safetensors: .*ln_embedding/bias"):
        load_finetuned(tmp_path / "broken.safetensors", text)
    with pytest.raises(FileNotFoundError, match="no such path"):
        load_finetuned("../nowhere/model", text)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_finetuned(tmp_path / "empty", text)


def test_a_pickle_that_asks_for_code_is_refused(text, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")

    class Evil:
        def __reduce__(self):
            return shutil.rmtree, (str(tmp_path / "precious"),)

    (tmp_path / "precious").mkdir()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt"):
        load_finetuned(tmp_path / "evil.pt", text)
    assert (tmp_path / "precious").is_dir()
