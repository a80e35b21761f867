"""The records of jobs: a line of JSON each, in one file a device; what is there is not measured again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from experiments.scale import operations, targets
from experiments.scale.collectives import collectives
from experiments.scale.programs import Job, traced
from tajax import results
from tajax.device_memory import is_exhausted, need_of
from tajax.results import Record
from tajax.types import JsonObject

VERSIONS = ("jax", "jaxlib", "flax", "optax")


class Records:
    """What was compiled so far.

    Args:
        folder: where the files lie, `DEVICE.jsonl`.
        measure: from a job to what is found of it.
        report: called with a job before it is compiled, and with its record afterwards.
    """

    def __init__(
        self,
        folder: Path,
        *,
        measure: Callable[[Job], JsonObject] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self._folder, self._measure, self._report = folder, measure or compiled, report
        read = [record for path in sorted(folder.glob("*.jsonl")) for record in results.read(path)]
        self._found = {job_of(record): record for record in read}

    def all(self) -> list[Record]:
        """Every record, in the order in which they were made, device after device."""
        return list(self._found.values())

    def find(self, job: Job) -> Record | None:
        """The record of a job that was compiled."""
        return self._found.get(job)

    def make(self, job: Job) -> Record:
        """The record of a job, which is compiled now if it was not yet."""
        if job not in self._found:
            self._report(f"{job} …")
            record = job._asdict() | self._measure(job)
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"{job.device}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            self._found[job] = record
            self._report(f"  {in_words(record)}")
        return self._found[job]


def job_of(record: Record) -> Job:
    """Which job a record is of."""
    return Job(**{field: record[field] for field in Job._fields})


def compiled(job: Job) -> JsonObject:
    """What XLA makes of a job.

    Returns:
        `operations` of one run on all devices; `fits`, false where the compiler refuses for want of memory and says so
        in `refusal`; else bytes on each device of `arguments`, `results` (beside donated arguments) and what is
        `temporary`, and `collectives`. `trace_seconds`, `compile_seconds`, `versions`, `time` and, in a checkout,
        `git_revision` in each case.
    """
    target, devices = targets.TARGETS[job.device], targets.devices(job.device)
    begun = time.perf_counter()
    program = traced(job, devices)
    found: JsonObject = {"operations": operations.count(program.jaxpr)}
    lowered = program.lower()
    found["trace_seconds"] = round(time.perf_counter() - begun, 2)
    begun = time.perf_counter()
    try:
        executable = lowered.compile(compiler_options=dict(target.compiler_options))
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        found |= {"fits": False, "refusal": _first_lines(error)}
    else:
        need = need_of(executable)
        if need is None:
            raise RuntimeError(f"{target.title}: the compiler does not say what a program needs")
        told = [each._asdict() for each in collectives(executable.as_text())]
        found |= {"fits": True, **need._asdict(), "collectives": told}
    found["compile_seconds"] = round(time.perf_counter() - begun, 2)
    origin = results.provenance()
    found["versions"] = {name: origin["versions"][name] for name in VERSIONS} | targets.version(target)
    found |= {name: origin[name] for name in ("time", "git_revision") if name in origin}
    jax.clear_caches()
    return found


def needed(record: Record) -> int | None:
    """Bytes on each device, all together; None where the compiler refused the program."""
    if not record["fits"]:
        return None
    return sum(record[part] for part in ("arguments", "results", "temporary"))


def in_words(record: Record) -> str:
    """A record as one line of text."""
    total, seconds = needed(record), f"compiled in {record['compile_seconds']:.0f} s"
    if total is None:
        return f"does not fit, {seconds}: {record['refusal']}"
    return f"{total / 2**30:.2f} GiB a device, {record['operations'] / 1e12:.2f} TFLOP, {seconds}"


def _first_lines(error: BaseException, characters: int = 300) -> str:
    return " ".join(str(error).split())[:characters]


def select(jobs: Sequence[Job], wanted: dict[str, set[str]]) -> list[Job]:
    """The jobs whose fields have one of the values that are wanted of them, which are text."""
    return [job for job in jobs if all(str(getattr(job, field)) in values for field, values in wanted.items())]
