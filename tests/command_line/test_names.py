"""A name means one thing: `tajax.a.b` is what `import tajax.a.b` brings, whatever was imported before."""

import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import tajax

ROOT = Path(tajax.__file__).parent
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("__init__.py"))


def newly_executed(package):
    """The package's own `__init__` in a module that no import has touched: imports of submodules set no attribute."""
    spec = importlib.util.spec_from_file_location(package.__name__, package.__file__, submodule_search_locations=[])
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def names_that_mean_two_things(package):
    """Attributes of a package, those it finds on demand too, that have a submodule's name and are another object."""
    written = newly_executed(package)
    found = {}
    for inner in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        name = inner.name.rpartition(".")[2]
        if name != "__main__" and hasattr(written, name):
            value = getattr(written, name)
            if value is not importlib.import_module(inner.name):
                found[inner.name] = value
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_attribute_of_a_package_has_the_name_of_a_submodule(package):
    assert not names_that_mean_two_things(importlib.import_module(package))


@pytest.mark.parametrize(
    "text",
    [
        "def same(): pass",
        "from box.same import same",
        "def __getattr__(name):\n    if name == 'same': return len\n    raise AttributeError(name)",
    ],
    ids=["defined", "imported", "on demand"],
)
def test_such_an_attribute_would_be_found(text, tmp_path, monkeypatch):
    box = tmp_path / "box"
    box.mkdir()
    (box / "__init__.py").write_text(text)
    (box / "same.py").write_text("def same(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(names_that_mean_two_things(importlib.import_module("box"))) == ["box.same"]


def test_public_functions_are_no_modules_and_modules_are_found_by_their_path():
    assert inspect.isfunction(tajax.linearize)
    assert inspect.isfunction(importlib.import_module("tajax.linearization").linear_responses)
    with pytest.raises(ModuleNotFoundError, match="tajax.linearize"):
        importlib.import_module("tajax.linearize")


def test_dir_lists_public_names_and_rooms_alone():
    for name in set(dir(tajax)) - {"__version__"}:
        value = getattr(tajax, name)
        if isinstance(value, ModuleType):
            assert value.__name__ == f"tajax.{name}"
        else:
            assert name in tajax.__all__


def test_a_star_import_brings_what_is_declared():
    namespace = {}
    exec("from tajax import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(tajax.__all__)
