"""The step of the bundled model, compiled for one topology of each kind, where the compiler is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.scale import programs, targets
from experiments.scale.programs import Job

ROOT = Path(__file__).parents[2]

CODE = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
from experiments.scale.programs import Job
from experiments.scale.records import compiled
print(json.dumps(compiled(Job(sys.argv[1], "tiny", regime="linear", batch=64))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["v5e_2x4", "h100_x1"])
def test_the_training_step_compiles_for_a_device_that_is_not_here(device):
    """In a process of its own: a TPU's compiler is one for each, and what it logs is nobody's."""
    if why := targets.missing(targets.TARGETS[device]):
        pytest.skip(why)  # compilers of other devices are hundreds of megabytes, and no extra of the suite
    found = run(CODE, device)
    parameters = 1_845_120 * 4  # θ₀, θ, and two moments
    assert found["fits"] and 4 * parameters < found["arguments"] < 5 * parameters  # a TPU pads its layouts
    assert found["temporary"] > 0 and found["versions"]["jax"]
    reduced = {each["kind"]: each["bytes"] for each in found["collectives"]}
    if targets.TARGETS[device].chips == 1:
        assert not reduced
    else:  # gradients of every parameter, once, in loops as often as these turn
        assert parameters <= reduced["all-reduce"] < 1.1 * parameters


TRACED = """
import json
import jax
from experiments.scale import operations, programs
from experiments.scale.programs import Job
found = {}
for count in (1, 2):
    for program, regime in (("train", "standard"), ("affine", "linear"), ("sweep", "standard"), ("sweep", "linear")):
        step = programs.traced(Job("", "tiny", program, regime, 16), jax.devices()[:count])
        found[f"{program} {regime} {count}"] = operations.count(step.jaxpr)
print(json.dumps(found))
"""


def run(code, *arguments, **environment):
    """The JSON that a program prints last, in a process of its own."""
    given = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
    given["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # what the compiler makes of a program is asked here
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_operations_are_those_of_the_whole_batch_on_any_number_of_devices():
    """And along one vector a linearised model takes about three forward passes, as a step does."""
    found = run(TRACED, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    programs_of = sorted({name.rpartition(" ")[0] for name in found})
    assert len(programs_of) == 4
    for name in programs_of:
        assert found[f"{name} 1"] == found[f"{name} 2"], name
    forward = found["sweep standard 1"]
    assert 2.8 * forward < found["affine linear 1"] <= found["sweep linear 1"] < 3.1 * forward
    assert 2.7 * forward < found["train standard 1"] < 3.1 * forward


SHARED = """
import json
import jax
from experiments.scale import programs
from experiments.scale.programs import Job
found = {}
for placement in ("replicated", "moments", "fsdp"):
    job = Job("", "tiny", "train", "linear", 64, placement, "layers")
    found[placement] = programs.traced(job, jax.devices()).lower().compile().memory_analysis().argument_size_in_bytes
print(json.dumps(found))
"""


def test_arguments_of_a_step_are_divided_as_its_placement_says():
    found = run(SHARED, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    parameters = 1_845_120 * 4
    assert found["replicated"] - found["moments"] == pytest.approx(2 * parameters * 7 / 8, rel=0.03)
    assert found["replicated"] - found["fsdp"] == pytest.approx(4 * parameters * 7 / 8, rel=0.03)


def test_other_programs_and_placements_of_evaluations_are_refused():
    devices = jax.devices()[:1]
    with pytest.raises(ValueError, match="no program 'ntk'"):
        programs.traced(Job("", "tiny", "ntk"), devices)
    with pytest.raises(ValueError, match="'fsdp'"):
        programs.traced(Job("", "tiny", "sweep", placement="fsdp"), devices)


@pytest.mark.parametrize("program", ["train", "sweep"])
def test_the_precision_that_is_asked_for_is_in_the_program(program):
    asked = {
        precision: programs.traced(Job("", "tiny", program, batch=8, precision=precision), jax.devices()[:1])
        .lower()
        .as_text()
        .count("HIGHEST")
        for precision in ("default", "highest")
    }
    assert asked["highest"] > asked["default"] + 10  # heads ask for it themselves


def test_a_device_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(targets, "missing", lambda target: "libtpu is not installed")
    with pytest.raises(RuntimeError, match="libtpu is not installed. pip install -e '.\\[tpu\\]'"):
        targets.devices.__wrapped__("v5e_2x4")
