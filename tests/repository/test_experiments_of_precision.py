"""Rounding as accelerators do it: which products of a program are rounded, to what, and what is measured of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import protocol
from experiments.precision import run
from experiments.precision.run import ROUNDINGS, bend, effect_lost, response_lost
from tajax.config import validate

ROOT = Path(__file__).parents[2]
CODE = """
import json, sys
from experiments.precision.rounding import MANTISSA_BITS, round_products
round_products(MANTISSA_BITS[sys.argv[1]])
import jax, jax.numpy as jnp, numpy as np

draw = np.random.default_rng(0).normal
a, b, c = (np.float32(draw(size=shape)) for shape in ((5, 7), (7, 3), (5, 3)))
cut = {"bf16_products": lambda x: np.float64(np.asarray(x, jnp.bfloat16)), "tf32": lambda x: np.float64(jnp.round(
    np.float64(x) * (unit := 2.0 ** (10 - np.floor(np.log2(np.abs(x)))))) / unit)}[sys.argv[1]]
jax.config.update("jax_enable_x64", True)

def product(a, b):
    return a @ b

def error(got, want):
    return float(np.abs(np.float64(got) - want).max())

value = jax.jit(product)(a, b)
pull = jax.jit(lambda a, b, c: jax.vjp(product, a, b)[1](c))
tangent = jax.jit(lambda a, b, da: jax.jvp(lambda a: product(a, b), (a,), (da,))[1])
with jax.default_matmul_precision("highest"):
    exact = jax.jit(lambda a, b: 1 * product(a, b))(a, b)
rows = jax.jit(lambda a, b: jax.lax.scan(lambda _, row: (0, row @ b), 0, a)[1])(a, b)
print(json.dumps({
    "value": error(value, cut(a) @ cut(b)),
    "gradient": max(error(pull(a, b, c)[0], cut(c) @ cut(b).T), error(pull(a, b, c)[1], cut(a).T @ cut(c))),
    "tangent": error(tangent(a, b, c @ b.T), cut(c @ b.T) @ cut(b)),
    "loop": error(rows, cut(a) @ cut(b)),
    "exact": error(exact, np.float64(a) @ np.float64(b)),
    "double": error(jax.jit(product)(np.float64(a), np.float64(b)), np.float64(a) @ np.float64(b)),
    "difference": error(value, np.float64(a) @ np.float64(b)),
}))
"""


@pytest.mark.parametrize(("kind", "unit"), [("tf32", 2.0**-11), ("bf16_products", 2.0**-8)])
def test_float32_products_are_rounded_wherever_they_come_from_and_no_others(kind, unit):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", CODE, kind], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout)
    for name in ("value", "gradient", "tangent", "loop", "exact"):
        assert found[name] < 1e-5, (name, found)
    assert found["double"] < 1e-12
    assert unit / 4 < found["difference"] < 10 * unit  # and it is rounded at all


def test_what_is_measured_of_features():
    line = {"at_0": np.array([1.0, 0.0]), "at_half": np.array([1.0, 1.0]), "at_1": np.array([1.0, 2.0])}
    bent = line | {"at_half": np.array([1.0, 1.5]), "response": np.array([0.0, 3.0])}
    assert bend(line) == 0 and bend(bent) == 0.5
    assert effect_lost(line | {"at_1": np.array([1.0, 3.0])}, line) == 0.5
    assert response_lost(bent, bent | {"response": np.array([0.0, 2.0])}) == 0.5


@pytest.mark.parametrize("name", ROUNDINGS)
def test_the_runs_of_a_rounding_are_its_own_and_features_are_of_float32s_vectors(name, monkeypatch, tmp_path):
    made, rounded, read = {}, [], []

    def note(config, directory):
        validate(config)
        made[directory.name] = config
        return protocol.Run(config, directory, [])

    def features(run, vectors, precision):
        read.append((run.directory.name, vectors.parent.name, precision))
        return {"at_0": np.zeros(1)}

    monkeypatch.setattr(protocol, "_run", note)
    monkeypatch.setattr(run, "round_products", rounded.append)
    monkeypatch.setattr(run, "features", features)
    monkeypatch.setattr(sys, "argv", ["run", "--few", "--seeds", "7", f"--runs={tmp_path}", "--only", name])
    (tmp_path / "bundled").mkdir()
    run.main()
    own = "" if name == "float32" else f"{name}_"
    precision = "bf16" if name == "bf16" else "default"
    assert rounded == {"tf32": [10], "bf16_products": [7]}.get(name, [])
    assert read == [(f"{regime}_few_{own}7", f"{regime}_few_7", precision) for regime in ("standard", "linear")]
    for regime in ("standard", "linear"):
        assert made[f"{regime}_few_{own}7"].precision == precision
        assert (tmp_path / "bundled" / f"precision_{regime}_few_{name}_7.npz").exists()
