"""What was measured on a device: one JSON file, written anew after every row."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tajax.types import JsonObject

__all__ = ["Kept", "read", "slug"]


class Kept:
    """The file of a device.

    Args:
        folder: where it lies, `DEVICE.json`, and `DEVICE_tiny.json` of tiny sizes.
        kind: of the device.
        count: how many there are in the machine.
        sizes: a row of `workloads.SIZES`.
    """

    def __init__(self, folder: Path, kind: str, count: int, sizes: str) -> None:
        self.path = folder / f"{slug(kind)}{'' if sizes == 'real' else f'_{sizes}'}.json"
        found = read(self.path) if self.path.exists() else {}
        self._record = {"device_kind": kind, "device_count": count, "sizes": sizes, "parts": found.get("parts", {})}

    @property
    def parts(self) -> dict[str, Any]:
        """Of each part that was begun: `state` ("unfinished", "done" or "failed"), `rows`, `error` and its origin."""
        return self._record["parts"]

    def done(self, part: str) -> bool:
        """Whether a part came to its end without an error."""
        return self.parts.get(part, {}).get("state") == "done"

    def write(self, part: str, found: JsonObject) -> None:
        """Keeps what there is of a part; the file is whole at every moment."""
        self.parts[part] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self._record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def read(path: Path) -> JsonObject:
    """The record in a file.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}. Remove it, or give another --out.") from error


def slug(kind: str) -> str:
    """The kind of a device as a file's name.

    Example:
        >>> slug("NVIDIA H100 80GB HBM3")
        'nvidia_h100_80gb_hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
