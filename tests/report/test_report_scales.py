"""What figures may be compared by: one scale for panels beside each other, levels, intervals of what was counted."""

import pytest

from tajax.report import charts, counts, sections
from tajax.report.runs import Run
from tajax.report.style import specification
from tests.report.test_report_html import every_kind


def run_of(tmp_path, *, regime="attention", seed=0, **changed):
    """A run of every kind of record, `changed` by stage: a function of a record each."""
    made = every_kind(seed=seed, regime=regime, config_hash=f"{regime}{seed}")
    for record in made:
        record |= changed[record["stage"]](record) if record["stage"] in changed else {}
    return Run(tmp_path / f"{regime}_{seed}", made, {})


def figures(*runs):
    return {figure.name: figure for figure in sections.figures(sections.compose(runs))}


def values(panel):
    """What the layers of a panel hold, row by row."""
    made = specification(panel)
    return [row for part in (made, *made["layer"]) for row in part.get("data", {}).get("values", ())]


def domains(panel, channel):
    """The ends of the scale of a channel, in each layer that has them."""
    encodings = (layer["encoding"].get(channel, {}) for layer in specification(panel)["layer"])
    return {tuple(made["scale"]["domain"]) for made in encodings if "domain" in (made.get("scale") or {})}


def test_maps_of_confusions_have_one_scale_in_percent_of_a_row_whatever_is_in_them(tmp_path):
    confusions = iter(([[0, 0, 1], [0, 1, 1]], [[0, 0, 20]], [[0, 0, 9], [0, 1, 11]]))
    run = run_of(tmp_path, predictions=lambda record: {"confusion": next(confusions)})
    figure = figures(run)["confusion"]
    assert len(figure.panels) == 3
    for panel in figure.panels:
        color = specification(panel)["layer"][0]["encoding"]["color"]
        assert color["scale"]["domain"] == [0, 100] and color["legend"]["title"] == "% of the row"
    assert "one scale of colours, from 0 to 100 % of a row" in figure.caption


def test_every_scale_of_colours_says_of_what_it_is(tmp_path):
    for figure in figures(run_of(tmp_path)).values():
        for panel in figure.panels:
            painted = (layer["encoding"].get("color", {}) for layer in specification(panel)["layer"])
            for color in painted:
                if color.get("type") == "quantitative":
                    assert color["legend"]["title"], figure.name


def test_runs_side_by_side_have_one_axis_with_all_of_each_on_it(tmp_path):
    low, high = {"top1": 0.12, "count": 50}, {"top1": 0.97, "count": 50}
    runs = (
        run_of(tmp_path, task_addition=lambda record: low),
        run_of(tmp_path, regime="linear", task_addition=lambda record: high),
    )
    panels = figures(*runs)["accuracy_by_task"].panels
    assert len(panels) == 2
    (ends,) = set.union(*(domains(panel, "x") for panel in panels))
    rows = [row for panel in panels for row in values(panel)]
    assert ends[0] <= min(row["low"] for row in rows) and max(row["high"] for row in rows) <= ends[1]
    assert ends == (0, 100)


@pytest.mark.parametrize("name", ["negation_over_alpha", "kernel_gap"])
def test_panels_of_accuracies_beside_each_other_have_one_axis(tmp_path, name):
    runs = (run_of(tmp_path), run_of(tmp_path, regime="linear"))
    panels = [panel for panel in figures(*runs)[name].panels if "accuracy" in panel.to_json()]
    assert len(panels) == 2
    assert len({ends for panel in panels for ends in domains(panel, "y")}) == 1
    assert all(domains(panel, "y") for panel in panels)


def test_shares_of_the_kernel_are_on_a_scale_of_all_shares(tmp_path):
    """Of equal values a scale without ends has a single tick, at a number that none of them has."""
    dots, _ = figures(run_of(tmp_path))["ntk_plain"].panels
    assert domains(dots, "x") == {(0, 1)}


