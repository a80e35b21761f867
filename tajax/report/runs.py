"""What a report is made from: the records and config of each run, and runs that differ in their seed alone together."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tajax import results, text_files
from tajax.records import Finetune
from tajax.records import Run as RunRecord
from tajax.results import Record

_BREAK = re.compile("[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")
_ILLEGIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # no character of any text


@contextlib.contextmanager
def understood(workdirs: Iterable[str | Path]) -> Iterator[None]:
    """For what is made of records that somebody changed: their fields may be absent, or of any kind.

    Raises:
        ValueError: in place of what that leads to; the directories are named.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        places = ", ".join(map(str, workdirs))
        if isinstance(error, ValueError) and any(str(place) in str(error) for place in workdirs):
            raise
        raise ValueError(
            f"{places}: results.jsonl or config.json holds a record that no run writes "
            f"({type(error).__name__}: {error})."
        ) from error


class Run(NamedTuple):
    """The records of one config in one directory.

    Attributes:
        workdir: the directory.
        records: of one config, in order.
        config: what `config.json` holds; empty if there is none, or it is of another config.
    """

    workdir: Path
    records: Sequence[Record]
    config: Mapping[str, object]

    @property
    def about(self) -> RunRecord:
        """The first record of the stage `run`: versions, devices, revision; empty if there is none."""
        return next(iter(results.find(self.records, RunRecord)), RunRecord())

    def field(self, name: str, default: object = "–") -> object:
        """A field of the config or, where that does not have it, of the records."""
        return self.config.get(name, next((r[name] for r in self.records if name in r), default))

    @property
    def method(self) -> str:
        """How the vectors were merged."""
        return next((str(r["method"]) for r in self.records if "method" in r), "task_arithmetic")

    @property
    def seconds(self) -> float:
        """Time over all processes that worked on it; 0 where no record has a clock."""
        return results.seconds(self.records) if any("elapsed_seconds" in r for r in self.records) else 0.0


Series: TypeAlias = dict[str, list[Run]]
"""Runs by label. Those of a label differ in their seed alone and are averaged."""


