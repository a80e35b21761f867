"""The table of tasks: the protocol's facts, and that every row opens what its builder stores."""

from dataclasses import replace

import pytest
import tensorflow_datasets as tfds

from tajax.config import BUNDLED_TASKS, PROTOCOL_TASKS, SUITE_TASKS, default_config, with_variant
from tajax.data import BUNDLED, PROTOCOL, SUITE, TASKS, open_task
from tajax.data.prompts import readable
from tests.data.tiny_catalogue import IMAGES, drawn, tiny_rule, write_tiny

# Epochs, images of train and validation, of test, classes, templates: of papers.md §1 and, for the rest of the suite,
# of the papers' code and of the data sets' publishers.
FACTS = {
    "cars": (35, 8_144, 8_041, 196, 8),
    "dtd": (76, 3_760, 1_880, 47, 8),
    "eurosat": (12, 24_300, 2_700, 10, 3),
    "gtsrb": (11, 26_640, 12_630, 43, 3),
    "mnist": (5, 60_000, 10_000, 10, 1),
    "resisc45": (15, 18_900, 6_300, 45, 18),
    "sun397": (14, 19_850, 19_850, 397, 2),
    "svhn": (4, 73_257, 26_032, 10, 1),
    "imagenet": (None, 1_281_167, 50_000, 1000, 80),
    "cifar10": (6, 50_000, 10_000, 10, 18),
    "cifar100": (6, 50_000, 10_000, 100, 18),
    "stl10": (60, 5_000, 8_000, 10, 2),
    "food101": (4, 75_750, 25_250, 101, 1),
    "flowers102": (147, 1_020, 6_149, 102, 1),
    "fer2013": (10, 28_709, 7_178, 7, 6),
    "pcam": (1, 262_144, 32_768, 2, 1),
    "oxford_iiit_pet": (82, 3_680, 3_669, 37, 1),
    "rendered_sst2": (39, 6_920, 1_821, 2, 1),
    "emnist": (2, 240_000, 40_000, 10, 1),
    "fashion_mnist": (5, 60_000, 10_000, 10, 2),
    "kmnist": (5, 60_000, 10_000, 10, 1),
}
ROWS = PROTOCOL | SUITE
GREY = ("mnist", "fer2013", "emnist", "fashion_mnist", "kmnist")


def test_the_table_has_the_protocol_and_the_suite():
    assert set(PROTOCOL) == {*PROTOCOL_TASKS, "imagenet"}  # the eight tasks and the control
    assert tuple(SUITE) == SUITE_TASKS == with_variant(default_config(), "l14_20").tasks and len(SUITE) == 20
    assert set(BUNDLED) == {*BUNDLED_TASKS, "objects"}
    assert TASKS == BUNDLED | ROWS and len(TASKS) == 9 + 21
    found = {
        name: (row.epochs, row.counts["train"], row.counts["test"], len(row.class_names), len(row.templates))
        for name, row in ROWS.items()
    }
    assert found == FACTS


def test_templates_are_sentences_with_one_place():
    for name, row in TASKS.items():
        assert all(template.count("{}") == 1 for template in row.templates), name
        assert len(set(row.templates)) == len(row.templates), name


def test_class_names_differ_and_are_plain_words():
    for name, row in ROWS.items():
        assert len(set(row.class_names.values())) == len(row.class_names), name
        assert all(prompt == readable(prompt) and prompt.isascii() for prompt in row.class_names.values()), name


