"""Captioned scenes are a function of (index, seed) and speak of every class by its name."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from tajax.data.builders.concepts import CLASS_NAMES
from tajax.data.builders.randomness import stream
from tajax.data.builders.scenes import render_scene, scattered
from tajax.data.builders.tasks import ALL, render_example


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(index, seed=0) for index in range(2000)]


def test_every_class_name_occurs_as_a_caption(scenes):
    captions = {caption for _, caption in scenes}
    missing = {name for names in CLASS_NAMES.values() for name in names} - captions
    assert not missing


def test_captions_combine_concepts(scenes):
    captions = {caption for _, caption in scenes}
    assert len(captions) > 500
    assert any(caption.startswith("three green ") for caption in captions)
    assert any(caption.startswith("a large red ") for caption in captions)
    assert not any("{" in caption or caption.endswith(".") for caption in captions)


def test_a_scene_depends_on_index_and_seed_alone(scenes):
    for index in (1999, 7, 0):  # any order
        picture, caption = render_scene(index, seed=0)
        np.testing.assert_array_equal(picture, scenes[index][0])
        assert caption == scenes[index][1]
    assert not np.array_equal(render_scene(7, seed=1)[0], scenes[7][0])


def test_no_picture_occurs_twice_nor_in_a_task(scenes):
    pictures = [picture.tobytes() for picture, _ in scenes]
    pictures += [render_scene(index, seed=1)[0].tobytes() for index in range(200)]
    for task, split in itertools.product(ALL, ("train", "val", "test")):
        pictures += [render_example(task, split, index)[0].tobytes() for index in range(60)]
    assert len(set(pictures)) == len(pictures)


def test_scenes_are_those_the_bundled_model_was_trained_on(scenes):
    """Captions exactly; pixels up to what another version of Pillow's rasteriser may change in the mean."""
    captions = "\n".join(caption for _, caption in scenes)
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == "3a4995cee964cc36"
    assert np.mean([picture for picture, _ in scenes]) == pytest.approx(129.52, abs=0.1)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_scattered_things_do_not_touch(count):
    for index in range(20):
        poses = scattered(stream("test", index), count, small=2.8, large=6, gap=1.2)
        assert len(poses) == count
        for one, other in itertools.combinations(poses, 2):
            assert math.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius + 1.2