def read(workdir: str | Path) -> list[Run]:
    """The runs of a directory: one, unless its `results.jsonl` holds records of several configs.

    Raises:
        ValueError: a line of `results.jsonl` or `config.json` cannot be read, or there is no record.
    """
    workdir = Path(workdir)
    if workdir.is_file():
        raise ValueError(f"{workdir} is a file; name the directory of the run, {workdir.parent}.")
    records = legible(results.read(workdir / "results.jsonl"))
    if not records:
        raise ValueError(
            f"nothing to report: {workdir / 'results.jsonl'} is absent or empty. A run is named by its --workdir, "
            "which holds that file as soon as anything has been measured."
        )
    try:
        config = _legible(json.loads(text_files.read(workdir / "config.json")))
    except FileNotFoundError:
        config = {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{workdir / 'config.json'} is no config ({error}).") from error
    groups = results.by_config(records)
    config = config if isinstance(config, dict) and len(groups) == 1 else {}
    return [Run(workdir, group, config) for group in groups.values()]


PARAMETERS = {  # where the vectors are from, and what is said of the parameters that a run counted
    "trained": "trained",
    "reused": "moved by reused vectors",
    "imported": "moved by imported vectors",
    "none": "in the kernel",
    "": "of the regime",  # in records of earlier versions, where no fine-tuning is recorded
}


def parameters(about: RunRecord | Record, records: Iterable[Record] = ()) -> tuple[str, str]:
    """What the parameters are that a run counted, and how many of how many: trained, where it trained.

    Args:
        about: the record of the stage `run`.
        records: of the run.

    Example:
        >>> parameters({"vectors": "reused", "trained_parameters": 250, "total_parameters": 1000})
        ('moved by reused vectors', '250 of 1,000 parameters of the encoder (25.0%)')
    """
    known = "trained" if results.find(records, Finetune) else ""
    what, count, total = PARAMETERS[about.get("vectors", known)], about["trained_parameters"], about["total_parameters"]
    if count is None:
        return what, "how many of the encoder's parameters, their files do not say"
    if "trained_factors" in about:
        return what, (
            f"{about['trained_factors']:,} numbers in factors of {count:,} of {total:,} parameters of the encoder"
        )
    return what, f"{count:,} of {total:,} parameters of the encoder ({count / total:.1%})"


def series(runs: Iterable[Run]) -> Series:
    """Runs by what sets them apart: the regime, and of model, heads, tasks and so on what differs.

    Where that would put two runs with one seed together, their directories tell them apart, without the seed that a
    name may end in, and if these do not, their configs.

    Raises:
        ValueError: a run is there twice.
    """
    runs = list(runs)
    places = [(run.workdir.resolve(), run.records[0]["config_hash"]) for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{run.workdir} is given twice. Name every run once.")
    settings = [
        {name: str(run.field(name, before)) for name, before in SETTINGS.items()} | {"method": run.method}
        for run in runs
    ]
    differing = [name for name in settings[0] if len({values[name] for values in settings}) > 1] if runs else []
    together: Series = {}
    for run, values, tasks in zip(runs, settings, _of_tasks(runs), strict=True):
        differs = ", ".join(filter(None, (*(values[name] for name in differing if name != "regime"), tasks)))
        regime = str(run.field("regime", "run"))
        together.setdefault(f"{regime} ({differs})" if differs else regime, []).append(run)
    for more in (
        lambda run: re.sub(r"[_-]?\d+$", "", run.workdir.name),
        lambda run: str(run.records[0]["config_hash"]),
    ):
        apart: Series = {}
        for label, group in together.items():
            alike = len({_identity(run) for run in group}) < len(group)
            for run in group:
                apart.setdefault(f"{label} ({more(run)})" if alike else label, []).append(run)
        together = apart
    for label, group in together.items():
        if len({_identity(run) for run in group}) < len(group):
            named = ", ".join(str(run.workdir) for run in group)
            raise ValueError(f"{label} is there more than once with the same seed: {named}. Leave one of them out.")
    return together


def several_seeds(runs: Sequence[Run]) -> bool:
    """Whether runs of one label are there to be averaged, and not parts of one experiment."""
    return len({run.field("seed") for run in runs}) > 1


def deviations(of: str, together: Series) -> str:
    """What to say of whiskers or bands in a caption: nothing where no series is of several seeds."""
    return f" {of}: one sample standard deviation over seeds." if any(map(several_seeds, together.values())) else ""


SETTINGS = {"regime": "", "model": "", "heads": "", "initialization": "", "layers": "", "precision": "default"}
"""Fields that set runs apart, each with what runs of versions without it did."""


def _identity(run: Run) -> tuple[object, ...]:
    return run.field("seed"), run.field("workflow", ""), task_names(run)


def flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The leaves of a config by their dotted names.

    Example:
        >>> flat({"seed": 0, "finetune": {"steps": 200}})
        {'seed': 0, 'finetune.steps': 200}
    """
    leaves: dict[str, object] = {}
    for name, value in config.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        leaves |= inner
    return leaves


def origin(records: Sequence[Mapping[str, Any]]) -> str:
    """Which run a table is of, in one line: regime, model and seed."""
    first = records[0]
    return f"{first.get('regime')} on {first.get('model')}, seed {first.get('seed')}" if "regime" in first else ""


def task_names(run: Run) -> tuple[str, ...]:
    """The tasks of the config or, where it does not name them, those of the records."""
    named = run.config.get("tasks")
    if isinstance(named, list) and named:
        return tuple(map(str, named))
    return tuple(dict.fromkeys(str(r["task"]) for r in run.records if "task" in r))


def _of_tasks(runs: Sequence[Run]) -> list[str]:
    """What to say of each run's tasks: nothing, unless runs of one workflow are of different ones."""
    sets: dict[str, set[frozenset[str]]] = {}
    for run in runs:
        sets.setdefault(str(run.field("workflow", "")), set()).add(frozenset(task_names(run)))
    if all(len(of_workflow) == 1 for of_workflow in sets.values()):
        return ["" for _ in runs]
    counts = {len(tasks) for of_workflow in sets.values() for tasks in of_workflow}
    if len(counts) == sum(map(len, sets.values())):
        numbers = (len(task_names(run)) for run in runs)
        return [f"{number} task{'s' if number > 1 else ''}" for number in numbers]
    return [" + ".join(task_names(run)) for run in runs]


def legible(records: Iterable[Record]) -> list[Record]:
    """Records whose texts are lines: no control characters or halves of surrogate pairs, spaces for line breaks."""
    return [_legible(record) for record in records]


def _legible(value: Any) -> Any:
    if isinstance(value, str):
        return _ILLEGIBLE.sub("\ufffd", _BREAK.sub(" ", value))
    if isinstance(value, dict):
        return {_legible(key): _legible(item) for key, item in value.items()}
    return [_legible(item) for item in value] if isinstance(value, list) else value
