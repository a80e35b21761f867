"""Contrastive pre-training: its loss by hand, its batches as a function of their number, and a run of two steps."""

import contextlib
import functools
import io
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax import main, models, results, trees
from tajax.data import captions, mixture
from tajax.data.builders import render_scene
from tajax.finetune import init_state
from tajax.types import Preprocessing
from tajax.workflows.pretrain import augment, contrastive_loss, make_step

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain.py"


def test_loss_of_two_pairs_by_hand():
    """Unit features at angles a and b between images and texts: logits s·cos, both directions."""
    images, texts = jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([[0.6, 0.8], [0.8, -0.6]])
    logits = np.array([[0.6, 0.8], [0.8, -0.6]]) * 2.0

    def row(positive, negative):
        return math.log1p(math.exp(negative - positive))

    images_to_texts = row(logits[0, 0], logits[0, 1]) + row(logits[1, 1], logits[1, 0])
    texts_to_images = row(logits[0, 0], logits[1, 0]) + row(logits[1, 1], logits[0, 1])
    loss = contrastive_loss(images, texts, 2.0, jnp.eye(2, dtype=bool))
    np.testing.assert_allclose(loss, (images_to_texts + texts_to_images) / 4, rtol=1e-6)


def test_loss_of_distinct_captions_is_clips(rng):
    images, texts = (jnp.asarray(rng(n).normal(size=(6, 4)), jnp.float32) for n in (300, 301))
    loss = contrastive_loss(images, texts, 5.0, jnp.eye(6, dtype=bool))
    unit_images, unit_texts = (f / jnp.linalg.norm(f, axis=1, keepdims=True) for f in (images, texts))
    logits = 5.0 * unit_images @ unit_texts.T
    both = [jax.nn.log_softmax(logits, axis=axis).diagonal().mean() for axis in (0, 1)]
    np.testing.assert_allclose(loss, -sum(both) / 2, rtol=1e-5)


def test_equal_captions_are_no_negatives(rng):
    """One caption for all: every pair is as right as any other, so the loss is the entropy of a uniform target."""
    feature = jnp.asarray(rng(302).normal(size=(1, 4)), jnp.float32).repeat(5, axis=0)
    all_fit = jnp.ones((5, 5), bool)
    np.testing.assert_allclose(contrastive_loss(feature, feature, 9.0, all_fit), math.log(5), rtol=1e-6)
    apart = contrastive_loss(feature, -feature, 9.0, all_fit)
    np.testing.assert_allclose(apart, math.log(5), rtol=1e-6)


