"""The tables of the README, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.scale import capacity, plan, prediction, subjects, targets
from experiments.scale.prediction import Evaluation
from experiments.scale.programs import PROGRAMS, Job
from experiments.scale.records import Records, job_of, needed
from tajax.regimes import REGIMES
from tajax.report import Table
from tajax.results import Record

SETTINGS = ("model", "program", "regime", "batch", "placement", "remat", "precision")


def compiled(records: Sequence[Record]) -> list[Table]:
    """A table for each device: what its programs need and do."""
    found = []
    for device, target in targets.TARGETS.items():
        rows = [row(record) for record in _ordered(records, device)]
        if rows:
            columns = (
                *SETTINGS,
                *("arguments", "results", "temporary", "GiB a chip", "TFLOP", "collectives", "compiled in s"),
            )
            found.append(
                Table(f"Compiled for {target.title} ({target.chips} × {target.memory} GB)", columns, tuple(rows))
            )
    return found


def row(record: Record) -> tuple[str, ...]:
    """A program in a table: GiB on each chip, operations of all chips together."""
    settings = tuple(_titled(record, field) for field in SETTINGS)
    end = (f"{record['operations'] / 1e12:.2f}", _communication(record), f"{record['compile_seconds']:.0f}")
    total = needed(record)
    if total is None:
        return (*settings, "–", "–", "–", "refused", *end)
    parts = (record[part] / 2**30 for part in ("arguments", "results", "temporary"))
    return (*settings, *(f"{part:.2f}" for part in parts), f"{total / 2**30:.2f}", *end)


def largest(records: Records) -> Table:
    """The largest batches known to fit."""
    rows = []
    for job, size in plan.searches():
        job = job._replace(batch=0)
        if not any(job_of(record)._replace(batch=0) == job for record in records.all()):
            continue
        found = capacity.known(records, job, size)
        if found.fails is None and not found.settled:
            continue  # nobody has looked: only how it is otherwise used was compiled
        fits = "–" if found.fits is None else f"{found.fits:,}"
        rows.append(
            (
                targets.TARGETS[job.device].title,
                subjects.TITLES[job.model],
                job.regime,
                job.remat,
                str(size),
                fits,
                "–" if found.bytes is None else f"{found.bytes / 1e9:.1f}",
                "–" if found.fails is None else f"{found.fails:,}",
                "yes" if found.settled else "no",
            )
        )
    columns = ("device", "model", "regime", "remat", "GB a chip", "largest batch", "its GB", "does not fit", "settled")
    notes = (
        "Batches are of all chips together. GB are 10⁹ bytes; what a driver or another program takes is not counted. "
        "Memory that is smaller than the device's own stands for a smaller device, of which no program was compiled.",
        "The largest batch was compiled and needs what stands beside it; the next column is the smallest compiled one "
        "that does not fit.",
        "Settled: the batch lies where a line through two compiled sizes meets the memory, or the two columns are "
        f"within {100 * (capacity.CLOSE - 1):.0f} % or one step of each other.",
    )
    return Table("Largest batches that fit", columns, tuple(rows), notes)


def predicted(records: Sequence[Record], evaluations: Mapping[str, Evaluation]) -> Table:
    """Hours of the papers' eight tasks on each device, where a training step of the protocol's batch was compiled."""
    rows = []
    for device, target in targets.TARGETS.items():
        for model, evaluation in evaluations.items():
            for regime in plan.REGIMES:
                job = Job(device, model, regime=regime, batch=prediction.BATCH)
                tried = [record for remat in plan.REMATS for record in _of(records, job._replace(remat=remat))]
                record = next((record for record in tried if _fits(record, target)), None)
                if record is None:
                    continue
                linearized = REGIMES[regime].evaluate_linearized
                image = evaluation.affine if linearized else evaluation.pointwise
                counted = prediction.counted(record["operations"], image, linearized=linearized)
                rows.append(
                    (
                        target.title,
                        subjects.TITLES[model],
                        regime,
                        record["remat"],
                        f"{counted.training / 1e18:.2f}",
                        f"{counted.evaluation / 1e18:.3f}",
                        f"{counted.seconds(target) / 3600:.2f}",
                    )
                )
    columns = ("device", "model", "regime", "remat", "training, 10¹⁸", "evaluation, 10¹⁸", "predicted hours")
    peaks = {target.maker: f"{target.maker} {target.teraflops:g}" for target in targets.TARGETS.values()}
    notes = (
        f"A prediction and no measurement: operations / (chips × peak × {prediction.UTILISATION}).",
        f"Peaks in TFLOP/s a chip at the default precision, by their makers: {', '.join(peaks.values())}; bfloat16 on "
        "TPUs, TF32 on H100, both without sparsity.",
        f"That {100 * prediction.UTILISATION:.0f} % of them are reached is an assumption: at 20 % the hours double. "
        "Decoding images, compiling, communication that is not hidden, and operations that are no matrix products are "
        "left out. With several chips each has few images of a batch of 128, and may reach less of its peak.",
        "Remat: the least with which the step fits, of those that were compiled.",
        "Evaluation: the 21-point sweep of the merged model on validation; zero-shot, single-task and merged on test. "
        "All points of linearised models are one pass.",
    )
    return Table(
        "Predicted time of the papers' eight tasks, 2,000 steps of 128 images each", columns, tuple(rows), notes
    )


def _of(records: Sequence[Record], job: Job) -> list[Record]:
    return [record for record in records if job_of(record) == job]


def _fits(record: Record, target: targets.Target) -> bool:
    total = needed(record)
    return total is not None and total <= target.memory * 10**9


def _ordered(records: Sequence[Record], device: str) -> list[Record]:
    """The records of a device by model, program, regime, remat and batch, in the order of their tables."""
    models = list(subjects.SUBJECTS)

    def place(record: Record) -> tuple:
        order = (models.index(record["model"]), PROGRAMS.index(record["program"]))
        return (*order, plan.REGIMES.index(record["regime"]), plan.REMATS.index(record["remat"]), record["batch"])

    return sorted((record for record in records if record["device"] == device), key=place)


def _titled(record: Record, field: str) -> str:
    return subjects.TITLES[record["model"]] if field == "model" else str(record[field])


def _communication(record: Record) -> str:
    """Such as "all-reduce 23 ×, 1.31 GiB"."""
    if not record["fits"]:
        return "–"
    told = []
    for each in record["collectives"]:
        times = "? ×" if each["executions"] is None else f"{each['executions']} ×, {each['bytes'] / 2**30:.2f} GiB"
        told.append(f"{each['kind']} {times}")
    return "; ".join(told) or "none"
