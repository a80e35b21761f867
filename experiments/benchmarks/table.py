"""The README's tables, made from the JSON files of the scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import record

BEGIN, END = "<!-- tables: made by run.py from results/*.json -->", "<!-- end of tables -->"
ORDER = ("sweep_linear", "disentanglement_map", "sweep_nonlinear", "train_step", "merge")
MET = {True: "yes", False: "**no**", None: ""}


def read(results: Path) -> list[dict]:
    """The records of a folder, in the order of the tables."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return sorted((r for r in records if r["benchmark"] in ORDER), key=lambda r: ORDER.index(r["benchmark"]))


def markdown(records: Sequence[Mapping]) -> str:
    """Times, agreement and machine, as Markdown."""
    return "\n\n".join([_times(records), _agreement(records), _machine(records)])


def write(records: Sequence[Mapping], readme: Path) -> None:
    """Puts the tables between the markers of the README.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} lacks the lines {BEGIN!r} and {END!r} between which the tables go")
    readme.write_text(f"{before}{BEGIN}\n\n{markdown(records)}\n\n{END}{after}", encoding="utf-8")


def _times(records: Iterable[Mapping]) -> str:
    lines = _table("model", "what", "tajax, s", "against", "s", "ratio (smallest–largest)", "target", "met?")
    for r in records:
        for row in r["rows"]:
            target = "" if row["target"] is None else f"{row['sense']} {row['target']:g}"
            ours, other = (record.figures(row[side]["median"]) for side in ("tajax", "other"))
            cells = (row["what"], ours, row["against"], other, record.verdict(row), target, MET[row["met"]])
            lines.append(_line(r["model"], *cells))
    return "\n".join(lines)


def _agreement(records: Iterable[Mapping]) -> str:
    lines = _table(
        "model", "what", "(image, α) pairs", "correctness differs", "without a tie", "images whose class moves"
    )
    for r in records:
        for name, agrees in r.get("agreement", {}).items():
            fields = ("pairs", "differing", "differing_without_tie", "predictions_that_change")
            lines.append(_line(r["model"], f"{r['benchmark']}: {name}", *(f"{agrees[field]:,}" for field in fields)))
    return "\n".join(lines)


def _machine(records: Iterable[Mapping]) -> str:
    """One line for each machine and set of versions that the records name."""
    seen = {
        f"{r['processor']}, {r['cpu_count']} cores, JAX {r['versions']['jax']}, PyTorch {r['torch']}, "
        f"Python {r['versions']['python']}, tajax at {r.get('git_revision', 'no known revision')}."
        for r in records
    }
    return "\n".join(sorted(seen))


def _table(*columns: str) -> list[str]:
    return [_line(*columns), "|" + "---|" * len(columns)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
