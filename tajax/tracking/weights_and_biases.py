"""A run in Weights & Biases, if its package is installed and `config.track.wandb` names a project.

WANDB_MODE, WANDB_API_KEY and all else that the package reads from the environment are honoured. `wandb.json` in the
workdir keeps the run's id: a process that goes on with the workdir goes on with the same run, and sends what is new.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from tajax import atomic
from tajax.results import Record
from tajax.tracking.points import Translation, whose

KEPT = "wandb.json"


class WeightsAndBiases:
    """Sends what is recorded; called with each record.

    Args:
        project: PROJECT or ENTITY/PROJECT.
        workdir: of the run.
        records: those of earlier processes, which are sent if the workdir has no run yet.
        translate: from records to points; knows none yet.
        config: fields by name.

    Raises:
        ValueError: the package is absent, or refuses; the message says what to do.
    """

    def __init__(
        self,
        project: str,
        workdir: Path,
        records: Iterable[Record],
        *,
        translate: Translation,
        config: Mapping[str, object],
    ):
        check(project)
        import wandb

        self.translate = translate
        self.defined: set[str] = set()
        kept, entity_of = workdir / KEPT, project.rpartition("/")
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if known.get("project") != project:
            known = {"project": project, "id": uuid.uuid4().hex[:12]}
        try:
            self.run = wandb.init(
                project=entity_of[2],
                entity=entity_of[0] or None,
                id=known["id"],
                name=workdir.name,
                dir=workdir,
                config=dict(config),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),  # it would take the terminal from the progress
            )
        except wandb.Error as error:
            raise ValueError(f"config.track.wandb={project!r}: Weights & Biases refuses ({error}). {_WAYS}") from error
        for record in records:
            if kept.exists():
                self.translate(record)
            else:
                self(record)
        atomic.write(kept, json.dumps(known) + "\n")

    def __call__(self, record: Record) -> None:
        """Sends what a record says; curves of a stage have that stage's steps."""
        points = self.translate(record)
        if not points:
            return
        curve = f"{points[0].stage}/{whose(record)}"
        if curve not in self.defined:
            self.defined.add(curve)
            self.run.define_metric(f"{curve}/step", hidden=True)
            self.run.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
        self.run.log({f"{curve}/step": points[0].step} | {f"{curve}/{point.name}": point.value for point in points})

    def close(self) -> None:
        """Sends the rest."""
        self.run.finish()


_WAYS = "Log in (wandb login), keep it on this machine (WANDB_MODE=offline), or leave --config.track.wandb out."


def check(project: str) -> None:
    """Raises ValueError if the package is absent, or nobody is logged in; before any work is done."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"config.track.wandb={project!r} needs a package that is not installed: pip install 'tajax[wandb]', or "
            "leave --config.track.wandb out."
        )
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise ValueError(f"config.track.wandb={project!r}: nobody is logged in. {_WAYS}")
