"""Tasks of texts from tables: .csv, .tsv and .jsonl files, columns, splits and labels, and what is refused."""

import codecs
import shutil

import numpy as np
import pytest

from tajax import data
from tests.data.conftest import encoded, picture
from tests.data.written_texts import ROWS, examples_of, table, write_folder

HARD = ["a, b", 'say "no"', "two\nlines", "a; b", "x\u2028y", "emoji 🦉", "#text=", "'quoted'", "null", "  blanks "]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_a_split_is_a_task_of_texts(tmp_path, suffix):
    rows = ROWS + [(text, "good") for text in HARD]
    for split, some in (("train", rows), ("Validation", rows[:5]), ("testing", rows[::2])):
        table(tmp_path / "films" / f"{split}{suffix}", some)
    task = data.open_task(tmp_path / "films")
    assert (task.name, task.modality, task.class_names) == ("films", "texts", ("bad", "good", "plain"))
    label = {"bad": 0, "good": 1, "plain": 2}
    for split, some in (("train", rows), ("val", rows[:5]), ("test", rows[::2])):
        source = task.split(split)
        assert [source[i] for i in range(len(source))] == [(text, label[name]) for text, name in some]
    assert (
        task.split("test").describe(1)
        == f"{tmp_path / 'films' / ('testing' + suffix)}, line {3 - (suffix == '.jsonl')}"
    )
    assert task.test_cut is None and task.validation == {"seed": None, "count": 5}
    (tmp_path / "films" / f"testing{suffix}").unlink()  # val stands for it, as in folders
    assert len(data.open_task(tmp_path / "films").split("test")) == 5


def test_one_table_is_divided_by_its_column(tmp_path):
    splits = ["train"] * 20 + ["test"] * 12 + ["Validation"] * 8
    path = table(
        tmp_path / "a.csv", [(*row, split) for row, split in zip(ROWS, splits, strict=True)], ("text", "label", "split")
    )
    task = data.open_task(path)
    assert [len(task.split(split)) for split in ("train", "val", "test")] == [20, 8, 12] and task.test_cut is None
    assert [text for text, _ in map(task.split("test").__getitem__, range(12))] == [text for text, _ in ROWS[20:32]]
    assert not any("not read" in line for line in task.warnings)
    rows = [(*row, split) for row, split in zip(ROWS, splits, strict=True)]
    named = table(tmp_path / "b.jsonl", rows, ("review", "stars", "fold"))
    task = data.open_task(f"{named}#text=review,label=stars,split=fold")
    assert task.name == "b" and task.origin.endswith("b.jsonl#text=review,label=stars,split=fold")
    assert [len(task.split(split)) for split in ("train", "val", "test")] == [20, 8, 12]
    with pytest.raises(ValueError, match="column 'split' of .*c.csv has no row of test"):
        data.open_task(table(tmp_path / "c.csv", [("a", "b", "train")], ("text", "label", "split")))
    with pytest.raises(
        ValueError, match=r"c.csv, line 3, column 'split': 'dev' is no split; choose from train, training"
    ):
        data.open_task(table(tmp_path / "c.csv", [("a", "b", "train"), ("a", "b", "dev")], ("text", "label", "split")))


def test_a_table_without_splits_is_cut_by_its_texts(tmp_path):
    rows = ROWS + [ROWS[0]] * 5
    task = data.open_task(table(tmp_path / "films.csv", rows))
    assert task.test_cut == {"seed": 0, "count": len(task.split("test"))} and task.validation["seed"] == 0
    every = examples_of(task, "train") + examples_of(task, "val") + examples_of(task, "test")
    label = {"bad": 0, "good": 1, "plain": 2}
    assert sorted(every) == sorted((text, label[name]) for text, name in rows)
    tested = set(examples_of(task, "test"))
    assert {sum(label == number for _, label in tested) for number in range(3)} == {3}  # of 14, 13 and 13 texts
    assert not tested & set(examples_of(task, "train") + examples_of(task, "val"))  # equal texts are on one side
    # Golden: a change here changes every test figure of such a file.
    assert sorted(int(text.split()[1]) for text, _ in tested) == [3, 7, 10, 11, 14, 15, 17, 25, 33]
    assert set(examples_of(data.open_task(table(tmp_path / "other.jsonl", rows[::-1])), "test")) == tested
    assert task.warnings[0].startswith(
        f"films: without a column that says the split, {len(task.split('test'))} of 45 texts, 20%"
    )
    with pytest.raises(
        ValueError, match=r"one text cannot be divided between train and test: rare. Add texts, or a col"
    ):
        data.open_task(table(tmp_path / "rare.csv", [*ROWS, ("x", "rare"), ("x", "rare")]))


