"""What a sentence encoder makes of a text depends on that text alone: not on padding, bucket, batch or devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import data, encoders, evaluate
from tests.workflows import members


@pytest.fixture(scope="module")
def home(tmp_path_factory, rng):
    home = tmp_path_factory.mktemp("texts")
    members.save_bert(home / "bert", rng(820))
    members.save_texts(home / "tasks", rng(821))
    return home


@pytest.fixture(scope="module")
def encoder(home):
    return encoders.load(str(home / "bert"), family="text")


def test_features_do_not_depend_on_padding_or_on_what_else_is_in_the_batch(home, encoder):
    task = data.open_task(home / "tasks" / "animals.npz")
    (whole,) = data.load(task, "test", batch_size=20, preprocessing=encoder.inputs)
    apply = jax.jit(encoder.apply)
    features = np.asarray(apply(encoder.params, whole.inputs))
    for number, ids in list(enumerate(whole.inputs))[:6]:
        count = int((ids >= 0).sum())
        alone = np.asarray(apply(encoder.params, ids[None, :count]))
        np.testing.assert_allclose(alone[0], features[number], rtol=0, atol=2e-6)
    wider = np.pad(whole.inputs, ((0, 0), (0, 16 - whole.inputs.shape[1])), constant_values=-1)
    np.testing.assert_allclose(apply(encoder.params, wider), features, rtol=0, atol=2e-6)


def test_rows_of_padding_alone_are_finite_and_move_nothing(encoder):
    ids = jnp.full((2, 8), -1, jnp.int32)

    def loss(params):
        return jnp.sum(encoder.apply(params, ids))

    value, gradient = jax.value_and_grad(loss)(encoder.params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("linearized", [False, True])
def test_accuracy_does_not_depend_on_the_batch_size(home, encoder, linearized, rng):
    random = rng(822)
    params = jax.tree.map(lambda leaf: leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), encoder.params)
    for name in ("animals", "tools"):
        task = data.open_task(home / "tasks" / f"{name}.npz")
        found = {
            evaluate.accuracy(encoder, params, task, linearized=linearized, batch_size=size) for size in (1, 7, 64)
        }
        assert len(found) == 1 and 0 < found.pop() <= 1


CODE = """
import json, sys
import numpy as np
from tajax import data, encoders, evaluate, parallel
encoder = encoders.load(sys.argv[1], family="text")
task = data.open_task(sys.argv[2])
devices = [parallel.Replicated(parallel.devices_of_all(count)) for count in (1, 2, 8)]
head = encoder.zero_shot.head(task.class_names, task.templates)
step = lambda placement: evaluate.make_sweep_step(encoder.apply, placement=placement)
found = []
for placement in devices:
    batches = data.load(task, "test", batch_size=6, preprocessing=encoder.inputs, by_length=True)
    tally = evaluate.sweep(step(placement), encoder.params, (), np.ones((1, 0)), head, batches, placement=placement)
    found.append([int(tally.correct[0]), int(tally.count[0])])
print(json.dumps(found))
"""


def test_counts_are_those_of_one_device_on_several(home):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", CODE, str(home / "bert"), str(home / "tasks" / "animals.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two, eight = json.loads(done.stdout)
    assert one == two == eight and one[1] == 20
