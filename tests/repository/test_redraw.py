"""Figures are drawn from committed records alone, in one style: nothing over another, nothing outside."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from experiments import figures, protocol, redraw
from tajax.regimes import REGIMES

LEFT_ALONE = {"representation_vs_head": "coefs"}
"""What their records lack of what their figures show."""
COMMITTED = sorted(
    path
    for path in redraw.HERE.glob("*/results/*.png")
    if path.parts[-3] not in LEFT_ALONE and path.parts[-3] in (*redraw.DRAWINGS, *redraw.OF_ALL)
)


@pytest.fixture(scope="module")
def drawn():
    """`drawn(path)`: the figure of a committed picture."""
    made = {}

    def drawn(path):
        name = path.parts[-3]
        if name in redraw.OF_ALL:
            return redraw.OF_ALL[name]()[path.name]
        benchmark = path.stem.partition("_")[0]
        if (name, benchmark) not in made:
            made[name, benchmark] = redraw.draw(name, benchmark)
        return made[name, benchmark][path.name]

    return drawn


def test_every_committed_figure_is_redrawn_or_left_alone_for_a_reason():
    pictures = {path.parts[-3] for path in redraw.HERE.glob("*/results/*.png")}
    assert pictures <= {*redraw.DRAWINGS, *redraw.OF_ALL}
    for name, missing in LEFT_ALONE.items():
        with pytest.raises(KeyError, match=missing):
            redraw.draw(name, "bundled")


def test_stages_of_pretraining_stand_where_their_readme_has_them():
    """Its first records do not name them."""
    (figure,) = redraw.draw("pretraining", "bundled").values()
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    # The README's column "norm."
    np.testing.assert_allclose(lines["standard"], [29.2, 52.9, 68.6, 68.0], atol=0.06)
    np.testing.assert_allclose(lines["linear"], [36.6, 55.3, 81.7, 70.5], atol=0.06)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_no_words_of_a_figure_lie_over_others_or_outside_of_it(path, drawn, monkeypatch):
    figure, texts, draw = drawn(path), [], Text.draw

    def noted(text, renderer):
        slanted = text.get_rotation() % 90 != 0  # its box is mostly empty
        if text.get_visible() and text.get_text().strip() and not slanted:
            texts.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer)

    figure.draw_without_rendering()  # the layout first, which draws things in places that are not the last ones
    monkeypatch.setattr(Text, "draw", noted)
    figure.draw_without_rendering()
    whole = figure.bbox
    for text, box in texts:
        assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1, f"cut off on a side: {text}"
        assert whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1, f"cut off above or below: {text}"
    for (a, one), (b, other) in combinations(texts, 2):
        slack = 2.0  # pixels: boxes have room for descenders that a word may lack
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        upwards = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across <= slack or upwards <= slack, f"{a!r} lies over {b!r}"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_no_line_leaves_its_panel(path, drawn):
    for axes in drawn(path).axes:
        for line in axes.get_lines():
            if line.get_transform() == axes.transData and len(line.get_xdata()):
                for data, ends in ((line.get_xdata(), axes.get_xlim()), (line.get_ydata(), axes.get_ylim())):
                    data, slack = np.asarray(data, float), 1e-6 * np.ptp(ends)
                    inside = np.isnan(data) | (data >= min(ends) - slack) & (data <= max(ends) + slack)
                    assert inside.all(), f"{axes.get_ylabel()}: {line.get_label()}"


def test_every_regime_has_a_colour_of_its_own():
    names = [*REGIMES, "mlp", "through_norm", "muon"]
    assert len({figures.color(name) for name in names}) == len(names)


def test_regimes_keep_their_colours_from_figure_to_figure(drawn):
    """The lines of task addition and of kernel behaviour."""
    for name in ("task_addition", "kernel_behaviour"):
        figure = drawn(redraw.HERE / name / "results" / "bundled.png")
        lines = {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
        assert {label: lines[label] for label in ("standard", "attention", "linear")} == {
            label: figures.COLORS[label] for label in ("standard", "attention", "linear")
        }


def test_records_without_the_map_keep_what_the_figure_of_both_modules_shows():
    from experiments.disentanglement_maps import measure

    record = {
        "distance": "prediction",
        "coefs": [-1.0, 0.0, 1.0],
        "terms": [[[0.5] * 3] * 3] * 2,
        "own_curve": [[1.0, 0.0, 1.0]] * 2,
    }
    kept = measure.without_map(record, drawn=True)
    assert "terms" not in kept and measure.equivalent(kept) == measure.equivalent(record)
    with pytest.raises(KeyError):
        measure.equivalent(measure.without_map(record))


def test_a_folder_elsewhere_leaves_the_committed_figures_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["redraw", "--only", "single_task", "--out", str(tmp_path)])
    before = {path: path.stat().st_mtime_ns for path in COMMITTED}
    redraw.main()
    assert before == {path: path.stat().st_mtime_ns for path in COMMITTED}
    made = {path.stem for path in (tmp_path / "single_task").iterdir()}
    assert made == {"bundled", "real", "text"} <= set(protocol.BENCHMARKS)
