"""Memory that a program keeps instead of asking the system for it again in every step.

XLA's programs for a CPU take the memory of their intermediate results anew each time. Above 32 MiB glibc asks the
system for it and gives it back, and the system clears every page: an eighth of the processor time of a training step of
a MiniLM, a fifth of the bundled model's (`experiments/benchmarks/allocation.py`).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's `malloc.h`
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Tells glibc to keep what is freed for what is asked for next, in one pool for all threads.

    To be called by programs, before JAX computes anything; a process that does so never gets smaller. Environment
    variables of glibc such as MALLOC_ARENA_MAX are overruled.

    Returns:
        Whether the C library is one that knows it.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST, _ARENA_MAX: 1}
    return all([tell(option, value) == 1 for option, value in wanted.items()])
