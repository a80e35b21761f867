"""Fixtures for every room: one key, a hub on this machine, ranks that are never promoted silently, quick compiling.

Four fifths of these tests' time was XLA's, most of it spent on making fast what runs once on a few numbers. They
compile with little optimisation, in this process and in those that it starts, unless the environment says otherwise:
`JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= pytest` compiles as users do.
"""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

if jax.__version_info__[:2] == (0, 10):  # XLA ends a process that names a flag which it does not have
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

SLOW = (
    "notebooks",
    "parallel",
    "survival",
    "typing",
    "workflows",
)  # rooms that spend their time in whole runs and other programs


def pytest_collection_modifyitems(items):
    """Marks what is left out by `pytest -m "not slow"`."""
    rooms = [Path(__file__).parent / room for room in SLOW]
    for item in items:
        if any(item.path.is_relative_to(room) for room in rooms):
            item.add_marker(pytest.mark.slow)


MAPS = Path("/proc/self/maps")
MANY_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Compiled programs hold pages of their own, and Linux gives a process 65,530 pieces of memory by default."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    """The key from which a test draws; split it, never seed another."""
    return jax.random.key(20230522)


@pytest.fixture(scope="session")
def rng():
    """A function `number -> numpy generator`; every use has a number of its own."""
    return lambda number: np.random.default_rng([20230522, number])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hugging Face hub, an empty cache, and the token that the stand-in takes."""
    from huggingface_hub import constants

    spec = importlib.util.spec_from_file_location("hub_stand_in", Path(__file__).parent / "hub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Hub()
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no_token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", module.TOKEN)
    yield server
    server.shutdown()
    server.server_close()