def test_labels_that_are_numbers_stand_in_their_order_and_may_have_names(tmp_path):
    numbers = [(text, ("10", "9", "0")[index % 3]) for index, (text, _) in enumerate(ROWS)]
    for split in ("train", "test"):
        table(tmp_path / "news" / f"{split}.csv", numbers)
        table(tmp_path / "json" / f"{split}.jsonl", [(text, int(label)) for text, label in numbers])
    for place in ("news", "json"):
        task = data.open_task(tmp_path / place)
        assert task.class_names == ("0", "9", "10")
        assert [task.split("test")[index][1] for index in range(3)] == [2, 1, 0]
    (tmp_path / "news" / "class_names.txt").write_text("World\nSports\nBusiness\n")
    assert data.open_task(tmp_path / "news").class_names == ("World", "Sports", "Business")
    (tmp_path / "news" / "class_names.txt").write_text("10\tBusiness\n0\tWorld\n9\tSports\n")
    assert data.open_task(tmp_path / "news").class_names == ("World", "Sports", "Business")
    (tmp_path / "news" / "class_names.txt").write_text("11\tBusiness\n0\tWorld\n9\tSports\n")
    with pytest.raises(ValueError, match="class_names.txt, line 1: '11' is not a label. The nearest is '10'"):
        data.open_task(tmp_path / "news")
    table(tmp_path / "news" / "train.csv", [*numbers, ("x", "09")])
    with pytest.raises(ValueError, match="labels '09' and '9' of .*news are the same number"):
        data.open_task(tmp_path / "news")


def test_columns_are_chosen_behind_a_hash(tmp_path):
    path = table(tmp_path / "reviews.csv", [(text, 1, label) for text, label in ROWS], ("review", "id", "stars"))
    for entry in (f"{path}#text=review,label=stars", f"{path}#label=stars, text=review"):
        task = data.open_task(entry)
        assert task.name == "reviews" and task.class_names == ("bad", "good", "plain") and task.origin == entry
        assert task.warnings[0] == f"reviews: 1 columns of {path} are not read: id"
        data.check_entry(entry)
    shutil.copy(path, tmp_path / "odd#text=a.csv")  # what exists as it is spelled
    with pytest.raises(ValueError, match="line 1 has no column 'text'. "):
        data.open_task(tmp_path / "odd#text=a.csv")
    assert len(data.open_task(f"{tmp_path / 'odd#text=a.csv'}#text=review,label=stars").split("test")) == 9
    for choice in ("", "review", "texts=review", "text=", "text=review,text=stars", "text=review,label=review"):
        for refuse in (data.open_task, data.check_entry):
            with pytest.raises(ValueError, match="chooses no column. Behind # stand text=COLUMN"):
                refuse(f"{path}#{choice}")
    np.savez(tmp_path / "a.npz", train_texts=["a"])
    write_folder(tmp_path / "folder", 3)
    for place in ("a.npz", "folder"):
        with pytest.raises(ValueError, match=f"chooses columns, which .*{place} has not: they are of .csv, .tsv and"):
            data.open_task(f"{tmp_path / place}#text=review")
    for split in ("train", "test"):
        table(tmp_path / "split" / f"{split}.csv", [(*row, "train") for row in ROWS], ("review", "stars", "split"))
    task = data.open_task(f"{tmp_path / 'split'}#text=review,label=stars")
    assert len(task.split("test")) == 40 and "1 columns of" in task.warnings[0] and task.name == "split"
    with pytest.raises(ValueError, match="has a file a split, and split=split chooses a column for them"):
        data.open_task(f"{tmp_path / 'split'}#text=review,label=stars,split=split")


