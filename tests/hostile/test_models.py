"""Weights, task vectors and what lies beside them: whatever a file holds, it is read or refused by its name."""

import contextlib
import json
import os
import pickle
import pickletools
import struct
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants
from hypothesis import strategies as st

from tajax import checkpoints, models, tensor_files, trees, vector_files
from tajax.models.hub import hub_name, locate
from tajax.models.torch_files import open_torch_file
from tests.hostile.conftest import attack, little_memory
from tests.hostile.inputs import DEEP, JSON, NAMES, NUMBERS, changed, encoded, meddled
from tests.models.pickles import archive, dictionary, legacy, tensor
from tests.workflows.conftest import save_clip

DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "f32", "", 7, None])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The minute CLIP, and its directory."""
    directory = tmp_path_factory.mktemp("base") / "clip"
    save_clip(directory, np.random.default_rng(210))
    return models.load(directory)


@pytest.fixture(scope="module")
def vector(base, tmp_path_factory):
    """The bytes of a sound task vector of it."""
    path = tmp_path_factory.mktemp("vector") / "v.safetensors"
    metadata = vector_files.vector_metadata(model="clip", base_sha256=base.image_sha256, task="pets", seed=0)
    vector_files.save_task_vector(path, jax.tree.map(lambda leaf: leaf / 2, base.params["image"]), metadata)
    return path.read_bytes()


def everything(path, base):
    """All that anybody does with a safetensors file; the first that it is refused by."""
    vector_files.is_task_vector(path)
    tensors, _ = tensor_files.read(path)
    assert sum(leaf.nbytes for leaf in tensors.values()) <= path.stat().st_size
    vector_files.read_metadata(path)
    return vector_files.load_task_vector(path, base.params["image"], base_sha256=base.image_sha256)


@attack(150, content=st.data())
def test_safetensors_that_were_meddled_with(content, attempt, tmp_path, vector, base):
    path = tmp_path / "v.safetensors"
    (length,) = struct.unpack("<Q", vector[:8])
    content = content.draw(meddled(vector[: length + 40]))
    path.write_bytes(content + vector[length + 40 :] if content[8:12] == vector[8:12] else content)
    with little_memory():
        loaded = attempt("safetensors, bytes", lambda: everything(path, base), path)
    if loaded is not None:
        trees.check_finite(loaded[0], "what was read")


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": DTYPES,
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), JSON),
        "data_offsets": st.one_of(st.lists(st.integers(-8, 40), min_size=2, max_size=2), st.lists(NUMBERS), JSON),
        "extra": JSON,
    },
)
METADATA = st.one_of(st.dictionaries(NAMES, NAMES, max_size=3), JSON)


@attack(150, header=st.one_of(st.dictionaries(NAMES, ENTRY, max_size=4), JSON), metadata=METADATA, data=st.data())
def test_headers_of_safetensors(header, metadata, data, attempt, tmp_path, base):
    path = tmp_path / "h.safetensors"
    if isinstance(header, dict) and data.draw(st.booleans()):
        header = {"__metadata__": metadata} | header
    text = data.draw(st.one_of(st.just(encoded(header)), meddled(encoded(header)), DEEP))
    length = data.draw(st.one_of(st.just(len(text)), st.just(len(text)), st.sampled_from([0, 1, 2**63, 2**64 - 1])))
    path.write_bytes(struct.pack("<Q", length) + text + bytes(data.draw(st.integers(0, 48))))
    with little_memory():
        attempt("safetensors, headers", lambda: everything(path, base), path)


@attack(100, changes=st.dictionaries(NAMES, NAMES, max_size=2), data=st.data())
def test_metadata_of_task_vectors(changes, data, attempt, tmp_path, vector, base):
    path = tmp_path / "m.safetensors"
    (length,) = struct.unpack("<Q", vector[:8])
    known = json.loads(vector[8 : 8 + length])["__metadata__"]
    for key in data.draw(st.lists(st.sampled_from([*known, "layers", "zero_rows", "trainable"]), max_size=2)):
        changes[key] = data.draw(st.one_of(NAMES, JSON.map(json.dumps)))
    texts = {k: v for k, v in (known | changes).items() if (k + v).isprintable()}
    path.write_bytes(safetensors.numpy.save(safetensors.numpy.load(vector), metadata=texts))
    attempt("task vectors, metadata", lambda: everything(path, base), path)


def opcodes():
    """Instructions of pickles with arguments of their kind, in any order."""
    made = []
    texts = st.sampled_from(
        [b"os", b"system", b"torch", b"builtins", b"eval", b"src.modeling", b"1", b"-7", b"0L", b"1.5"]
    )
    for op in pickletools.opcodes:
        kind = op.arg.name if op.arg else ""
        n = op.arg.n if op.arg else 0
        code = st.just(op.code.encode("latin1"))
        if n > 0:
            argument = st.binary(min_size=n, max_size=n)
        elif kind in ("stringnl_noescape_pair",):
            argument = st.tuples(texts, texts).map(lambda pair: pair[0] + b"\n" + pair[1] + b"\n")
        elif n == -1:
            argument = texts.map(lambda text: text + b"\n")
        elif n in (-2, -3, -4, -5):
            size = {-2: 1, -3: 4, -4: 4, -5: 8}[n]
            argument = st.binary(max_size=6).map(lambda body, size=size: len(body).to_bytes(size, "little") + body)
        else:
            argument = st.just(b"")
        made.append(st.tuples(code, argument).map(b"".join))
    return st.lists(st.one_of(made), max_size=30).map(b"".join)


class Payload:
    """What a real pickle would do, were it loaded: a process, a file."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def read_all(path):
    file = open_torch_file(path)
    return file.read(file.tensors)


