"""Text files that people wrote: UTF-8 or, marked by its byte order mark, UTF-16; anything else is refused by its place.

Editors and spreadsheets on Windows write both with a mark, which is no part of the text.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path

__all__ = ["read"]

_MARK = "\ufeff"


def read(path: str | Path) -> str:
    """The text of a file, with plain newlines and without byte order marks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a regular file, or not UTF-8 or UTF-16. The message names the line and the byte.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path} is not a file but a directory, a pipe, a device or a link to nothing.")
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide and not content.startswith(codecs.BOM_UTF32_LE) else "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _refusal(path, content[: error.start].decode(encoding, "ignore"), content[error.start]) from error
    if "\0" in text:  # UTF-16 without its mark reads as UTF-8 with a zero beside every letter
        raise _refusal(path, text.partition("\0")[0], 0)
    return text.replace(_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def _refusal(path: Path, before: str, byte: int) -> ValueError:
    line = before.count("\n") + 1
    return ValueError(
        f"{path}, line {line}: byte 0x{byte:02x} after {before.rpartition(chr(10))[2][-20:]!r} is not UTF-8 text. "
        "UTF-8 is read, and UTF-16 with a byte order mark. Save the file as UTF-8, or convert it; from Latin-1: "
        f"iconv -f LATIN1 -t UTF-8 {path.name} > converted.txt"
    )
