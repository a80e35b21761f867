"""Config files by path or by name: those in ./configs, and those that come with tajax."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def found() -> dict[str, Path]:
    """The config files that a name alone is enough for: those in ./configs, then those that come with tajax."""
    here = {path.stem: path for path in sorted(Path("configs").glob("*.py"))}
    return here | {path.stem: path for path in shipped() if path.stem not in here}


def shipped() -> list[Path]:
    """The config files that come with tajax: in the package, or beside it where it runs from its repository."""
    within, beside = PACKAGE / "configs", PACKAGE.parent / "configs"
    repository = (PACKAGE.parent / "pyproject.toml").is_file()
    return sorted((beside if repository and not within.is_dir() else within).glob("*.py"))


def locate(given: str) -> Path:
    """The config file that `given` means: the path of a file, or a name of `found`.

    Raises:
        FileNotFoundError: it is neither. The message has the nearest, and all names.
    """
    known = found()
    if Path(given).is_file():
        return Path(given)
    if given in known:
        return known[given]
    near = difflib.get_close_matches(Path(given).stem, known, n=1, cutoff=0.5)
    as_path = Path(given).suffix == ".py" and near and not known[near[0]].is_absolute()
    meant = f" Did you mean {str(known[near[0]] if as_path else near[0])!r}?" if near else ""
    raise FileNotFoundError(f"no config file {given!r}.{meant} {choices()}")


def choices() -> str:
    """Which configs there are, and what else can be given, for a message."""
    return f"Configs here: {', '.join(found())}; or the path of a file of your own, such as path/to/mine.py."


def summary(path: Path) -> str:
    """The first line of a config file's docstring. The file is read, and nothing in it is run."""
    try:
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (SyntaxError, ValueError, OSError):
        return "(cannot be read as Python)"
    return text.partition("\n")[0]
