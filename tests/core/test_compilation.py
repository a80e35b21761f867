"""Compiled programs on disk: the second process finds what the first has compiled, unless somebody said otherwise."""

import os
import stat
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import jax
import jax.monitoring
from tajax import compilation

compilation.SHORTEST = 0.0
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
print(compilation.keep_programs(Path(sys.argv[1])))
print(float(jax.jit(lambda x: jax.numpy.sin(x) @ jax.numpy.cos(x))(jax.numpy.arange(8.0))))
print(sum("cache_hits" in name for name in seen))
"""


def compute(directory, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    kept, value, hits = done.stdout.split()
    return kept == "True", value, int(hits)


def test_the_next_process_finds_the_programs_and_computes_the_same(tmp_path):
    first, second = compute(tmp_path / "new" / "programs"), compute(tmp_path / "new" / "programs")
    assert first[0] and second[0] and first[1] == second[1]
    assert first[2] == 0 < second[2]


@pytest.mark.parametrize("said", [{"JAX_ENABLE_COMPILATION_CACHE": "false"}, {"JAX_COMPILATION_CACHE_DIR": "{own}"}])
def test_settings_of_jax_go_first(tmp_path, said):
    own = tmp_path / "own"
    kept, _, _ = compute(tmp_path / "programs", **{k: v.format(own=own) for k, v in said.items()})
    assert not kept and not (tmp_path / "programs").exists()


def test_where_nothing_can_be_made_programs_are_compiled_as_ever(tmp_path):
    (tmp_path / "file").write_text("")
    kept, value, _ = compute(tmp_path / "file" / "programs")
    assert not kept and float(value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_left_alone(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert not compute(tmp_path)[0]