def test_tables_of_the_data_directory_open_by_their_names(tmp_path):
    table(tmp_path / "films.csv", ROWS)
    for split in ("train", "test"):
        table(tmp_path / "news" / f"{split}.jsonl", ROWS, ("title", "topic"))
        write_folder(tmp_path / "words" / split, 3)
    assert data.open_task("films", data_dir=tmp_path).origin == str(tmp_path / "films.csv")
    task = data.open_task("news#text=title,label=topic", data_dir=tmp_path)
    assert (task.name, task.origin) == ("news", f"{tmp_path / 'news'}#text=title,label=topic")
    assert data.open_task("words", data_dir=tmp_path).modality == "texts"
    for entry in ("films", "news#text=title,label=topic", "words"):
        data.check_entry(entry, data_dir=tmp_path)
    table(tmp_path / "films.jsonl", ROWS)
    for refuse in (data.open_task, data.check_entry):
        with pytest.raises(
            ValueError, match=r"has films.csv and films.jsonl, which are both the task 'films'; keep one"
        ):
            refuse("films", data_dir=tmp_path)
        with pytest.raises(ValueError, match=r"unknown task 'filsm'.*\.csv, \.tsv or \.jsonl file of texts"):
            refuse("filsm", data_dir=tmp_path)


def test_texts_are_no_task_of_the_table(tmp_path):
    write_folder(tmp_path / "mnist", {"train": 3, "test": 3}, classes=("0", "1"))
    with pytest.raises(ValueError, match="mnist holds texts, and the task 'mnist' of the table is of images; rename"):
        data.open_task("mnist", data_dir=tmp_path)
    assert data.open_task(tmp_path / "mnist").modality == "texts"


def test_tables_beside_images_are_about_these(tmp_path):
    folder = tmp_path / "birds"
    for number in range(12):
        path = folder / ("owl", "hare")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    for split in ("train", "test"):
        table(folder / f"{split}.csv", ROWS)
    task = data.open_task(folder)
    assert task.modality == "images" and "2 entries of" in task.warnings[1] and "train.csv" in task.warnings[1]
    for name in ("owl", "hare"):
        shutil.rmtree(folder / name)
    (folder / "scripts").mkdir()
    task = data.open_task(folder)
    assert task.modality == "texts" and task.warnings[0] == f"birds: 1 entries of {folder} are not read: scripts/"
    table(folder / "training.tsv", ROWS)
    with pytest.raises(ValueError, match="has train.csv and training.tsv, which are both the train split; keep one"):
        data.open_task(folder)


