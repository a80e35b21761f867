"""What stands on a page: facts of the runs, and for each subject its tables and figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tajax import results
from tajax.report import accuracy, disentanglement, geometry, heads, kernel, negation, ntk, predictions, training
from tajax.report.predictions import Example
from tajax.report.runs import Run, Series, flat, series
from tajax.report.style import Figure
from tajax.report.tables import Table, averaged
from tajax.results import Record


class Section(NamedTuple):
    """A subject.

    Attributes:
        name: fit for an address within the page.
        title: one line.
        tables: what it comes to.
        figures: in the order of the page.
        more: tables behind the figures, or of single runs; closed at first.
        examples: `(name of the run, (task, its images)…)`.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    more: tuple[Table, ...] = ()
    examples: tuple[tuple[str, tuple[tuple[str, tuple[Example, ...]], ...]], ...] = ()


class Page(NamedTuple):
    """A report.

    Attributes:
        title: one line.
        summary: the most important of the facts.
        facts: `(name, value)`, what was run and by what.
        runs: of several runs, what each was and what differs between them.
        sections: those with anything in them.
        configs: `(name of the run, table of its config)`.
    """

    title: str
    summary: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    runs: tuple[Table, ...]
    sections: tuple[Section, ...]
    configs: tuple[tuple[str, Table], ...]


class _Subject(NamedTuple):
    name: str
    title: str
    tables: Sequence[Callable[[Sequence[Record]], list[Table]]]
    more: Sequence[Callable[[Sequence[Record]], list[Table]]]
    figures: Callable[[Series], list[Figure]] | None


def _sweeps(records: Sequence[Record]) -> list[Table]:
    return accuracy.curve_tables([r for r in records if r["stage"] != "pretrain"])


def _pretraining(records: Sequence[Record]) -> list[Table]:
    return accuracy.curve_tables(results.find(records, stage="pretrain"))


SUBJECTS = (
    _Subject("accuracy", "Accuracy", (accuracy.accuracy_tables,), (_sweeps,), accuracy.figures),
    _Subject("images", "Single images", (predictions.tables,), (), predictions.figures),
    _Subject("negation", "Negation and analogies", (negation.tables,), (negation.curves,), negation.figures),
    _Subject("disentanglement", "Weight disentanglement", (disentanglement.tables,), (), disentanglement.figures),
    _Subject("geometry", "Geometry of the task vectors", (geometry.tables,), (geometry.modules,), geometry.figures),
    _Subject("kernel", "Linearity", (kernel.tables,), (kernel.curves,), kernel.figures),
    _Subject("ntk", "Neural tangent kernel", (ntk.tables,), (), ntk.figures),
    _Subject("heads", "Heads", (heads.tables,), (), None),
    _Subject("training", "Training and cost", (), (_pretraining,), training.figures),
)


def compose(runs: Sequence[Run]) -> Page:
    """The page of one run or of several side by side."""
    labels, alone = series(runs), len(runs) == 1
    sections = [_section(subject, labels, alone) for subject in SUBJECTS]
    filled = [s for s in sections if s.tables or s.figures or s.more or s.examples]
    first = runs[0]
    of = {str(run.field("workflow", "run")).replace("_", " ") for run in runs}
    kind = of.pop().replace("ntk", "NTK") if len(of) == 1 else "runs"
    title = f"{kind}: {' against '.join(labels)}"
    if len({str(run.field("model", "")) for run in runs}) == 1 and first.field("model", ""):
        title += f" on {first.field('model')}"
    if len(labels) > 4:
        title = f"{kind}: {len(runs)} runs"
    configs = tuple((_name(run), _config(run)) for run in runs if run.config)
    facts = _facts(first) if alone else _common_facts(runs)
    known = dict(facts)
    summary = [f"seed {known['seed']}"] if "seed" in known else []
    summary += [f"{known['tasks'].partition(':')[0]} tasks"] if "tasks" in known else []
    summary += [known[name] for name in ("merged by", "time", "time of all", "devices", "begun") if name in known]
    return Page(
        title[:1].upper() + title[1:], tuple(summary), facts, () if alone else _of_runs(runs), tuple(filled), configs
    )


def figures(page: Page) -> list[Figure]:
    """Every figure of a page."""
    return [figure for section in page.sections for figure in section.figures]


def tables(page: Page) -> list[Table]:
    """Every table of a page that says what was measured, those behind the figures last."""
    return [
        *(table for section in page.sections for table in section.tables),
        *(table for section in page.sections for table in section.more),
    ]


def _section(subject: _Subject, labels: Series, alone: bool) -> Section:
    shown = [
        (run, [table for make in subject.tables for table in make(run.records)])
        for runs in labels.values()
        for run in runs
    ]
    behind = [
        (run, [table for make in subject.more for table in make(run.records)])
        for runs in labels.values()
        for run in runs
    ]
    if subject.name == "training":
        costs = shown if alone else behind
        costs[:] = [(run, [*made, *training.cost(run)]) for run, made in costs]
    examples = ()
    if subject.name == "images":
        examples = tuple((_name(run), tuple(predictions.examples(run).items())) for run, _ in shown)
        examples = tuple((name, found) for name, found in examples if found)
    drawn = tuple(subject.figures(labels)) if subject.figures else ()
    if alone:
        (_, first), (_, second) = shown[0], behind[0]
        return Section(subject.name, subject.title, tuple(first), drawn, tuple(second), examples)
    together = _over_seeds(subject, labels, dict((id(run), made) for run, made in shown))
    single = [table._replace(title=f"{_name(run)}: {table.title}") for run, made in (*shown, *behind) for table in made]
    return Section(subject.name, subject.title, tuple(together), drawn, tuple(single), examples)


