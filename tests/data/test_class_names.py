"""Which label a class has, and which name, does not hang on how somebody's system sorts or writes text."""

from dataclasses import replace

import pytest

from tajax.data import TASKS, class_names, open_task
from tests.data.conftest import encoded, picture

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def fill(root, classes, *, train=6, test=5, **splits):
    """Class directories with pictures of their own; picture `number` stands in class `number % len(classes)`."""
    for split, count in {"train": train, "test": test, **splits}.items():
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                path = root / split / name / f"{index}.png"
                path.write_bytes(encoded(picture(1000 * len(split) + 100 * label + index)))
    return root


def directories(task, split="test"):
    """The class directory of each label, by the files themselves."""
    source = task.splits[split]
    return {int(source.labels[i]): source.describe(i).split("/")[-2] for i in range(len(source))}


@pytest.mark.parametrize("width", [1, 3])
def test_directories_that_are_numbers_stand_in_the_order_of_numbers(tmp_path, width):
    names = [f"{number:0{width}d}" for number in range(11)]
    folder = fill(tmp_path / "counted", names, train=2, test=1)
    assert directories(open_task(folder)) == dict(enumerate(names))
    (folder / "class_names.txt").write_text("\n".join(WORDS))
    task = open_task(folder)
    assert {names.index(directories(task)[label]): name for label, name in enumerate(task.class_names)} == dict(
        enumerate(WORDS)
    )
    assert not any("in another order" in line for line in task.warnings)


def test_other_directories_stand_in_the_order_of_text(tmp_path):
    names = ["n02085620", "n01440764", "n10565667"]
    assert directories(open_task(fill(tmp_path / "wordnet", names))) == dict(enumerate(sorted(names)))
    assert class_names.in_order(["2", "10", "2b"], "") == ["10", "2", "2b"]
    assert class_names.in_order(["3", "-1", "10"], "") == ["-1", "3", "10"]


def test_one_number_is_one_class(tmp_path):
    with pytest.raises(ValueError, match="class directories '01' and '1' of .*train are the same number; rename one"):
        open_task(fill(tmp_path / "twice", ["1", "01", "2"]))


def test_names_beside_their_directories_may_stand_in_any_order(tmp_path):
    folder = fill(tmp_path / "birds", ["class_1", "class_2", "class_10"])
    lines = ["class_10\ta crow", "class_1\t an owl ", "", "class_2\ta wren"]
    (folder / "class_names.txt").write_text("\n".join(lines))
    task = open_task(folder)
    named = {directory: task.class_names[label] for label, directory in directories(task).items()}
    assert named == {"class_1": "an owl", "class_2": "a wren", "class_10": "a crow"}
    assert not any("class_names.txt" in line for line in task.warnings)


def test_names_alone_are_doubted_where_people_would_sort_otherwise(tmp_path):
    folder = fill(tmp_path / "birds", ["class_1", "class_2", "class_10"])
    (folder / "class_names.txt").write_text("an owl\na wren\na crow\n")
    (line,) = [line for line in open_task(folder).warnings if "class_names.txt" in line]
    assert line.startswith(
        "birds: class_names.txt has names alone, for the directories in the order class_1, class_10,"
    )
    assert "directory<TAB>name" in line
    assert class_names.order_is_doubtful(["Owl", "crow"]) and not class_names.order_is_doubtful(["crow", "owl"])


@pytest.mark.parametrize(
    "lines, message",
    [
        (["owl\tan owl", "a wren"], r"line 2 is 'a wren', without a tab, and line 1 has one. Give all lines or none"),
        (["owl\tan owl", "\n", "wrne\ta wren"], r"line 4: 'wrne' is not a class directory. The nearest is 'wren'"),
        (["owl\tan owl", "owl\ta wren"], "lines 1 and 2 both name the class 'owl'"),
        (["owl\tan owl"], "has no line for 1 of 2 classes: wren"),
        (["an owl"], r"has 1 names, one a line, for 2 classes \('owl' to 'wren'\). Better .* directory<TAB>name"),
        (["Wren", "an owl"], r"line 1: 'Wren' would name the class 'owl', and 'wren' is another class. The order is"),
    ],
)
def test_names_that_mean_no_class_or_another_are_refused(tmp_path, lines, message):
    folder = fill(tmp_path / "birds", ["owl", "wren"])
    (folder / "class_names.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"class_names.txt,? {message}"):
        open_task(folder)


def test_a_file_of_names_that_is_a_link_to_nothing_is_not_taken_for_none(tmp_path):
    folder = fill(tmp_path / "birds", ["owl", "wren"])
    (folder / "class_names.txt").symlink_to("nowhere.txt")
    with pytest.raises(ValueError, match="class_names.txt is not a file but .* a link to nothing"):
        open_task(folder)


def test_class_names_of_windows_are_the_same_names(tmp_path):
    folder = fill(tmp_path / "birds", ["owl", "wren"])
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (folder / "class_names.txt").write_bytes("a gull\r\na crow\r\n".encode(encoding))
        assert open_task(folder).class_names == ("a gull", "a crow")
    (folder / "class_names.txt").write_bytes("a gull\nune corneille à tête\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"class_names.txt, line 2: byte 0xe0 after 'une corneille '"):
        open_task(folder)


def test_stored_names_of_a_data_set_stand_for_directories(catalogue, monkeypatch):
    monkeypatch.setitem(TASKS, "mnist", replace(TASKS["mnist"], tfds="pipeline_sample/usual"))
    folder = catalogue / "mnist"
    folder.mkdir()
    try:
        (folder / "class_names.txt").write_text("/s/sea/rocky\tone shore\npalm_tree\tone palm\n")
        assert open_task("mnist", data_dir=catalogue).class_names == ("one palm", "one shore")
    finally:
        (folder / "class_names.txt").unlink()
        folder.rmdir()
