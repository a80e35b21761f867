"""Notebooks executed from top to bottom in a fresh kernel, and what of that is kept.

Parameters stand in one cell tagged `parameters`, as papermill has it. `QUICK` holds the small ones
that tests inject in a cell behind it; what is committed comes from the notebook's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).parent
NAMES = (
    "ten_minutes",
    "task_vectors_anywhere",
    "linearisation_and_ntk",
    "merge_from_the_hub",
    "full_protocol_on_a_tpu",
)
QUICK: Mapping[str, Mapping[str, object]] = {
    "ten_minutes": {"TASKS": ("digits", "textures"), "STEPS": 12, "COEFS": (0.0, 0.5, 1.0)},
    "task_vectors_anywhere": {"STEPS": 800},
    "linearisation_and_ntk": {"STEPS": 300, "WIDTHS": (8, 64, 256), "MANY": 500},
    "merge_from_the_hub": {"TASKS": ("digits", "textures"), "STEPS": 40, "COEFS": (0.0, 0.5, 1.0)},
    "full_protocol_on_a_tpu": {
        "REGIMES": ("standard", "attention"),
        "TASKS": ("digits",),
        "STEPS": 4,
        "CONTROL": None,
    },
}
LIVE = "live"  # tag of cells whose output is for the session alone, such as the whole report
TIMEOUT = 3600  # seconds a cell may take


def read(name: str) -> NotebookNode:
    """The committed notebook of that name."""
    return nbformat.read(HERE / f"{name}.ipynb", as_version=4)


def tagged(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell has the tag."""
    return tag in cell.metadata.get("tags", ())


def with_parameters(notebook: NotebookNode, values: Mapping[str, object]) -> NotebookNode:
    """The notebook with other values for names of its parameter cell, in a cell behind it.

    Raises:
        ValueError: there is no parameter cell, or it does not have one of the names.
    """
    index = next((i for i, cell in enumerate(notebook.cells) if tagged(cell, "parameters")), None)
    if index is None:
        raise ValueError("no cell is tagged 'parameters'")
    lines = notebook.cells[index].source.splitlines()
    defined = {line.partition("=")[0].strip() for line in lines if "=" in line}
    unknown = set(values) - defined
    if unknown:
        raise ValueError(f"{sorted(unknown)} are not among the parameters {sorted(defined)}")
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    injected = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    copy = nbformat.from_dict(notebook)
    copy.cells = [*notebook.cells[: index + 1], injected, *notebook.cells[index + 1 :]]
    return copy


def execute(notebook: NotebookNode, directory: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh kernel that works in `directory`.

    `directory/data` is the data directory of this machine, $TAJAX_DATA_DIR, if there is one; the
    checkout can be imported.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell.
    """
    data_dir = os.environ.get("TAJAX_DATA_DIR")
    if data_dir and not (directory / "data").exists():
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        (directory / "data").symlink_to(Path(data_dir).resolve(), target_is_directory=True)
    copy = nbformat.from_dict(notebook)
    place = {"metadata": {"path": str(directory)}}
    client = nbclient.NotebookClient(copy, timeout=TIMEOUT, kernel_name="python3", resources=place)
    with _environment(directory):
        return client.execute()


@contextlib.contextmanager
def _environment(directory: Path) -> Iterator[None]:
    """What the kernel inherits: the checkout on its path, and no start-up file of anybody."""
    path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    changed = {"PYTHONPATH": path, "IPYTHONDIR": str(directory / ".ipython")}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def digest(notebook: NotebookNode) -> str:
    """SHA-256 of the sources of the code cells, by which outputs are known to be of them."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()


def _plain(output: NotebookNode) -> NotebookNode:
    """The output without the colours of a terminal, which stand beside HTML that has its own."""
    if "text/plain" in output.get("data", {}):
        output.data["text/plain"] = re.sub(r"\x1b\[[0-9;]*m", "", output.data["text/plain"])
    return output


def kept(notebook: NotebookNode, *, seconds: float) -> NotebookNode:
    """An executed notebook as it is committed: no times of day, no progress lines, no colours.

    Args:
        notebook: from `execute`.
        seconds: it took; stands in the metadata, with the digest of what was executed.
    """
    copy = nbformat.from_dict(notebook)
    for number, cell in enumerate(copy.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            shown = [] if tagged(cell, LIVE) else cell.outputs
            cell.outputs = [_plain(output) for output in shown if output.get("name") != "stderr"]
    runtime = {
        key: notebook.metadata[key] for key in ("accelerator", "colab") if key in notebook.metadata
    }
    copy.metadata = runtime | {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "tajax": {"digest": digest(copy), "seconds": round(seconds)},
    }
    return nbformat.from_dict(copy)
