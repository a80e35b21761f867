"""What each part measures, at tiny sizes on the CPU, against what is known of it."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.accelerator import evaluations, merges, parity, parts, resume, training_steps, workloads

ROOT = Path(__file__).parents[2]


def test_images_are_neither_constant_nor_noise_and_those_of_their_seed():
    clip = workloads.load("tiny", "tiny")
    images = workloads.batch(clip, 4).inputs.astype(float)
    assert images.shape == (4, 32, 32, 3) and images.std() > 30
    neighbours = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    assert 0.8 < neighbours < 0.999
    again, other = (workloads.batch(clip, 4, seed=seed).inputs for seed in (0, 1))
    assert np.array_equal(again, images) and not np.array_equal(other, images)


def test_on_a_cpu_full_float32_is_the_reference_and_bfloat16_is_not():
    rows = {row["precision"]: row for row in parts.measure("parity", "tiny", {})}
    for precision in ("highest", "default"):
        assert [rows[precision][error] for error in ("features_max", "features_mean", "gradient")] == [0, 0, 0]
    for error in ("features_max", "features_mean", "gradient"):
        assert 1e-4 < rows["bf16"][error] < 5e-2
    assert rows["bf16"]["features_mean"] <= rows["bf16"]["features_max"]


def test_a_device_that_computes_something_else_fails(monkeypatch):
    def off(clip, precision, device, head, batch):
        return parity.Outcome(np.ones((2, 3)) * next(factors), {"w": np.ones(4)})

    factors = itertools.cycle((1.0, 1.01, 1.0, 1.0))  # the reference, then each precision
    monkeypatch.setattr(parity, "outcome", off)
    rows = parity.measure("tiny", {})
    assert next(rows)["features_max"] == pytest.approx(0.01)
    with pytest.raises(ArithmeticError, match="tiny .*features_max"):
        list(rows)


def test_errors_are_relative_to_the_length_of_what_they_are_of():
    reference = parity.Outcome(np.array([[3.0, 4.0], [0.0, 2.0]]), {"a": np.array([3.0]), "b": np.array([4.0])})
    found = parity.Outcome(np.array([[3.0, 4.5], [0.0, 2.0]]), {"a": np.array([3.0]), "b": np.array([5.0])})
    assert parity.compared(found, reference) == {"features_max": 0.1, "features_mean": 0.05, "gradient": 0.2}


def by_hand(vision, batch):
    """Operations of an ordinary training step: the last layer makes the class token alone, images get no gradient."""
    width, inner = vision.hidden_size, vision.intermediate_size
    patches = vision.grid_size**2
    tokens = patches + 1
    embedding = 2 * patches * width * 3 * vision.patch_size**2
    layer = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * inner
    last = 4 * width**2 + 4 * tokens * width**2 + 4 * tokens * width + 4 * width * inner
    projection, head = 2 * width * vision.projection_dim, 2 * vision.projection_dim * workloads.CLASSES
    layers = (vision.num_hidden_layers - 1) * layer + last
    return batch * (3 * (layers + projection) + 2 * embedding + 2 * head)


def test_a_step_of_each_regime_is_measured_and_its_operations_are_those_counted_by_hand():
    rows = {row["regime"]: row for row in parts.measure("steps", "tiny", {})}
    assert set(rows) == {"standard", "attention", "linear", "linear_attention"}
    vision = workloads.SIZES["tiny"].towers["tiny"]
    assert rows["standard"]["operations"] == by_hand(vision, 16)
    assert rows["attention"]["operations"] < rows["standard"]["operations"] < rows["linear"]["operations"]
    for row in rows.values():
        assert row["batch"] == 16 and row["refused"] == [] and row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(16 / row["seconds"])
        assert row["need"]["total"] > 3 * row["need"]["results"] and row["utilisation"] is None


def test_the_share_of_the_peak_is_operations_by_time_and_peak(monkeypatch):
    class Card:
        device_kind = "NVIDIA H100 80GB HBM3"

        def memory_stats(self):
            return {"peak_bytes_in_use": 7}

    monkeypatch.setattr(jax, "local_devices", lambda: [Card()])
    row = training_steps.cost(8, 495 * 10**11, None, {"seconds": 0.5})
    assert (row["utilisation"], row["teraflops"], row["images_per_second"]) == (0.2, 99, 16)
    assert (row["peak_bytes"], row["need"]) == (7, None)


@pytest.mark.parametrize("error", [MemoryError("no room"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")])
def test_a_batch_that_does_not_fit_is_halved_and_said(monkeypatch, error):
    def at(clip, regime, batch, repeats):
        if batch > limit:
            raise error
        return {"batch": batch}

    monkeypatch.setattr(training_steps, "at", at)
    limit = 20
    assert training_steps.largest_that_fits(None, "linear", 64, 1) == {"batch": 16, "refused": [64, 32]}
    limit = 0
    assert training_steps.largest_that_fits(None, "linear", 2, 1) == {"batch": None, "refused": [2, 1]}


def test_another_error_of_a_step_is_not_taken_for_want_of_memory(monkeypatch):
    def at(clip, regime, batch, repeats):
        raise jax.errors.JaxRuntimeError("INTERNAL: autotuning failed")

    monkeypatch.setattr(training_steps, "at", at)
    with pytest.raises(jax.errors.JaxRuntimeError, match="autotuning"):
        training_steps.largest_that_fits(None, "linear", 64, 1)


def test_where_pytorch_sees_no_card_a_row_says_so(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[parity]'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = parts.measure("pytorch", "tiny", {})
    assert "sees no CUDA device" in row["missing"]


@pytest.mark.parametrize("regime", ["standard", "attention"])
def test_the_steps_of_pytorch_are_those_of_tajax(regime):
    torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[parity]'")
    from experiments.accelerator import pytorch_steps

    clip = workloads.load("tiny", "tiny")
    theirs = pytorch_steps.make(clip, regime, 4, torch.device("cpu"))
    step, (state, *constants) = training_steps.make(clip, regime, 4)
    losses = []
    for _ in range(3):
        state, metrics = step(state, *constants)
        losses.append((float(metrics["loss"]), theirs()))
    ours, others = zip(*losses, strict=True)
    np.testing.assert_allclose(ours, others, rtol=2e-5)  # Adam's first steps keep signs, whose sums differ in order
    assert ours[2] < ours[0]


def test_sweeps_and_the_map_are_measured():
    rows = list(parts.measure("evaluation", "tiny", {}))
    assert [(row["what"], row["regime"]) for row in rows] == [
        ("sweep", "standard"),
        ("sweep", "linear"),
        ("map", "standard"),
    ]
    assert [row["points"] for row in rows] == [21, 21, 9] and evaluations.COEFS[-1] == 1
    assert all(row["images_per_second"] == pytest.approx(row["images"] / row["seconds"]) for row in rows)


def test_four_methods_merge_and_the_sum_of_vectors_moves_as_far_as_they_are_long():
    rows = {row["method"]: row for row in parts.measure("merging", "tiny", {})}
    assert tuple(rows) == merges.CHOSEN and all(row["vectors"] == 8 for row in rows.values())
    # independent vectors of 1 % each; leaves that are zero, as biases are, move besides
    assert rows["task_arithmetic"]["moved"] == pytest.approx(8**0.5 * workloads.RELATIVE_NORM, rel=0.05)
    assert all(0 < row["moved"] <= rows["task_arithmetic"]["moved"] for row in rows.values())


def test_a_killed_training_goes_on_to_the_same_bits():
    (row,) = parts.measure("resume", "tiny", {})
    assert (row["killed_after"], row["resumed_from"], row["steps"]) == (5, 4, 6)
    assert row["bits_equal"] and row["largest_difference"] == row["loss_difference"] == 0


def test_a_training_that_ends_by_itself_is_told_from_one_that_was_killed(tmp_path):
    with pytest.raises(RuntimeError, match="before it could be killed"):
        resume._killed(str(tmp_path), "x", "no such sizes")


def test_counts_are_equal_on_two_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2")
    alone, together = parts.in_own_process("devices", "tiny", {}, 300)
    assert (alone["devices"], together["devices"]) == (1, 2)
    assert alone["correct"] == together["correct"] and together["count"] == [15] * 3


WITHOUT = """
import importlib, sys
sys.modules.update(dict.fromkeys({heavy}))  # as if they were not installed
from experiments.accelerator import check, parts, resumed_training
for part in parts.PARTS.values():
    importlib.import_module("experiments.accelerator." + part.module)
check.main(["--what", "tables", "--out", sys.argv[1]])
"""


def test_neither_data_sets_nor_transformers_are_needed(tmp_path):
    heavy = {"tensorflow_datasets", "grain", "PIL", "transformers", "tokenizers", "huggingface_hub", "ml_collections"}
    heavy |= {"array_record", "torch", "altair", "jinja2", "tensorboardX"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT.format(heavy=heavy), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
