"""Files and directories that are complete or absent, whatever stops the process that writes them.

What is being written stands beside its place under a name of its own, which begins with a dot and ends in the kind and
the number of the process. `clean` removes what processes left that were killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|partial|replaced)-\d+")


def write(path: str | Path, content: bytes | str) -> None:
    """Writes a file whole or not at all; what was there stays until the new content is on disk.

    Args:
        path: of the file; its directory is created if absent.
        content: text is encoded as UTF-8.

    Raises:
        OSError: it cannot be written; its name is `filename` of the error. The old file, if any, is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        with open(temporary, "wb") as file:  # not mkstemp: others may read what this user may let them read
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise


@contextlib.contextmanager
def directory(path: str | Path) -> Iterator[Path]:
    """A new directory to fill, which takes its name when the block ends and vanishes if it raises.

    Args:
        path: the final name; its parents are created. What stands there is replaced, and put back should that fail.

    Yields:
        The directory to fill, beside the final one.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp(), "model")
        >>> with directory(target) as partial:
        ...     _ = (partial / "config.json").write_text("{}")
        ...     target.exists()
        False
        >>> [file.name for file in target.iterdir()]
        ['config.json']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            _to_disk(file)
        _replace(partial, path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def clean(directory: str | Path) -> list[str]:
    """Removes what killed writers left in a directory, and puts back what one of them had just moved away.

    Only for a directory that no other process writes to.

    Args:
        directory: searched itself, not its directories.

    Returns:
        The names removed or put back, sorted.
    """
    found = []
    for entry in sorted(Path(directory).iterdir()) if Path(directory).is_dir() else ():
        if match := _LEFTOVER.fullmatch(entry.name):
            found.append(entry.name)
            target = entry.with_name(match["name"])
            if match["kind"] == "replaced" and not target.exists():
                os.rename(entry, target)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return found


def _name(error: BaseException, path: Path) -> None:
    """A full disk is found out in the middle of a file, where Python does not say of which."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        error.filename = str(path)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(new: Path, target: Path) -> None:
    """Rename `new` to `target`; what was there is put back should that fail, and removed once it has not."""
    if not target.exists():
        os.rename(new, target)
        return
    old = _beside(target, "replaced")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old)
