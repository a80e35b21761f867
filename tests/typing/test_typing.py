"""What a type checker says of programs that use tajax: nothing of a right one, and each mistake of a wrong one."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

HERE = Path(__file__).parent
WRONG = HERE / "wrong_uses.py"


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy: pip install -e '.[dev]'")
def test_mypy_finds_the_mistakes_of_a_program_and_nothing_else(tmp_path):
    # From elsewhere and without the project's settings, as of a user; tajax brings its types (py.typed).
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file=",
        "--no-error-summary",
    ]
    command += [f"--cache-dir={tmp_path}", str(HERE / "user_program.py"), str(WRONG)]
    environment = os.environ | {"MYPYPATH": str(HERE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert not done.stderr
    found = re.findall(r"([^/]+\.py):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)
    lines = enumerate(WRONG.read_text().splitlines(), start=1)
    wanted = [(WRONG.name, str(number), line.rpartition("# ")[2]) for number, line in lines if "  # " in line]
    assert found == wanted, done.stdout


def test_the_program_runs():
    spec = importlib.util.spec_from_file_location("user_program", HERE / "user_program.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert {name: jnp.shape(leaf) for name, leaf in program.edited.items()} == {"kernel": (2,), "bias": ()}
