"""Which file belongs to which split, for data sets that come in one piece: a fixed rule over file names, or your list.

The rule orders the files of each class by the SHA-256 of their names and deals them out: nothing is drawn, so the split
is the same everywhere and for ever, each class has its exact share, and whoever has the file names has the split.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tajax import atomic, progress, text_files
from tajax.data.sources import RecordSource, Source, rows_of

SPLITS = ("train", "val", "test", "unused")
OWN = ("manifest.json", "manifest.txt")  # names of a user's list in the task's directory
_NAME_KEY = "filename"  # of the records: what TFDS's builders of EuroSAT and RESISC45 call it
_CACHE = "file_names.json"
_PROBES = 32  # records whose names are compared with the cache
_LISTED = 5  # names in a message


@dataclass(frozen=True)
class SplitRule:
    """How the complete files of a data set are divided: per class, by the hash of their names.

    The files of each class are put in the order of the SHA-256 of their names (UTF-8). The first go to the first split
    of `take`, the next to the second, and so on; what is left is "train".

    Attributes:
        files: class → number of its files, numbered from 1.
        pattern: of a file name, with {name} and {number}.
        take: split → files of each class, in the order in which they are dealt.
    """

    files: Mapping[str, int]
    pattern: str
    take: Mapping[str, int]

    def words(self) -> str:
        """The rule in a sentence, for records."""
        dealt = ", ".join(f"{count} to {split}" for split, count in self.take.items())
        return f"per class, in the order of the SHA-256 of the file names: {dealt}, the rest to train"


@dataclass(frozen=True)
class Manifest:
    """Which files belong to which split.

    Attributes:
        files: split → file names without directories, sorted.
        rule: where the division comes from: a rule in words, or the path of a user's list.
    """

    files: Mapping[str, tuple[str, ...]]
    rule: str

    @property
    def digest(self) -> str:
        """SHA-256 over the lines "split, tab, file name" in sorted order: equal digests are equal manifests."""
        lines = sorted(f"{split}\t{name}" for split, names in self.files.items() for name in names)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def record(self, class_of: Mapping[str, str]) -> dict[str, object]:
        """What a result should tell of the manifest: the rule, counts per class and split, and the digest.

        Args:
            class_of: file name → class.
        """
        counts = {
            split: dict(sorted(Counter(class_of[name] for name in names).items()))
            for split, names in self.files.items()
        }
        return {"rule": self.rule, "counts": counts, "digest": self.digest}


def from_rule(rule: SplitRule) -> Manifest:
    """The manifest of the complete data set.

    Example:
        >>> rule = SplitRule({"owl": 4, "hare": 3}, "{name}_{number}.jpg", {"test": 1, "val": 1})
        >>> {split: list(names) for split, names in from_rule(rule).files.items()}
        {'test': ['hare_3.jpg', 'owl_4.jpg'], 'val': ['hare_1.jpg', 'owl_3.jpg'],
         'train': ['hare_2.jpg', 'owl_1.jpg', 'owl_2.jpg']}
    """
    files: dict[str, list[str]] = {split: [] for split in (*rule.take, "train")}
    for name, count in rule.files.items():
        class_files = [rule.pattern.format(name=name, number=number) for number in range(1, count + 1)]
        class_files.sort(key=lambda file: hashlib.sha256(file.encode()).digest())
        start = 0
        for split, share in rule.take.items():
            files[split] += class_files[start : start + share]
            start += share
        files["train"] += class_files[start:]
    return Manifest({split: tuple(sorted(names)) for split, names in files.items()}, rule.words())


def read(folder: Path) -> Manifest | None:
    """A user's manifest, or None if the folder has none.

    `manifest.json` is an object {"train": [names], "test": [names]}; `manifest.txt` has a line "split name" for each
    file, and may have empty lines and comments that begin with #. Splits are train and test, val if you like, and
    unused for files that are to be left out. Directories before a name do not count.

    Raises:
        ValueError: there are both; it cannot be read as such; an unknown, missing or empty split; a file twice.
    """
    present = [folder / name for name in OWN if os.path.lexists(folder / name)]
    if not present:
        return None
    if len(present) > 1:
        raise ValueError(f"there are two manifests, {present[0]} and {present[1]}; keep one")
    (path,) = present
    text = text_files.read(path)
    pairs = _json_pairs(text, path) if path.suffix == ".json" else _text_pairs(text, path)
    files: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for split, name in pairs:
        if split not in SPLITS:
            near = difflib.get_close_matches(split, SPLITS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"manifest {path} names the split {split!r}; choose from {', '.join(SPLITS)}.{hint}")
        names = files.setdefault(split, [])
        if name is None:
            continue
        name = name.replace("\\", "/").rpartition("/")[2]
        if name in split_of:
            where = f"in {split_of[name]} and {split}" if split_of[name] != split else f"in {split}"
            raise ValueError(f"manifest {path} has the file {name!r} twice, {where}")
        split_of[name] = split
        names.append(name)
    for split in ("train", "test", *files):
        if not files.get(split):
            state = "is empty" if split in files else "is missing"
            raise ValueError(f"split {split!r} of manifest {path} {state}; train and test need files")
    return Manifest({split: tuple(sorted(names)) for split, names in files.items()}, str(path))


def _json_pairs(text: str, path: Path) -> list[tuple[str, str | None]]:
    """(split, file name) of each entry, and (split, None) for each split."""
    try:
        content = json.loads(text, object_pairs_hook=list)  # pairs, so that no repeated split is swallowed
    except (ValueError, RecursionError) as error:
        raise ValueError(f"manifest {path} is not JSON: {error}") from error
    wanted = 'expected an object such as {"train": ["a.jpg"], "test": ["b.jpg"]}'
    if not isinstance(content, list) or not all(isinstance(pair, tuple) for pair in content):
        raise ValueError(f"manifest {path} holds {type(content).__name__}; {wanted}")
    pairs: list[tuple[str, str | None]] = []
    for split, names in content:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{split!r} of manifest {path} is not a list of file names; {wanted}")
        pairs += [(split, None), *((split, name) for name in names)]
    return pairs


def _text_pairs(text: str, path: Path) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ValueError(f"line {number} of manifest {path} is {line.strip()!r}; expected a split and a file name")
        pairs.append((words[0], words[1].strip()))
    return pairs


def divide(
    source: RecordSource, class_names: Sequence[str], rule: SplitRule, folder: Path
) -> tuple[dict[str, Source], dict[str, object]]:
    """The splits of a data set that has one, by the user's manifest in `folder` or else by the rule.

    File names are read once, without decoding images (10 s for 31,500), and kept in `folder` as `file_names.json`, so
    that the next time costs half a second.

    Args:
        source: every image, with file names in its records.
        class_names: as stored, index = label.
        rule: for the complete data set.
        folder: of the task, where a user's manifest may stand.

    Returns:
        Sources of "train", "test" and, if the manifest has it, "val"; and `Manifest.record`.

    Raises:
        ValueError: the manifest and the data set do not have the same files. The message names the first that differ.
    """
    manifest = read(folder)
    names, labels = _names(source, folder / _CACHE)
    manifest = manifest or from_rule(rule)
    _check_complete(manifest, names, source.origin, folder)
    row_of = {name: row for row, name in enumerate(names)}
    splits = {
        split: rows_of(source, np.sort([row_of[name] for name in files]))
        for split, files in manifest.files.items()
        if split != "unused"
    }
    return splits, manifest.record({name: class_names[label] for name, label in zip(names, labels, strict=True)})


def _check_complete(manifest: Manifest, names: Sequence[str], origin: str, folder: Path) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{origin} has {_some(repeated)} more than once; a manifest cannot tell them apart")
    listed = {name for files in manifest.files.values() for name in files}
    absent, unlisted = sorted(listed - set(names)), sorted(set(names) - listed)
    if not absent and not unlisted:
        return
    problems = []
    if absent:
        problems.append(f"the data set lacks {len(absent)} of the {len(listed)} files of the manifest: {_some(absent)}")
    if unlisted:
        near = difflib.get_close_matches(unlisted[0], absent, n=1) if absent else []
        hint = f" (for {unlisted[0]!r} the manifest may mean {near[0]!r})" if near else ""
        problems.append(f"{len(unlisted)} of its files are not in the manifest: {_some(unlisted)}{hint}")
    own = (folder / OWN[0], folder / OWN[1])
    way_out = (
        "Correct it, and give files that are to be left out the split 'unused'."
        if manifest.rule in map(str, own)
        else f"Prepare it anew from the complete archive, or give a manifest of your own: {own[0]} or {own[1]}"
    )
    raise ValueError(f"{origin} does not fit its manifest ({manifest.rule}): {'; '.join(problems)}. {way_out}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _names(source: RecordSource, cache: Path) -> tuple[list[str], list[int]]:
    """File name and label of every record, from the cache if it is of these records."""
    kept = _cached(source, cache)
    if kept is not None:
        return kept
    progress.say(f"Reading {len(source):,} file names of {source.origin} (once, some seconds)")
    names, labels = _read_records(source, range(len(source)))
    content = {"origin": source.origin, "names": names, "labels": labels}
    try:
        atomic.write(cache, json.dumps(content))
    except OSError:
        pass  # data that may only be read: the names are read every time
    return names, labels


def _cached(source: RecordSource, cache: Path) -> tuple[list[str], list[int]] | None:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        names, labels = list(content["names"]), list(content["labels"])
        if content["origin"] != source.origin or not len(names) == len(labels) == len(source):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # none yet, or damaged: read anew
    probes = sorted({len(source) * probe // _PROBES for probe in range(_PROBES)})
    same = _read_records(source, probes) == ([names[row] for row in probes], [labels[row] for row in probes])
    return (names, labels) if same else None  # else the data set was prepared anew, in another order


def _read_records(source: RecordSource, rows: Iterable[int]) -> tuple[list[str], list[int]]:
    names, labels = [], []
    for row in rows:
        record = source.record(row)
        if _NAME_KEY not in record:
            raise ValueError(
                f"{source.describe(row)} has no {_NAME_KEY!r}, which its manifest needs; it has {', '.join(record)}"
            )
        name = record[_NAME_KEY]
        names.append(name.decode() if isinstance(name, bytes) else str(name))
        labels.append(int(record[source.label_key]))
    return names, labels
