"""Where the leading eigenfunctions of the NTK live, at θ₀: on a task's images or on the control's as well.

For each task the kernel of the trained leaves (`config.regime`, `trainable`, `layers`) on n of its images and n of the
control's, drawn from `config.ntk.split` with the seed; its eigenfunctions in both readings of `tajax.ntk.localization`,
with and without the gradient norms of the images. Nothing is fine-tuned. `config.initialization` says whether θ₀ is
pre-trained (Ortiz-Jimenez et al. 2023, §5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from tajax import data, device_memory, progress
from tajax.ntk import (
    MemoryTooSmallError,
    Operator,
    cosine_kernel,
    energy_share,
    make_ntk,
    make_ntk_operator,
    matrix_operator,
    mixture_reading,
    nystrom_reading,
    project_outputs,
    separation,
)
from tajax.progress import Stage
from tajax.records import Ntk, stage_of
from tajax.results import Record
from tajax.types import ApplyFn
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup
from tajax.workflows.stages import begin
from tajax.workflows.start import on_tasks
from tajax.workflows.workflow import Memory, Workflow

STAGE = stage_of(Ntk)
UNKNOWN = 4 * 2**30  # bytes for gradients where the device says nothing of its memory: the same on any CPU


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Spectra and local energies of every task of a config against its control."""
    (control,) = setup.controls
    localize(setup, control, check_images(setup, control))


def check_images(setup: Setup, control: data.Task) -> int:
    """n, the images of each task and of the control: as asked for, or those of the smallest split among them.

    Raises:
        ValueError: these are fewer than two for each eigenfunction.
    """
    settings = setup.config.ntk
    sizes = {task.name: len(task.split(settings.split)) for task in (*setup.tasks, control)}
    smallest = min(sizes, key=sizes.__getitem__)
    count = min(settings.images, sizes[smallest])
    if 2 * settings.eigenfunctions > count:
        raise ValueError(
            f"{smallest!r} has {count} {settings.split} images, fewer than two for each of the "
            f"{settings.eigenfunctions} eigenfunctions. Give --config.ntk.eigenfunctions={count // 2} or fewer."
        )
    return count


def localize(setup: Setup, control: data.Task, count: int) -> None:
    """Records the numbers of both readings of each task, for each kernel of `make_operators`."""
    settings = setup.config.ntk
    kernels = ("plain",) if settings.output == "full" else ("plain", "cosine")
    others = functools.cache(lambda: sample(setup, control, count))
    operators = functools.cache(lambda: make_operators(setup, count))
    own, elsewhere = np.arange(count), np.arange(count, 2 * count)
    for task, missing in setup.journal.each(
        Ntk,
        setup.tasks,
        lambda task: {"task": task.name, "control": control.name, "reading": tuple(READINGS), "kernel": kernels},
    ):
        shown: dict[str, float] = {}
        of_kernel = operators()(data.join(sample(setup, task, count), others()))
        for key in missing:
            reading, kernel = key["reading"], key["kernel"]
            each = [READINGS[reading](k, own, elsewhere, settings.eigenfunctions) for k in of_kernel[kernel]]
            values = _mean(each)
            setup.journal.record(
                Ntk,
                **key,
                output=settings.output,
                directions=settings.directions,
                initialization=setup.config.initialization,
                images=count,
                split=settings.split,
                **values,
            )
            shown[f"{reading} {kernel}"] = float(values["share"])
        progress.note(shown)


def sample(setup: Setup, task: data.Task, count: int) -> np.ndarray:
    """Inputs of `count` examples of a task, drawn with the seed: the same for every model and mask."""
    config = setup.config
    return data.sample(task, config.ntk.split, count, seed=config.seed, inputs=setup.encoder.inputs)


