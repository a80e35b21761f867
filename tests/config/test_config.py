"""What a config may say, and that it says it from anywhere."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from tajax import config as tc
from tajax import data, merging
from tajax.config import checks
from tajax.config.fields import ON_BAD_IMAGE
from tajax.data import memory
from tajax.trees import RULES

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
ARITHMETIC = [path for path in CONFIGS if path.stem not in ("pretrain", "negation", "merge")]


def load(*arguments):
    """The config of a command line, as main parses it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["tajax", *arguments])
    values(["tajax", *arguments])
    return values.config


def test_every_file_is_covered():
    regimes = {"attn", "standard", "linear", "posthoc", "linear_attn"}
    methods = {name for name, regime in tc.REGIMES.items() if regime.method}
    assert {path.stem for path in CONFIGS} == regimes | methods | {"negation", "merge", "pretrain"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_loads_and_validates_from_any_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(f"--config={path}")
    tc.validate(config)
    assert config.variant == "tiny"
    assert f"--config=configs/{path.name}" in path.read_text()  # the docstring is the command


@pytest.mark.parametrize("variant", tc.VARIANTS)
@pytest.mark.parametrize("path", ARITHMETIC, ids=lambda path: path.stem)
def test_each_variant_of_each_file_validates(path, variant):
    config = load(f"--config={path}:{variant}")
    tc.validate(config)
    assert config.variant == variant


@pytest.mark.parametrize("variant", tc.VARIANTS)
def test_merging_has_a_place_for_every_task(variant):
    config = load(f"--config={CONFIGS[0].parent / 'merge.py'}:{variant}")
    tc.validate(config)
    assert config.variant == variant and len(config.checkpoints) in (1, len(config.tasks))


def test_files_name_their_regimes_and_every_rule_exists():
    regimes = {path.stem: load(f"--config={path}").regime for path in ARITHMETIC}
    assert regimes == {name: name for name, regime in tc.REGIMES.items() if regime.method} | {
        "attn": "attention",
        "standard": "standard",
        "linear": "linear",
        "posthoc": "posthoc",
        "linear_attn": "linear_attention",
    }
    assert {regime.trainable for regime in tc.REGIMES.values()} <= set(RULES)


def test_every_regime_is_one_of_its_own():
    """What is trained in the tangent space is evaluated there; no two are the same, or drawn alike."""
    regimes = tc.REGIMES.values()
    assert all(regime.name == name for name, regime in tc.REGIMES.items())
    assert all(regime.evaluate_linearized or regime.method for regime in regimes if regime.train_linearized)
    assert len({(r.trainable, r.train_linearized, r.evaluate_linearized, r.method) for r in regimes}) == len(regimes)
    assert len({regime.color for regime in regimes}) == len(regimes)
    assert {regime.trainable for regime in regimes} <= set(RULES)


@pytest.mark.parametrize("variant", ["b32", "b16", "l14"])
def test_protocol_of_the_papers(variant):
    config = tc.with_variant(tc.default_config(), variant)
    finetune = config.finetune
    assert (finetune.learning_rate, finetune.weight_decay, finetune.clip_norm) == (1e-5, 0.1, 1.0)
    assert (finetune.warmup_steps, finetune.batch_size, finetune.steps, finetune.epochs) == (500, 128, None, None)
    assert finetune.batch_size // finetune.accumulation_steps == (64 if variant == "l14" else 128)
    assert config.evaluate.scaling_coefs == tuple(k / 20 for k in range(21))
    assert len(config.tasks) == 8


def test_tasks_of_the_presets_are_those_of_the_table():
    assert set(tc.BUNDLED_TASKS) == set(data.BUNDLED) - {"objects"}  # the control task
    assert set(tc.PROTOCOL_TASKS) <= set(data.PROTOCOL)  # which also knows the control task


def test_overrides_reach_the_config():
    config = load(
        f"--config={CONFIGS[0]}",
        "--config.tasks=('../shared/data/mnist.npz',)",
        "--config.finetune.steps=10",  # the field's default is None
        "--config.finetune.clip_norm=inf",
        "--config.evaluate.scaling_coefs=(0, 0.5, 2)",
        "--config.trainable=('image/.*kernel', 'bias')",
        "--config.task_vectors=runs/standard_tiny",
        "--noconfig.save.merged",
    )
    tc.validate(config)
    assert config.tasks == ("../shared/data/mnist.npz",)
    assert config.finetune.steps == 10
    assert tc.regime(config).trainable == ("image/.*kernel", "bias")
    assert (config.task_vectors, config.save.merged) == ("runs/standard_tiny", False)


def test_one_task_needs_no_comma():
    assert load(f"--config={CONFIGS[0]}", "--config.tasks=mnist").tasks == ("mnist",)


BAD = {
    "workflow=task_adition": "unknown workflow 'task_adition'. Did you mean 'task_addition'? Choices: single_task",
    "regime=atention": "unknown regime 'atention'. Did you mean 'attention'? Choices: standard",
    "on_bad_image=ignore": "unknown on_bad_image 'ignore'. Choices: error, skip",
    "pretrain.scenes=huge": "unknown pretrain.scenes 'huge'. Choices: small, large",
    "model=": "model is '', want 'tiny', a hub id",
    "tasks=()": "tasks is empty",
    "tasks=('a','a')": "tasks names 'a' more than once",
    "tasks=('a',3)": "tasks holds 3",
    "tasks=('',)": "tasks holds ''",
    "trainable=()": "trainable is ()",
    "trainable=3": "trainable is 3",
    "trainable='(attn'": "trainable pattern '(attn' is not a valid regular expression",
    "seed=-1": "seed is -1, want 0 or more",
    "data_workers=-1": "data_workers is -1, want 0 or more",
    "finetune.learning_rate=0": "finetune.learning_rate is 0.0, want a finite number above 0",
    "finetune.learning_rate=nan": "finetune.learning_rate is nan",
    "finetune.weight_decay=-1": "finetune.weight_decay is -1.0",
    "finetune.clip_norm=0": "finetune.clip_norm is 0.0",
    "finetune.steps=0": "finetune.steps is 0, want 1 or more",
    "finetune.batch_size=0": "finetune.batch_size is 0, want 1 or more",
    "finetune.warmup_steps=-1": "finetune.warmup_steps is -1",
    "finetune.warmup_steps=200": "finetune.warmup_steps is 200, but the run has 150 steps",
    "finetune.penalty_strength=-1": "finetune.penalty_strength is -1.0, want a finite number, 0 or more",
    "finetune.penalty_strength=2": "finetune.penalty_strength is 2.0, but regime 'attention' does not read it",
    "finetune.penalty_strength=nan": "finetune.penalty_strength is nan, want a finite number",
    "finetune.rank=8": "finetune.rank is 8, but regime 'attention' does not read it. Leave it out; ",
    "finetune.alpha=0": "finetune.alpha is 0.0, want a finite number above 0",
    "finetune.radius=0.1": "finetune.radius is 0.1, but regime 'attention' does not read it",
    "finetune.optimizer=muan": "unknown finetune.optimizer 'muan'. Did you mean 'muon'? Choices: adamw, muon",
    "finetune.radius=-1": "finetune.radius is -1.0, want a finite number, 0 or more",
    "finetune.epochs=3": "finetune.steps (150) and finetune.epochs (3) are both given",
    "finetune.accumulation_steps=3": "finetune.accumulation_steps (3) does not divide finetune.batch_size (64)",
    "evaluate.batch_size=0": "evaluate.batch_size is 0",
    "evaluate.scaling_coefs=()": "evaluate.scaling_coefs is ()",
    "evaluate.scaling_coefs=(0.5,0.1)": "each larger than the one before",
    "evaluate.scaling_coefs=(0,'x')": "want finite numbers",
    "merging.ties.density=0": "merging.ties.density is 0.0, want a share above 0, at most 1",
    "merging.dare.drop_rate=1": "merging.dare.drop_rate is 1.0, want a share below 1",
    "merging.method=slerp": "merging.method 'slerp' cannot merge these tasks: slerp goes from one",
    "evaluate.exact=True": "evaluate.exact is for regimes that are evaluated linearised (linear, ",
    "devices=0": "devices is 0, want 1 or more",
    "fsdp=4": "fsdp is 4, but placement 'replicated' divides nothing among the devices of a group. Add "
    "--config.placement=moments or --config.placement=fsdp, or leave it out.",
    "fsdp=0": "fsdp",
    "placement=replicate": "unknown placement 'replicate'. Did you mean 'replicated'?",
    "pretrain.warmup_steps=99999": "is not below pretrain.steps",
    "pretrain.patch_size=7": "pretrain.patch_size (7) does not divide pretrain.image_size (32)",
    "pretrain.natural_fraction=1.5": "pretrain.natural_fraction is 1.5, want a share between 0 and 1",
}


@pytest.mark.parametrize(("override", "message"), BAD.items())
def test_bad_value_is_named(override, message):
    config = load(
        f"--config={CONFIGS[0]}",
        "--config.finetune.steps=150",
        "--config.finetune.batch_size=64",
        f"--config.{override}",
    )
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        tc.validate(config)


def test_options_of_a_merging_method_that_go_ill_together_are_refused_before_a_run():
    config = tc.default_config()
    config.merging.method, config.merging.della.drop_rate = "della", 0.05
    with pytest.raises(ValueError, match="'della' cannot merge these tasks: .* got drop_rate 0.05 and window 0.14"):
        tc.validate(config)
    config.merging.della.window = 0.1
    tc.validate(config)
    config = tc.default_config()
    config.merging.method, config.merging.consensus.tasks = "consensus", len(config.tasks) + 1
    with pytest.raises(ValueError, match=f"from 0 to the {len(config.tasks)} there are; got {len(config.tasks) + 1}"):
        tc.validate(config)
    config.merging.consensus.tasks = len(config.tasks)
    tc.validate(config)


def test_preparations_are_checked_as_methods_are():
    config = tc.default_config()
    config.merging.prepare = ("trimm",)
    with pytest.raises(
        ValueError, match="unknown merging.prepare 'trimm'. Did you mean 'trim'. Choices: drop, rescale"
    ):
        tc.validate(config)
    config.merging.prepare = ("trim", "trim")
    with pytest.raises(ValueError, match="want each preparation once at most"):
        tc.validate(config)
    config.merging.prepare, config.merging.trim.density = ("rescale",), 0.4
    with pytest.raises(
        ValueError, match=r"merging.trim.density is 0.4, .*give --config.merging.prepare=\('rescale', 'trim'\)"
    ):
        tc.validate(config)
    config.merging.prepare = ("rescale", "trim")
    tc.validate(config)
    config.merging.trim.density = 0.0
    with pytest.raises(ValueError, match="merging.trim.density is 0.0, want a share above 0, at most 1"):
        tc.validate(config)
    assert tc.field_comments()["merging.prepare"].startswith("of drop, rescale, trim, done to the vectors before")
    assert load(f"--config={CONFIGS[0]}", "--config.merging.prepare=trim").merging.prepare == ("trim",)


def test_runs_without_preparations_are_the_runs_of_earlier_versions():
    config = tc.default_config()
    earlier = json.loads(config.to_json())
    del earlier["merging"]["prepare"], earlier["merging"]["trim"], earlier["merging"]["drop"]
    assert tc.config_hash(earlier) == tc.config_hash(config) and tc.diff(earlier, config) == {}
    config.merging.prepare = ("trim",)
    assert tc.config_hash(earlier) != tc.config_hash(config)


def test_an_exact_coefficient_needs_two_ends_to_lie_between():
    config = tc.default_config()
    config.regime, config.evaluate.exact, config.evaluate.scaling_coefs = "linear", True, (0.5,)
    with pytest.raises(ValueError, match="at least 2 of them"):
        tc.validate(config)


def test_merging_methods_that_a_run_cannot_tune_are_refused_by_name(monkeypatch):
    config = tc.default_config()
    config.merging.ties.merge = "average"
    with pytest.raises(ValueError, match="unknown merging.ties.merge 'average'.* Choices: mean, sum"):
        tc.validate(config)
    config.merging.ties.merge = "sum"
    with pytest.raises(ValueError, match="merging.ties.merge is 'sum', but merging.method 'task_arithmetic' does not"):
        tc.validate(config)
    config.merging.method = "ties"
    tc.validate(config)
    config = tc.default_config()
    config.regime, config.evaluate.exact, config.merging.method = "linear", True, "weight_average"
    with pytest.raises(ValueError, match="finds the best α, but merging.method 'weight_average' has none"):
        tc.validate(config)
    config.evaluate.exact = False
    tc.validate(config)
    unlike = merging.Method(merging.task_arithmetic)  # affine in truth, but the row does not say so
    monkeypatch.setitem(merging.METHODS, "unlike", unlike)
    config.merging.method = "unlike"
    tc.validate(config)
    config.evaluate.exact = True
    with pytest.raises(ValueError, match="along one vector, θ₀ [+] αg, but merging.method 'unlike' makes another"):
        tc.validate(config)
    monkeypatch.setitem(merging.METHODS, "fitted", dataclasses.replace(unlike, needs="inputs"))
    config.evaluate.exact, config.merging.method = False, "fitted"
    config.merging.images, config.merging.split = 9, "test"
    tc.validate(config)
    config.merging.prepare = ("trim",)
    with pytest.raises(ValueError, match="'fitted' is fitted to the vectors as they are"):
        tc.validate(config)
    config.merging.prepare, config.merging.method = (), "unlike"
    with pytest.raises(ValueError, match="merging.images is 9, but merging.method 'unlike' sees no example"):
        tc.validate(config)
    config.workflow = "single_task"  # which merges nothing
    tc.validate(config)


def test_an_option_of_a_method_is_a_field(monkeypatch):
    options = {
        "power": merging.Option(2, "of what", lambda v: v >= 0, "0 or more"),
        "kind": merging.Option("a", "the kind", choices=("a", "b")),
    }
    monkeypatch.setitem(merging.METHODS, "unlike", merging.Method(merging.task_arithmetic, options))
    comments = tc.field_comments.__wrapped__()
    names = list(comments)
    assert comments["merging.unlike.power"] == "of what" and comments["merging.unlike.kind"] == "one of a, b: the kind"
    assert names.index("merging.method") < names.index("merging.unlike.kind") < names.index("disentanglement.coefs")
    unlike = (f"--config={CONFIGS[0]}", "--config.merging.method=unlike")
    config = load(*unlike, "--config.merging.unlike.power=0", "--config.merging.unlike.kind=b")
    tc.validate(config)
    assert (config.merging.unlike.power, config.merging.unlike.kind) == (0, "b")
    assert set(tc.diff(config, tc.default_config())) >= {"merging.unlike.power", "merging.unlike.kind"}
    for value, wanted in (
        ("power=-1", "merging.unlike.power is -1, want 0 or more"),
        ("kind=c", "unknown merging.unlike.kind 'c'"),
    ):
        with pytest.raises(ValueError, match=wanted):
            tc.validate(load(*unlike, f"--config.merging.unlike.{value}"))


def test_unknown_field_cannot_be_set_and_is_refused():
    config = tc.default_config()
    with pytest.raises(AttributeError, match="Did you mean .*steps"):
        config.finetune.stps = 3
    with config.unlocked():
        config.finetune.stps = 3
    with pytest.raises(ValueError, match="unknown config field 'finetune.stps'. Did you mean 'finetune.steps'"):
        tc.validate(config)


def test_missing_empty_and_mistyped_fields_are_refused():
    config = tc.default_config()
    with config.unlocked():
        del config.evaluate.batch_size
    with pytest.raises(ValueError, match="'evaluate.batch_size' is missing"):
        tc.validate(config)
    config = tc.default_config()
    config.finetune.learning_rate = None
    with pytest.raises(ValueError, match="'finetune.learning_rate' is None. Its default is 1e-05"):
        tc.validate(config)
    config = tc.default_config()
    config.finetune.batch_size = True
    with pytest.raises(TypeError, match="'finetune.batch_size' is True, want int"):
        tc.validate(config)


def test_unknown_variant_names_those_of_the_file():
    with pytest.raises(ValueError, match="unknown variant 'b31'. Did you mean 'b32'. Choices: tiny, b32, b16, l14"):
        tc.with_variant(tc.default_config(), "b31")
    with pytest.raises(ValueError, match="unknown variant 'b32'. Choices: tiny"):
        tc.with_variant(tc.default_config(), "b32", among=("tiny",))


def test_warmup_of_a_run_whose_length_comes_from_epochs():
    config = tc.with_variant(tc.default_config(), "b32")
    assert tc.warmup_steps(config, 2000) == 500
    with pytest.raises(ValueError, match="is 500, but the run has 400 steps.*warmup_steps=40"):
        tc.warmup_steps(config, 400)


def test_what_a_run_does_with_bad_images_is_what_the_data_room_knows():
    assert ON_BAD_IMAGE == memory.ON_BAD_IMAGE


def test_checkpoints_are_one_for_each_task_or_a_pattern():
    config = tc.default_config()
    config.tasks = ("digits", "signs")
    for places in (("a", "b"), ("runs/{task}.safetensors",)):
        config.checkpoints = places
        tc.validate(config)
    config.checkpoints = ("a",)
    with pytest.raises(ValueError, match=r"names 1 for 2 tasks \(digits, signs\).*with \{task\} in it"):
        tc.validate(config)
    config.checkpoints, config.task_vectors = ("a", "b"), "runs/x"
    with pytest.raises(ValueError, match="both given; give one"):
        tc.validate(config)


def test_data_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TAJAX_DATA_DIR", "/elsewhere")
    assert tc.default_config().data_dir == "/elsewhere"
    monkeypatch.delenv("TAJAX_DATA_DIR")
    assert tc.default_config().data_dir == "~/.cache/tajax"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (2, 2)}, r"layers is \(2, 2\), want \(first, end\)"),
        ({"layers": (0, 1, 2)}, "layers is"),
        ({"workflow": "task_negation", "control": None}, "task_negation needs a task that must not suffer"),
        ({"workflow": "task_analogy"}, "takes 4 tasks, A, B, C, D, and got 8"),
        ({"workflow": "ntk", "control": "digits"}, "control 'digits' is one of the tasks"),
        ({"disentanglement.coefs": (1.0, 1.0)}, "disentanglement.coefs is"),
        ({"disentanglement.pairs": (("digits", "digits"),)}, "want two names of different tasks"),
        ({"disentanglement.split": "tst"}, "unknown disentanglement.split 'tst'. Did you mean 'test'"),
        ({"heads": "linear"}, "unknown heads 'linear'. Did you mean 'linear_probe'"),
        ({"initialization": "rndom"}, "unknown initialization 'rndom'. Did you mean 'random'"),
        ({"evaluate.control_threshold": 95.0}, "evaluate.control_threshold is 95.0, want a share between 0 and 1"),
        ({"ntk.images": 0}, "ntk.images is 0, want 1 or more"),
        ({"ntk.images": 31}, "ntk.eigenfunctions is 16, more than half of ntk.images, 31"),
        ({"control": None}, "ntk compares tasks with a control"),
    ],
)
def test_fields_of_the_analyses_are_checked(change, message, monkeypatch):
    monkeypatch.setattr(checks, "_CHOICES", checks._CHOICES | {"workflow": ("task_negation", "task_analogy", "ntk")})
    config = tc.default_config()
    config.workflow, config.control = "ntk", "objects"
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        tc.validate(config)
