"""A fingerprint is of labels and pixels in order: it sees every edit of these, and nothing else."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from tajax import data
from tajax.data import captions, fingerprint
from tajax.data.sources import BadImageError, rows_of
from tests.data.conftest import encoded, picture


def of(place, **options):
    return fingerprint.of_task(data.open_task(place, **options))


@pytest.fixture
def own_val(folder):
    """`folder` with validation images of its own, so that an edit of train leaves val alone."""
    shutil.copytree(folder / "test", folder / "val")
    return folder


def test_a_copy_is_the_same_task_whatever_its_names_and_times(own_val, tmp_path):
    whole = of(own_val)
    copy = tmp_path / "elsewhere" / "birds"
    shutil.copytree(own_val, copy)
    for number, path in enumerate(sorted(copy.glob("*/*/*"))):
        os.utime(path, (number, number))
        path.rename(path.with_name(f"picture_{path.name}"))
    assert of(copy) == whole
    assert whole["class_names"] == ["barn owl", "wren"] and whole["splits"]["train"]["images"] == 24
    assert [count for count, _ in whole["splits"]["test"]["classes"]] == [5, 4]


def test_every_edit_of_a_folder_is_seen_and_placed(own_val):
    whole = of(own_val)

    def seen(*lines):
        assert fingerprint.differences(whole, of(own_val)) == list(lines)

    bitmap = own_val / "train" / "wren" / "02.bmp"
    kept = bitmap.read_bytes()
    bitmap.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # as many bytes, at the same time
    os.utime(bitmap, (0, 0))
    seen("train: 24 images as before, but not the same ones (wren 12, others than before)")
    bitmap.write_bytes(kept)
    seen()
    (own_val / "val" / "barn_owl" / "new.png").write_bytes(encoded(picture(99)))
    seen("val: 9 → 10 images (barn owl 5 → 6)")
    (own_val / "val" / "barn_owl" / "new.png").unlink()
    (own_val / "test" / "barn_owl" / "00.png").rename(own_val / "test" / "wren" / "00a.png")
    seen("test: 9 images as before, but not the same ones (barn owl 5 → 4, wren 4 → 5)")
    (own_val / "test" / "wren" / "00a.png").rename(own_val / "test" / "barn_owl" / "9.png")
    seen("test: 9 images as before, but not the same ones (barn owl 5, others than before)")  # in another order
    (own_val / "test" / "barn_owl" / "9.png").rename(own_val / "test" / "barn_owl" / "00.png")
    (own_val / "class_names.txt").write_text("owl\nwren\n")
    seen("class names: 1 of 2 differ: 'barn owl' → 'owl'")


def test_a_fingerprint_reads_no_file_twice(folder, monkeypatch):
    task = data.check_images(data.open_task(folder))
    monkeypatch.setattr("tajax.data.sources.FileSource.read", None)
    fingerprint.of_task(task)


def test_arrays_count_and_not_how_they_are_stored(npz, arrays, tmp_path):
    whole = of(npz)
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)
    assert of(tmp_path / "compressed.npz") == whole
    assert len({split["sha256"] for split in whole["splits"].values()}) == 3
    np.savez(npz, **arrays | {"templates": np.array(["{}"]), "test_labels": arrays["test_labels"][::-1]})
    found = fingerprint.differences(whole, of(npz))
    assert [line.split(":")[0] for line in found] == ["templates", "test"]
    brief = fingerprint.brief(whole)
    changed = {part for part, digest in fingerprint.brief(of(npz)).items() if brief[part] != digest}
    assert changed == {"templates", "test"}


def test_records_are_known_by_their_data_set_which_they_are_and_some_of_their_pixels(catalogue, tmp_path):
    whole = of("pipeline_sample/usual", data_dir=catalogue)
    shutil.copytree(catalogue / "pipeline_sample", tmp_path / "pipeline_sample")
    assert of("pipeline_sample/usual", data_dir=tmp_path) == whole
    task = data.open_task("pipeline_sample/usual", data_dir=tmp_path)
    for rows in (np.arange(6), np.array([1, 0, 2, 3, 4, 5, 6])):
        other = dataclasses.replace(task, splits={**task.splits, "test": rows_of(task.splits["test"], rows)})
        (line,) = fingerprint.differences(whole, fingerprint.of_task(other))
        assert line.startswith("test: 7 ")
    hidden = of("pipeline_sample/hidden", data_dir=catalogue)  # labels, an error where they are read for a result
    assert hidden["splits"]["test"]["images"] == 6
    with pytest.raises(BadImageError, match="truncated/1.0.0"):  # or a mended image would be taken for an edited one
        of("pipeline_sample/truncated", data_dir=catalogue)
    other = of("pipeline_sample/checked", data_dir=catalogue)
    assert all(other["splits"][s]["sha256"] != whole["splits"][s]["sha256"] for s in whole["splits"])


def test_a_directory_of_weights_is_known_by_its_files(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    alone = fingerprint.of_files(tmp_path / "a")
    whole = fingerprint.of_files(tmp_path)
    (tmp_path / "b").write_bytes(b"2")
    assert fingerprint.of_files(tmp_path) != whole and fingerprint.of_files(tmp_path / "a") == alone
    (tmp_path / "a").write_bytes(b"3")
    assert fingerprint.of_files(tmp_path / "a") != alone


def test_captions_and_images_count(tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.arange(2, dtype=np.int32)
    made = captions.CaptionedImages("x", images, (("a",), ("b",)), labels, mirrored=False)
    others = (
        made._replace(images=made.images + 1),
        made._replace(phrases=(("a",), ("c",))),
        made._replace(phrases=(("a", "b"), ())),
        made._replace(labels=made.labels[::-1]),
    )
    assert len({fingerprint.of_captions(each) for each in (made, *others)}) == 5
