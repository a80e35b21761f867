"""What a compiled program needs of the memory of each device, and what there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

__all__ = ["Choice", "Need", "first_that_fits", "free_bytes", "in_words", "is_exhausted", "limit_bytes", "need_of"]

_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|out.of.memory", re.IGNORECASE)
# XLA on a CPU:     "RESOURCE_EXHAUSTED: Out of memory allocating 35184372088832 bytes."
# on a GPU:         "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6291456 bytes." (jax-ml/jax#13428)
# compiling, a TPU: "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. …"


class Need(NamedTuple):
    """Bytes on each device while a program runs."""

    arguments: int
    results: int
    """Without those that take the place of a donated argument."""
    temporary: int
    """Activations, gradients and other intermediate values, and the program itself."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Choice(NamedTuple):
    """The first of several programs that fits; None if none does."""

    name: str | None
    needs: dict[str, Need | None]
    """Of those that were compiled, in order; None where the compiler found that it cannot fit, or does not tell."""


def need_of(compiled: jax.stages.Compiled) -> Need | None:
    """What XLA's analysis says of a program; None where the backend has none.

    Example:
        >>> import jax.numpy as jnp
        >>> need_of(jax.jit(lambda x: x + 1).lower(jnp.ones(1024)).compile()).arguments
        4096
    """
    told = compiled.memory_analysis()
    if told is None:
        return None
    results = told.output_size_in_bytes - told.alias_size_in_bytes
    return Need(
        told.argument_size_in_bytes, max(results, 0), told.temp_size_in_bytes + told.generated_code_size_in_bytes
    )


def limit_bytes(device: jax.Device) -> int | None:
    """How much JAX may take on a device; None where that has no limit of its own, as a CPU."""
    return (device.memory_stats() or {}).get("bytes_limit")


def free_bytes(devices: Sequence[jax.Device], arguments: Any) -> int | None:
    """What a program may need on each of some devices: the limit, less all that is there beside its arguments.

    Args:
        devices: of this process, at least one.
        arguments: a pytree of arrays that are on the devices already, and are part of what the program needs.

    Returns:
        Bytes on the device that has the least; None where there is no limit.
    """
    limits = [limit_bytes(device) for device in devices]
    if any(limit is None for limit in limits):
        return None
    free = []
    for device, limit in zip(devices, limits, strict=True):
        assert limit is not None
        taken = (device.memory_stats() or {}).get("bytes_in_use", 0)
        free.append(limit - max(taken - _bytes_on(device, arguments), 0))
    return min(free)


def _bytes_on(device: jax.Device, tree: Any) -> int:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    shards = (shard for array in arrays for shard in array.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def first_that_fits(
    programs: Mapping[str, Callable[[], jax.stages.Compiled]],
    free: int,
    *,
    agreed: Callable[[bool], bool] = lambda fits: fits,
) -> Choice:
    """The first program that does not need more than there is; those after it are not compiled.

    One of which the compiler does not say what it needs is taken to fit.

    Args:
        programs: how each is compiled, by name, in the order in which they are wanted.
        free: bytes on each device, from `free_bytes`.
        agreed: from what this process finds to what all processes go by; called once for each program compiled.

    Raises:
        jax.errors.JaxRuntimeError: a program cannot be compiled, for another reason than memory.
    """
    needs: dict[str, Need | None] = {}
    for name, compile_program in programs.items():
        try:
            needs[name] = need = need_of(compile_program())
            fits = need is None or need.total <= free
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            needs[name], fits = None, False
        if agreed(fits):
            return Choice(name, needs)
    return Choice(None, needs)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of JAX says that memory ran out, of a program or of its compiler."""
    return bool(_NO_MEMORY.search(str(error)))


def in_words(count: int) -> str:
    """Bytes as a person reads them.

    Example:
        >>> in_words(3 << 29), in_words(5_000_000)
        ('1.50 GiB', '4.8 MiB')
    """
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
