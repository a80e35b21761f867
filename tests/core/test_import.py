"""`import tajax` inside somebody else's JAX code brings the core and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tajax

OUTSIDERS = {
    *("absl", "flax", "grain", "huggingface_hub", "ml_collections", "optax", "orbax", "PIL", "safetensors"),
    *("tensorflow", "tensorflow_datasets", "tokenizers", "torch", "transformers"),
}
PROBE = """
import json, sys, time
start = time.process_time()
import jax, jax.numpy
between, before = time.process_time(), set(sys.modules)
import tajax
share = (time.process_time() - between) / (between - start)
print(json.dumps({"share": share, "new": sorted(set(sys.modules) - before), "names": sorted(dir(tajax))}))
"""


@pytest.fixture(scope="module")
def probe():
    """What a fresh interpreter reports about `import tajax` after `import jax`."""
    # -S keeps out what .pth files of other packages import at start; the path is handed over as it is.
    code = f"import sys; sys.path[:] = {sys.path!r}\n{PROBE}"
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_the_core_pulls_in_jaxtyping_and_itself(probe):
    packages = {name.partition(".")[0] for name in probe["new"]}
    assert not packages & OUTSIDERS
    third_party = packages - set(sys.stdlib_module_names) - {"jax", "jaxlib", "numpy"}
    assert third_party <= {"tajax", "jaxtyping", "wadler_lindig"}, third_party
    rooms = {name for name in probe["new"] if name.startswith("tajax.")}
    assert not any(name.startswith(("tajax.models", "tajax.data", "tajax.workflows")) for name in rooms)


def test_the_core_is_quick_to_import(probe):
    assert probe["share"] < 0.5  # of the processor time that JAX itself takes; measured: 0.04


def test_the_public_names_are_there(probe):
    assert set(tajax.__all__) <= set(probe["names"])
    for name in tajax.__all__:
        assert getattr(tajax, name).__doc__, name
    assert {"models", "data", "merging"} <= set(probe["names"])


def test_type_checkers_know_what_is_imported_on_demand():
    source = Path(tajax.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"^    from tajax import (\w+) as \1$", source, re.M)) == tajax._ON_DEMAND


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tajax' has no attribute 'task_vectr'"):
        _ = tajax.task_vectr
