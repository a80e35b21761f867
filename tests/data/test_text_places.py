"""Tasks of texts from folders and TFDS, what `--check` says of any place, and words that fit texts."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tajax import data
from tajax.config.fields import TEXT_TASKS
from tajax.data import catalog, fingerprint, readiness, sources
from tajax.data.__main__ import main
from tests.data.conftest import encoded, picture
from tests.data.written_texts import ROWS, examples_of, table, words, write_folder


@pytest.fixture
def folder(tmp_path):
    """20 training and 10 test texts of 2 classes."""
    return write_folder(tmp_path / "films", {"train": 10, "test": 5})


def test_a_folder_of_texts_is_a_task(folder):
    task = data.open_task(folder)
    assert (task.name, task.modality, task.class_names) == ("films", "texts", ("bad", "good"))
    assert task.templates == ("{}", "This is {}.") and task.validation == {"seed": 0, "count": 2}
    assert examples_of(task, "test") == sorted((words(20 + number), number // 5) for number in range(10))
    seen = sorted(examples_of(task, "train") + examples_of(task, "val"))
    assert seen == sorted((words(number), number // 10) for number in range(20))
    for split in task.splits.values():
        for index in range(len(split)):  # the file that is named holds the text
            with open(split.describe(index), encoding="utf-8") as file:
                assert file.read() == split[index][0] + "\n"
    (folder / "class_names.txt").write_text("good\ta good film\nbad\ta bad film\n")
    assert data.open_task(folder).class_names == ("a bad film", "a good film")


def test_a_folder_of_texts_without_splits_is_cut_as_one_of_images(tmp_path):
    texts, images = write_folder(tmp_path / "texts", 10), tmp_path / "images"
    for path in texts.glob("*/*"):
        place = images / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(picture(int(path.stem))))  # the same names; their bytes tell what they are
    tasks = [data.open_task(place) for place in (texts, images)]
    cuts = [sorted("/".join(t.split("test").describe(i).split("/")[-2:]) for i in range(4)) for t in tasks]
    assert [task.modality for task in tasks] == ["texts", "images"] and cuts[0] == cuts[1]
    assert tasks[0].test_cut == {"seed": 0, "count": 4}
    assert tasks[0].warnings[0] == (
        "texts: without train/ and test/, 4 of 20 texts, 20% of each class, are the test split (by a hash of their "
        "names, seed 0)"
    )
    with pytest.raises(ValueError, match="one text cannot be divided between them: bad, good. Add texts"):
        data.open_task(write_folder(tmp_path / "few", 1))


def test_texts_are_utf_8_and_the_one_that_is_not_is_named(folder):
    path = folder / "train" / "good" / "3.txt"
    path.write_bytes("\ufeffzwölf\r\nZeilen\r\n".encode())
    task = data.open_task(folder)
    assert ("zwölf\nZeilen", 1) in examples_of(task, "train") + examples_of(task, "val")
    for wrong in ("zwölf".encode("latin-1"), b"nu\0l"):
        path.write_bytes(b"first line\n" + wrong)
        with pytest.raises(ValueError, match=r"train/good/3.txt, line 2: byte .* is not UTF-8 text"):
            data.open_task(folder)


@pytest.mark.parametrize("beginning", ["BM is a bank", "P3 is a size", "GIF8 or not", "II* or MM", "RIFF ~~~~WEBP"])
def test_words_that_begin_as_images_do_are_words(folder, beginning):
    (folder / "test" / "good" / "0.txt").write_text(beginning)
    assert (beginning, 1) in examples_of(data.open_task(folder), "test")


def test_what_is_no_text_of_a_class_is_named(folder):
    for place in ("notes.md", "train/good/README.txt", "train/good/list.html", "test/LICENSE.txt"):
        (folder / place).write_text("about")
    (line, *_) = data.open_task(folder).warnings
    assert line == (
        f"films: 4 entries of {folder} are not texts of a class and left out: train/good/README.txt, "
        "train/good/list.html, test/LICENSE.txt, notes.md"
    )


def test_texts_beside_images_are_left_out_and_texts_as_examples_refused(tmp_path):
    folder = tmp_path / "birds"
    classes = ("train/owl", "train/hare", "test/owl", "test/hare")
    for number, place in enumerate(f"{directory}/{index}.png" for directory in classes for index in range(3)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(encoded(picture(number)))
    for place in ("README.txt", "train/owl/0.txt", "train/owl/README.txt", "test/hare/about.txt"):
        (folder / place).write_text("an owl in the snow")
    task = data.open_task(folder)
    assert task.modality == "images" and "4 entries of" in task.warnings[0] and "are not images of" in task.warnings[0]
    write_folder(folder, {"train": 3}, classes=("wren",))
    words = r"birds has images \(.*0.png, …\) and texts \(.*train/wren/0.txt, …\) as examples; a task is of"
    with pytest.raises(ValueError, match=words):
        data.open_task(folder)


def test_words_fit_texts(tmp_path, folder):
    for path in [*(folder / "test" / "good").iterdir(), *sorted((folder / "test" / "bad").iterdir())[2:]]:
        path.unlink()
    task = data.open_task(folder)
    assert task.warnings[-2:] == (
        "films: 1 of 2 classes have no text in the test split: good",
        "films: the test split has 2 texts of 2 classes, 1.0 a class on average; with fewer than 5, accuracy on it "
        "says little",
    )
    before = fingerprint.of_task(task)
    assert before["splits"]["test"]["texts"] == 2 and "images" not in before["splits"]["test"]
    kept = (folder / "test" / "bad" / "0.txt").read_text()
    (folder / "test" / "bad" / "0.txt").write_text("other words")
    (line,) = fingerprint.differences(before, fingerprint.of_task(data.open_task(folder)))
    assert line == "test: 2 texts as before, but not the same ones (bad 2, others than before)"
    (folder / "test" / "bad" / "0.txt").write_text(kept)
    (folder / "test" / "good" / "0.txt").write_text("more words")
    (line,) = fingerprint.differences(before, fingerprint.of_task(data.open_task(folder)))
    assert line == "test: 2 → 3 texts (good 0 → 1)"
    shutil.rmtree(folder / "test")
    (folder / "test" / "bad").mkdir(parents=True)
    with pytest.raises(ValueError, match="split 'test' of .*films is empty: it has no texts"):
        data.open_task(folder)
    (folder / "train" / "ugly").mkdir()
    (folder / "train" / "ugly" / "a.html").touch()
    with pytest.raises(ValueError, match="have no text: ugly. .*ugly has a.html, which are not texts. Add texts, or"):
        data.open_task(folder)
    texts = {"train_texts": np.array(["a", "b"]), "train_labels": [0, 0], "class_names": ["x", "y"]}
    np.savez(tmp_path / "untrained.npz", **texts, test_texts=np.array(["c"]), test_labels=[1])
    with pytest.raises(ValueError, match="have no training text: 'y'. Add texts to train"):
        data.open_task(tmp_path / "untrained.npz")
    np.savez(tmp_path / "one.npz", **{k: v[:1] for k, v in texts.items()}, test_texts=np.array(["c"]), test_labels=[0])
    with pytest.raises(ValueError, match="one.npz has 1 text: too few to cut a validation split from it"):
        data.open_task(tmp_path / "one.npz")


def test_a_task_that_became_one_of_texts_says_both(tmp_path):
    before = {"images": 3, "sha256": "0"}
    base = {"class_names": ["a"], "templates": ["{}"]}
    (line,) = fingerprint.differences(
        base | {"splits": {"test": before}}, base | {"splits": {"test": {"texts": 3, "sha256": "1"}}}
    )
    assert line == "test: 3 images → 3 texts"


class TextSample(tfds.core.GeneratorBasedBuilder):
    """Texts as the TFDS catalogue has them: one text and label, several of both, a label that is hidden."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "supervised", "several", "hidden")]

    def _info(self):
        kinds = tfds.features.ClassLabel(names=["bad", "good"])
        features = {"text": tfds.features.Text(), "label": kinds}
        if self.builder_config.name in ("supervised", "several"):
            features |= {"title": tfds.features.Text(), "fine": tfds.features.ClassLabel(num_classes=3)}
        keys = ("text", "label") if self.builder_config.name == "supervised" else None
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for index in range({"train": 30, "test": 9}[split]):
            hidden = self.builder_config.name == "hidden" and split == "test"
            record = {"text": f"{split} {index} ümlaut", "label": -1 if hidden else index % 2}
            if self.builder_config.name in ("supervised", "several"):
                record |= {"title": f"title {index}", "fine": index % 3}
            yield index, record


