"""Scores as whole numbers: nothing that can win is lost, the error is bounded, and damaged files are refused."""

import numpy as np
import pytest

from tajax import coded_scores, tensor_files
from tajax.affine import AffineLogits, logits_at, tally_at
from tajax.coded_scores import About, CodedScores, encode

BOUNDS = (-1.0, 1.5)
IMAGES, VECTORS, CLASSES = 40, 3, 9


@pytest.fixture
def draw(rng):
    return rng(77)


@pytest.fixture
def scores(draw):
    return draw.normal(size=(IMAGES, 1 + VECTORS, CLASSES)) * np.array([4.0, 1.0, 0.3, 2.0])[:, None]


@pytest.fixture
def labels(draw):
    return draw.integers(CLASSES, size=IMAGES)


@pytest.fixture
def coefs(draw):
    corners = np.array(np.meshgrid(*[BOUNDS] * VECTORS)).reshape(VECTORS, -1).T
    return np.concatenate([np.zeros((1, VECTORS)), corners, draw.uniform(*BOUNDS, (200, VECTORS))])


def scored(scores, coefs):
    """Scores [G, N, K] by the definition."""
    extended = np.concatenate([np.ones((len(coefs), 1)), coefs], axis=1)
    return np.einsum("gs,nsk->gnk", extended, scores)


def test_a_class_that_wins_anywhere_in_the_box_is_kept_and_some_are_not(scores, labels, coefs):
    coded = encode(scores, labels, bounds=BOUNDS, most=CLASSES)
    winners = scored(scores, coefs).argmax(axis=2)
    ends = np.cumsum(coded.counts)
    for image, (end, count) in enumerate(zip(ends, coded.counts, strict=True)):
        assert set(winners[:, image]) <= set(coded.classes[end - count : end].tolist())
    assert coded.complete.all() and coded.counts.sum() < 0.9 * IMAGES * CLASSES


def test_between_two_classes_the_error_is_at_most_a_unit_for_each_direction(scores, labels, coefs):
    coded = encode(scores, labels, bounds=BOUNDS, most=CLASSES)
    exact, rounded = scored(scores, coefs), scored(coded_scores.dense(coded, CLASSES).astype(np.float64), coefs)
    allowed = 1 + np.abs(coefs).sum(axis=1)
    starts = np.cumsum(coded.counts) - coded.counts
    worst = 0.0
    for image, (start, count) in enumerate(zip(starts, coded.counts, strict=True)):
        kept = coded.classes[start : start + count]
        off = exact[:, image, kept] - coded.units[image] * rounded[:, image, kept]
        spread = (off.max(axis=1) - off.min(axis=1)) / (coded.units[image] * allowed)
        worst = max(worst, spread.max())
    assert 0.3 < worst <= 1 + 1e-3  # units are float32; a bound that nothing comes near would prove little
    assert abs(coded.codes.astype(int)).max() == coded_scores.LARGEST


def test_the_predictions_are_those_of_tally_at_image_by_image_with_any_norm(scores, labels, coefs, draw):
    """On the codes exactly; the norm that logits are divided by, here of random features, makes no difference."""
    coded = encode(scores, labels, bounds=BOUNDS, most=CLASSES)
    features = draw.normal(size=(IMAGES, 1 + VECTORS, 5))
    gram = np.einsum("nse,nue->nsu", features, features).astype(np.float32)
    rows = AffineLogits(coded_scores.dense(coded, CLASSES), gram, np.int32(CLASSES))
    right = coded_scores.correct(coded, coefs)
    for image in range(IMAGES):
        alone = tally_at(rows, labels, np.arange(IMAGES) == image, coefs)
        np.testing.assert_array_equal(alone.correct, right[:, image])
    at = np.stack([np.asarray(logits_at(rows, c)).argmax(axis=1) for c in coefs[:20].astype(np.float32)])
    np.testing.assert_array_equal(coded_scores.predictions(coded, coefs[:20]), at)
    assert 0 < right.mean() < 1


def test_of_equal_scores_the_first_class_is_predicted(labels):
    scores = np.array([[[1.0, 3.0, 3.0], [0.0, 1.0, 1.0]]])
    coded = encode(scores, np.array([2]), bounds=BOUNDS, most=3)
    assert coded_scores.predictions(coded, np.array([[0.0], [1.0], [-1.0]])).tolist() == [[1]] * 3


