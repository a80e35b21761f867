"""`python -m tajax.data --check` tells what is there, what is missing and how to get it, and touches nothing."""

import logging
from dataclasses import replace

import pytest

from tajax.data import TASKS, archives, open_task, readiness
from tajax.data.__main__ import main
from tests.data import archive_layouts as layouts
from tests.data.conftest import encoded, picture
from tests.data.tiny_catalogue import tiny_rule, write_tiny


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever reaches for one fails the test."""

    def reached(*arguments, **options):
        raise AssertionError(f"the network was asked for {arguments}")

    monkeypatch.setattr("socket.getaddrinfo", reached)
    monkeypatch.setattr("socket.socket.connect", reached)


@pytest.fixture
def manual(tmp_path):
    """The directory for files fetched by hand."""
    return tmp_path / "downloads" / "manual"


def found(name, tmp_path, **options):
    (record,) = readiness.check([name], data_dir=tmp_path, **options)
    return record


def fill(folder, *, train=3, test=2, classes=("AnnualCrop", "SeaLake"), test_name="test", suffix="png"):
    """A folder of class directories, each picture another."""
    number = 0
    for split, each in (("train", train), (test_name, test)):
        for name in classes:
            for _ in range(each):
                layouts.unpack({f"{split}/{name}/{number}.{suffix}": encoded(picture(number))}, folder)
                number += 1


def expect(monkeypatch, name, **counts):
    """The table expects other counts, as if the tiny data set were the real one."""
    monkeypatch.setitem(TASKS, name, replace(TASKS[name], counts=counts))


def everything(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_an_empty_directory_misses_all_but_the_bundled_tasks(tmp_path, capsys):
    records = {record.task: record for record in readiness.check(data_dir=tmp_path)}
    assert list(records) == list(TASKS)
    bundled = set(readiness.GROUPS["bundled"])
    assert {name for name, record in records.items() if record.ready} == bundled
    for name in records.keys() - bundled:
        advice = "\n".join(records[name].advice)
        assert records[name].state == "missing" and records[name].counts == {}
        assert f"python -m tajax.data --prepare {name} --data-dir {tmp_path}" in advice
        assert str(tmp_path / "downloads" / "manual") in advice and ("http" in advice), advice
    assert not list(tmp_path.iterdir())
    assert main(["--check", "--data-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "9 of 30 tasks are ready." in printed and "(73,257)" in printed and "'tajax[prepare]'" in printed
    assert main(["--check", "bundled", "--data-dir", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


def test_a_task_from_missing_to_ready(tmp_path, manual, monkeypatch, capsys, caplog):
    train, test, labels = layouts.gtsrb()
    layouts.pack(train, manual / "GTSRB-Training_fixed.zip")
    layouts.unpack(test, manual)
    record = found("gtsrb", tmp_path)
    assert record.state == "missing" and record.expected == {"train": 26_640, "test": 12_630}
    advice = "\n".join(record.advice)
    assert "GTSRB_Final_Test_GT.zip" in advice and "Training_fixed" not in advice and "Test_Images" not in advice
    layouts.unpack(labels, manual)
    before = everything(tmp_path)
    record = found("gtsrb", tmp_path, overlap=True)
    assert (record.state, record.ready, record.overlaps) == ("to prepare", False, None)
    assert everything(tmp_path) == before

    assert main(["--prepare", "gtsrb", "--data-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "differs" in printed and "43 of 26,640" in printed and "5 of 12,630" in printed
    assert "39,209 those of GTSRB_Final_Training_Images.zip" in printed and f"delete {tmp_path}/tajax_gtsrb" in printed
    expect(monkeypatch, "gtsrb", train=43, test=5)
    before = everything(tmp_path)
    assert main(["--check", "gtsrb", "--overlap", "--data-dir", str(tmp_path)]) == 0
    assert everything(tmp_path) == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_preparing_goes_on_after_a_failure(tmp_path, manual, capsys):
    layouts.unpack(layouts.rendered_sst2(), manual)
    (manual / "rendered-sst2/train/negative/0.png").write_text("no image")
    layouts.unpack({"fer2013.csv": layouts.fer_table(layouts.fer_rows({"Training": 3, "PublicTest": 2}))}, manual)
    assert main(["--prepare", "rendered_sst2", "fer2013", "--data-dir", str(tmp_path)]) == 1
    streams = capsys.readouterr()
    assert "rendered_sst2: " in streams.err and "train/negative/0.png cannot be decoded" in streams.err
    assert "3 of 28,709" in streams.out and "to prepare" in streams.out


def test_tfds_files_in_the_manual_directory_wait_to_be_prepared(tmp_path, manual):
    archive = {"dtd-r1.0.1.tar.gz": b"", "NWPU-RESISC45/airplane/airplane_001.jpg": b"", "EuroSAT.zip": b""}
    layouts.unpack(archive, manual)
    for name in ("dtd", "resisc45", "eurosat"):
        assert found(name, tmp_path).state == "to prepare"
    layouts.unpack({"ILSVRC2012_img_val.tar": b""}, manual)
    record = found("imagenet", tmp_path)
    assert record.state == "missing" and "ILSVRC2012_img_train.tar" in record.advice[0]
    assert f"{tmp_path}/imagenet/val/n01440764/*.JPEG" in record.advice[-1]
    with pytest.raises(ValueError, match=f"ILSVRC2012_img_train.tar not found in {manual}"):
        open_task("imagenet", data_dir=tmp_path)  # TFDS would prepare the validation images alone
    layouts.unpack({"mnist/0.0.1/dataset_info.json": b"{}"}, tmp_path)
    assert found("mnist", tmp_path).advice[0].startswith("Version 0.0.1 is there")


def test_folders_count_with_their_own_validation_images(tmp_path, monkeypatch):
    fill(tmp_path / "eurosat")
    record = found("eurosat", tmp_path)
    assert (record.state, record.origin) == ("differs", str(tmp_path / "eurosat"))
    assert record.counts == {"train": 6, "test": 4}
    layouts.unpack({"val/SeaLake/0.png": encoded(picture(99))}, tmp_path / "eurosat")
    expect(monkeypatch, "eurosat", train=7, test=4)
    assert found("eurosat", tmp_path).state == "ready"
    (tmp_path / "eurosat" / "train" / "SeaSide").mkdir()
    record = found("eurosat", tmp_path)
    assert record.state == "broken" and "SeaSide" in record.advice[0]


def test_imagenet_as_it_usually_lies_is_tested_on_val(tmp_path, monkeypatch):
    fill(tmp_path / "imagenet", classes=("n01440764", "n01443537"), test_name="val", suffix="JPEG")
    expect(monkeypatch, "imagenet", train=6, test=4)
    assert found("imagenet", tmp_path).state == "ready"


def test_data_sets_divided_by_file_names_are_counted_after_the_division(tmp_path, monkeypatch):
    row = TASKS["eurosat"]
    monkeypatch.setitem(TASKS, "eurosat", replace(row, manifest=tiny_rule(row.manifest)))
    write_tiny(TASKS["eurosat"], tmp_path, monkeypatch)
    assert found("eurosat", tmp_path).counts == {"train": 40, "test": 10}
    expect(monkeypatch, "eurosat", train=40, test=10)
    assert found("eurosat", tmp_path).state == "ready"


@pytest.mark.parametrize("kept", [0, 100])
def test_a_truncated_data_set_is_broken_and_does_not_stop_the_check(kept, tmp_path, manual):
    layouts.unpack(layouts.rendered_sst2(), manual)
    archives.prepare("tajax_rendered_sst2", data_dir=tmp_path)
    (shard,) = tmp_path.glob("tajax_rendered_sst2/1.0.0/*test.array_record*")
    shard.write_bytes(shard.read_bytes()[:kept])
    broken, fine = readiness.check(["rendered_sst2", "shapes"], data_dir=tmp_path)
    assert (broken.state, fine.state) == ("broken", "on first use") and broken.advice[0]


def test_a_damaged_archive_is_named(tmp_path, manual):
    path = layouts.pack(layouts.rendered_sst2(), manual / "rendered-sst2.tgz")
    path.write_bytes(path.read_bytes()[:2000])
    record = found("rendered_sst2", tmp_path)
    assert record.state == "broken" and f"archive {path} is truncated or damaged" in record.advice[0]


def test_images_of_test_in_train_are_found(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "dtd", classes=("banded", "blotchy"))
    expect(monkeypatch, "dtd", train=6, test=4)
    steps = []
    record = found("dtd", tmp_path, overlap=True, progress=lambda *step: steps.append(step))
    assert record.ready and record.overlaps == ()
    assert steps == [("dtd", done, 10) for done in range(1, 11)]
    for path in (tmp_path / "dtd" / "test").glob("*/*.png"):  # as in the checkpoints with a leak
        copy = tmp_path / "dtd" / "train" / path.parent.name / f"leaked_{path.stem}.png"
        copy.write_bytes(path.read_bytes())
    expect(monkeypatch, "dtd", train=10, test=4)
    assert found("dtd", tmp_path).ready  # not looked for
    assert main(["--check", "dtd", "--overlap", "--data-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "images of test that stand in train, too" in printed and "leaked_" in printed and "… and 1 more" in printed


def test_a_path_is_a_task_without_expectations(tmp_path):
    fill(tmp_path / "birds")
    record = found(str(tmp_path / "birds"), tmp_path)
    assert record.ready and record.counts == {"train": 6, "test": 4} and record.expected == {}
    record = found(str(tmp_path / "brids"), tmp_path)
    assert record.state == "broken" and "birds" in record.advice[0]


def test_names_and_groups(capsys):
    assert readiness.names_of(["suite", "dtd", "imagenet"]) == [*readiness.GROUPS["suite"], "imagenet"]
    assert readiness.names_of([]) == list(TASKS)
    for arguments, words in {
        ("--check", "dtt"): "unknown task 'dtt'. Did you mean 'dtd'",
        ("--check", "protocl"): "Did you mean 'protocol'",
        (): "one of the arguments --check --prepare is required",
        ("--prepare",): "expected at least one argument",
    }.items():
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2 and words in capsys.readouterr().err
