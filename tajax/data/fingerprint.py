"""What a task is, in a few lines of JSON, so that a run can tell whether it is still the same.

A split is its labels and the content of its images or texts, in order: neither names of files nor their times count,
so that a copy of a data set is the same data set, and a file with as many bytes and other pixels is not.

- Files are read once at the beginning of a run anyway, to find broken ones (`memory.check`); their digests cost a
  SHA-256 of bytes that are there: a twentieth more, 1.4 GB a second and core.
- Arrays are hashed image by image, and texts one by one.
- Records of prepared data sets are too many and too rarely edited to be read: what counts is the name and version of
  the data set, its size, which records the split takes, and `PROBES` of them by their pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tajax.data import archives, builders
from tajax.data.captions import CaptionedImages
from tajax.data.memory import DIGEST, digest, digests
from tajax.data.sources import ArraySource, BadLabelError, FileSource, RecordSource, Rows, Source, TextSource, what_of
from tajax.data.tasks import Task
from tajax.types import JsonObject

TEXTS = ("class_names", "templates")  # parts of a fingerprint that become prompts
PROBES = 32  # records of a split that are looked at
_HEX = 16  # digits of a digest in a fingerprint
_SHOWN = 3  # names or classes in a line


def of_task(task: Task) -> JsonObject:
    """What an opened task is: class names, templates and the content of each split.

    Args:
        task: after `check_images`, which has read the files; otherwise they are read here.

    Returns:
        A JSON object: `class_names`, `templates`, and `splits` with `images` or `texts`, their number, and `sha256` of
        each; where labels are known without reading, `classes` with the number and a digest of each class.

    Raises:
        BadImageError: one of the records that are looked at cannot be read.
    """
    splits = {name: _of_split(source, f"{task.name}/{name}", task) for name, source in task.splits.items()}
    return {"class_names": list(task.class_names), "templates": list(task.templates), "splits": splits}


def of_captions(captioned: CaptionedImages) -> str:
    """A digest of images with captions, of both."""
    texts = json.dumps(captioned.phrases).encode()
    rows = np.ascontiguousarray(captioned.labels, "<i4").tobytes()
    return _hexadecimal(texts + rows + digest(np.ascontiguousarray(captioned.images).data))


def of_files(place: Path) -> str:
    """A digest of a file, or of all that lie directly in a directory, with their names.

    Raises:
        OSError: one cannot be read.
    """
    files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.name.encode() if place.is_dir() else b"")
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:_HEX]


def brief(whole: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each part of a fingerprint, as records of a run have it.

    Example:
        >>> split = {"images": 2, "sha256": "0" * 16}
        >>> brief({"class_names": ["owl"], "templates": ["a {}."], "splits": {"test": split}})
        {'class_names': '32d54be3f4d22e04', 'templates': '8d95e67de45aa035', 'test': '0000000000000000'}
    """
    texts = {part: _hexadecimal(json.dumps(whole[part]).encode()) for part in TEXTS}
    return texts | {split: found["sha256"] for split, found in whole["splits"].items()}