def test_a_caption_that_fits_more_images_than_another_is_no_negative_of_any(rng):
    """ "a dog" fits both images, "a poodle" the first alone: row by row and column by column, in float64."""
    images, texts = (rng(n).normal(size=(2, 4)) for n in (303, 304))
    fits = np.array([[True, True], [True, False]])
    logits = (
        3.0 * (images / np.linalg.norm(images, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
    )
    wanted = 0.0
    for scores, right in ((logits, fits), (logits.T, fits.T)):
        for row, good in zip(scores, right, strict=True):
            wanted -= np.mean([row[k] - np.log(np.exp(row).sum()) for k in np.flatnonzero(good)]) / 4
    loss = contrastive_loss(jnp.float32(images), jnp.float32(texts), 3.0, jnp.array(fits))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


@pytest.fixture
def sources(rng):
    """Seven scenes of three classes and ten photographs of two; an image is its own number."""

    def source(name, count, phrases, mirrored, first):
        numbers = np.arange(first, first + count).astype(np.uint8)
        images = np.zeros((count, 2, 2, 3), np.uint8) + numbers[:, None, None, None]
        labels = (np.arange(count) % len(phrases)).astype(np.int32)
        return captions.CaptionedImages(name, images, phrases, labels, mirrored)

    scenes = source("scenes", 7, (("a ring",), ("a dot",), ("an insect",)), False, 0)
    return [scenes, source("photographs", 10, (("an ant", "an insect"), ("a bee", "an insect")), True, 100)]


def stream(sources, count, **options):
    batches = mixture.mixed_batches(sources, [3, 2], mixture.vocabulary(sources), **options)
    return [next(batches) for _ in range(count)]


def assert_equal_batches(got, want):
    for a, b in zip(got, want, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_batches_are_a_function_of_seed_and_number(sources):
    whole = stream(sources, 12, seed=1)
    assert_equal_batches(stream(sources, 12, seed=1), whole)
    assert_equal_batches(stream(sources, 5, seed=1, start_batch=7), whole[7:])
    others = stream(sources, 12, seed=2)
    assert any(not np.array_equal(a.images, b.images) for a, b in zip(whole, others, strict=True))


def test_every_image_once_an_epoch_in_an_order_that_changes(sources):
    numbers = np.stack([batch.images[:, 0, 0, 0] for batch in stream(sources, 14, seed=1)])
    scenes, photographs = numbers[:, :3].ravel(), numbers[:, 3:].ravel()
    for drawn, size, first in ((scenes, 7, 0), (photographs[:20], 10, 100)):
        epochs = drawn.reshape(-1, size)
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_row_has_one_of_its_classs_phrases_and_whatever_else_fits_it_is_no_negative(sources):
    classes = [*sources[0].phrases, *sources[1].phrases]
    words = mixture.vocabulary(sources)
    batches = stream(sources, 30, seed=3)
    assert len({tuple(batch.template) for batch in batches}) > 1
    heard = set()
    for batch in batches:
        said = [words.phrases[number] for number in batch.phrase]
        numbers = batch.images[:, 0, 0, 0].tolist()
        fitting = [classes[n % 3] if n < 100 else classes[3 + (n - 100) % 2] for n in numbers]
        assert all(phrase in phrases for phrase, phrases in zip(said, fitting, strict=True))
        assert batch.mirrored.tolist() == [n >= 100 for n in numbers]
        assert all(0 <= template < len(mixture.TEMPLATES) for template in batch.template)
        want = [[phrase in phrases for phrase in said] for phrases in fitting]
        np.testing.assert_array_equal(batch.positives, want)
        heard |= {(n, phrase) for n, phrase in zip(numbers, said, strict=True)}
    assert {phrase for n, phrase in heard if n == 100} == {"an ant", "an insect"}


@pytest.mark.parametrize(
    ("sizes", "rows", "power", "want"),
    [
        ([100, 100], 7, 1.0, [4, 3]),
        ([400, 100, 4], 32, 0.5, [20, 10, 2]),
        ([1000, 1], 10, 1.0, [9, 1]),
        ([9, 1], 10, 0.0, [5, 5]),
    ],
)
def test_rows_are_shared_out_by_a_power_of_the_size(sizes, rows, power, want):
    assert mixture.rows_of_sources(sizes, rows, power=power) == want


def test_a_source_without_a_row_is_refused():
    with pytest.raises(ValueError, match="2 rows of natural images a batch are fewer than their 3 sources"):
        mixture.rows_of_sources([5, 5, 5], 2, power=1.0)


def test_augmented_images_keep_shape_and_type_and_are_mirrored_where_allowed_alone(key):
    """Left halves black, right halves white: a mirrored image is the one that is white on the left."""
    count = 32
    images = np.zeros((count, 16, 16, 3), np.uint8)
    images[:, :, 8:] = 255
    allowed = np.arange(count) < count // 2
    changed = np.asarray(jax.jit(augment)(key, images, allowed))
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    mirrored = changed[:, :, :4].mean((1, 2, 3)) > changed[:, :, -4:].mean((1, 2, 3))
    assert not mirrored[~allowed].any()
    assert count // 8 < mirrored[allowed].sum() < 3 * count // 8  # half of them
    assert len({image.tobytes() for image in changed}) == count  # each has its own zoom, shift and light
    unchanged = functools.partial(augment, zoom=0.0, shift=0.0, light=0.0)
    plain = jax.jit(unchanged)(key, images, np.zeros(count, bool))
    np.testing.assert_array_equal(plain, images)


def test_each_step_augments_anew_and_a_repeated_one_alike(key):
    """A model that returns pixels, at rate 0: the loss of a batch changes with its augmentation alone."""

    class Pixels:
        def apply(self, variables, images, tokens):
            return images.reshape(len(images), -1), images.reshape(len(images), -1)[::-1], 1.0

    tx, half = optax.sgd(0.0), Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
    step = make_step(Pixels(), tx, half)
    images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    params = {"w": jnp.zeros(1)}

    def losses():
        state = init_state(params, tx)
        for _ in range(3):
            state, loss = step(state, key, images, np.zeros(4, bool), np.zeros((4, 3), np.int32), np.eye(4, dtype=bool))
            yield float(loss)

    first = list(losses())
    assert len(set(first)) == 3
    assert list(losses()) == first


@pytest.fixture
def run(programs, monkeypatch):
    """`run(workdir, *flags)`: two steps of a minute model on twenty scenes; its exit code and messages."""

    def scenes(split, *, data_dir, size):
        assert (split, size) == ("train", "small")
        pictures, texts = zip(*(render_scene(index, 0) for index in range(20)), strict=True)
        names, index = np.unique(texts, return_inverse=True)
        phrases = tuple((str(name),) for name in names)
        return captions.CaptionedImages("scenes", np.stack(pictures), phrases, index.astype(np.int32), mirrored=False)

    monkeypatch.setattr(captions, "load_scenes", scenes)
    sizes = {"width": 8, "heads": 1, "layers": 1, "text_width": 8, "text_layers": 1, "text_heads": 1, "embed_dim": 8}
    sizes |= {"patch_size": 16, "vocab_size": 600, "context_length": 24}
    rates = {"steps": 2, "warmup_steps": 0, "batch_size": 4, "scenes": "small", "natural_fraction": 0.0}
    fields = sizes | rates | {"checkpoint_every": 1, "log_every": 1}

    def run(workdir, *flags, **overrides):
        given = [f"--config.pretrain.{name}={value}" for name, value in (fields | overrides).items()]
        messages = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(messages):
            code = main.main(["tajax", f"--config={CONFIG}", f"--workdir={workdir}", *given, *flags])
        return code, messages.getvalue()

    return run


def test_pretrained_model_opens_and_a_resumed_run_gives_the_same(run, tmp_path):
    workdir = tmp_path / "run"
    assert run(workdir)[0] == 0
    clip = models.load(workdir / "model")
    assert (clip.config.vision.hidden_size, clip.preprocessing.size, clip.config.projection_dim) == (8, 32, 8)
    records = results.read(workdir / "results.jsonl")
    assert [(r["stage"], r.get("step")) for r in records] == [("run", None), ("pretrain", 1), ("pretrain", 2)]
    assert "Pre-training" in (workdir / "report.md").read_text()

    shutil.rmtree(workdir / "model")  # as if killed after the first of two steps
    shutil.rmtree(workdir / "checkpoints" / "step_00000002")
    assert run(workdir)[0] == 0
    *_, again = results.read(workdir / "results.jsonl")
    assert (again["step"], again["loss"]) == (2, records[-1]["loss"])
    want = trees.flatten_paths(clip.params)
    for path, leaf in trees.flatten_paths(models.load(workdir / "model").params).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)

    other = shutil.copytree(workdir / "model", tmp_path / "other") / "preprocessor_config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"image_mean": [0.25, 0.5, 0.75]}))
    on = {"initial_model": other.parent, "steps": 1, "warmup_steps": 0, "learning_rate": 1e-30}
    assert run(tmp_path / "on", **on)[0] == 0  # a step that moves nothing leaves the model that it went on from
    after = models.load(tmp_path / "on" / "model")
    assert after.preprocessing.mean == (0.25, 0.5, 0.75)
    for path, leaf in trees.flatten_paths(after.params).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    code, message = run(tmp_path / "wider", **on, width=16)
    assert (code, "has hidden_size 8 in its vision tower, and the config describes 16" in message) == (2, True)
    assert not (tmp_path / "wider" / "results.jsonl").exists()
    code, message = run(workdir, learning_rate=0.5)
    assert (code, "pretrain.learning_rate: 0.001 → 0.5" in message) == (2, True)
    code, message = run(workdir, "--overwrite", natural_fraction=0.5, natural="nothing.npz")
    assert (code, "no file nothing.npz" in message) == (2, True)
    assert (workdir / "model").exists()  # bad input came first
