"""TAK: a task vector is kept from moving the features of other tasks, of which it sees no image, only the curvature.

    β · Σ_{s ≠ t} E_{x ∈ D_s} ‖J(x)τ_t‖² / E_{x ∈ D_s} ‖f(x; θ₀)‖²

in factors, Σ_l tr(B^l ΔW^lᵀ A^l ΔW^l) for the dense layers l and τᵀ(E ggᵀ)τ for small leaves (`tajax.curvature`). They
are made once of some hundred training images of each task, without labels, in a run of the workflow `curvature` or at
the beginning of this one, and can be published with a task. The control task's are never among them.

Departures from the paper. The expansion ends before normalisation (or behind it, with `config.linearize_through_norm`;
so do the factors). Energies are divided by that of the features, so that β means the same for models whose features
have other lengths, as for normalised ones; weighted like the paper's (`weighting` "paper"), B is a mean over tokens,
which of a layer with N of them leaves an N-th of the energy, full matrices count tenfold and the output projection a
hundredth. "response" weighs leaves by how far they move features.

Source: arXiv 2602.17385 (TAK, ICLR 2026).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tajax import progress, tensor_files, trees
from tajax.curvature.factors import Factors
from tajax.curvature.files import About, check_fits, load_factors, read_about, save_factors
from tajax.curvature.measure import IMAGES, Measure, factors_path, make_measure
from tajax.curvature.penalty import per_task, reweighted, selected, summed, total
from tajax.curvature.roles import JOINT
from tajax.encoders.encoder import Encoder
from tajax.finetune import Penalized
from tajax.training import Context, Options, TrainingMethod
from tajax.types import Mask, Trained

__all__ = ["METHOD", "check", "factors_of_others", "penalty"]


def penalty(trained: Trained, seen: Penalized) -> jax.Array:
    """The energy of τ on the other tasks, a scalar; `seen.data` is what `factors_of_others` gives."""
    theta, theta0 = trees.flatten_paths(seen.restore(trained)), trees.flatten_paths(seen.pretrained)
    return total(seen.data, {path: jnp.subtract(theta[path], theta0[path]) for path in trained})


def factors_of_others(context: Context) -> Factors:
    """The factors of the other tasks for what is trained, as `factors` and `weighting` say.

    All files of the run `curvature` are checked before the first is read; where none is named, those that
    `workdir/curvature` lacks are made.

    Raises:
        FileNotFoundError: that run has no factors of one of the tasks.
        ValueError: there is no other task; factors are damaged, of another base, family, geometry or expansion, or of
            a rule that does not train all that is trained here. The message names file and difference.
    """
    if not context.others:
        raise ValueError(
            f"regime tak keeps {context.task.name!r} from disturbing other tasks, and config.tasks names no other. "
            "Give at least two, or train by regime linear."
        )
    trained = _trained(context.encoder, context.mask)
    given = context.options["curvature"]
    place = Path(given).expanduser() if given else context.workdir
    if not given:
        _make(context, trained)
    names = [context.task.name, *(task.name for task in context.others)]  # its own is what the others will want
    for name in names:
        _check(factors_path(place, name), name, context, trained)

    def read() -> Iterator[Factors]:
        for name in names[1:]:
            factors, _ = load_factors(factors_path(place, name), context.encoder.params)
            yield reweighted(selected(factors, trained), context.options["weighting"])

    return summed(read()) if context.options["factors"] == "summed" else per_task(read())


def _through_norm(context: Context) -> bool:
    return not bool(context.head.normalizes)


def _make(context: Context, trained: Collection[str]) -> None:
    """Makes the factors that the run lacks, of all of its tasks."""
    tasks = [task for task in (context.task, *context.others) if not factors_path(context.workdir, task.name).exists()]
    if not tasks:
        return
    if context.share[1] > 1:
        raise ValueError(
            "regime tak makes the curvature of its tasks in one process. Make it first, in a run by itself: "
            f"{COMMAND}, and give --config.finetune.curvature=DIR."
        )
    progress.say(f"Making the curvature of {len(tasks)} tasks, of {IMAGES} training examples each at most")
    how = Measure(
        encoder=context.encoder,
        trained=trained,
        trainable=sorted(trained),
        through_norm=_through_norm(context),
        seed=context.seed,
        workers=context.workers,
    )
    measure = make_measure(how)
    for task in tasks:
        save_factors(factors_path(context.workdir, task.name), *measure(task))


COMMAND = "--config.workflow=curvature --workdir=DIR"


def check(encoder: Encoder, mask: Mask, options: Options) -> None:
    """Raises as `factors_of_others` for what is wrong with any file of the run `curvature`, before a run begins."""
    if options["curvature"]:
        place = factors_path(Path(options["curvature"]).expanduser(), "*")
        found = sorted(place.parent.glob(place.name))
        if not found:
            raise FileNotFoundError(
                f"config.finetune.curvature: there is no {place}. Make the curvature of all tasks: the same command "
                f"with {COMMAND}, or leave the field out."
            )
        for path in found:
            _check_model(path, path.stem, encoder, _trained(encoder, mask))


def _check(path: Path, task: str, context: Context, trained: Collection[str]) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"config.finetune.curvature: there is no {path}. Make the curvature of all tasks: the same command with "
            f"{COMMAND}, or leave the field out."
        )
    about = _check_model(path, task, context.encoder, trained)
    if about.through_norm != _through_norm(context):
        raise ValueError(
            f"{path} is of features {'after' if about.through_norm else 'before'} their normalisation, and the "
            f"expansion is not. Give --config.linearize_through_norm={about.through_norm}, or make it again."
        )


def _check_model(path: Path, task: str, encoder: Encoder, trained: Collection[str]) -> About:
    about = read_about(path)
    check_fits(path, about, encoder, task=task)
    names = [key.partition(": ")[2] for key in tensor_files.read_names(path)]
    covered = {leaf for name in names for leaf in name.split(JOINT)}
    if missing := [leaf for leaf in trained if leaf not in covered]:
        raise ValueError(
            f"{path} was made for the rule {about.trainable!r} and has nothing of {missing[0]!r} ({len(missing)} such "
            "leaves), which is trained here. Make the curvature for what is trained, with the same --config.trainable."
        )
    return about


def _trained(encoder: Encoder, mask: Mask) -> list[str]:
    return [path for path, part in trees.trained_layers(encoder.params, mask).items() if np.any(part)]


METHOD = TrainingMethod(penalty=lambda options: penalty, data=factors_of_others, check=check)