@attack(60, data=st.data())
def test_pytorch_files(data, attempt, tmp_path, base):
    path, canary = tmp_path / "m.pt", tmp_path / "was_run"
    good = dictionary(model=dictionary(a=tensor(), b=tensor(offset=1, shape=(2, 2), strides=(1, 2))), epoch=b"K\x03")
    hostile = pickle.dumps({"a": Payload(f"touch {canary}")}, data.draw(st.integers(0, 4)))[:-1]
    body = data.draw(st.one_of(opcodes(), meddled(good), meddled(hostile), st.just(good)))
    if data.draw(st.booleans()):
        archive(path, body)
    else:
        legacy(path, body, data.draw(st.sampled_from([["0"], [], "0", ["0", "0"]])), struct.pack("<q", 6) + bytes(24))
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(meddled(path.read_bytes())))
    with little_memory():
        attempt("PyTorch files", lambda: read_all(path), path)
    attempt("PyTorch files, as encoders", lambda: models.load_finetuned(path, base), path)
    assert not canary.exists()


@attack(20, data=st.data())
def test_archives_under_the_name_of_pytorch(data, attempt, tmp_path):
    path = tmp_path / "z.bin"
    names = st.one_of(NAMES, st.sampled_from(["x/data.pkl", "x/data/0", "x/byteorder", "../data.pkl", "/data.pkl"]))
    with zipfile.ZipFile(path, "w") as file:
        for name in data.draw(st.lists(names, unique=True, max_size=4)):
            kind = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            with contextlib.suppress(UnicodeEncodeError, ValueError):
                file.writestr(
                    name or "x", data.draw(st.sampled_from([b"", b"N.", b"\x80\x02}.", bytes(1 << 20)])), kind
                )
    with little_memory():
        attempt("PyTorch files, archives", lambda: read_all(path), path)


BESIDE = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")


@pytest.fixture(scope="module")
def kept(base):
    return {name: (base.directory / name).read_bytes() for name in (*BESIDE, "model.safetensors", "merges.txt")}


