"""Files of a data set wherever they lie: in directories, in zip and in tar archives, all read in the same way.

Nothing is ever unpacked to disk: members are read into memory one at a time. Names that point outside of their archive
are refused nevertheless, because somebody made them on purpose.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")
_DAMAGE = (
    UnicodeDecodeError,
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,
    RuntimeError,
)
_LARGEST = 2**30  # bytes of one member; the largest real one is fer2013.csv with 2**28.2


class BadArchiveError(ValueError):
    """Files of a data set that are missing, damaged or contradict each other. The message names file and row."""


class Store(Protocol):
    """Named files, in a fixed order."""

    @property
    def path(self) -> Path:
        """The archive, or the directory that names are relative to."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Relative paths with forward slashes, in the order in which `stream` gives the files."""
        ...

    def stream(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """The files asked for, each with its name, in the order of `self.names`.

        Raises:
            BadArchiveError: the archive is damaged. The message names it and the file.
        """
        ...


def describe(store: Store, name: str) -> str:
    """Where a file lies, for messages: the path of an unpacked one, `archive:path` of one in an archive."""
    return str(store.path / name) if isinstance(store, Unpacked) else f"{store.path}:{name}"


def read(store: Store, name: str) -> bytes:
    """One file of a store; errors as in `Store.stream`."""
    return next(iter(store.stream((name,))))[1]


class Unpacked:
    """Files that lie open under a directory.

    Args:
        path: names are relative to it.
        entries: the files and directories under `path` that belong to the data set.
    """

    def __init__(self, path: Path, entries: Collection[Path]):
        self.path, self.entries = path, sorted(entries)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """As in `Store`; hidden files are left out."""
        found = []
        for entry in self.entries:
            if entry.is_file():
                found.append(entry.relative_to(self.path).as_posix())
            for directory, _, files in os.walk(entry):
                relative = Path(directory).relative_to(self.path)
                found += [(relative / file).as_posix() for file in files if not file.startswith(".")]
        return tuple(sorted(found))

    def stream(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """As in `Store`."""
        wanted = set(names)
        for name in self.names:
            if name in wanted:
                try:
                    yield name, (self.path / name).read_bytes()
                except OSError as error:
                    raise BadArchiveError(f"{self.path / name} cannot be read: {error}") from error


class Zip:
    """The members of a zip archive."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def names(self) -> tuple[str, ...]:
        """As in `Store`; directories and hidden files are left out."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [member for member in archive.infolist() if not member.filename.endswith("/")]
        except _DAMAGE as error:
            raise _damaged(self.path, None, error) from error
        for member in members:
            _check(self.path, member.filename, member.file_size)
        return tuple(member.filename for member in members if _visible(member.filename))

    def stream(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """As in `Store`."""
        wanted, at = set(names), None
        try:
            with zipfile.ZipFile(self.path) as archive:
                for at in self.names:
                    if at in wanted:
                        content = archive.read(at)
                        yield at, content
        except _DAMAGE as error:
            raise _damaged(self.path, at, error) from error


class Tar:
    """The members of a tar archive, compressed or not. Reading any of a compressed one unpacks all before it."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def names(self) -> tuple[str, ...]:
        """As in `Store`; directories and hidden files are left out."""
        return tuple(name for name, _ in self._members(()))

    def stream(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """As in `Store`."""
        wanted = set(names)
        for name, content in self._members(wanted):
            if content is not None:
                yield name, content

    def _members(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        """All visible members in order, with the content of those that are wanted."""
        at = None
        try:
            with tarfile.open(self.path, "r|*") as archive:
                for member in archive:
                    at = member.name.removeprefix("./")
                    if member.isdir():
                        continue
                    _check(self.path, member.name, member.size)
                    if not member.isreg():
                        raise BadArchiveError(f"archive {self.path} holds a link or device, {at!r}: it is not read")
                    if not _visible(at):
                        continue
                    file = archive.extractfile(member) if at in wanted else None
                    content = None if file is None else file.read()
                    if content is not None and len(content) != member.size:
                        raise EOFError("ends too early")
                    yield at, content
        except _DAMAGE as error:
            raise _damaged(self.path, at, error) from error


def open_archive(path: Path) -> Zip | Tar:
    """The store of an archive, told by its content, since a downloaded file may have any name.

    Raises:
        BadArchiveError: it is no archive, or it is cut off at its beginning.
    """
    try:
        if zipfile.is_zipfile(path) or path.suffix == ".zip":
            return Zip(path)
        if tarfile.is_tarfile(path):
            return Tar(path)
    except _DAMAGE as error:
        raise _damaged(path, None, error) from error
    raise _damaged(path, None, ValueError("neither a zip nor a tar archive"))


def stores_in(directory: Path, place: re.Pattern[str]) -> list[Store]:
    """What a directory holds of one data set: its open files as one store, then each of its archives.

    Args:
        directory: where people put what they download; it may hold other data sets, too, and may be absent.
        place: matches, at its beginning, the names of the data set's files and directories at the top of `directory`.
            Archives are also looked for one level down, in directories that match.

    Raises:
        BadArchiveError: an archive is none.
    """
    if not directory.is_dir():
        return []
    entries = [entry for entry in directory.iterdir() if place.match(entry.name)]
    near = [inner for entry in entries if entry.is_dir() for inner in entry.iterdir()]
    archives = sorted(path for path in entries + near if path.is_file() and path.name.lower().endswith(ARCHIVES))
    loose = [entry for entry in entries if entry not in archives]
    return ([Unpacked(directory, loose)] if loose else []) + [open_archive(path) for path in archives]


def md5_of(path: Path) -> str:
    """The MD5 sum of a file, which is what the publishers of data sets give: against damage, not against attack."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_plain(name: str, where: str) -> str:
    """`name` itself if it is that of a file and nothing more.

    Raises:
        BadArchiveError: it has directories in it, or leads upwards.
    """
    if not name or name in (".", "..") or re.search(r"[/\\\0:]", name):
        raise BadArchiveError(f"{where} names the image {name!r}; only a plain file name without a path is accepted")
    return name


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _check(archive: Path, name: str, size: int) -> None:
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or ":" in parts[0]:
        raise BadArchiveError(
            f"archive {archive} holds {name!r}, a path that leads out of it. No official archive has one: delete the "
            "file and fetch it anew from its publisher."
        )
    if size > _LARGEST:
        raise BadArchiveError(f"archive {archive} holds {name!r} with {size:,} bytes; expected at most {_LARGEST:,}")


def _damaged(archive: Path, name: str | None, error: Exception) -> BadArchiveError:
    place = f" at {name!r}" if name else ""
    return BadArchiveError(
        f"archive {archive} is truncated or damaged{place}: {error}. Its size is {archive.stat().st_size:,} bytes; "
        "compare it with the publisher's and fetch it anew."
    )
