"""How Sphinx builds the documentation: `sphinx-build -W --keep-going -n -c tajax/docs . OUTPUT`.

The source directory is the repository, so that a relative link between two Markdown files is the same on GitHub and in
the built site, and the READMEs of experiments, their figures and the notebooks are pages without being copied.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tests import this file without Sphinx
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tajax.docs import mathematics, pages, signatures  # noqa: E402

_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project, release = _project["name"], _project["version"]
copyright = "the authors of tajax, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "tajax/docs/index"
include_patterns = [
    "README.md",
    "tajax/CHANGELOG.md",
    "tajax/docs/**",
    "tajax/assets/*/README.md",
    "experiments/README.md",
    "experiments/*/README.md",
    "experiments/notebooks/*.ipynb",
]
exclude_patterns = [".*", "runs", "tests", "**/results", "**/__pycache__"]  # not looked into

# Markdown and notebooks. Notebooks are committed with their outputs; nothing is run here.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"

# The reference. House style writes code in docstrings as in Markdown, with single backticks.
default_role = "code"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
# Every reference must be found, but for names of other projects, which are not linked, and for aliases and type
# variables in signatures: our own classes are written out there (signatures.py), so that short names are none of them.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|jaxtyping|numpy|np|scipy|os|pathlib|collections|flax|optax|ml_collections)\..*"),
    ("py:class", r"[A-Z]\w*|'[A-Z]'|ndarray"),  # 'L': an axis, of shapes within other types
    # Of inner modules:
    ("py:.*", r"(tajax\.)?(\w+\.)*(Form|Interrupted|Item|Plan|R|\w*Source|SplitRule|State|_TowerConfig)"),
]
napoleon_use_ivar = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style")]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"tajax {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "start.html"}
templates_path = ["templates"]


def setup(app: Sphinx) -> None:
    """Pages that are made rather than written, signatures as in the source, and formulas that need no network."""
    mathematics.add(app)
    app.connect("source-read", pages.add)
    app.connect("autodoc-process-signature", signatures.as_written)
    app.connect("autodoc-process-docstring", signatures.texts_hold_no_types, priority=900)  # after Napoleon
