"""What stands on a page: for each subject its tables and figures, of one run or of several side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from tajax import results
from tajax.records import Pretrain, SingleTask, TaskAddition, TaskNegation, stage_of
from tajax.report import (
    accuracy,
    disentanglement,
    facts,
    geometry,
    heads,
    kernel,
    negation,
    ntk,
    plain,
    playground,
    predictions,
    training,
    tuning,
)
from tajax.report.playground import Playground
from tajax.report.predictions import Example
from tajax.report.runs import Run, Series, series
from tajax.report.style import Figure
from tajax.report.tables import Table, averaged
from tajax.report.words import fitting
from tajax.results import Record

_OfRun: TypeAlias = tuple[str, tuple[tuple[str, tuple[Example, ...]], ...]]


class Section(NamedTuple):
    """A subject.

    Attributes:
        name: fit for an address within the page.
        title: one line.
        tables: what it comes to.
        figures: in the order of the page.
        more: tables behind the figures, or of single runs; closed at first.
        examples: `(name of the run, (task, its examples)…)`.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    more: tuple[Table, ...] = ()
    examples: tuple[_OfRun, ...] = ()


class Page(NamedTuple):
    """A report.

    Attributes:
        title: one line.
        summary: the most important of the facts.
        notices: what a reader must know before the numbers.
        headline: what it comes to, of the one regime that it is of: a table of one row; None of several.
        facts: `(name, value)`, what was run and by what.
        runs: of several runs, what each was and what differs between them.
        sections: those with anything in them.
        playground: of a single run, what its numbers become at other coefficients, if it can be asked.
        configs: tables, one of each run.
    """

    title: str
    summary: tuple[str, ...]
    notices: tuple[str, ...]
    headline: Table | None
    facts: tuple[tuple[str, str], ...]
    runs: tuple[Table, ...]
    sections: tuple[Section, ...]
    configs: tuple[Table, ...]
    playground: Playground | None = None


class _Subject(NamedTuple):
    name: str
    title: str
    tables: Sequence[Callable[[Sequence[Record]], list[Table]]]
    more: Sequence[Callable[[Sequence[Record]], list[Table]]]
    figures: Callable[[Series], list[Figure]] | None
    compared: Callable[[Series], list[Table]] | None = None  # beside the rows of means


def _accuracies(records: Sequence[Record]) -> list[Table]:
    """Nothing of a run whose accuracy before it changed anything is all there is, and stands in another table."""
    measured = [r for r in records if r["stage"] in (stage_of(SingleTask), stage_of(TaskAddition))]
    shown = measured or not results.find(records, TaskNegation)
    return accuracy.accuracy_tables(records, provenance=False) if shown else []


def _accuracies_compared(labels: Series) -> list[Table]:
    return [*accuracy.compared(labels), *accuracy.by_task(labels)]


def _sweeps(records: Sequence[Record]) -> list[Table]:
    return accuracy.curve_tables([r for r in records if r["stage"] != stage_of(Pretrain)])


def _pretraining(records: Sequence[Record]) -> list[Table]:
    return accuracy.curve_tables(results.find(records, stage=stage_of(Pretrain)))


SUBJECTS = (
    _Subject("accuracy", "Accuracy", (_accuracies,), (_sweeps,), accuracy.figures, _accuracies_compared),
    _Subject("images", "Single examples", (predictions.tables,), (), predictions.figures),
    _Subject(
        "negation",
        "Negation and analogies",
        (negation.tables,),
        (negation.curves,),
        negation.figures,
        negation.compared,
    ),
    _Subject(
        "disentanglement",
        "Weight disentanglement",
        (disentanglement.tables,),
        (),
        disentanglement.figures,
        disentanglement.compared,
    ),
    _Subject(
        "geometry",
        "Geometry of the task vectors",
        (geometry.tables,),
        (geometry.modules,),
        geometry.figures,
        geometry.compared,
    ),
    _Subject("kernel", "Linearity", (kernel.tables,), (kernel.curves,), kernel.figures),
    _Subject("ntk", "Neural tangent kernel", (ntk.tables,), (), ntk.figures),
    _Subject("plain", "Other results", (plain.tables,), (), None),
    _Subject("heads", "Heads", (heads.tables,), (), None),
    _Subject("training", "Training and cost", (tuning.tables,), (_pretraining,), training.figures, training.compared),
)


def compose(runs: Sequence[Run]) -> Page:
    """The page of one run or of several side by side."""
    labels, alone = series(runs), len(runs) == 1
    sections = [_section(subject, labels, alone) for subject in SUBJECTS]
    filled = tuple(s for s in sections if s.tables or s.figures or s.more or s.examples)
    known = facts.of_run(runs[0]) if alone else facts.in_common(runs)
    play, refused = _playground(runs[0]) if alone else (None, ())
    return Page(
        title=_title(runs, labels),
        summary=_summary(runs, labels, dict(known)),
        notices=(*facts.notices(runs), *refused),
        headline=_headline(labels) if len(labels) == 1 else None,
        facts=known,
        runs=() if alone else facts.tables(runs),
        sections=filled,
        configs=tuple(facts.config(run) for run in runs if run.config),
        playground=play,
    )


def _playground(run: Run) -> tuple[Playground | None, tuple[str, ...]]:
    """The playground of a run, or why it has none: damaged files take nothing else from the page."""
    try:
        return playground.of_run(run), ()
    except (OSError, ValueError) as error:
        return None, (f"The playground is left out: {error}",)


