"""Natural images for pre-training: where they come from, what is said of them, and whether they may be mirrored."""

import numpy as np
import pytest
from PIL import Image

from tajax.data import captions, phrases
from tests.data.conftest import encoded


@pytest.fixture
def natural(tmp_path):
    """`natural(**changes)`: a file with five flat grey images of two sources, each image its own number × 20."""

    def write(**changes):
        files = [encoded(Image.new("RGB", (8, 8), (20 * n,) * 3), "PNG") for n in range(5)]
        arrays = {
            "train_jpeg": np.frombuffer(b"".join(files), np.uint8),
            "train_offsets": np.cumsum([0, *map(len, files)]),
            "train_labels": np.array([0, 2, 1, 0, 1]),
            "class_names": np.array(["pet cat", "keep left traffic sign", "acorn"]),
            "train_source": np.array([0, 0, 1, 0, 1]),
            "source_names": np.array(["garden", "road"]),
            "train_mirror": np.array([1, 1, 0, 1, 0]),
        }
        arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
        np.savez(tmp_path / "natural.npz", **arrays)
        return tmp_path / "natural.npz"

    return write


def numbers(found):
    return (found.images[:, 0, 0, 0] // 20).tolist()


def test_each_source_keeps_its_images_names_and_whether_they_may_be_mirrored(natural):
    garden, road = captions.load_natural(natural())
    assert (garden.name, numbers(garden), garden.labels.tolist(), garden.mirrored) == (
        "garden",
        [0, 1, 3],
        [0, 1, 0],
        True,
    )
    assert (road.name, numbers(road), road.labels.tolist(), road.mirrored) == ("road", [2, 4], [0, 0], False)
    assert {"a cat", "the pet cat", "cat"} <= set(garden.phrases[0])
    assert set(road.phrases[0]) >= {"keep left", "a keep left sign", "the keep left traffic sign"}


def test_images_of_one_source_that_differ_in_mirroring_are_never_mirrored_by_mistake(natural):
    found = captions.load_natural(natural(train_mirror=np.array([1, 0, 0, 1, 0])))
    assert [(each.name, numbers(each), each.mirrored) for each in found] == [
        ("garden", [0, 3], True),
        ("garden", [1], False),
        ("road", [2, 4], False),
    ]


def test_a_file_that_names_no_source_is_one_that_may_be_mirrored(natural):
    (found,) = captions.load_natural(natural(train_source=None, source_names=None, train_mirror=None))
    assert (found.name, numbers(found), found.mirrored) == ("natural", [0, 1, 2, 3, 4], True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_mirror": np.ones(4, bool)}, r"train_mirror has shape \(4,\), want \(5,\) as train_labels has 5"),
        ({"train_source": np.array([0, 0, 2, 0, 1])}, "train_source has 0 to 2, source_names has 2"),
        ({"train_labels": np.array([0, 3, 1, 0, 1])}, "train_labels has 0 to 3, class_names has 3"),
        ({"train_labels": np.zeros((5, 1), int)}, r"train_labels has shape \(5, 1\), want \(5,\)"),
        ({"train_labels": np.zeros(5)}, "train_labels has dtype float64, want whole numbers"),
        ({"train_mirror": np.array([1, 1, 0, 2, 0])}, "train_mirror has 0 to 2, true and false has 2"),
        (
            {name: np.zeros(0, int) for name in ("train_labels", "train_source", "train_mirror")}
            | {"train_offsets": np.zeros(1, int)},
            "has no images: train_labels is empty",
        ),
        ({"train_offsets": None}, r"lacks \['train_offsets'\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(natural, changes, words):
    with pytest.raises(ValueError, match=words):
        captions.load_natural(natural(**changes))


@pytest.mark.parametrize(
    ("class_name", "want"),
    [
        ("handwritten digit seven", {"seven", "digit seven", "number seven"}),
        ("street-sign letter N", {"letter N", "capital letter N"}),
        ("end of speed limit 80 traffic sign", {"end of 80 km/h speed limit"}),
        ("navy blue sports shoe product photo", {"sports shoe", "navy blue sports shoe", "sneaker"}),
        ("Audi TTS coupe", {"coupe", "Audi TTS", "coupe car"}),
        ("German shepherd", {"dog"}),
        ("steel surface with fine crazing cracks", {"cracked"}),
    ],
)
def test_a_class_is_called_what_the_field_calls_it(class_name, want):
    names = phrases.names(class_name)
    assert names[0] == class_name and want <= set(names) and len(set(names)) == len(names)
    assert not any("\\" in name or not name.strip() for name in names)
    assert {f"a {n}" if n[0].lower() not in "aeiou" else f"an {n}" for n in names} <= set(phrases.phrasings(class_name))


def test_a_name_without_a_rule_is_its_own():
    assert phrases.names("acorn") == ("acorn",)
    assert phrases.names("sports car")[:2] == ("sports car", "automobile")  # no brand called "sports"