GOOD = "text,label\na,x\nb,x\nc,y\nd,y\n"
NEVER = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a.csv has no rows. Expected: the names of its columns in the first line"),
        ("a.csv", "text,label\n", r"a.csv has no rows"),
        ("a.jsonl", "\n\n", r"a.jsonl has no rows. Expected: JSON objects, one a line"),
        (
            "a.csv",
            "txet,label\na,b",
            r"line 1 has no column 'text'. Did you mean 'txet'\? It has: 'txet', 'label'. Others",
        ),
        ("a.csv", "text;label\na;b", r"It has: 'text;label'. .* Cells are parted by commas in .csv files"),
        ("a.csv", "text,label,text\na,b,c", r"line 1 names columns twice: 'text'"),
        ("a.csv", GOOD + '"two\nlines",x\ne\n', r"a.csv, line 8 has 1 cells, and the first line names 2 columns"),
        ("a.csv", GOOD + "e,x,more\n", r"line 6 has 3 cells, .* Cells with commas in them stand in quotes"),
        ("a.csv", GOOD + '"never closed,x\ne,x\n', r"a.csv, line 6: .*a quote inside of it is written twice"),
        (
            "a.tsv",
            'text\tlabel\n"a b\tx\nc\tx\nd"\tx\n',
            r"a.tsv, line 2: a cell in quotes goes on over tabs and lines",
        ),
        ("a.csv", GOOD + "e, \n", r"a.csv, line 6, column 'label': there is no label"),
        ("a.csv", GOOD + f"e,{'x' * 301}\n", r"line 6, column 'label': a label of 301 characters"),
        ("a.csv", f"text,label\n{'x' * 200_000},x\n", r"a.csv, line 2: field larger than field limit"),
        ("a.csv", b"text,label\na,x\n\xe9t\xe9,y\n", r"a.csv, line 3: byte 0xe9 .* is not UTF-8"),
        ("a.csv", b"text,label\na,x\nb\0,y\n", r"a.csv, line 3: byte 0x00 .* is not UTF-8"),
        ("a.csv", b"PK\x03\x04\x14\x00\x00\xff", r"a.csv, line 1: byte 0xff"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "a"}',
            r"a.jsonl, line 2 has no column 'label'. It has: 'text'",
        ),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text"', r"a.jsonl, line 3 is not JSON: Expecting ':'"),
        ("a.jsonl", NEVER, r"a.jsonl, line 1 is not JSON"),
        ("a.jsonl", "[1, 2]", r"line 1 is \[1, 2\], and no JSON object with a text and a label"),
        ("a.jsonl", '{"text": 7, "label": 1}', r"line 1: column 'text' is 7, and no text"),
        ("a.jsonl", '{"text": null, "label": 1}', r"line 1: column 'text' is None, and no text"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1.5}',
            r"line 1, column 'label': the label is 1.5; expected a name or a whole",
        ),
        ("a.jsonl", '{"text": "a", "label": true}', r"the label is True; expected a name"),
        ("a.jsonl", '{"text": "a", "label": null}', r"the label is None; expected a name"),
        ("a.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", r"line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", r'{"text": "\ud83d", "label": 1}', r"column 'text': character 0 is half of one \(\\ud83d\)"),
        ("a.jsonl", r'{"text": "a", "label": 1, "split": 3}', r"column 'split': 3 is no split; choose"),
    ],
)
def test_tables_that_are_no_task(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        data.open_task(tmp_path / name)


def test_marks_and_lines_of_windows_do_not_count(tmp_path):
    table(tmp_path / "a.csv", ROWS)
    plain = data.open_task(tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    for content in (codecs.BOM_UTF8 + text.encode(), text.replace("\n", "\r\n").encode(), text.encode("utf-16")):
        (tmp_path / "a.csv").write_bytes(content)
        assert content_of(data.open_task(tmp_path / "a.csv")) == content_of(plain)


def content_of(task):
    return {split: examples_of(task, split) for split in task.splits}


def test_what_is_called_a_table_and_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="file .*revews.csv does not exist. .* has: "):
        data.open_task(tmp_path / "revews.csv")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(ValueError, match="folder .*dir.csv lacks train/ and test/"):
        data.open_task(tmp_path / "dir.csv")
    write_folder(tmp_path / "dir.csv", 3)  # a folder of texts may be called so
    assert data.open_task(tmp_path / "dir.csv").modality == "texts"
    np.savez(tmp_path / "array.npz", train_texts=["a"])
    (tmp_path / "array.npz").rename(tmp_path / "array.csv")
    with pytest.raises(ValueError, match="array.csv, line 1: byte .* is not UTF-8 text"):
        data.open_task(tmp_path / "array.csv")
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with pytest.raises(
        ValueError, match="link.jsonl is not a file but a directory, a pipe, a device or a link to nothing"
    ):
        data.open_task(tmp_path / "link.jsonl")
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(
        ValueError, match="a.xlsx is a file; give a folder of images or texts, or an .npz, .csv, .tsv or"
    ):
        data.open_task(tmp_path / "a.xlsx")


def test_a_label_that_train_has_not_is_named_by_its_line(tmp_path):
    table(tmp_path / "films" / "train.csv", ROWS)
    table(tmp_path / "films" / "test.csv", [*ROWS[:2], ("x", "god")])
    words = (
        r"test.csv, line 4: no row of train has the label 'god'. Did you mean 'good'\? Those of train: bad, good, plain"
    )
    with pytest.raises(ValueError, match=words):
        data.open_task(tmp_path / "films")


def test_blank_rows_are_refused_or_left_out(tmp_path):
    for split in ("train", "test"):
        table(tmp_path / "films" / f"{split}.csv", [*ROWS, (" ", "good")])
    task = data.open_task(tmp_path / "films")
    with pytest.raises(data.BadTextError, match=r"1 of the 41 texts of films/test.*\n.*test.csv, line 42 is empty"):
        data.check_images(task)
    assert len(data.check_images(task, on_bad_image="skip").split("test")) == 40
