"""What makes two configs the same run: which fields count, and the hash of them."""

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tajax import config as tc
from tajax.config.fields import COUNT_ANYWAY, READERS, options


def test_hash_names_what_is_computed_and_not_where_or_how_fast():
    plain = tc.default_config()
    for field, standard in tc.flatten(plain).items():
        other = {bool: lambda v: not v, str: lambda v: v + "x", tuple: lambda v: v[:-1]}
        config = tc.default_config()
        change = other.get(type(standard), lambda v: 7 if v is None else v + 1)(standard)
        # None by default, so that their type is not seen:
        wanted = dict.fromkeys(("task_vectors", "control", "track.wandb", "pretrain.initial_model"), "x")
        wanted |= {"disentanglement.pairs": (("digits", "signs"),), "layers": (0, 2), "merging.prepare": ("rescale",)}
        wanted |= dict.fromkeys(("checkpoints", "pretrain.natural"), ("x",))
        wanted |= dict.fromkeys(("tune.learning_rate", "tune.penalty_strength"), (1e-3, 1e-4))
        config.update_from_flattened_dict({field: wanted.get(field, change)})
        assert list(tc.diff(plain, config)) == [field]
        assert (tc.config_hash(config) == tc.config_hash(plain)) == (not tc.counts(field, "task_addition")), field


def test_field_that_a_later_version_adds_leaves_earlier_runs_as_they_are():
    config = tc.default_config()
    config.finetune.steps = 7
    earlier = json.loads(config.to_json())
    del earlier["merging"], earlier["checkpoints"], earlier["on_bad_image"]
    assert earlier["finetune"]["penalty_strength"] is None
    del earlier["finetune"]["optimizer"]
    assert tc.config_hash(earlier) == tc.config_hash(config)
    assert tc.diff(earlier, config) == {}
    config.merging.method = "ties"
    assert tc.config_hash(earlier) != tc.config_hash(config)


def test_a_run_that_was_trained_by_another_protocol_is_another_run():
    config = tc.default_config()
    earlier = json.loads(config.to_json())
    del earlier["finetune"]["protocol"]
    assert tc.config_hash(earlier) != tc.config_hash(config)
    assert tc.diff(earlier, config) == {"finetune.protocol": (1, 2)}
    config.workflow = earlier["workflow"] = "ntk"  # which trains nothing
    assert tc.config_hash(earlier) == tc.config_hash(config)


@pytest.mark.parametrize("chosen", [{"merging.method": "wudi"}, {"merging.method": "svc", "merging.svc.merge": "wudi"}])
def test_a_run_that_merged_by_wudi_without_a_ridge_is_another_run(chosen):
    config = tc.default_config()
    earlier = json.loads(config.to_json())
    del earlier["merging"]["wudi"]["ridge"]
    assert tc.config_hash(earlier) == tc.config_hash(config) and tc.diff(earlier, config) == {}  # it merged otherwise
    config.update_from_flattened_dict(chosen)
    earlier = json.loads(config.to_json())
    del earlier["merging"]["wudi"]["ridge"]
    assert tc.config_hash(earlier) != tc.config_hash(config)
    assert tc.diff(earlier, config) == {"merging.wudi.ridge": (0, 1.0)}


def test_a_field_that_has_another_name_now_leaves_earlier_runs_as_they_are():
    config = tc.default_config()
    config.merging.method, config.merging.ties.density = "ties", 0.4
    earlier = json.loads(config.to_json())
    earlier["merging"] = {"method": "ties", "density": 0.4, "ties_merge": "mean", "drop_rate": 0.5}
    assert tc.diff(earlier, config) == {}
    named = json.dumps({"merging.density": 0.4, "merging.method": "ties"}, sort_keys=True)  # as it was hashed then
    assert tc.config_hash(earlier) == tc.config_hash(config) == hashlib.sha256(named.encode()).hexdigest()[:12]


def test_operational_fields_exist():
    gone = {"pretrain.eval_every"}
    assert set(tc.OPERATIONAL) - gone <= set(tc.flatten(tc.default_config())) and gone < set(tc.OPERATIONAL)


def test_what_another_workflow_reads_does_not_count():
    addition, negation = tc.default_config(), tc.default_config()
    negation.workflow = "task_negation"
    for config, counted in ((addition, False), (negation, True)):
        before = tc.config_hash(config)
        config.control = "imagenet"
        assert (tc.config_hash(config) != before) == counted
    known, settings = tc.flatten(tc.default_config()), tc.default_config()
    assert all(field in known or field in settings for field in READERS)  # a field, or a section
    assert all(field in known or field in settings for field in COUNT_ANYWAY) and set(COUNT_ANYWAY) < set(READERS)


GOLDEN = {
    "single_task": "0ee26b0d791e",
    "task_addition": "b0de24be13a2",
    "task_negation": "7d8ca5c27841",
    "task_analogy": "dd6d557906b8",
    "disentanglement": "32c2cd9c7404",
    "kernel_behaviour": "10b93a623fa7",
    "geometry": "b673fb6f84c9",
    "ntk": "b8cde6ccb5e5",
    "pretrain": "8fa19f082c27",
}


def test_runs_of_earlier_versions_are_found_by_their_hash():
    """By the hashes that the first version gave; among the fields are some that the workflow does not read."""
    hashes = {}
    for workflow in GOLDEN:
        config = tc.with_variant(tc.default_config(), "tiny")
        changes = {"workflow": workflow, "seed": 3, "control": "signs", "any_base": True, "layers": (0, 2)}
        changes |= {"finetune.learning_rate": 1e-3}  # that of the first version
        changes |= {"finetune.weight_decay": 0.2, "evaluate.scaling_coefs": (0.0, 0.5), "evaluate.exact": True}
        changes |= {"evaluate.control_threshold": 0.9, "merging.method": "ties", "save.merged": False}
        changes |= {"disentanglement.images": 9, "ntk.images": 9, "pretrain.width": 64, "heads": "linear_probe"}
        config.update_from_flattened_dict(changes)
        hashes[workflow] = tc.config_hash(config)
    assert hashes == GOLDEN


def test_fields_that_are_gone_leave_the_configs_of_earlier_runs_what_they_were():
    earlier = json.loads(tc.default_config().to_json())
    earlier["pretrain"]["eval_every"] = 100
    assert tc.config_hash(earlier) == tc.config_hash(tc.default_config())


def test_every_field_is_read_by_somebody():
    """By its own name, with all of its section (`**config.track`), or as an option of a method."""
    code = [ast.parse(path.read_text()) for path in (Path(__file__).parents[2] / "tajax").rglob("*.py")]
    nodes = [node for tree in code for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}
    unread = {field for field in tc.flatten(tc.default_config()) if field.rpartition(".")[2] not in read}
    assert unread - set(options()) == {"track.tensorboard"}  # **config.track, and the name of a folder


def test_hash_is_the_same_in_another_process_and_after_json():
    config = tc.default_config()
    config.trainable = {"image/.*kernel": True, ".*": False}
    config.finetune.clip_norm = float("inf")
    config.evaluate.scaling_coefs = (0, 1)
    stored = json.loads(config.to_json())
    assert tc.config_hash(stored) == tc.config_hash(config)
    assert tc.diff(stored, config) == {}
    code = "from tajax import config as c; print(c.config_hash(c.default_config()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tc.config_hash(tc.default_config())
