"""The programs of jobs: the training and evaluation steps that runs take, traced in shapes for some devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.scale import placements
from experiments.scale.subjects import SUBJECTS, Subject
from tajax import evaluate, finetune, optim, trees
from tajax.finetune import TrainState
from tajax.parallel.devices import AXIS
from tajax.parametrization import masked
from tajax.regimes import REGIMES
from tajax.types import Batch, Head, Precision, Remat

CLASSES = 397  # of SUN397, the most of the papers' eight tasks: heads of a run are padded to one width
STEPS, WARMUP = 2000, 500  # of a task, in the papers' protocol
PROGRAMS = ("train", "affine", "affine_8", "sweep")
VECTORS = {"affine": 1, "affine_8": 8}
COEFS = np.linspace(0, 1, 21, dtype=np.float32)[:, None]  # its grid of α


class Job(NamedTuple):
    """A program to compile, named by JSON values.

    Attributes:
        device: A row of `targets.TARGETS`.
        model: A row of `subjects.SUBJECTS`.
        program: "train", a training step; "affine" and "affine_8", the scores of a linearised model along
            one task vector and along eight; or "sweep", a batch at one point of a sweep.
        regime: A row of `tajax.regimes.REGIMES` without a method of its own.
        batch: Images or texts, on all devices together.
        placement: A row of `placements.PLACEMENTS`.
        remat: How much of each layer a training step computes again.
        precision: Of the encoder, as of `tajax.encoders.load`.
    """

    device: str
    model: str
    program: str = "train"
    regime: str = "standard"
    batch: int = 128
    placement: str = "replicated"
    remat: Remat = "none"
    precision: Precision = "default"

    def __str__(self) -> str:
        settings = (self.placement, f"remat {self.remat}", f"precision {self.precision}")
        return " ".join((self.device, self.model, self.regime, self.program, f"× {self.batch}", *settings))


class Traced(NamedTuple):
    """A program before XLA sees it."""

    jaxpr: Any
    """Its operations as JAX has them, with the shapes of all devices together; of a training step those of the
    replicated one, which other placements divide in other ways."""
    lower: Callable[[], jax.stages.Lowered]


def traced(job: Job, devices: Sequence[jax.Device]) -> Traced:
    """The program of a job.

    Args:
        job: which one.
        devices: those it is for. Of the job only their number and order count.

    Raises:
        ValueError: an evaluation that is not replicated, or a program of another name.
    """
    subject = SUBJECTS[job.model]()._replace(precision=job.precision)
    return (_training if job.program == "train" else _evaluation)(job, subject, devices)


def _training(job: Job, subject: Subject, devices: Sequence[jax.Device]) -> Traced:
    regime, params = REGIMES[job.regime], subject.params
    trained = masked(trees.param_mask(params, regime.trainable))
    tx = optim.adamw(optim.make_schedule(learning_rate=1e-5, num_steps=STEPS, warmup_steps=WARMUP))
    encode = subject.for_training(job.remat)
    state: TrainState = jax.eval_shape(lambda params: finetune.init_state(trained.init(params), tx), params)
    shapes = placements.Arguments(state, params, head(subject), batch(subject, job.batch))

    def step(placement: str) -> tuple[finetune.TrainStep, placements.Arguments]:
        arguments, options = placements.PLACEMENTS[placement](devices, shapes)
        made = finetune.make_train_step(encode, tx, trained, linearized=regime.train_linearized, **options)
        return made, arguments

    program, arguments = step(job.placement)
    plain, plainly = (program, arguments) if job.placement == "replicated" else step("replicated")
    return Traced(jax.make_jaxpr(plain)(*plainly), lambda: program.lower(*arguments))


def _evaluation(job: Job, subject: Subject, devices: Sequence[jax.Device]) -> Traced:
    if job.placement != "replicated":
        raise ValueError(f"evaluations are compiled replicated alone, not with the placement {job.placement!r}")
    placement, params, taus = _Recorded(devices), subject.params, [trees.flatten_paths(subject.params)]
    examples = batch(subject, job.batch)
    if job.program in VECTORS:
        affine = evaluate.make_affine_step(subject.apply_for_responses, placement=placement)
        affine(params, taus * VECTORS[job.program], head(subject), examples)
    elif job.program == "sweep":
        linearized = REGIMES[job.regime].evaluate_linearized
        encode = subject.apply_for_responses if linearized else subject.for_training("none")
        sweep = evaluate.make_sweep_step(encode, linearized=linearized, placement=placement)
        sweep(params, taus, COEFS if linearized else COEFS[:1], head(subject), examples)
    else:
        raise ValueError(f"no program {job.program!r}: choose one of {', '.join(PROGRAMS)}")
    program, arguments = placement.called
    return Traced(jax.make_jaxpr(program)(*arguments), lambda: program.lower(*arguments))


def head(subject: Subject) -> Head:
    """The shapes of a frozen head, on the devices as a whole: `normalizes` is an array there."""
    weights = jax.ShapeDtypeStruct((subject.feature_dim, CLASSES), jnp.float32)
    return Head(weights, jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), bool))


def batch(subject: Subject, size: int) -> Batch:
    """The shapes of a batch."""
    return Batch(subject.inputs(size), jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((size,), bool))


class _Recorded:
    """The part of a `tajax.parallel.Placement` that evaluation steps call, which notes what `Replicated` would run.

    The results of a step are zeros.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self._devices = devices
        self.called: tuple[Any, tuple[Any, ...]]
        """The compiled function, and the shapes of its arguments."""

    def shares(self, batch: Batch) -> Batch:
        """With a leading axis of devices, where there are several."""
        count = len(self._devices)
        if count == 1:
            return batch
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, leaf.shape[0] // count, *leaf.shape[1:]), leaf.dtype), batch
        )

    def sum(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The sums over all devices."""
        return self._on_each(step, lambda sums: jax.lax.psum(sums, AXIS), out_axes=None)

    def rows(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The rows of each device, which stay there."""
        return self._on_each(step, lambda rows: rows, out_axes=0)

    def _on_each(self, step: Callable, reduced: Callable, *, out_axes: int | None) -> Callable:
        def shapes(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype)

        if len(self._devices) == 1:
            program = jax.jit(step)

            def call(*args: Any) -> Any:
                self.called = program, placements.whole(self._devices, jax.tree.map(shapes, args))
                return zeros(program, *args)

            return call

        def share(constants: tuple[Any, ...], batch: Batch) -> Any:
            return reduced(step(*constants, batch))

        mapped = jax.pmap(share, axis_name=AXIS, in_axes=(None, 0), out_axes=out_axes, devices=self._devices)

        def call_each(*args: Any) -> Any:
            self.called = mapped, tuple(jax.tree.map(shapes, (args[:-1], args[-1])))
            return zeros(mapped, *self.called[1])

        return call_each


def zeros(program: Callable[..., Any], *args: Any) -> Any:
    """What a program returns, with zeros in it."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(program, *args))
