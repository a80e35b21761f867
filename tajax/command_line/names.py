"""Names in a config that only the models and the data sets know, checked before any of them is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from tajax import config as configuration
from tajax import trees

if TYPE_CHECKING:
    from tajax.encoders.encoder import Family


def _check_family(config: ConfigDict, family: Family) -> None:
    """Refuses what a config asks of a family that has it not."""
    if config.max_tokens is not None and family.modality != "texts":
        raise ValueError(f"max_tokens is {config.max_tokens}, but models of the family {config.family!r} take images")
    if configuration.reads(config.workflow, "save") and config.save.open_clip and "open_clip" not in family.formats:
        raise ValueError(
            f"save.open_clip writes the merged model for open_clip, which has no models of the family {config.family!r}"
            f": formats of it are {', '.join(family.formats)}. Leave it out."
        )
    if config.heads == "zero_shot" and not family.zero_shot:
        raise ValueError(
            f"heads are from class names, and models of the family {config.family!r} take no texts. Give "
            "--config.heads=linear_probe."
        )


def check_names(config: ConfigDict) -> None:
    """Refuses a model, a task, a trainable pattern or a run that does not exist; nothing is loaded, fetched or written.

    Raises:
        FileNotFoundError: the run whose task vectors are asked for is not there.
        ValueError: the name, the nearest ones, the choices, and what else can be given.
    """
    from tajax import data
    from tajax.encoders import family_named

    if not configuration.reads(config.workflow, "tasks"):
        return
    family = family_named(config.family)
    family.check_name(config.model)
    _check_family(config, family)
    control = (config.control,) if config.control and configuration.reads(config.workflow, "control") else ()
    for entry in (*config.tasks, *control):
        data.check_entry(entry, data_dir=Path(config.data_dir).expanduser())
    trees.param_mask(family.outline(), configuration.regime(config).trainable, rules=family.rules)
    run = None if config.task_vectors is None else Path(config.task_vectors).expanduser()
    if run is not None and not (run / "task_vectors").is_dir():
        raise FileNotFoundError(
            f"config.task_vectors: there are no task vectors in {run} (looked at from {Path.cwd()}). Give the "
            "directory of a run that has fine-tuned, or leave the field out."
        )
