"""Compiled programs that a run leaves on disk for the next one, which then begins at once.

Compiling takes a second for the bundled model and minutes for large ones on an accelerator. JAX's persistent cache
tells programs apart by what they compute, the devices, the compiler's version and its flags: another batch size or
another JAX finds nothing there, and nothing wrong.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax

SHORTEST = 0.3
"""Seconds of compiling from which a program is kept: what is quicker costs more to look for."""

LARGEST = 4 << 30
"""Bytes that the programs take at most; beyond them those that were not used for longest are removed."""


def keep_programs(directory: Path) -> bool:
    """Keeps compiled programs in a directory, where nobody has said otherwise.

    JAX's own settings go first: a JAX_COMPILATION_CACHE_DIR is used as it is, and JAX_ENABLE_COMPILATION_CACHE=false
    keeps nothing. To be called before anything is compiled.

    Args:
        directory: made if absent.

    Returns:
        Whether this directory is used: not where one of these is set, nor where it cannot be written.
    """
    said = jax.config.values
    if said["jax_compilation_cache_dir"] or not said["jax_enable_compilation_cache"]:
        return False
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: programs are compiled anew, as without a cache
        return False
    if not os.access(directory, os.W_OK):
        return False
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    return True