def test_an_image_that_is_not_finite_is_never_right_as_a_tally_has_it(scores, labels, coefs):
    scores[3, 1, 2], labels[3] = np.nan, 0
    coded = encode(scores, labels, bounds=BOUNDS, most=CLASSES)
    assert coded.counts[3] == 0 and not coded_scores.correct(coded, coefs)[:, 3].any()
    rows = AffineLogits(coded_scores.dense(coded, CLASSES), np.tile(np.eye(4), (IMAGES, 1, 1)), np.int32(CLASSES))
    right = tally_at(rows, labels, np.ones(IMAGES, bool), coefs[:5]).correct
    np.testing.assert_array_equal(right, coded_scores.correct(coded, coefs[:5]).sum(axis=1))
    assert coded_scores.changed(scores, coded, coefs) < 1e-3


def test_what_the_codes_change_is_measured(scores, labels, coefs):
    """Of classes that were cut to two much is changed, and `changed` says how much; of all of them next to nothing."""
    whole, cut = (encode(scores, labels, bounds=BOUNDS, most=most) for most in (CLASSES, 2))
    exact = scored(scores, coefs).argmax(axis=2)
    for coded in (whole, cut):
        share = (coded_scores.predictions(coded, coefs) != exact).mean()
        assert coded_scores.changed(scores, coded, coefs) == pytest.approx(share)
    assert coded_scores.changed(scores, whole, coefs) < 1e-3 < coded_scores.changed(scores, cut, coefs)
    assert cut.counts.max() == 2 and not cut.complete.all()
    can_win = encode(scores, labels, bounds=BOUNDS, most=CLASSES)
    kept = np.split(can_win.classes, np.cumsum(can_win.counts)[:-1])
    for image, two in enumerate(np.split(cut.classes, np.cumsum(cut.counts)[:-1])):
        assert labels[image] in two or labels[image] not in kept[image]


def test_draws_are_the_same_every_time_and_reach_both_ends():
    first = coded_scores.draws(BOUNDS, 2)
    np.testing.assert_array_equal(first, coded_scores.draws(BOUNDS, 2))
    assert first.shape == (256, 2) and BOUNDS[0] <= first.min() < -0.9 and 1.4 < first.max() <= BOUNDS[1]
    assert (first[::2] >= 0).all()


def test_a_file_comes_back_and_a_damaged_one_is_refused_by_name(scores, labels, tmp_path):
    coded = encode(scores, labels, bounds=BOUNDS, most=CLASSES)
    about = About("a task/ß", ("a", "b", "c"), BOUNDS, CLASSES, 0.25)
    path = tmp_path / "deep" / "x.safetensors"
    coded_scores.write(path, coded, about)
    again, told = coded_scores.read(path)
    assert told == about and all(np.array_equal(a, b) for a, b in zip(again, coded, strict=True))
    damages = {
        "counted": coded._replace(counts=coded.counts + np.uint16(1)),
        "int32": coded._replace(codes=coded.codes.astype(np.int32)),
        "labels": coded._replace(labels=coded.labels[1:]),
        "directions": coded._replace(codes=coded.codes[:, 1:]),
        "not below": coded._replace(labels=coded.labels + np.uint16(CLASSES)),
    }
    for word, damaged in damages.items():
        coded_scores.write(path, CodedScores(*map(np.ascontiguousarray, damaged)), about)
        with pytest.raises(ValueError, match=rf"x\.safetensors is damaged.*{word}"):
            coded_scores.read(path)
    coded_scores.write(path, coded, about._replace(bounds=(1.0, -1.0)))
    with pytest.raises(ValueError, match="bounds"):
        coded_scores.read(path)
    path.write_bytes(b"".join(tensor_files.parts({"w": np.zeros(1)}, {"format": "pt"})))
    with pytest.raises(ValueError, match="holds no coded scores"):
        coded_scores.read(path)
    with pytest.raises(FileNotFoundError):
        coded_scores.read(tmp_path / "none")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": np.array([9])}, "labels from 9 to 9 of 2 classes"),
        ({"labels": np.array([0, 1])}, r"want \[N, T\+1, K\] and \[N\]"),
        ({"bounds": (1.0, 0.0)}, "in order"),
        ({"bounds": (0.0, np.inf)}, "finite"),
        ({"bounds": (0.0, 40_000.0)}, "of 1 vectors go beyond"),
        ({"most": 1}, "want 2 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    given = {"labels": np.array([0]), "bounds": (0.0, 1.0), "most": 2} | change
    with pytest.raises(ValueError, match=message):
        encode(np.zeros((1, 2, 2)), given.pop("labels"), **given)
    coded = encode(np.zeros((1, 2, 2)), np.array([0]), bounds=(0.0, 1.0), most=2)
    with pytest.raises(ValueError, match=r"coefs has shape \(1, 2\), want \[G, 1\]"):
        coded_scores.predictions(coded, np.zeros((1, 2)))