@pytest.fixture(scope="session")
def texts_of_tfds(tmp_path_factory):
    """A data directory with every config of `text_sample`."""
    directory = tmp_path_factory.mktemp("texts_of_tfds")
    tfds.display_progress_bar(False)
    for config in TextSample.BUILDER_CONFIGS:
        TextSample(config=config.name, data_dir=directory).download_and_prepare(file_format="array_record")
    return directory


@pytest.mark.parametrize(
    ("entry", "text", "label", "names"),
    [
        ("plain", "{split} {index} ümlaut", 2, ("bad", "good")),
        ("supervised", "{split} {index} ümlaut", 2, ("bad", "good")),
        ("supervised#text=title,label=fine", "title {index}", 3, ("0", "1", "2")),
        ("several#text=title,label=label", "title {index}", 2, ("bad", "good")),
    ],
)
def test_a_tfds_data_set_of_texts_is_a_task(texts_of_tfds, entry, text, label, names, monkeypatch):
    monkeypatch.setattr(catalog, "_BLOCK", 4)
    task = data.open_task(f"text_sample/{entry}", data_dir=texts_of_tfds)
    assert (task.modality, task.class_names, task.name) == ("texts", names, f"text_sample_{entry.split('#')[0]}")
    assert task.templates == ("{}", "This is {}.")
    whole = examples_of(task, "train") + examples_of(task, "val")
    expected = [
        sorted((text.format(split=split, index=index), index % label) for index in range(count))
        for split, count in (("test", 9), ("train", 30))
    ]
    assert [examples_of(task, "test"), sorted(whole)] == expected
    assert task.split("test").describe(3).startswith("text_sample/") and task.split("test").describe(3).endswith(
        "test[3]"
    )


