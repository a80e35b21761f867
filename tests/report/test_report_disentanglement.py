"""The matrices of disentanglement errors, by hand."""

from tajax import report
from tajax.report import disentanglement

PAIRS = {("a", "b"): 0.1, ("a", "c"): 0.3, ("b", "c"): 0.25}


def record(pair, summary, **more):
    base = {"stage": "disentanglement", "config_hash": "0", "regime": "linear", "model": "tiny", "seed": 3}
    grid = {"coefs": [-1.0, 0.0, 1.0], "split": "test", "images": [128, 100], "distance": "prediction"}
    return base | grid | {"tasks": list(pair), "summary": summary, "relative": 2 * summary} | more


def test_every_pair_stands_twice_and_its_means_once():
    (table,) = disentanglement.tables([record(pair, summary) for pair, summary in PAIRS.items()])
    assert table.columns == ("task", "a", "b", "c")
    assert [row[1:] for row in table.rows[:3]] == [("–", "10.0", "30.0"), ("10.0", "–", "25.0"), ("30.0", "25.0", "–")]
    assert table.rows[3] == ("mean", "20.0", "17.5", "27.5")
    assert table.rows[4] == ("relative", "0.40", "0.35", "0.55")
    assert table.of == "linear on tiny, seed 3"
    assert "Mean over 3 pairs: 21.7, relative 0.43." in table.notes[0]
    assert "3×3 grid, 100–128 test images" in table.notes[1]
    assert table.heading in report.markdown([table])


def test_what_is_missing_is_a_dash_and_each_distance_has_a_table():
    made = [record(("a", "b"), 0.5), record(("c", "d"), 0.125, distance="symmetric_kl", relative=None)]
    predictions, features = disentanglement.tables(made)
    assert predictions.rows[0] == ("a", "–", "50.0")
    assert features.rows == (
        ("c", "–", "0.125"),
        ("d", "0.125", "–"),
        ("mean", *["0.125"] * 2),
        ("relative", *["–"] * 2),
    )
    assert "relative –" in features.notes[0]
