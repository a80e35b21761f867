"""Facts of runs: what was run and by what, what is not finished, and what sets runs apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from tajax import results
from tajax.questions import QUESTIONS
from tajax.records import Run as RunRecord
from tajax.records import TaskAddition
from tajax.report.runs import Run, flat, parameters, task_names
from tajax.report.tables import Number, Table
from tajax.results import Record


def of_run(run: Run) -> tuple[tuple[str, str], ...]:
    """`(name, value)` of one run: what it was and by what it was made."""
    about, records, tasks = run.about, run.records, task_names(run)
    facts = [
        ("workflow", str(run.field("workflow"))),
        ("regime", str(run.field("regime"))),
        ("model", str(run.field("model"))),
        ("tasks", f"{len(tasks)}: {', '.join(tasks)}" if tasks else ""),
        ("seed", str(run.field("seed"))),
        ("heads", str(run.field("heads", "")).replace("_", "-")),
        ("initialisation", str(run.field("initialization", ""))),
        ("precision", _precision(about)),
        ("task vectors of", str(run.field("task_vectors", None) or "")),
    ]
    if addition := results.find(records, TaskAddition):
        facts.append(("merged by", f"{run.method.replace('_', ' ')}, α = {addition[0]['scaling_coef']:g}"))
    if "trained_parameters" in about:
        facts.append(parameters(about, records))
    command = re.sub(r"^\S*tajax/main\.py(?= |$)", "python -m tajax.main", str(about.get("command", "")))
    begun = re.sub(r"^(\S+)T(\d\d:\d\d):\d\d\+00:00$", r"\1 \2 UTC", str(about.get("time", about.get("started", ""))))
    facts += [("command", command), ("begun", begun)]
    facts += [("time", duration(run.seconds)), *_machine(about)]
    facts += [("base sha256", str(about.get("base_sha256", ""))), ("config", str(records[0]["config_hash"]))]
    facts.append(("directory", str(run.workdir)))
    return tuple((name, value) for name, value in facts if value)


def _precision(about: RunRecord) -> str:
    """Nothing of runs that were made before they recorded it."""
    return f"{about['precision']}: products of {about['products']}" if "products" in about else ""


def warnings(records: Iterable[Record]) -> list[str]:
    """What the records warn of, each once: data that were left out, splits that say little, accuracy below chance."""
    return list(dict.fromkeys(str(line) for record in records for line in record.get("warnings", ())))


def notices(runs: Sequence[Run]) -> Iterator[str]:
    """What a reader must know before the numbers: runs that go on or are not of the same tasks, and warnings."""
    for run in runs:
        if left := _unfinished(run):
            yield f"{name(run)} is not finished: {left}."
    sets: dict[str, set[tuple[str, ...]]] = {}
    for run in runs:
        sets.setdefault(str(run.field("workflow", "")), set()).add(tuple(sorted(task_names(run))))
    if any(len(of_workflow) > 1 for of_workflow in sets.values()):
        yield "The runs are not of the same tasks: means over tasks stand beside each other, but are not comparable."
    yield from warnings(record for run in runs for record in run.records)
    yield from _data(runs)


def _data(runs: Sequence[Run]) -> Iterator[str]:
    """Tasks that are not the same in all runs, though they have one name."""
    parts: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for task, digests in run.about.get("data", {}).items():
            for part, digest in digests.items() if isinstance(digests, dict) else ():
                parts.setdefault(task, {}).setdefault(part.replace("_", " "), set()).add(digest)
    for task, found in parts.items():
        if differing := [part for part, digests in found.items() if len(digests) > 1]:
            yield f"The runs are not on the same {task}: its {', '.join(differing)} differ."


def _unfinished(run: Run) -> str:
    """How far a run got whose last stage, which bears the name of its workflow, is not complete; empty otherwise."""
    workflow, tasks = str(run.config.get("workflow", "")), task_names(run)
    each = QUESTIONS[workflow].each if workflow in QUESTIONS else "task"
    if not workflow or each == "step":
        return ""
    stage, last = workflow.replace("_", " "), results.find(run.records, stage=workflow)
    if not last:
        return f"there is no result of its last stage, {stage}, yet"
    done, wanted = len({str(r["task"]) for r in last if "task" in r}), len(tasks)
    if each == "run":
        return ""
    if each == "pair":
        pairs = flat(run.config).get("disentanglement.pairs")
        done = len({tuple(map(str, r["tasks"])) for r in last})
        wanted = len(pairs) if isinstance(pairs, list) else len(tasks) * (len(tasks) - 1) // 2
    of = "pairs of tasks" if each == "pair" else "tasks"
    return f"{stage} has been measured for {done} of {wanted} {of}" if done < wanted else ""


def _machine(about: RunRecord) -> list[tuple[str, str]]:
    versions = about.get("versions") or {}
    devices = f"{about['device_count']} × {about['device_kind']}" if "device_kind" in about else ""
    cores = f", {about['cpu_count']} cores" if devices and "cpu_count" in about else ""
    written = ", ".join(f"{name} {version}" for name, version in versions.items())
    revision = str(about.get("git_revision", ""))
    changed = " and uncommitted changes" if revision.endswith("+") else ""
    return [
        ("devices", devices + cores),
        ("platform", str(about.get("platform", ""))),
        ("versions", written),
        ("revision", revision.rstrip("+") + changed),
    ]


def in_common(runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """`(name, value)` of what is the same in all of several runs."""
    each = [dict(of_run(run)) for run in runs]
    common = tuple((name, value) for name, value in each[0].items() if all(f.get(name) == value for f in each))
    total = duration(sum(run.seconds for run in runs))
    return ("runs", str(len(runs))), *common, ("time of all", total)


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """What each of several runs was, and what differs between their configs."""
    rows = tuple(
        (
            name(run),
            str(run.field("workflow")).replace("_", " "),
            str(run.field("regime")),
            str(run.field("seed")),
            str(len(task_names(run))),
            Number(run.seconds, 0),
            str((run.about.get("versions") or {}).get("tajax", "–")),
            str(run.records[0]["config_hash"]),
        )
        for run in runs
    )
    made = [Table("Runs", ("run", "workflow", "regime", "seed", "tasks", "seconds", "tajax", "config"), rows)]
    leaves = [flat(run.config) for run in runs]
    names = [name for name in dict.fromkeys(n for leaf in leaves for n in leaf) if name not in ("data_dir", "variant")]
    differing = [name for name in names if len({str(leaf.get(name, "–")) for leaf in leaves}) > 1]
    if not set(differing) <= {"workflow", "regime", "seed"}:
        values = tuple(
            (name(run), *(str(leaf.get(n, "–")) for n in differing)) for run, leaf in zip(runs, leaves, strict=True)
        )
        made.append(Table("What differs in their configs", ("run", *differing), values))
    return tuple(made)


def config(run: Run) -> Table:
    """The whole config, a row for each field."""
    rows = tuple((name, _short(value)) for name, value in flat(run.config).items())
    return Table(f"Config of {name(run)}", ("field", "value"), rows)


def _short(value: object) -> str:
    return ", ".join(map(_short, value)) if isinstance(value, list) else str(value)


def name(run: Run) -> str:
    """The name of its directory."""
    return run.workdir.name or str(run.workdir.resolve().name)


def duration(seconds: float) -> str:
    """A time as a person says it.

    Example:
        >>> duration(12.4), duration(187), duration(7325)
        ('12.4 s', '3 min 7 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
