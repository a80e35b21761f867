"""Splits by file names: the rule is fixed for ever, a list of one's own wins, one that does not fit is refused."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tajax.data import PROTOCOL, TASKS, manifests, open_task
from tajax.data.manifests import SplitRule, divide, from_rule
from tajax.data.sources import RecordSource
from tests.data.conftest import encoded, picture
from tests.data.tiny_catalogue import tiny_rule, write_tiny

RULE = SplitRule({"owl": 6, "hare": 4}, "{name}_{number}.jpg", {"test": 1, "val": 2})
NAMES = [f"{name}_{number}.jpg" for name, count in RULE.files.items() for number in range(1, count + 1)]


def records(names=tuple(NAMES)) -> RecordSource:
    image = encoded(picture(0))
    rows = [
        {"picture": image, "kind": list(RULE.files).index(name.split("_")[0]), "filename": name.encode()}
        for name in names
    ]
    return RecordSource(rows, "picture", "kind", 2, "birds/1.0.0:train")


def divided(folder, source=None, rule=RULE) -> tuple[dict[str, set[str]], dict]:
    """File names of each split, and the record."""
    source = source or records()
    splits, record = divide(source, list(rule.files), rule, folder)
    named = {
        split: {source.records[row]["filename"].decode() for row in part.indices} for split, part in splits.items()
    }
    assert all(len(part) == len(named[split]) for split, part in splits.items())
    return named, record


def write_own(folder, content) -> str:
    """A list of the user's: JSON, or text as it stands."""
    path = folder / ("manifest.txt" if isinstance(content, str) and not content.startswith("{") else "manifest.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


# Golden: a change here changes every figure ever measured on these two tasks.
@pytest.mark.parametrize(
    "name, digest, totals, first",
    [
        (
            "eurosat",
            "9a29ae0b84cbc761715663c7adf36b6caf43d9d095e0f5850310d7a20e3c7916",
            {"train": 21_600, "val": 2_700, "test": 2_700},
            "AnnualCrop_1003.jpg",
        ),
        (
            "resisc45",
            "cc0c3b24acd9bddfd9f58dab0d8879ce9e7273aad630c9f6e807cb1740a10f41",
            {"train": 18_900, "unused": 6_300, "test": 6_300},
            "airplane_003.jpg",
        ),
    ],
)
def test_the_splits_of_the_complete_data_sets_are_fixed(name, digest, totals, first):
    row = PROTOCOL[name]
    manifest = from_rule(row.manifest)
    assert {split: len(names) for split, names in manifest.files.items()} == totals
    assert totals["train"] + totals.get("val", 0) == row.counts["train"] and totals["test"] == row.counts["test"]
    assert manifest.digest == digest and manifest.files["test"][0] == first
    class_of = {file: file.rpartition("_")[0] for files in manifest.files.values() for file in files}
    assert set(class_of.values()) == set(row.manifest.files) == set(row.class_names)
    assert len(class_of) == sum(totals.values())  # no file twice
    counts = manifest.record(class_of)["counts"]
    for split, share in row.manifest.take.items():
        assert counts[split] == dict.fromkeys(row.manifest.files, share)  # exact in every class
    left = {c: count - sum(row.manifest.take.values()) for c, count in row.manifest.files.items()}
    assert counts["train"] == left


def test_the_rule_does_not_see_the_order_of_records(tmp_path):
    shuffled = [NAMES[i] for i in np.random.Generator(np.random.Philox(0)).permutation(len(NAMES))]
    one, first = divided(tmp_path / "one")
    other, second = divided(tmp_path / "other", records(shuffled))
    assert one == other and first == second
    assert {split: len(names) for split, names in one.items()} == {"test": 2, "val": 4, "train": 4}
    assert first["counts"]["train"] == {"hare": 1, "owl": 3}
    assert (
        first["rule"]
        == "per class, in the order of the SHA-256 of the file names: 1 to test, 2 to val, the rest to train"
    )


def test_the_digest_tells_every_other_division_apart():
    manifest = from_rule(RULE)
    swapped = dict(manifest.files)
    swapped["test"], swapped["val"] = swapped["val"], swapped["test"]
    renamed = replace(RULE, pattern="{name}-{number}.jpg")
    digests = {manifest.digest, replace(manifest, files=swapped).digest, from_rule(renamed).digest}
    assert len(digests) == 3


@pytest.mark.parametrize("kind", ["json", "text"])
def test_a_list_of_ones_own_wins(tmp_path, kind):
    own = {"train": NAMES[:5], "test": [f"birds/{name}" for name in NAMES[5:7]], "unused": NAMES[7:]}
    lines = "".join(f"{split} {name}\n" for split, names in own.items() for name in names)
    path = write_own(tmp_path, own if kind == "json" else f"# from a paper\n\n{lines}")
    named, record = divided(tmp_path)
    assert named == {"train": set(NAMES[:5]), "test": set(NAMES[5:7])}
    assert record["rule"] == path and record["counts"]["unused"] == {"hare": 3}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"train": NAMES[:5], "test": NAMES[5:9]}, r"1 of its files are not in the manifest: hare_4.jpg\. Correct it"),
        (
            {"train": NAMES[:5], "test": [*NAMES[5:9], "hare_04.jpg", "x.jpg"]},
            r"lacks 2 of the 11 files of the manifest: hare_04.jpg, x.jpg; 1 of its files .*may mean 'hare_04.jpg'",
        ),
        ({"train": NAMES[:5], "test": NAMES[4:]}, r"has the file 'owl_5.jpg' twice, in train and test"),
        ({"train": [*NAMES[:5], "birds/owl_1.jpg"], "test": NAMES[5:]}, r"has the file 'owl_1.jpg' twice, in train"),
        ({"train": NAMES, "test": []}, r"split 'test' of manifest .*manifest.json is empty"),
        ({"train": NAMES[:5], "test": NAMES[5:], "val": []}, r"split 'val' .* is empty"),
        ({"test": NAMES}, r"split 'train' of manifest .* is missing; train and test need files"),
        ("# nothing\n", r"split 'train' of manifest .*manifest.txt is missing"),
        ({"training": NAMES[:5], "test": NAMES[5:]}, r"names the split 'training'; .* Did you mean 'train'\?"),
        ({"train": NAMES[:5], "test": "owl_6.jpg"}, r"'test' of manifest .* is not a list of file names; expected"),
        ({"train": NAMES[:5], "test": [1]}, r"'test' of manifest .* is not a list of file names"),
        ('{"train": ["a.jpg"]', r"manifest .*manifest.json is not JSON: "),
        ('{"train": ["a.jpg"], "test": ["b.jpg"], "train": ["a.jpg"]}', r"has the file 'a.jpg' twice, in train"),
        ("train owl_1.jpg\nowl_2.jpg\n", r"line 2 of manifest .* is 'owl_2.jpg'; expected a split and a file name"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, content, message):
    write_own(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        divided(tmp_path)


def test_lists_that_cannot_be_read(tmp_path):
    (tmp_path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="manifest.json holds list; expected an object such as"):
        divided(tmp_path)
    (tmp_path / "manifest.txt").write_bytes(b"train \xff.jpg")
    with pytest.raises(ValueError, match="there are two manifests, .*manifest.json and .*manifest.txt; keep one"):
        divided(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.txt, line 1: byte 0x.. .* is not UTF-8 text"):
        divided(tmp_path)


def test_data_sets_that_do_not_fit_the_rule(tmp_path):
    with pytest.raises(
        ValueError, match=r"lacks 1 of the 10 files of the manifest: owl_3.jpg\. Prepare it anew .*json"
    ):
        divided(tmp_path / "a", records([name for name in NAMES if name != "owl_3.jpg"]))
    with pytest.raises(ValueError, match=r"birds/1.0.0:train has owl_1.jpg more than once"):
        divided(tmp_path / "b", records([*NAMES, "owl_1.jpg"]))
    nameless = records()
    for record in nameless.records:
        del record["filename"]
    with pytest.raises(ValueError, match=r"birds/1.0.0:train\[0\] has no 'filename', .* it has picture, kind"):
        divided(tmp_path / "c", nameless)


def test_names_are_read_once_and_again_when_the_data_set_changes(tmp_path, monkeypatch, capsys):
    reads = []
    original = manifests._read_records
    monkeypatch.setattr(manifests, "_read_records", lambda s, rows: reads.append(len(rows)) or original(s, rows))
    expected = divided(tmp_path)
    assert reads == [10]
    assert capsys.readouterr().err == "Reading 10 file names of birds/1.0.0:train (once, some seconds)\n"
    assert divided(tmp_path) == expected and reads == [10, 10]  # ten probes of ten records: fewer than 32
    assert capsys.readouterr().err == ""
    many = replace(RULE, files={"owl": 200, "hare": 100})
    names = list(sum((part for part in from_rule(many).files.values()), ()))
    divided(tmp_path / "many", records(names), many)
    divided(tmp_path / "many", records(names), many)
    assert reads[2:] == [300, 32]

    shuffled = records(NAMES[::-1])  # prepared anew, in another order: the cache is of no use
    assert divided(tmp_path, shuffled) == expected
    (tmp_path / "file_names.json").write_text("{")
    assert divided(tmp_path) == expected
    assert json.loads((tmp_path / "file_names.json").read_text())["names"] == NAMES
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file_names.json"]


def test_data_that_may_only_be_read(tmp_path):
    (tmp_path / "in_the_way").write_text("a file where the directory would be")
    assert divided(tmp_path / "in_the_way") == divided(tmp_path / "elsewhere")


def test_eurosat_by_a_list_of_ones_own(tmp_path, monkeypatch):
    """In TFDS's format: validation is the list's if it has one, and else a tenth of train."""
    tfds.display_progress_bar(False)
    row = PROTOCOL["eurosat"]
    write_tiny(row, tmp_path, monkeypatch)
    monkeypatch.setitem(TASKS, "eurosat", replace(row, manifest=tiny_rule(row.manifest)))
    by_rule = open_task("eurosat", data_dir=tmp_path)
    assert by_rule.validation == {"seed": None, "count": 10}
    assert {split: len(source) for split, source in by_rule.splits.items()} == {"train": 30, "val": 10, "test": 10}
    assert by_rule.manifest["counts"]["val"] == dict.fromkeys(row.class_names, 1)

    lines = [
        f"{'test' if number > 3 else 'train'} {name}_{number}.jpg" for name in row.class_names for number in range(1, 6)
    ]
    (tmp_path / "eurosat" / "manifest.txt").write_text("\n".join(lines))
    task = open_task("eurosat", data_dir=tmp_path)
    assert task.validation == {"seed": 0, "count": 3}
    assert {split: len(source) for split, source in task.splits.items()} == {"train": 27, "val": 3, "test": 20}
    assert task.manifest["rule"] == str(tmp_path / "eurosat" / "manifest.txt")
    assert Counter(task.splits["test"][index][1] for index in range(20)) == dict.fromkeys(range(10), 2)
    again = open_task("eurosat", data_dir=tmp_path)  # names from the cache, beside the data that TFDS still reads
    assert (tmp_path / "eurosat" / "file_names.json").is_file() and again.manifest == task.manifest
