"""The directory of a run: whose it is, and what belongs to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from tajax import atomic
from tajax.config import config_hash, counts, diff

CONTENTS = ("config.json", "results.jsonl", "report.md", "heads", "task_vectors", "checkpoints", "merged", "model")


def claim(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
    """Makes the directory this config's own, or refuses because it is another's.

    A directory of the same config is kept as it is, so that finished work is found and skipped.

    Args:
        config: a validated config.
        workdir: an existing directory.
        overwrite: remove an earlier run's files (`CONTENTS`, nothing else) and start anew.

    Raises:
        FileExistsError: the directory holds a run of another config; the fields that differ are named.
        ValueError: `config.json` in it cannot be read.
    """
    path = workdir / "config.json"
    if overwrite:
        for name in CONTENTS:
            entry = workdir / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
            if not isinstance(earlier, dict):
                raise ValueError(f"it holds {earlier!r}, not an object")
        except ValueError as error:
            raise ValueError(
                f"{path} is no config ({error}). Choose another --workdir, or pass --overwrite."
            ) from error
        if config_hash(earlier) != config_hash(config):
            differing = [
                f"\n  {field}: {there!r} → {here!r}"
                for field, (there, here) in diff(earlier, config).items()
                if counts(field, config.workflow)
            ]
            raise FileExistsError(
                f"{workdir} holds a run of another config. What differs (there → here):{''.join(differing)}\n"
                "Choose another --workdir, or pass --overwrite to replace that run."
            )
        return
    if (workdir / "results.jsonl").exists():
        raise FileExistsError(
            f"{workdir} holds results without a config.json. Choose another --workdir, or --overwrite."
        )
    atomic.write(path, config.to_json(indent=1) + "\n")
