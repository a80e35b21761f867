"""Files and directories that are complete or absent, whatever stops the process that writes them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write(path: str | Path, content: bytes | str) -> None:
    """Writes a file whole or not at all; what was there stays until the new content is on disk.

    Args:
        path: of the file; its directory is created if absent.
        content: text is encoded as UTF-8.

    Raises:
        OSError: it cannot be written. The old file, if any, is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:  # not mkstemp: others may read what this user may let them read
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, target: Path) -> None:
    """Rename `new` to `target`; what was there is put back should that fail, and removed once it has not."""
    if not target.exists():
        os.rename(new, target)
        return
    old = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old)