@attack(25, data=st.data())
def test_directories_of_models(data, attempt, tmp_path, kept):
    """Configurations, tokenizers and preprocessing, with code beside them that some libraries would run."""
    directory, canary = tmp_path / "model", tmp_path / "was_run"
    directory.mkdir(exist_ok=True)
    for code in ("tokenizer.py", "modeling.py", "tokenization_clip.py", "configuration.py"):
        (directory / code).write_text(f"open({str(canary)!r}, 'w').close()")
    for name, content in kept.items():
        (directory / name).write_bytes(content)
    name = data.draw(st.sampled_from(BESIDE))
    whole = json.loads(kept[name])
    text = st.one_of(changed(whole).map(encoded), meddled(kept[name]), JSON.map(encoded), DEEP)
    (directory / name).write_bytes(data.draw(text))
    if data.draw(st.integers(0, 3)) == 0:
        hooks = {"auto_map": {"AutoTokenizer": ["tokenizer.CLIPTokenizer", None]}, "tokenizer_class": "Evil"}
        (directory / "tokenizer_config.json").write_bytes(encoded(json.loads(kept["tokenizer_config.json"]) | hooks))
    with little_memory():
        clip = attempt(f"models, {name}", lambda: models.load(directory), directory)
        if clip is not None:
            attempt(f"models, {name}, tokenizer", lambda: clip.tokenizer.tokenize(["a bee", "\0 é 日本"]))
    assert not canary.exists()


@attack(30, data=st.data())
def test_configurations_of_open_clip(data, attempt, tmp_path, base):
    directory = tmp_path / "open"
    if not directory.exists():
        parts = base.config, base.params, base.tokenizer, base.preprocessing
        models.save_pretrained(directory, *parts, format="open_clip")
        (tmp_path / "good.json").write_bytes((directory / "open_clip_config.json").read_bytes())
    good = (tmp_path / "good.json").read_bytes()
    text = st.one_of(changed(json.loads(good)).map(encoded), meddled(good), JSON.map(encoded), DEEP)
    (directory / "open_clip_config.json").write_bytes(data.draw(text))
    with little_memory():
        attempt("models, open_clip_config.json", lambda: models.load(directory), directory)


@attack(
    60, index=st.one_of(st.dictionaries(st.just("weight_map"), st.dictionaries(NAMES, st.one_of(NAMES, JSON))), JSON)
)
def test_indices_of_shards(index, attempt, tmp_path, base):
    directory = tmp_path / "shards"
    directory.mkdir(exist_ok=True)
    path = directory / "model.safetensors.index.json"
    path.write_bytes(encoded(index))
    attempt("models, index of shards", lambda: models.load(directory), directory)


@attack(
    150, name=st.one_of(NAMES, st.lists(NAMES, min_size=2, max_size=4).map("/".join)), at=st.one_of(st.none(), NAMES)
)
def test_names_of_the_hub(name, at, attempt, tmp_path):
    name = name if at is None else f"{name}@{at}"
    taken = hub_name(name)
    if taken is not None:
        parts = f"{taken.repo_id}/{taken.file or 'x'}".split("/")
        assert not {"", ".", ".."} & set(parts) and "\0" not in name
    before = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(tmp_path / "cache"), True
    try:
        attempt("hub names", lambda: locate(name) and None)
    finally:
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = before


@attack(12, data=st.data())
def test_checkpoints_of_runs(data, attempt, tmp_path, capsys):
    directory, like = tmp_path / "checkpoints", {"w": np.zeros((3, 4), np.float32), "n": np.int32(0)}
    state = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.int32(3)}
    if not directory.exists():
        with checkpoints.Writer(directory, config_hash="0" * 12) as writer:
            writer.save(state, step=3)
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(found))
    whole = file.read_bytes()
    file.write_bytes(data.draw(meddled(whole)))
    restored = attempt("checkpoints", lambda: checkpoints.restore_latest(directory, like), directory)
    file.write_bytes(whole)
    if restored is not None:  # what was saved, or anew; where numbers were hit, whatever their checksums let pass
        assert restored.state["w"].shape == (3, 4)


def test_files_that_never_end_are_not_opened(attempt, tmp_path, base):
    os.mkfifo(tmp_path / "endless.safetensors")
    os.mkfifo(tmp_path / "endless.pt")
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "model.safetensors")
    for name in ("endless.safetensors", "endless.pt", "model"):
        assert attempt("pipes", lambda name=name: models.load(tmp_path / name), tmp_path / name) is None