def test_tfds_data_sets_that_are_no_task_of_texts(texts_of_tfds):
    with pytest.raises(
        ValueError, match=r"has text \(Text\), .*Choose them: text_sample/several#text=FEATURE,label=FEATU"
    ):
        data.open_task("text_sample/several", data_dir=texts_of_tfds)
    with pytest.raises(ValueError, match=r"with text=txt: it needs"):
        data.open_task("text_sample/plain#text=txt", data_dir=texts_of_tfds)
    with pytest.raises(
        ValueError, match=r"9 of the 9 labels of text_sample/hidden/1.0.0:test lie outside the 2 classes"
    ):
        data.open_task("text_sample/hidden", data_dir=texts_of_tfds)


def test_reading_many_texts_is_announced(texts_of_tfds, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_ANNOUNCE", 20)
    data.open_task("text_sample/plain", data_dir=texts_of_tfds)
    said = capsys.readouterr()
    assert "Reading the 30 texts of text_sample/plain/1.0.0:train once" in said.out + said.err


def checked(capsys, *arguments):
    """The exit code and what is printed, blanks made one."""
    code = main(["--check", *map(str, arguments)])
    return code, " ".join(capsys.readouterr().out.split())


def test_the_group_of_texts_tells_what_to_put_where(tmp_path, capsys):
    assert readiness.names_of(["texts"]) == [*TEXT_TASKS, "clinc150"] and len(TEXT_TASKS) == 8
    for record in readiness.check(["texts"], data_dir=tmp_path):
        assert record.state == "missing" and record.what == "texts" and record.counts == {}
        assert record.origin == str(tmp_path / f"{record.task}.npz")
        keys = "train_texts, train_labels, test_texts, test_labels and class_names"
        assert record.advice[0] == f"Put {record.task}.npz with {keys} into {tmp_path}."
    code, printed = checked(capsys, "texts", "--data-dir", tmp_path)
    assert code == 1 and "0 of 9 tasks are ready." in printed and "images as" not in printed
    named = {
        f"{split}_{what}": value
        for split in ("train", "test")
        for what, value in (("texts", np.array([f"{split} {n}" for n in range(20)])), ("labels", np.arange(20) % 2))
    }
    np.savez(tmp_path / "trec.npz", **named, class_names=["a place", "a person"])  # TFDS has a trec, too
    table(
        tmp_path / "snips.jsonl",
        [(f"{split} {text}", label, split) for split in ("train", "test") for text, label in ROWS],
        ("text", "label", "split"),
    )
    table(tmp_path / "clinc150.csv", ROWS, ("text", "intent"))
    table(tmp_path / "ag_news.csv", ROWS)
    table(tmp_path / "ag_news.tsv", ROWS)
    found = {record.task: record for record in readiness.check(["texts"], data_dir=tmp_path)}
    assert {name: record.state for name, record in found.items() if record.state != "missing"} == {
        "trec": "ready",
        "snips": "ready",
        "clinc150": "broken",
        "ag_news": "broken",
    }
    assert found["trec"].counts == {"train": 20, "test": 20} and found["snips"].counts == {"train": 40, "test": 40}
    assert found["snips"].origin == str(tmp_path / "snips.jsonl")
    assert "no column 'label'" in found["clinc150"].advice[0] and "keep one" in found["ag_news"].advice[0]
    code, printed = checked(capsys, "trec", "snips", "clinc150#label=intent", "--data-dir", tmp_path)
    assert code == 0 and "3 of 3 tasks are ready." in printed


def test_places_of_texts_are_checked_by_name_and_by_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = table(tmp_path / "films.csv", ROWS, ("review", "stars"))
    write_folder(tmp_path / "words", {"train": 10, "test": 6})
    table(tmp_path / "news" / "train.tsv", ROWS)
    table(tmp_path / "news" / "test.tsv", ROWS)
    entries = [f"{path}#text=review,label=stars", "films.csv#text=review,label=stars", "./words", "words", "news"]
    code, printed = checked(capsys, *entries, "--data-dir", tmp_path)
    assert code == 0 and "5 of 5 tasks are ready." in printed
    assert "the test split has 9 texts" in printed and "20% of each class, are the test split" in printed
    assert data.check(["news"], data_dir=tmp_path)[0].counts == {"train": 40, "test": 40}
    code, printed = checked(capsys, path, "--data-dir", tmp_path)
    assert code == 1 and "broken" in printed and "has no column 'text'" in printed
    with pytest.raises(SystemExit):
        main(["--check", "wrods", "--data-dir", str(tmp_path)])
    assert "unknown task 'wrods'" in capsys.readouterr().err


def test_texts_in_two_splits_are_counted_as_texts(tmp_path, capsys):
    for split in ("train", "test"):
        table(
            tmp_path / "films" / f"{split}.csv",
            [(f"{split} {text}", label) for text, label in ROWS] + [("both", "good")],
        )
    table(tmp_path / "films" / "val.csv", ROWS)  # so that none is cut from train
    code, printed = checked(capsys, tmp_path / "films", "--overlap", "--data-dir", tmp_path)
    assert code == 1 and "1 texts of test that stand in train, too" in printed
    assert f"{tmp_path}/films/train.csv, line 42 = {tmp_path}/films/test.csv, line 42" in printed
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "for texts by their characters" in said and "reviews.csv#text=review,label=stars" in said


def test_tfds_data_sets_are_checked_without_preparing_them(texts_of_tfds, tmp_path, capsys):
    (record,) = readiness.check(["text_sample/plain"], data_dir=texts_of_tfds)
    assert (record.state, record.counts, record.what) == ("ready", {"train": 30, "test": 9}, "texts")
    (record,) = readiness.check(["text_sample/several"], data_dir=texts_of_tfds)
    assert record.state == "broken" and "Choose them" in record.advice[0]
    (record,) = readiness.check(["text_sample/several#text=title,label=fine"], data_dir=texts_of_tfds)
    assert record.state == "ready"
    (record,) = readiness.check(["imdb_reviews"], data_dir=tmp_path)
    assert record.state == "missing" and f"--prepare imdb_reviews --data-dir {tmp_path}" in record.advice[0]
    assert not list(tmp_path.iterdir())


def test_a_corpus_of_images_is_not_looked_through_for_texts(tmp_path, capsys, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    scenes = type("Scenes", (), {"images": images})
    monkeypatch.setattr("tajax.data.__main__.captions.load_scenes", lambda *arguments, **options: scenes)
    monkeypatch.setattr("tajax.data.__main__.captions.load_natural", lambda path: [])
    table(tmp_path / "films.csv", ROWS)
    code, printed = checked(capsys, "films", "--corpus", "x.npz", "--data-dir", tmp_path)
    assert code == 0 and "not looked at: texts" in printed
