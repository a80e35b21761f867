"""The notebooks of experiments/notebooks: each runs, and what is committed is what running it gave."""

import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs Jupyter: pip install -e '.[notebooks]'")
pytest.importorskip("nbclient", reason="needs Jupyter: pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="needs Jupyter: pip install -e '.[notebooks]'")

from experiments.notebooks import execution  # noqa: E402

LARGEST = 300_000  # bytes of a committed notebook


@pytest.fixture(params=execution.NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return execution.read(name)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said_by(notebook):
    """All text that the outputs hold."""
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    data = [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "".join([output.get("text", "") for output in outputs] + data)


def test_every_notebook_is_listed():
    assert {path.stem for path in execution.HERE.glob("*.ipynb")} == set(execution.NAMES) == set(execution.QUICK)
    readme = (execution.HERE / "README.md").read_text()
    assert all(f"({name}.ipynb)" in readme for name in execution.NAMES)


def test_it_runs_from_top_to_bottom_in_a_fresh_kernel(name, notebook, tmp_path):
    if name == "task_vectors_anywhere":
        pytest.importorskip("equinox", reason="needs Jupyter: pip install -e '.[notebooks]'")
    directory = tmp_path / "work"
    directory.mkdir()
    executed = execution.execute(execution.with_parameters(notebook, execution.QUICK[name]), directory)
    said = said_by(executed)
    assert "Warning" not in said.replace("TqdmWarning", "")
    assert str(tmp_path) not in said
    assert len(nbformat.writes(execution.kept(executed, seconds=0))) < LARGEST


def test_the_first_cell_installs(notebook):
    first, second = code_of(notebook)[:2]
    others = {code_of(execution.read(name))[0].source for name in execution.NAMES}
    assert others == {first.source}, "one install cell for all notebooks"
    assert "%pip install" in first.source and 'SOURCE = ""  # @param' in first.source
    assert "jax.device_count()" in second.source


def test_what_is_committed_is_what_was_executed(notebook):
    assert notebook.metadata.tajax.digest == execution.digest(notebook), (
        "the code is not that of the outputs: python -m experiments.notebooks NAME"
    )
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        shows = re.search(r"^(figure, |print\(|report\.show\()", cell.source, re.MULTILINE)
        if shows and not execution.tagged(cell, execution.LIVE):
            assert cell.outputs, cell.source


def test_committed_outputs_are_of_no_machine_and_no_day(name, notebook):
    path = execution.HERE / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST
    said = said_by(notebook)
    assert not re.search(r"/(root|home|tmp|work|usr|Users|content)/|Warning|\x1b\[", said)
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", said)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    assert all(output.get("name") != "stderr" for cell in code_of(notebook) for output in cell.outputs)


def test_markdown_has_one_title_and_headings_in_order(notebook):
    headings = [
        len(line) - len(line.lstrip("#"))
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))


def test_parameters_that_do_not_exist_are_refused(notebook):
    with pytest.raises(ValueError, match="STEPZ"):
        execution.with_parameters(notebook, {"STEPZ": 1})
