"""What whole runs run on: a random CLIP on disk, two tasks of coloured squares, and the command line."""

import contextlib
import importlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import is_typeddict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tajax import config as configuration
from tajax import main, records, results, trees
from tajax.models import CLIP, ClipConfig, TextConfig, VisionConfig, save_pretrained, train_bpe
from tajax.types import Preprocessing

CONFIGS = Path(__file__).parents[2] / "configs"
GRID = (0.3, 0.6, 1.0)
TASKS = {"pets": ("ox", "zebra", "hummingbird"), "tools": ("saw", "pickaxe")}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Whole runs spend their time in the compiler: a cache on disk that they share."""
    cache = str(tmp_path_factory.mktemp("programs"))
    options = {  # for these tests, and JAX's defaults after them
        "jax_compilation_cache_dir": (cache, None),
        "jax_persistent_cache_min_compile_time_secs": (0.3, 1.0),
    }
    for name, (value, _) in options.items():
        jax.config.update(name, value)
    yield
    for name, (_, default) in options.items():
        jax.config.update(name, default)


def check_stages(lines):
    """A run, and each that it made for itself, did the stages that it had declared, once and in order, and no other."""
    for part in re.split(r"^tuning \d+ of \d+: .*$|^done in [^\n]*/tuning/.*$", lines, flags=re.MULTILINE):
        ended = re.findall(r"^\[(\d+)/(\d+)\] [^:]+: (?:\d+/\d+|done)(?=  |$)", part, re.MULTILINE)
        assert [tuple(map(int, numbers)) for numbers in ended] == [(k + 1, len(ended)) for k in range(len(ended))], (
            lines
        )


def check_records(workdir, workflow):
    """Every record has the fields of its type, and none that the type does not name; of `run`, a family adds some."""
    rooms = records, importlib.import_module(f"tajax.workflows.{workflow}")
    kinds = {records.stage_of(kind): kind for room in rooms for kind in vars(room).values() if is_typeddict(kind)}
    for record in results.read(workdir / "results.jsonl"):
        kind = kinds[record["stage"]]
        assert kind.__required_keys__ <= record.keys(), record
        assert record.keys() <= kind.__annotations__.keys() or kind is records.Run, record


@contextlib.contextmanager
def fields_checked():
    """Within the block no workflow reads a field that is not among those that `config.reads` says it reads."""
    read, names = set(), {}
    get, workflow = ConfigDict.__getattr__, main.workflow

    def noting(section, name):
        if id(section) in names:
            read.add(names[id(section)] + name)
        return get(section, name)

    def watched(name):
        def run(config, workdir, **options):
            names.update({id(config): ""} | {id(v): f"{k}." for k, v in config.items() if isinstance(v, ConfigDict)})
            try:
                return workflow(name)(config, workdir, **options)
            finally:
                names.clear()
                known = configuration.flatten(config)
                assert not [f for f in sorted(read) if f in known and not configuration.reads(name, f)], name

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigDict, "__getattr__", noting)
        patch.setattr(main, "workflow", watched)
        yield


def contents(directory):
    """Every file with its bytes and time of change."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def save_clip(directory, rng):
    """A random CLIP of 8 pixels, width 16 and 2 layers, in the Hugging Face format."""
    tokenizer = train_bpe(["a photo of a bee or an axe."] * 2, vocab_size=520, context_length=16)
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8, "intermediate_size": 16}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = ClipConfig(
        vision=VisionConfig(hidden_size=16, image_size=8, patch_size=4, **depth),
        text=TextConfig(hidden_size=16, vocab_size=tokenizer.vocab_size, max_position_embeddings=16, **ids, **depth),
    )
    blank = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(CLIP(config).init, jax.random.key(0), *blank)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    for path in ("position_embedding", "bias"):  # common to all texts: without them the heads tell class names apart
        zeros = trees.param_mask(params["text"], f".*{path}")
        params["text"] = jax.tree.map(lambda leaf, zero: leaf * (not zero), params["text"], zeros)
    params["logit_scale"] = jnp.float32(3)
    save_pretrained(directory, config, params, tokenizer, Preprocessing(8, (0.5,) * 3, (0.3,) * 3))


@pytest.fixture(scope="module")
def world(tmp_path_factory, rng, programs):
    """The model, and two tasks whose classes differ in colour."""
    home = tmp_path_factory.mktemp("world")
    save_clip(home / "clip", rng(210))
    for number, (name, classes) in enumerate(TASKS.items()):
        draw, arrays = rng(200 + number), {"class_names": list(classes), "templates": ["{}"]}
        colors = draw.integers(40, 216, size=(len(classes), 1, 1, 3))
        for split, count in {"train": 24, "val": 12, "test": 20}.items():
            labels = np.arange(count) % len(classes)
            noise = draw.integers(-40, 40, size=(count, 8, 8, 3))
            arrays |= {f"{split}_images": (colors[labels] + noise).astype(np.uint8), f"{split}_labels": labels}
        np.savez(home / f"{name}.npz", **arrays)
    return home


@pytest.fixture(scope="module")
def run(world):
    """`run(config, workdir, **overrides)` as from the command line: its exit code and what it printed."""

    def run(config, workdir, *flags, **overrides):
        name, _, variant = config.partition(":")
        fields = {
            "model": world / "clip",
            "tasks": tuple(str(world / f"{name}.npz") for name in TASKS),
            "finetune.steps": 3,
            "finetune.batch_size": 8,
            "finetune.learning_rate": 0.01,
            "finetune.log_every": 1,
            "evaluate.batch_size": 8,
            "evaluate.scaling_coefs": GRID,
            "save.playground": 0,  # a program more, for tests of its own
        } | {name.replace("__", "."): value for name, value in overrides.items()}
        given = [f"--config.{field}={value}" for field, value in fields.items() if value is not None]
        file = f"{CONFIGS / name}.py:{variant or 'tiny'}"
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), fields_checked():
            code = main.main(["tajax", f"--config={file}", f"--workdir={workdir}", *given, *flags])
        if code == 0:
            check_stages(err.getvalue())
            check_records(Path(workdir), json.loads((Path(workdir) / "config.json").read_text())["workflow"])
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return run
