"""How much of each layer fine-tuning computes again: as the config says, or as little as the devices' memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax

from tajax import device_memory, parallel, processes, progress
from tajax.device_memory import Choice, Need, in_words
from tajax.parallel.devices import own as own_devices
from tajax.records import Recomputation
from tajax.types import Remat
from tajax.workflows.setup import Setup

ATTENTION = {"regime=attention": "trains the attention alone: fewer moments and gradients"}
SHARED = {"placement=fsdp": "divides parameters, moments and gradients among the devices"}


def settle(
    setup: Setup,
    step_with: Callable[[Remat], Any],
    arguments: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
) -> Remat:
    """What `config.finetune.remat` comes to: "auto" is the first of none, dots, layers whose step fits, recorded once.

    The step that fits is compiled then, and not again when it trains on such a batch. A run that goes on where it was
    begun, on as many devices of the same kind, takes what was chosen there, and with it the same bits. Devices without
    a limit, such as a CPU, are not asked: nothing is computed again.

    Args:
        setup: the run.
        step_with: the compiled step by its `remat`, the same object for the same value if it was the last asked for.
        arguments: what the step will be called with, on the devices, with a batch as large as any; asked for at most
            once.

    Raises:
        ValueError: no step fits. The message says what each needs, what there is, and which fields help.
    """
    if setup.config.finetune.remat != "auto":
        return _named(setup.config.finetune.remat)
    devices = parallel.devices_of_all(setup.config.devices)
    place = {
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "placement": str(setup.placement),
    }
    if found := setup.journal.find(Recomputation, **place):
        return _named(found[-1]["remat"])
    own = own_devices(devices)
    if not any(processes.gather_json(lambda: all(map(device_memory.limit_bytes, own)))):
        return "none"
    given, besides = arguments()
    each = processes.gather_json(lambda: device_memory.free_bytes(own, (given, besides)))
    free = min(count for count in each if count is not None)

    def program(remat: Remat) -> Callable[[], jax.stages.Compiled]:
        return lambda: step_with(remat).lower(*given, **besides).compile()

    choice = device_memory.first_that_fits(
        {remat: program(remat) for remat in setup.encoder.remats},
        free,
        agreed=lambda fits: all(processes.gather_json(lambda: fits)),
    )
    if choice.name is None:
        raise ValueError(_nothing_fits(setup, choice, free, devices))
    totals = {remat: need and need.total for remat, need in choice.needs.items()}
    setup.journal.record(Recomputation, remat=choice.name, needs=totals, free=free, **place)
    needed = "; ".join(f"{remat} needs {_said(total)}" for remat, total in totals.items())
    progress.say(f"finetune.remat=auto is {choice.name}: {needed}, and {in_words(free)} are free on each device")
    return _named(choice.name)


def _named(name: str) -> Remat:
    return next(remat for remat in get_args(Remat) if remat == name)


def _said(total: int | None) -> str:
    return "an amount that is not known" if total is None else in_words(total)


def _in_parts(need: Need | None) -> str:
    if need is None:
        return "more than its compiler can place"
    return f"{in_words(need.total)} ({in_words(need.arguments)} arguments, {in_words(need.temporary)} temporary)"


def _nothing_fits(setup: Setup, choice: Choice, free: int, devices: Sequence[jax.Device]) -> str:
    settings = setup.config.finetune
    needs = "\n".join(f"  {_in_parts(need)} with finetune.remat={remat}" for remat, need in choice.needs.items())
    ways = {
        f"finetune.accumulation_steps above {settings.accumulation_steps}": "computes a batch in as many parts",
        f"finetune.batch_size below {settings.batch_size}": "takes fewer examples a step",
        **(SHARED if len(devices) > 1 and setup.config.placement != "fsdp" else {}),
        **({} if setup.regime.name.endswith("attention") else ATTENTION),
        'layers="(FIRST, END)"': "trains some layers alone",
        f"finetune.remat={setup.encoder.remats[-1]}": "trains all the same, with what needs the least",
    }
    return (
        f"no fine-tuning step of regime {setup.regime.name!r} with {settings.batch_size} examples in "
        f"{settings.accumulation_steps} {'part' if settings.accumulation_steps == 1 else 'parts'} fits into the memory "
        f"of a {devices[0].device_kind}. {in_words(free)} are free there, and a step needs\n"
        f"{needs}\nWhat helps:" + "".join(f"\n  --config.{field} {effect}" for field, effect in ways.items())
    )
