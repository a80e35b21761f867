"""What training and evaluation need on TPUs and GPUs, compiled for them on a machine that has none.

Nothing runs: XLA compiles for a description of the devices. Programs that are compiled are kept in results/ and not
compiled again; the tables of the README are written from all that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import summary
from experiments.scale import capacity, plan, prediction, records, tables, targets
from experiments.scale.prediction import Evaluation
from experiments.scale.programs import Job
from experiments.scale.records import Records
from tajax import report
from tajax.report import Table

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.scale.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"FIELD is one of {', '.join(Job._fields)}: --only device=v5e_2x4,h100_x1 model=l14",
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="FIELD=VALUE,…", help="jobs with these values alone")
    parser.add_argument(
        "--what",
        nargs="+",
        choices=("jobs", "largest", "tables"),
        default=("jobs", "largest", "tables"),
        help="compile what is planned; look for the largest batches; write the tables (all three)",
    )
    parser.add_argument("--minutes", type=float, help="begin nothing after so many")
    parser.add_argument("--list", action="store_true", help="print the jobs that are planned, and end")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the tables")
    options = parser.parse_args(arguments)
    try:
        wanted = filters(options.only)
    except ValueError as error:
        parser.error(str(error))
    jax.config.update("jax_platforms", "cpu")  # an accelerator that this machine has is not used
    planned = records.select(plan.jobs(), wanted)
    if options.list:
        print("\n".join(map(str, planned)))
        return
    found, until = Records(options.results, report=_say), _deadline(options.minutes)
    if "jobs" in options.what:
        compile_all(found, planned, until)
    if "largest" in options.what:
        searches = [(job, size) for job, size in plan.searches() if records.select([job], wanted)]
        search_all(found, searches, until)
    if "tables" in options.what:
        write_tables(found, options.readme, options.results)


def filters(texts: Sequence[str]) -> dict[str, set[str]]:
    """`--only` as values by field.

    Raises:
        ValueError: not FIELD=VALUE, or no such field.
    """
    found: dict[str, set[str]] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        if not equals or field not in Job._fields:
            raise ValueError(f"--only {text!r} is not FIELD=VALUE with one of the fields {', '.join(Job._fields)}")
        found.setdefault(field, set()).update(values.split(","))
    return found


def compile_all(found: Records, planned: Sequence[Job], until: float) -> None:
    """Compiles the jobs that are not there yet. Those of devices without a compiler here are named and left out."""
    missing = {name: why for name, target in targets.TARGETS.items() if (why := targets.missing(target))}
    for name in {job.device for job in planned} & missing.keys():
        _say(f"left out: {targets.TARGETS[name].title}, {missing[name]}")
    waiting = [job for job in planned if job.device not in missing and found.find(job) is None]
    _say(f"{len(waiting)} of {len(planned)} jobs to compile")
    for number, job in enumerate(waiting, start=1):
        if time.monotonic() > until:
            _say(f"time is up: {len(waiting) - number + 1} jobs are left")
            return
        _say(f"[{number}/{len(waiting)}]")
        found.make(job)


def search_all(found: Records, searches: Sequence[tuple[Job, int]], until: float) -> None:
    """Looks for the largest batches, of jobs that a compiler is here for."""
    for number, (job, size) in enumerate(searches, start=1):
        if targets.missing(targets.TARGETS[job.device]):
            continue
        if time.monotonic() > until:
            _say(f"time is up: {len(searches) - number + 1} searches are left")
            return
        best = capacity.find(found, job, size, until=until)
        _say(f"[{number}/{len(searches)}] {size} GB, {job.device} {job.model} {job.regime} remat {job.remat}: {best}")


def write_tables(found: Records, readme: Path, folder: Path) -> None:
    """Prints the tables and puts them into the README."""
    compiled = {record["model"] for record in found.all()}
    models = [model for model in plan.MODELS if model in compiled - {"minilm"}]  # the protocol is of images
    kept = folder / "passes.json"
    evaluations = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for model in models:
        if model not in evaluations:
            evaluations[model] = prediction.evaluation(model)._asdict()
    kept.write_text(json.dumps(evaluations, indent=1) + "\n", encoding="utf-8")
    costs = {model: Evaluation(**evaluations[model]) for model in models}
    sections: dict[str, list[Table]] = {
        "compiled": tables.compiled(found.all()),
        "largest": [tables.largest(found)],
        "predicted": [tables.predicted(found.all(), costs)],
    }
    for name, shown in sections.items():
        report.show(shown)
        summary.fill(readme, name, report.markdown(shown).replace("## ", "### "))


def _say(text: str) -> None:
    print(text, flush=True)


def _deadline(minutes: float | None) -> float:
    return float("inf") if minutes is None else time.monotonic() + 60 * minutes


if __name__ == "__main__":
    main(sys.argv[1:])
