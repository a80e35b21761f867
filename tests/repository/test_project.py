"""The project as a newcomer meets it."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

import tajax

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = "[ -d .venv ] || python3 -m venv .venv; . .venv/bin/activate && "


def test_readme_opens_with_two_commands_that_set_themselves_up():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("[ -d .venv ]")]
    assert commands == [
        SETUP + "pip install -e . && python -m tajax.main --config=configs/attn.py",
        SETUP + "pip install -e '.[test]' && pytest",
    ]
    assert blocks[0] + blocks[1] == "\n".join(commands) + "\n"


def test_version_is_one():
    assert PROJECT["project"]["version"] == tajax.__version__
    assert f"## {tajax.__version__}" in (ROOT / "tajax" / "CHANGELOG.md").read_text()


def test_licence_travels_with_the_package():
    assert "Apache License" in (ROOT / "tajax" / "LICENSE").read_text()[:200]
    assert (ROOT / "tajax" / "py.typed").exists()


def test_light_extras_bring_no_torch_and_the_heavy_one_pins_it():
    extras = PROJECT["project"]["optional-dependencies"]
    light = [*PROJECT["project"]["dependencies"], *extras["test"]]
    assert not [name for name in light if re.match(r"(torch|tensorflow)\b(?!-datasets)", name)]
    assert "torch==2.13.0" in extras["parity"]
    assert set(extras) >= {"cuda12", "tpu", "test", "parity", "prepare"}


def imported_at_once(path):
    """What the import of a module imports: not what stands in a function, a `try` or beneath `if TYPE_CHECKING`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_every_module_can_be_imported_without_an_extra():
    """Its doctests are collected by the README's second command, which installs next to none."""
    named = {re.split(r"[^\w.-]", wanted)[0] for wanted in PROJECT["project"]["dependencies"]}
    allowed = {re.sub(r"[-_.]+", "-", name).lower() for name in named} | {"tajax"}
    brought_by = importlib.metadata.packages_distributions()
    for path in sorted((ROOT / "tajax").rglob("*.py")):
        for name in set(imported_at_once(path)) - sys.stdlib_module_names:
            found = {re.sub(r"[-_.]+", "-", one).lower() for one in brought_by.get(name, ())}
            assert found & allowed, f"{path.relative_to(ROOT)} imports {name}, which is no dependency"


def test_no_module_is_imported_in_a_circle_not_even_for_its_types():
    """Beside the two that name for type checkers what they import on demand, no `TYPE_CHECKING` hides a circle."""
    grimp = pytest.importorskip("grimp", reason="needs grimp: pip install -e '.[dev]'")
    graph = grimp.build_graph("tajax", exclude_type_checking_imports=False)
    on_demand = {"tajax", "tajax.encoders"}
    imports = {name: graph.find_modules_directly_imported_by(name) - on_demand for name in graph.modules - on_demand}
    while leaves := {name for name, wanted in imports.items() if not wanted}:
        imports = {name: wanted - leaves for name, wanted in imports.items() if name not in leaves}
    assert not imports, "each of these imports another of them: " + ", ".join(sorted(imports))


def names_read(path):
    """The names that a file imports or reads as attributes, and those that it reads by themselves."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return imported | attributes, {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def test_every_public_name_of_a_module_is_read_by_somebody():
    """In its own module, or by import or as an attribute elsewhere, in a test at least."""
    files = [path for room in ("tajax", "experiments", "configs", "tests") for path in (ROOT / room).rglob("*.py")]
    read = {path: names_read(path) for path in files}
    anywhere = set().union(*(outside for outside, _ in read.values()))
    for path in (path for path in files if (ROOT / "tajax") in path.parents and path.name != "conf.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert node.name in anywhere | read[path][1], f"{path.relative_to(ROOT)}: nobody reads {node.name}"


def test_a_test_that_wants_an_extra_says_how_to_get_it():
    """What is skipped under the README's command for this reason runs in the gate, which looks for these words."""
    wanted = r"(?:importorskip\(\"[\w.]+\"|find_spec\(.*), *reason=\"(.*)\"\)"
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    reasons = re.findall(wanted, texts)
    assert len(reasons) == len(re.findall(r"pytest\.importorskip\(|find_spec\(", texts)) > 10
    extras = set(PROJECT["project"]["optional-dependencies"])
    for reason in set(reasons):
        named = re.fullmatch(r"needs \w+: pip install -e '\.\[(\w+)\]'", reason)
        assert named and named[1] in extras, reason


def test_committed_records_name_programs_by_their_paths_here():
    """A path of the machine that measured helps nobody."""
    files = [path for kind in ("json", "jsonl") for path in sorted((ROOT / "experiments").glob(f"*/results/*.{kind}"))]
    found = [path.name for path in files if re.search(r'"command": "(\S*python\S* )?/', path.read_text())]
    assert files and not found