def differences(earlier: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """In which parts two fingerprints of a task differ, a sentence each; none if they are equal.

    Example:
        >>> split = {"images": 1, "sha256": "0", "classes": [[1, "a"], [0, "b"]]}
        >>> more = {"images": 2, "sha256": "1", "classes": [[1, "a"], [1, "c"]]}
        >>> base = {"class_names": ["owl", "hare"], "templates": ["a {}."]}
        >>> differences(base | {"splits": {"test": split}}, base | {"splits": {"test": more}})
        ['test: 1 → 2 images (hare 0 → 1)']
    """
    found = []
    for part in TEXTS:
        if earlier[part] != present[part]:
            found.append(f"{part.replace('_', ' ')}: {_texts(earlier[part], present[part])}")
    for split, before in earlier["splits"].items():
        after = present["splits"][split]
        if before["sha256"] != after["sha256"]:
            found.append(f"{split}: {_examples(before, after, present['class_names'])}")
    return found


def _texts(before: Sequence[str], after: Sequence[str]) -> str:
    if len(before) != len(after):
        away, new = ([repr(t) for t in a if t not in b][:_SHOWN] for a, b in ((before, after), (after, before)))
        moved = [f"without {', '.join(away)}"] * bool(away) + [f"with {', '.join(new)}"] * bool(new)
        return f"{len(before)} → {len(after)}{', now ' if moved else ''}{' and '.join(moved)}"
    pairs = [f"{a!r} → {b!r}" for a, b in zip(before, after, strict=True) if a != b]
    return f"{len(pairs)} of {len(after)} differ: {_some(pairs)}"


def _examples(before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str]) -> str:
    (what, was), (what_now, now) = _count(before), _count(after)
    count = f"{was:,} → {now:,} {what_now}" if what == what_now else f"{was:,} {what} → {now:,} {what_now}"
    if (what, was) == (what_now, now):
        count = f"{now:,} {what} as before, but not the same ones"
    classes = [found.get("classes", ()) for found in (before, after)]
    if not all(classes) or len(classes[0]) != len(classes[1]):
        return count
    changed = [
        f"{name} {old[0]:,} → {new[0]:,}" if old[0] != new[0] else f"{name} {new[0]:,}, others than before"
        for name, old, new in zip(names, *classes, strict=True)
        if old != new
    ]
    return f"{count} ({_some(changed) if changed else 'the same ones in another order'})"


def _count(split: Mapping[str, Any]) -> tuple[str, int]:
    """What the examples of a split are called, and how many there are."""
    what = "texts" if "texts" in split else "images"
    return what, split[what]


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def _of_split(source: Source, where: str, task: Task) -> JsonObject:
    of_each = _of_each(source, where)
    if of_each is None:
        return {what_of(source): len(source), "sha256": _of_records(source)}
    labels = source.labels
    assert labels is not None  # of files and of arrays
    # One after the other by class, each in its order.
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(task.class_names))
    groups = np.split(of_each[order], np.cumsum(counts)[:-1])
    return {
        what_of(source): len(source),
        "sha256": _hexadecimal(labels.astype("<i4").tobytes() + of_each.tobytes()),
        "classes": [[len(group), _hexadecimal(group.tobytes())[:8]] for group in groups],
    }


def _of_each(source: Source, where: str) -> np.ndarray | None:
    """`DIGEST` [N], one of each example, where they are at hand."""
    if isinstance(source, FileSource):
        return digests(source, where=where)
    if isinstance(source, TextSource):
        return np.array([digest(text.encode()) for text in source.texts], DIGEST)
    if isinstance(source, ArraySource):
        images = (np.ascontiguousarray(image) for image in source.images)
        return np.array([digest(f"{image.shape}".encode() + image.tobytes()) for image in images], DIGEST)
    return None


def _of_records(source: Source) -> str:
    found = hashlib.sha256()
    for content in _about_records(source):
        found.update(len(content).to_bytes(8, "little") + content)
    for index in np.unique(np.linspace(0, len(source) - 1, PROBES).astype(int)):
        try:
            image, label = source[int(index)]
        except BadLabelError:  # of a split whose labels are hidden, which is an error where it is evaluated
            found.update(b"unlabelled")
        else:
            found.update(f"{image.size} {label} ".encode() + image.tobytes())
    return found.hexdigest()[:_HEX]


def _about_records(source: Source) -> Iterator[bytes]:
    """The data set that a split is taken from, and which of its records the split takes."""
    if isinstance(source, Rows):
        yield from _about_records(source.source)
        yield np.asarray(source.indices, "<i8").tobytes()
    elif isinstance(source, RecordSource):
        yield source.origin.encode()
        info, split = getattr(source.records, "dataset_info", None), getattr(source.records, "split", None)
        # Those that we draw or encode have a version for that; how many bytes a PNG takes depends on the machine.
        if info is not None and info.name not in {*builders.BUILDERS, *archives.BUILDERS}:
            parts = str(split).split("+")
            yield str([(part, int(info.splits[part].num_bytes)) for part in parts]).encode()
    yield str(len(source)).encode()


def _hexadecimal(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HEX]
