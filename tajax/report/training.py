"""Fine-tuning and pre-training over time, and where the time of a run went."""

from __future__ import annotations

import itertools
import statistics

from tajax.records import Finetune, Pretrain, Training, stage_of
from tajax.records import Run as RunRecord
from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Run, Series, deviations
from tajax.report.style import Figure
from tajax.report.tables import MISSING, Number, Table, percent, spread
from tajax.results import find

MOST = 400  # points of a curve


def figures(series: Series) -> list[Figure]:
    """Training losses: of pre-training, and of fine-tuning for each task, or for each of several regimes their mean."""
    made = []
    kinds: tuple[tuple[type[Training], str, str], ...] = (
        (Finetune, "Fine-tuning", "Training loss (cross-entropy in nats, mean since the point before) over steps."),
        (Pretrain, "Pre-training", "Contrastive training loss in nats over steps."),
    )
    for kind, title, caption in kinds:
        points: dict[str, dict[float, list[float]]] = {}
        for label, runs in series.items():
            for run in runs:
                found = find(run.records, kind)
                steps = sorted({int(r["step"]) for r in found})
                for step in sorted({*steps[:: max(1, -(-len(steps) // MOST))], *steps[-1:]}):
                    at = find(found, step=step)
                    if len(series) > 1 or kind is Pretrain:
                        mean = statistics.fmean(float(r["loss"]) for r in at)
                        points.setdefault(label, {}).setdefault(step, []).append(mean)
                    else:
                        for record in find(run.records, Finetune, step=step):
                            task = points.setdefault(str(record["task"]), {})
                            task.setdefault(step, []).append(float(record["loss"]))
        if points:
            of = " Mean over tasks." if len(series) > 1 and kind is Finetune else ""
            chart = charts.curves(points, Axis("step", ",d"), Axis("loss, nats", ".3f", zero=True))
            made.append(Figure(f"{stage_of(kind)}_loss", title, caption + of, (chart,)))
    return made


def cost(run: Run) -> list[Table]:
    """Where the time of a run went: seconds of each stage by the clocks of its records."""
    spent: dict[str, float] = {}
    clocked = [r for r in run.records if "elapsed_seconds" in r]
    for before, record in itertools.pairwise([{"elapsed_seconds": 0.0}, *clocked]):
        now, then = float(record["elapsed_seconds"]), float(before["elapsed_seconds"])
        stage = str(record["stage"])
        spent[stage] = spent.get(stage, 0.0) + (now - then if now >= then else now)  # a new process starts at 0
    total = run.seconds
    if not total:
        return []
    rows = [(_words(stage), Number(took, 1), percent(took / total)) for stage, took in spent.items()]
    all_of_it = (TOTAL, Number(total, 1), percent(1.0))
    return [Table("Where the time went", ("stage", "seconds", "%"), (*rows, all_of_it), (NOTE,), means=1)]


def compared(series: Series) -> list[Table]:
    """Regimes side by side: seconds of each stage, of all runs of a seed together, over seeds ± sample deviation."""
    spent: dict[str, dict[str, dict[object, float]]] = {}
    for label, runs in series.items():
        for run in runs:
            for table in cost(run):
                for stage, seconds, _ in table.rows:
                    assert isinstance(seconds, Number)  # of `cost`
                    of_seed = spent.setdefault(label, {}).setdefault(stage, {})
                    seed = run.field("seed")
                    of_seed[seed] = of_seed.get(seed, 0.0) + seconds.value
    if not spent:
        return []
    stages = list(dict.fromkeys(stage for of_stage in spent.values() for stage in of_stage if stage != TOTAL))
    rows = tuple(
        (label, *(spread([*of_stage[s].values()], 1) if s in of_stage else MISSING for s in (*stages, TOTAL)))
        for label, of_stage in spent.items()
    )
    notes = (NOTE + deviations("±", series),)
    return [Table("Where the time went, seconds", ("regime", *stages, TOTAL), rows, notes)]


TOTAL = "in all"
NOTE = (
    "Seconds from the result before to each result of a stage, by the clock of the run; work that a killed process "
    "lost is not counted."
)


def _words(stage: str) -> str:
    return {stage_of(RunRecord): "setup"}.get(stage, stage.replace("_", " "))