def test_levels_stand_in_the_curve_in_words_and_in_a_comparison_in_colours(tmp_path):
    alone = figures(run_of(tmp_path))["accuracy_over_alpha"]
    texts = [layer for layer in specification(alone.panels[0])["layer"] if layer["mark"]["type"] == "text"]
    written = {row["text"]: row["height"] for layer in texts for row in layer["data"]["values"]}
    pretrained, single = "the pre-trained model", "each fine-tuned model on its own task"
    assert written == {pretrained: pytest.approx(40), single: pytest.approx(85)}
    assert "θ₀ + α Σ τ" in alone.caption and f"Dashed: {pretrained} and {single}." in alone.caption
    other = run_of(tmp_path, regime="linear", single_task=lambda record: {"top1": 0.95})
    both = figures(run_of(tmp_path), other)["accuracy_over_alpha"]
    rules = [layer for layer in specification(both.panels[0])["layer"] if layer["mark"]["type"] == "rule"]
    heights = {row.get("series"): row["height"] for layer in rules for row in layer["data"]["values"]}
    assert heights == {None: pytest.approx(40), "attention": pytest.approx(85), "linear": pytest.approx(95)}
    another = run_of(tmp_path, regime="linear", zero_shot=lambda record: {"top1": 0.1})
    assert pretrained not in figures(run_of(tmp_path), another)["accuracy_over_alpha"].caption


def test_the_tuned_coefficient_is_marked_in_the_curve_of_each_task(tmp_path):
    (panel,) = figures(run_of(tmp_path))["accuracy_over_alpha_by_task"].panels
    rings = [row for row in values(panel) if set(row) == {"series", "x", "mean"}]
    assert len(rings) == 3 and {row["x"] for row in rings} == {0.35}


def test_an_interval_is_of_all_shares_under_which_the_count_is_likely():
    """Wilson's ends p solve (top1 − p)² = z² p (1 − p) / n; of none or all right they are no point."""
    for right, count in ((0, 20), (13, 20), (500, 1000), (20, 20)):
        for end in counts.interval(right / count, count):
            p = end / 100
            assert (right / count - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / count, abs=1e-9)
        low, high = counts.interval(right / count, count)
        assert 0 <= low < high <= 100


def test_whiskers_of_a_single_run_are_intervals_and_of_seeds_deviations(tmp_path):
    counted = {stage: lambda record: {"count": 20} for stage in ("zero_shot", "task_addition", "single_task")}
    alone = figures(run_of(tmp_path, **counted))["accuracy_by_task"]
    rows = [row for row in values(alone.panels[0]) if row.get("series") == "fine-tuned" and row["group"] == "shapes"]
    assert rows and all((row["low"], row["high"], row["count"]) == (*counts.interval(0.8, 20), 20) for row in rows)
    assert counts.WHISKERS in alone.caption and "examples" in alone.panels[0].to_json()
    seeds = figures(run_of(tmp_path, **counted), run_of(tmp_path, seed=1, **counted))["accuracy_by_task"]
    assert counts.WHISKERS not in seeds.caption and "over seeds" in seeds.caption
    uncounted = figures(run_of(tmp_path))["accuracy_by_task"]
    assert counts.WHISKERS not in uncounted.caption


def test_ends_hold_means_and_deviations_and_are_apart():
    assert charts.ends([[43.0], [58.0, 62.0]]) == (40, 70)  # 60 ± 2.8
    assert charts.ends([[60.0]]) == (60, 70)


@pytest.mark.parametrize("steps", [[4], [1, 2], [50, 100, 150]])
def test_a_loss_of_few_points_has_a_dot_and_a_tick_at_each(tmp_path, steps):
    """Ticks at halves would be written as whole numbers, one of them twice."""
    run = run_of(tmp_path)
    losses = [record for record in run.records if record["stage"] == "finetune" and record["step"] == 50]
    others = [record for record in run.records if record["stage"] != "finetune"]
    made = run._replace(records=[*others, *(loss | {"step": step} for step in steps for loss in losses)])
    (panel,) = figures(made)["finetune_loss"].panels
    layers = specification(panel)["layer"]
    (ticks,) = {tuple(x["axis"]["values"]) for layer in layers if "axis" in (x := layer["encoding"].get("x", {}))}
    assert ticks == tuple(steps)
    assert any(layer["mark"]["type"] == "point" for layer in layers)
    assert {row["x"] for row in values(panel) if "low" in row} == set(steps)


def test_a_long_training_is_thinned_out_to_its_end(tmp_path):
    run = run_of(tmp_path)
    loss = {"stage": "finetune", "task": "shapes", "loss": 1.0, "top1": 0.5}
    many = [run.records[0] | loss | {"step": step} for step in range(1, 1003)]
    (panel,) = figures(run._replace(records=[*run.records[:1], *many]))["finetune_loss"].panels
    steps = {row["x"] for row in values(panel) if "low" in row}
    assert max(steps) == 1002 and len(steps) <= 401
