"""What stands behind the names in a run's config: kept when the run begins, compared when it goes on.

`config.json` says which tasks, model and checkpoints are meant, `inputs.json` what they were when the run began. A run
whose images, class names or text tower were edited since does not take what was computed before for done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tajax import atomic, data, processes, progress
from tajax.data import fingerprint
from tajax.encoders.encoder import Encoder
from tajax.models.hub import split_choice
from tajax.types import JsonObject
from tajax.workflows.vectors import places
from tajax.workflows.workdir import vector_path

FILE = "inputs.json"
_FORMERLY = {"encoder": "image tower"}
_MADE = ("results.jsonl", "heads", "task_vectors", "checkpoints")  # what a run takes for done when it goes on


def of_tasks(config: ConfigDict, encoder: Encoder, tasks: Sequence[data.Task]) -> JsonObject:
    """The inputs of a run on tasks, in the form of `keep`.

    Args:
        config: of the run.
        encoder: the model; its weights are known by their own digest, `base_sha256`, and are left out here.
        tasks: the tasks and the control, opened and checked.

    Returns:
        `tasks`, the fingerprint of each, and `facts`: preprocessing and geometry; what zero-shot heads are made from;
        the content of each vector or checkpoint that is reused, where it lies on this machine.
    """
    facts: JsonObject = {"preprocessing": encoder.inputs.to_json(), "encoder": encoder.identity.geometry}
    if config.heads == "zero_shot" and encoder.zero_shot:
        texts = [
            template.replace("{}", name) for task in tasks for template in task.templates for name in task.class_names
        ]
        facts |= encoder.zero_shot.made_from(texts)
    facts |= dict(_vectors(config, tasks))
    return {"tasks": {task.name: fingerprint.of_task(task) for task in tasks}, "facts": facts}


def keep(workdir: Path, inputs: JsonObject) -> None:
    """Keeps the inputs of a run that begins; of one that goes on, refuses others.

    Args:
        workdir: claimed for the run.
        inputs: `tasks`, a fingerprint each, and `facts`, JSON values by what they are.

    Raises:
        FileExistsError: what is in the directory was made from other inputs; what differs is named.
        ValueError: `inputs.json` in it cannot be read.
    """
    if not processes.is_first():
        return
    path, begun = workdir / FILE, any((workdir / name).exists() for name in _MADE)
    earlier = _read(path) if begun and path.exists() else None
    if begun and earlier is None:
        progress.say(
            f"{workdir} was begun by a version that did not keep what its data were: whether they are the same is not "
            "known. From now on it is."
        )
    inputs = json.loads(json.dumps(inputs))
    if earlier is not None:
        if found := list(_differences(earlier, inputs)):
            raise FileExistsError(
                f"{workdir} holds a run of the same config on other inputs. What differs (there → here):"
                + "".join(f"\n  {line}" for line in found)
                + "\nChoose another --workdir, or pass --overwrite to replace that run."
            )
        inputs = {part: earlier[part] | inputs[part] for part in ("tasks", "facts")}  # what was not there is kept
    if inputs != earlier:
        atomic.write(path, json.dumps(inputs) + "\n")


def known_of(earlier: Mapping[str, Any], what: str, otherwise: Any) -> Any:
    """What a file says of something, under the name of today or the one that earlier versions gave it."""
    return earlier.get(what, earlier.get(_FORMERLY.get(what, what), otherwise))


def _read(path: Path) -> JsonObject:
    try:
        inputs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(inputs["tasks"], dict) or not isinstance(inputs["facts"], dict):
            raise TypeError("its tasks or facts are not objects")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not say what the run was begun with ({error}). Choose another --workdir, or pass --overwrite."
        ) from error
    return inputs


def _differences(earlier: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    """What both know and have differently."""
    texts = False
    for task, found in present["tasks"].items():
        if task in earlier["tasks"]:
            before = earlier["tasks"][task]
            texts = texts or any(before[part] != found[part] for part in fingerprint.TEXTS)
            yield from (f"task {task}, {line}" for line in fingerprint.differences(before, found))
    for what, value in present["facts"].items():
        known = known_of(earlier["facts"], what, value)
        if isinstance(known, dict) and isinstance(value, dict):
            yield from (
                f"{what} {key}: {known[key]} → {new}" for key, new in value.items() if known.get(key, new) != new
            )
        elif known != value and not (texts and what == "tokens of the prompts"):  # which follow from the names
            yield f"{what}: {known} → {value}"


def _vectors(config: ConfigDict, tasks: Sequence[data.Task]) -> Iterator[tuple[str, str]]:
    """A digest of the task vector or checkpoint of each task that is not trained here."""
    if config.task_vectors is not None:
        run = Path(os.path.expanduser(config.task_vectors))
        found = {task.name: str(vector_path(run, task.name)) for task in tasks}
    else:
        found = places(config, tasks) if config.checkpoints else {}
    for task, place in found.items():
        path = Path(os.path.expanduser(split_choice(place)[0]))
        if path.exists():  # what comes from the hub is not asked for again
            yield f"{place} (task {task})", fingerprint.of_files(path)