def test_names_of_the_protocol_to_the_letter():
    def prompt(task, stored):
        return ROWS[task].class_names[stored]

    assert prompt("gtsrb", "00014") == "stop"
    assert prompt("gtsrb", "00017") == "red circle with white horizonal stripe no entry"  # misspelt where published
    assert prompt("eurosat", "SeaLake") == "lake or sea"
    assert prompt("sun397", "/a/apse/indoor") == "apse indoor"
    assert prompt("cifar100", "crab") == "crab" and prompt("cifar100", "lawn_mower") == "lawn mower"
    assert prompt("flowers102", "ball moss") == "air plant"
    assert prompt("oxford_iiit_pet", "american_pit_bull_terrier") == "american pit bull terrier"
    assert prompt("pcam", "1") == "lymph node containing metastatic tumor tissue"
    assert list(ROWS["fer2013"].class_names) == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    assert list(ROWS["kmnist"].class_names.values()) == ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]


def test_imagenet_is_in_the_order_of_wordnet_numbers(tmp_path):
    numbers = list(ROWS["imagenet"].class_names)
    assert numbers == sorted(numbers) == tfds.builder("imagenet2012", data_dir=tmp_path).info.features["label"].names
    names = list(ROWS["imagenet"].class_names.values())
    assert [names[label] for label in (0, 134, 517, 999)] == [
        "tench",
        "crane bird",
        "construction crane",
        "toilet paper",
    ]
    # The published list names these alike, two and two.
    assert [names[label] for label in (657, 744, 836, 837)] == ["missile", "projectile", "sunglasses", "dark glasses"]
    assert len({name.casefold() for name in names}) == 1000


@pytest.mark.parametrize("name", ROWS)
def test_rows_fit_the_builders_of_tfds(name, tmp_path):
    row = ROWS[name]
    features = tfds.builder(row.tfds, data_dir=tmp_path).info.features
    stored = features["label"].names
    placeholders = [str(label) for label in range(len(row.class_names))]
    assert stored == placeholders or stored == list(row.class_names)
    assert ("filename" in features) == (row.manifest is not None)


@pytest.mark.parametrize("name", ROWS)
def test_rows_open_what_their_builders_store(name, tmp_path, monkeypatch):
    row = ROWS[name]
    tfds.display_progress_bar(False)
    write_tiny(row, tmp_path, monkeypatch)
    if row.manifest:
        monkeypatch.setitem(TASKS, name, replace(row, manifest=tiny_rule(row.manifest)))
    task = open_task(name, data_dir=tmp_path)

    assert task.class_names == tuple(row.class_names.values())
    assert (task.name, task.templates, task.epochs, task.origin) == (name, row.templates, row.epochs, row.tfds)
    counts = {split: len(source) for split, source in task.splits.items()}
    if row.manifest:
        classes = len(row.class_names)
        assert counts["test"] == classes and task.manifest["counts"]["test"] == dict.fromkeys(row.class_names, 1)
        assert sum(counts.values()) == classes * (5 - ("unused" in row.manifest.take))
        assert sorted(task.splits["test"][index][1] for index in range(classes)) == list(range(classes))
        return
    parts = {"dtd": ("train", "validation")}.get(name, ("train",))
    tested = "validation" if name in ("food101", "imagenet") else "test"
    assert counts["test"] == IMAGES[tested] and counts["train"] + counts["val"] == sum(IMAGES[part] for part in parts)
    test = {task.splits["test"][index][0].tobytes() for index in range(counts["test"])}
    pictures = [drawn(tested, index) for index in range(IMAGES[tested])]
    assert test == {(image.convert("L").convert("RGB") if name in GREY else image).tobytes() for image in pictures}


def test_cars_are_read_from_the_official_archive_where_tfds_has_none_prepared(tmp_path, monkeypatch):
    row = ROWS["cars"]
    with pytest.raises(ValueError, match="tajax_cars") as error:
        open_task("cars", data_dir=tmp_path)
    assert all(word in str(error.value) for word in ("cars_train", "download link of cars196 is dead"))
    for dataset in (row.archive, row.tfds):  # from then on the one of TFDS
        write_tiny(replace(row, tfds=dataset), tmp_path, monkeypatch)
        task = open_task("cars", data_dir=tmp_path)
        assert task.origin == dataset and task.class_names == tuple(row.class_names.values())