def make_operators(setup: Setup, count: int) -> Callable[[np.ndarray], dict[str, list[Operator]]]:
    """`images -> {kernel: operators}`, compiled once: the kernels of a set of images by name.

    `"plain"` is k, `"cosine"` is k(x, x′) / √(k(x, x) k(x′, x′)). There is one operator for the trace over features;
    one for each feature where they are apart, and the mean of their numbers counts; and for E×E matrices one that
    multiplies by the kernel, plain alone.
    """
    settings, theta0, mask = setup.config.ntk, setup.pretrained, setup.mask
    encode = _directed(setup.encoder.apply_for_responses, setup)
    if settings.output == "full":
        half = max(1, count // 2)  # what is asked for comes in halves of the images, for even numbers of them
        matrices = make_ntk_operator(encode, theta0, mask=mask, batch_size=min(settings.batch_size, half))
        return lambda images: {"plain": [matrices(images)]}
    options = {"output": settings.output, "batch_size": settings.batch_size, "memory": memory_for(setup)}
    kernel_of = make_ntk(encode, theta0, mask=mask, **options)

    def operators(images: np.ndarray) -> dict[str, list[Operator]]:
        try:
            kernel = np.asarray(kernel_of(images), np.float64)
        except MemoryTooSmallError as error:
            raise MemoryTooSmallError(f"{error} In a run that is --config.ntk.memory=MiB.") from error
        parts = [kernel] if settings.output == "trace" else list(np.moveaxis(kernel, -1, 0))
        cosines = [cosine_kernel(part, np.diag(part), np.diag(part)) for part in parts]
        return {
            "plain": [matrix_operator(part) for part in parts],
            "cosine": [matrix_operator(part) for part in cosines],
        }

    return operators


def memory_for(setup: Setup) -> int:
    """Bytes that gradients may take: as the config says, or half of what the device has for arrays."""
    if (given := setup.config.ntk.memory) is not None:
        return given * 2**20
    limit = device_memory.limit_bytes(jax.local_devices()[0])
    return UNKNOWN if limit is None else limit // 2


def _directed(encode: ApplyFn, setup: Setup) -> ApplyFn:
    """The encoder, or its projection on as many random directions as the config asks for."""
    directions, width = setup.config.ntk.directions, setup.encoder.feature_dim
    if directions is None:
        return encode
    return project_outputs(encode, width, directions, jax.random.key(setup.config.seed))


def _nystrom_numbers(operator: Operator, own: np.ndarray, control: np.ndarray, count: int) -> dict[str, np.ndarray]:
    found, reverse = (nystrom_reading(operator, *sides, count=count) for sides in ((own, control), (control, own)))
    shares = energy_share(found.held_out, found.held_out_control)
    return {
        "eigenvalues": found.eigenvalues,
        "share": shares[-1],
        "shares": shares,
        "share_in_sample": energy_share(found.own, found.control)[-1],
        "separation": np.float64(separation(found.held_out, found.held_out_control)),
        "reverse_share": energy_share(reverse.held_out, reverse.held_out_control)[-1],
        "reverse_separation": np.float64(separation(reverse.held_out, reverse.held_out_control)),
        "energy_own": found.own.sum(axis=1),
        "energy_control": found.control.sum(axis=1),
        "energy_new": found.held_out.sum(axis=1),
        "energy_new_control": found.held_out_control.sum(axis=1),
    }


def _mixture_numbers(operator: Operator, own: np.ndarray, control: np.ndarray, count: int) -> dict[str, np.ndarray]:
    found = mixture_reading(operator, own, control, count=count)
    return {
        "eigenvalues": found.eigenvalues,
        "share": found.share.mean(),
        "shares": found.share,
        "contrast": found.contrast.mean(),
        "chance": found.chance.mean(),
        "excess": np.float64(found.excess),
        "energy_own": found.own.sum(axis=1),
        "energy_control": found.control.sum(axis=1),
    }


def _mean(each: Sequence[dict[str, np.ndarray]]) -> Record:
    """The mean over operators, of the leading numbers that all of them have; six digits of each."""
    means: Record = {}
    for key in each[0]:
        length = min(np.size(values[key]) for values in each)
        mean = np.mean([np.atleast_1d(values[key])[:length] for values in each], axis=0)
        rounded = np.array([float(f"{number:.6g}") for number in mean])
        means[key] = rounded if np.ndim(each[0][key]) else rounded[0]
    return means


READINGS = {"nystrom": _nystrom_numbers, "mixture": _mixture_numbers}


WORKFLOW = Workflow(
    on_tasks(answer),
    stages=lambda config: (*begin(config), Stage(STAGE, "local energy", each=True)),
    memory=Memory(
        "computing a kernel",
        {
            "ntk.memory": ("=MiB", "keeps as many gradients as fit into so much"),
            "ntk.batch_size": (" below {}", "keeps fewer gradients or, in full, activations"),
        },
    ),
)
