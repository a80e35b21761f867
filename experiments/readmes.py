"""The places in a README where a command writes what it measured; needs nothing installed."""

from __future__ import annotations

import re
from pathlib import Path


def fill(readme: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the file has no such lines.
    """
    old = readme.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{readme} has no lines <!-- {name} --> and <!-- /{name} --> to put the tables between")
    readme.write_text(pattern.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", old), encoding="utf-8")