def _over_seeds(subject: _Subject, labels: Series, made: dict[int, list[Table]]) -> list[Table]:
    """Regimes side by side in one table where they have a row of means; after it a table for each."""
    if subject.name == "accuracy":
        return [*accuracy.compared(labels), *accuracy.by_task(labels)]
    found: dict[str, list[tuple[str, int, Table]]] = {}
    for label, runs in labels.items():
        for group in zip(*(made[id(run)] for run in runs if made[id(run)]), strict=False):
            title = re.sub(", seed [^:]*", "", group[0].title).replace(f"{runs[0].field('regime')} on ", "on ")
            shapes = {(table.columns, tuple(row[0] for row in table.rows)) for table in group}
            if len(shapes) == 1:
                whole = averaged(group, title) if len(group) > 1 else group[0]
                found.setdefault(title, []).append((label, len(group), whole))
    return [*_side_by_side(found), *(_titled(*one) for of_title in found.values() for one in of_title)]


def _titled(label: str, seeds: int, table: Table) -> Table:
    return table._replace(title=f"{label}: {table.title}" + (f", {seeds} seeds" if seeds > 1 else ""))


def _side_by_side(found: dict[str, list[tuple[str, int, Table]]]) -> Iterator[Table]:
    for title, group in found.items():
        _, _, first = group[0]
        if len(group) > 1 and first.means and len({table.columns for _, _, table in group}) == 1:
            rows = tuple((label, str(n), *table.rows[len(table.rows) - table.means][1:]) for label, n, table in group)
            columns = ("regime", "seeds", *first.columns[1:])
            yield Table(f"{title}: means", columns, rows, ("± is the deviation over seeds.",))


def _facts(run: Run) -> tuple[tuple[str, str], ...]:
    about, records = run.about, run.records
    tasks = [str(task) for task in run.config.get("tasks") or dict.fromkeys(r["task"] for r in records if "task" in r)]
    facts = [
        ("workflow", str(run.field("workflow"))),
        ("regime", str(run.field("regime"))),
        ("model", str(run.field("model"))),
        ("tasks", f"{len(tasks)}: {', '.join(tasks)}" if tasks else ""),
        ("seed", str(run.field("seed"))),
        ("heads", str(run.field("heads", "")).replace("_", "-")),
        ("initialisation", str(run.field("initialization", ""))),
        ("task vectors of", str(run.field("task_vectors", None) or "")),
    ]
    if addition := results.find(records, stage="task_addition"):
        facts.append(("merged by", f"{run.method.replace('_', ' ')}, α = {addition[0]['scaling_coef']:g}"))
    if "trained_parameters" in about:
        trained, total = about["trained_parameters"], about["total_parameters"]
        facts.append(("trained", f"{trained:,} of {total:,} parameters of the image tower ({trained / total:.1%})"))
    facts += [("command", str(about.get("command", ""))), ("begun", str(about.get("time", about.get("started", ""))))]
    facts += [("time", duration(run.seconds)), *_machine(about)]
    facts += [("base sha256", str(about.get("base_sha256", ""))), ("config", str(records[0]["config_hash"]))]
    facts.append(("directory", str(run.workdir)))
    return tuple((name, value) for name, value in facts if value)


def _machine(about: Record) -> list[tuple[str, str]]:
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


def _common_facts(runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    each = [dict(_facts(run)) for run in runs]
    common = tuple((name, value) for name, value in each[0].items() if all(f.get(name) == value for f in each))
    total = duration(sum(run.seconds for run in runs))
    return ("runs", str(len(runs))), *common, ("time of all", total)


def _of_runs(runs: Sequence[Run]) -> tuple[Table, ...]:
    rows = tuple(
        (
            _name(run),
            str(run.field("workflow")),
            str(run.field("regime")),
            str(run.field("seed")),
            f"{run.seconds:.0f}",
            str(run.records[0]["config_hash"]),
        )
        for run in runs
    )
    made = [Table("Runs", ("run", "workflow", "regime", "seed", "seconds", "config"), rows)]
    leaves = [flat(run.config) for run in runs]
    names = [name for name in dict.fromkeys(n for leaf in leaves for n in leaf) if name not in ("data_dir", "variant")]
    differing = [name for name in names if len({str(leaf.get(name, "–")) for leaf in leaves}) > 1]
    if differing:
        values = tuple(
            (_name(run), *(str(leaf.get(n, "–")) for n in differing)) for run, leaf in zip(runs, leaves, strict=True)
        )
        made.append(Table("What differs in their configs", ("run", *differing), values))
    return tuple(made)


def _config(run: Run) -> Table:
    rows = tuple((name, _short(value)) for name, value in flat(run.config).items())
    return Table(f"Config of {_name(run)}", ("field", "value"), rows)


def _short(value: object) -> str:
    return ", ".join(map(_short, value)) if isinstance(value, list) else str(value)


def _name(run: Run) -> str:
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