def _title(runs: Sequence[Run], labels: Series) -> str:
    of = {str(run.field("workflow", "run")).replace("_", " ").replace("ntk", "NTK") for run in runs}
    names = list(labels)
    regimes = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    title = f"{of.pop() if len(of) == 1 else 'runs'}: {regimes if len(names) <= 5 else f'{len(names)} kinds of runs'}"
    models = {str(run.field("model", "")) for run in runs}
    title += f" on {models.pop()}" if len(models) == 1 and "" not in models else ""
    return title[:1].upper() + title[1:]


def _summary(runs: Sequence[Run], labels: Series, known: dict[str, str]) -> tuple[str, ...]:
    seeds = list(dict.fromkeys(str(run.field("seed")) for run in runs))
    parts = [f"{len(runs)} runs"] if len(runs) > 1 else []
    parts += [f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"]
    parts += [f"{known['tasks'].partition(':')[0]} tasks"] if "tasks" in known else []
    names = ("merged by", "time", "devices", "begun") if len(runs) == 1 else ("time of all", "devices")
    parts += [known[name] for name in names if name in known]
    return tuple(parts)


def _headline(labels: Series) -> Table | None:
    """The numbers of the first subject that has any: of what compares regimes or, without it, of the rows of means."""
    subjects = [subject for subject in SUBJECTS if subject.name not in ("images", "heads", "training")]
    comparing = (table for one in subjects if one.compared for table in one.compared(labels))
    means = (table for one in subjects for table in _side_by_side(_over_seeds(labels, _tables(one.tables, labels))))
    table = next(itertools.chain(comparing, means), None)
    if table is None:
        return None
    shown = [n for n, title in enumerate(table.columns) if title not in ("regime", "tasks", "seeds")]
    shown = [n for n in shown if not table.columns[n].startswith("val ")][:MOST]
    row = table.rows[0]
    return Table(table.title, tuple(table.columns[n] for n in shown), (tuple(row[n] for n in shown),), table.notes)


MOST = 6  # numbers at the top of a page


def figures(page: Page) -> list[Figure]:
    """Every figure of a page."""
    return [figure for section in page.sections for figure in section.figures]


def tables(page: Page) -> list[Table]:
    """Every table of a page that says what was measured, those behind figures last; of several runs, of none alone."""
    shown = [table for section in page.sections for table in section.tables]
    return shown if page.runs else [*shown, *(table for section in page.sections for table in section.more)]


def _section(subject: _Subject, labels: Series, alone: bool) -> Section:
    shown, behind = _tables(subject.tables, labels), _tables(subject.more, labels)
    records = [record for group in labels.values() for run in group for record in run.records]
    drawn = tuple(fitting(subject.figures(labels), records)) if subject.figures else ()
    if subject.name == "training":
        costs = shown if alone else behind
        costs[:] = [(run, [*made, *training.cost(run)]) for run, made in costs]
    examples = _examples(labels) if subject.name == "images" else ()
    if alone:
        first, second = ([table._replace(of="") for table in made] for [(_, made)] in (shown, behind))
        return Section(subject.name, subject.title, tuple(first), drawn, tuple(second), examples)
    found = _over_seeds(labels, shown)
    compared = fitting(subject.compared(labels), records) if subject.compared else []
    means = _side_by_side(found) if len(labels) > 1 else ()
    together = (*compared, *means, *(table for group in found.values() for table in group.values()))
    single = [table._replace(of=facts.name(run)) for run, made in (*shown, *behind) for table in made]
    return Section(subject.name, subject.title, together, drawn, tuple(single), examples)


def _examples(labels: Series) -> tuple[_OfRun, ...]:
    """Of each label those of its first run that has any."""
    firsts = (next((run for run in runs if predictions.has(run)), None) for runs in labels.values())
    found = ((facts.name(run), tuple(predictions.examples(run).items())) for run in firsts if run)
    return tuple((name, of_tasks) for name, of_tasks in found if of_tasks)


_Made = list[tuple[Run, list[Table]]]


def _tables(makers: Sequence[Callable[[Sequence[Record]], list[Table]]], labels: Series) -> _Made:
    runs = (run for group in labels.values() for run in group)
    return [(run, fitting((table for make in makers for table in make(run.records)), run.records)) for run in runs]


def _over_seeds(labels: Series, made: _Made) -> dict[str, dict[str, Table]]:
    """By title and regime the table over all seeds; of one seed, the one with most in it."""
    of_run = {id(run): tables for run, tables in made}
    found: dict[str, dict[str, Table]] = {}
    for label, runs in labels.items():
        by_title: dict[str, dict[object, Table]] = {}
        for run in runs:
            for table in of_run[id(run)]:
                seeds, seed = by_title.setdefault(table.title, {}), str(run.field("seed"))
                seeds[seed] = max(seeds.get(seed, table), table, key=lambda one: len(one.rows) * len(one.columns))
        for title, seeds in by_title.items():
            found.setdefault(title, {})[label] = _together(label, seeds)
    return found


def _together(label: str, seeds: dict[object, Table]) -> Table:
    if len(seeds) == 1:
        [(seed, table)] = seeds.items()
        return table._replace(of=f"{label}, seed {seed}")
    return averaged([*seeds.values()], seeds=[*seeds], of=f"{label}, {len(seeds)} seeds")


def _side_by_side(found: dict[str, dict[str, Table]]) -> Iterator[Table]:
    """For each row of means a table with a row for each regime."""
    for title, group in found.items():
        first = next(iter(group.values()))
        alike = [(label, table) for label, table in group.items() if table.columns == first.columns]
        notes = tuple(note for note in first.notes if all(note in table.notes for _, table in alike))
        for number in range(first.means, 0, -1):
            rows = tuple((label, *table.rows[-number][1:]) for label, table in alike if table.means >= number)
            name = first.rows[-number][0].replace("mean", "mean over tasks")
            yield Table(f"{title}, {name}", ("regime", *first.columns[1:]), rows, notes)
