"""One program on one, two, four and eight devices: the same counts exactly, the same training up to rounding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
COUNTS = ("1", "2", "4", "8")
SHARDED = ("moments", "fsdp 4")


@pytest.fixture(scope="module")
def measured():
    """What on_devices.py prints; one process for all tests."""
    script, environment = Path(__file__).with_name("on_devices.py"), os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["present"] == 8
    return found


@pytest.fixture(scope="module")
def measured_by_two():
    """What two processes with four devices each print."""
    script, environment = Path(__file__).with_name("on_devices.py"), os.environ | {"PYTHONPATH": str(ROOT)}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    started = [
        subprocess.Popen(
            [sys.executable, script, *flags, f"--process={index}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def test_one_program_at_a_time_waits_for_other_devices_on_a_cpu(measured):
    """Several in flight wait for one another in XLA's threads, which ends the process."""
    assert measured["ended"]


def test_two_processes_count_as_one_does(measured, measured_by_two):
    """And both of them know all of it: sums, rows in order, what the first has to the sign of zero, who was asked."""
    first, second = measured_by_two
    assert first == second
    assert first["present"] == 8
    for kind in ("standard", "linear"):
        correct, losses, counts = measured[kind]["whole"]
        hits, loss_sums, rows = first[kind]
        assert (hits, rows) == (correct, counts)
        np.testing.assert_allclose(loss_sums, losses, rtol=1e-6)  # order of 27 float32 sums
    assert first["rows"] == measured["rows"]["1"]
    assert str(first["of the first"]) == "[0.0, -0.0]"
    assert first["in order"] == [0, 1]
    assert first["asked"] == [0, 0, 0, 15, 0]  # two calls later


def test_two_processes_train_as_one_does(measured, measured_by_two):
    """The same tolerance as between devices, for the same reason: only the order of sums differs."""
    for parts, got in measured_by_two[0]["finetune"].items():
        assert_same_training(got, measured["finetune"]["1"]["1"], f"in {parts} parts by two processes")


@pytest.mark.parametrize("kind", ["standard", "linear"])
def test_device_count_and_ragged_tails_do_not_change_accuracy(kind, measured):
    correct, losses, counts = measured[kind]["whole"]
    assert counts == [27] * 3
    assert len(set(correct)) > 1  # the points differ, so a mix-up of points would show
    for count in COUNTS:
        hits, loss_sums, rows = measured[kind][count]
        assert (hits, rows) == (correct, counts), f"on {count} devices"
        np.testing.assert_allclose(loss_sums, losses, rtol=1e-6)  # order of 27 float32 sums


def test_rows_come_back_whole_and_in_order_from_any_number_of_devices(measured):
    """Eleven rows on eight devices are padded, and the padding is dropped again."""
    for count in COUNTS:
        correct, labels = measured["rows"][count]
        assert labels == measured["labels"]
        assert correct == measured["linear"]["whole"][0], f"on {count} devices"


def test_device_count_does_not_change_a_disentanglement_map(measured):
    """Predictions that change are counted exactly, whatever the padding of a ragged tail."""
    want = np.array(measured["disturbed"]["1"])
    assert (want.max(axis=(1, 2, 3)) >= 5).all()
    for count in (*COUNTS, "fsdp"):
        np.testing.assert_array_equal(measured["disturbed"][count], want, err_msg=f"on {count} devices")


def test_device_count_does_not_change_pretraining(measured):
    """The loss compares images with the texts of all devices: divided rows alone would be another one."""
    one, *others = (measured["pretrained"][count] for count in ("1", "4", "fsdp"))
    assert max(one) - min(one) > 0.005
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)


def test_device_count_does_not_change_training(measured):
    """Three steps of plain descent: every rounding enters linearly, a few units in the last place of each step."""
    want = measured["finetune"]["1"]["1"]
    for count, runs in measured["finetune"].items():
        for parts, got in runs.items():
            assert got["devices"] == int(count)
            assert_same_training(got, want, f"in {parts} parts on {count} devices")


def assert_same_training(got, want, what):
    for leaf, params in want["params"].items():
        np.testing.assert_allclose(got["params"][leaf], params, rtol=2e-6, atol=2e-6, err_msg=f"{leaf} {what}")
    for values, expected in zip(got["log"], want["log"], strict=True):
        assert values["top1"] == expected["top1"]
        np.testing.assert_allclose(values["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.parametrize("kind", SHARDED)
def test_divided_parameters_change_no_count_and_no_training(kind, measured):
    """XLA adds in another order, and nothing else: the tolerances are those between numbers of devices."""
    got = measured["sharded"][kind]
    for name in ("standard", "linear"):
        correct, losses, counts = measured[name]["whole"]
        assert (got[name][0], got[name][2]) == (correct, counts)
        np.testing.assert_allclose(got[name][1], losses, rtol=1e-6)
    assert got["rows"] == measured["rows"]["1"]
    for parts, trained in got["finetune"].items():
        assert_same_training(trained, measured["finetune"]["1"]["1"], f"in {parts} parts, {kind}")
        assert trained["devices"] == 8
        assert trained["moments"] < measured["finetune"]["8"]["1"]["moments"]


def test_two_processes_that_share_parameters_are_as_one(measured, measured_by_two):
    for kind, got in measured_by_two[0]["sharded"].items():
        for name in ("standard", "linear"):
            assert (got[name][0], got[name][2]) == (measured[name]["whole"][0], measured[name]["whole"][2]), kind
        assert got["rows"] == measured["rows"]["1"]
        for parts, trained in got["finetune"].items():
            assert_same_training(trained, measured["finetune"]["1"]["1"], f"in {parts} parts, {kind}")


def test_devices_that_share_parameters_gather_those_of_one_layer_and_never_activations(measured):
    """A step that gathers rows would compute all of them on every device, and one of all layers would hold them."""
    whole, moments, fsdp = (measured["tower"][kind] for kind in ("replicated", *SHARDED))
    assert not whole["gathered"] and moments["gathered"] and fsdp["gathered"]
    unstacked = {size for path, size in fsdp["leaves"].items() if not path.startswith("blocks/")}
    assert set(fsdp["gathered"]) <= unstacked | set(fsdp["layers"].values())
    assert set(moments["gathered"]) <= set(moments["leaves"].values())  # updates, once a step
    entries = 4 * sum(whole["leaves"].values())  # bytes of one copy; θ₀, θ and two moments are arguments
    assert moments["arguments"] - whole["arguments"] == pytest.approx(-2 * entries * 7 / 8, rel=0.03)
    assert fsdp["arguments"] - whole["arguments"] == pytest.approx(-4 * entries * 3 / 4, rel=0.03)
    assert fsdp["temporary"] < 0.7 * whole["temporary"]


@pytest.mark.parametrize("parts", ["1", "2"])
def test_devices_exchange_sums_alone(parts, measured):
    """Images stay where they are, in parts too."""
    assert measured["transfers"][parts] == ["all-reduce"]


def test_more_devices_than_present_are_refused(measured):
    for count, message in measured["refusals"].items():
        assert f"{count} devices asked for, but this process has 8 (cpu). Ask for 1 to 8" in message


def test_groups_and_leaves_that_cannot_be_divided_are_named(measured):
    group, leaf = measured["indivisible"]
    assert "fsdp is 3, which does not divide 8 devices into groups of that size. Choose 1 or 2 or 4 or 8." in group
    assert "fsdp is 8, and leaf 'blocks/kernel' has shape (3, 8, 12), whose last axis" in leaf
    assert leaf.endswith("Choose 1 or 2 or 4.")
