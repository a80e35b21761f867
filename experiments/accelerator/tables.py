"""The tables of the README, from the files of devices; Markdown alone, because a report needs more libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import readmes
from experiments.accelerator.kept import read
from experiments.accelerator.parts import PARTS
from tajax.types import JsonObject

Cell = Callable[[Any], str]

NONE = "–"


def _figures(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"


def _gib(value: Any) -> str:
    return f"{value / 2**30:.2f}"


def _list(value: Any) -> str:
    return ", ".join(map(str, value)) or NONE


COLUMNS: Mapping[str, Mapping[str, tuple[str, Cell]]] = {
    "parity": {
        "model": ("model", str),
        "precision": ("precision", str),
        "meaning": ("which is", str),
        "images": ("images", _figures),
        "features_mean": ("features, mean error", _figures),
        "features_max": ("largest", _figures),
        "gradient": ("gradient, error", _figures),
    },
    "steps": {
        "model": ("model", str),
        "regime": ("regime", str),
        "batch": ("batch", _figures),
        "refused": ("too large", _list),
        "seconds": ("s a step", _figures),
        "compile_seconds": ("compiled in s", _figures),
        "images_per_second": ("images/s", _figures),
        "teraflops": ("TFLOP/s", _figures),
        "utilisation": ("of the peak", lambda share: f"{100 * share:.0f} %"),
        "need": ("GiB, as compiled", lambda need: _gib(need["total"])),
        "peak_bytes": ("GiB, peak so far", _gib),
    },
    "pytorch": {
        "model": ("model", str),
        "regime": ("regime", str),
        "batch": ("batch", _figures),
        "products": ("products", str),
        "seconds": ("s a step", _figures),
        "images_per_second": ("images/s", _figures),
        "peak_bytes": ("GiB, peak so far", _gib),
        "missing": ("not measured", str),
    },
    "evaluation": {
        "model": ("model", str),
        "what": ("what", str),
        "regime": ("regime", str),
        "points": ("points", _figures),
        "images": ("images", _figures),
        "seconds": ("s", _figures),
        "images_per_second": ("images/s", _figures),
        "peak_bytes": ("GiB, peak so far", _gib),
    },
    "resume": {
        "regime": ("regime", str),
        "killed_after": ("killed after step", _figures),
        "resumed_from": ("went on from", _figures),
        "steps": ("steps", _figures),
        "bits_equal": ("bits equal", lambda equal: "yes" if equal else "no"),
        "largest_difference": ("largest difference", _figures),
        "loss_difference": ("of losses, relatively", _figures),
    },
    "devices": {
        "model": ("model", str),
        "devices": ("devices", _figures),
        "images": ("images", _figures),
        "correct": ("right, at each point", _list),
    },
    "merging": {
        "model": ("model", str),
        "method": ("method", str),
        "vectors": ("vectors", _figures),
        "seconds": ("s", _figures),
        "first": ("first run, s", _figures),
        "moved": ("moves, ‖·‖/‖θ₀‖", _figures),
        "peak_bytes": ("GiB, peak so far", _gib),
    },
}
"""What is shown of the rows of each part: a title, and how a value is written."""


def markdown(record: JsonObject) -> str:
    """The tables of one device, under a heading that says which."""
    small = "" if record["sizes"] == "real" else f", {record['sizes']} sizes"
    sections = [f"### {record['device_kind']} × {record['device_count']}{small}"]
    for name, part in PARTS.items():
        if name in record["parts"]:
            sections.append(_part(name, part.title, record["parts"][name]))
    return "\n\n".join(sections)


def _part(name: str, title: str, found: Mapping[str, Any]) -> str:
    columns = COLUMNS[name]
    lines = [
        _line([heading for heading, _ in columns.values()]),
        "|" + " --- |" * len(columns),
        *(_line([_cell(row, key, write) for key, (_, write) in columns.items()]) for row in found["rows"]),
    ]
    notes = [_origin(found)]
    if name == "devices" and [row["devices"] for row in found["rows"]] == [1]:
        notes.append("One device is all there is: nothing was compared.")
    if found["state"] == "failed":
        notes.append(f"**Failed**: {' '.join(found['error'].split())[:300]}")
    return "\n".join([f"#### {title}", "", *(lines if found["rows"] else ()), "", *(f"- {note}" for note in notes)])


def _cell(row: Mapping[str, Any], key: str, write: Cell) -> str:
    return NONE if row.get(key) is None else write(row[key]).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _origin(found: Mapping[str, Any]) -> str:
    versions = found["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax", "optax") if name in versions)
    state = "" if found["state"] == "done" else f", {found['state']}"
    revision = found.get("git_revision", "unknown")
    return f"{found['time']}, tajax {versions['tajax']} at {revision}, {named}, {found['cpu_count']} cores{state}."


def in_words(row: Mapping[str, Any]) -> str:
    """A row as a line of text: what it is of, and its figures."""
    shown = {key: value for key, value in row.items() if value is not None and key not in ("meaning", "need")}
    texts = (f"{key} {_figures(value) if isinstance(value, float) else value}" for key, value in shown.items())
    return ", ".join(texts)


def write(folder: Path, readme: Path | None) -> None:
    """The tables of all devices whose files lie in a folder, into a README, or onto the screen."""
    text = "\n\n".join(markdown(read(path)) for path in sorted(folder.glob("*.json")))
    if readme is None:
        print(text)
    else:
        readmes.fill(readme, "devices", text or "None yet.")
