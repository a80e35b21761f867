"""What a reader of the page meets in a browser: tooltips in whole words, clean paper, tables wider than a telephone."""

import io

import pytest

from tajax import report
from tajax.report import page, runs, sections
from tests.report.test_report_html import every_kind, write_run
from tests.report.test_report_negation import negation


def better(record):
    """A record of a regime that merges better, with errors that are larger."""
    changed = {"task_addition": {"top1": 0.7}, "disentanglement": {"summary": 0.3}}
    return record | changed.get(record["stage"], {})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Pages: of a run with every kind of record, of regimes side by side, of a negation."""
    home = tmp_path_factory.mktemp("runs")
    negated = [record | {"elapsed_seconds": 1.0} for record in (*negation("val"), *negation("test"))]
    made = {
        "attention": write_run(home / "attention_0", every_kind()),
        "linear": write_run(home / "linear_0", map(better, every_kind(regime="linear", config_hash="linear"))),
        "negation": write_run(home / "negation_0", negated),
    }
    for directory in (made["attention"], made["negation"]):
        report.write(directory, file=io.StringIO())
    both = [run for name in ("attention", "linear") for run in runs.read(made[name])]
    (home / "compared.html").write_bytes(page.html(sections.compose(both)))
    return {
        "all": made["attention"] / "report.html",
        "compared": home / "compared.html",
        "negation": made["negation"] / "report.html",
    }


@pytest.fixture
def page_of_all(places):
    return places["all"]


def hovered(tab, figure):
    """The tooltip of a point of a figure."""
    point = tab.locator(f"[data-name={figure}] .mark-symbol path[aria-label]").first
    point.scroll_into_view_if_needed()
    point.hover()
    tip = tab.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    return tip


@pytest.mark.parametrize("figure", ["accuracy_by_task", "accuracy_over_alpha_by_task", "finetune_loss"])
def test_a_tooltip_is_within_a_narrow_screen_wherever_it_was_before(opened, page_of_all, figure):
    tab = opened(page_of_all, 390)
    points = tab.locator(f"[data-name={figure}] .mark-symbol path[aria-label]")
    for point in (points.first, points.last, points.first):
        point.scroll_into_view_if_needed()
        point.hover(force=True)  # another may lie above it
        tip = tab.locator("#vg-tooltip-element")
        tip.wait_for(state="visible")
        box = tip.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= 390


@pytest.mark.parametrize("width", [390, 1200])
def test_the_words_of_a_tooltip_are_whole_and_have_their_unit(opened, page_of_all, width):
    tip = hovered(opened(page_of_all, width), "accuracy_over_alpha")
    cut = "[...document.querySelectorAll('#vg-tooltip-element td')].filter(d => d.scrollWidth > d.clientWidth).length"
    assert tip.page.evaluate(cut) == 0
    assert {"scaling coefficient α", "validation accuracy, %"} <= set(tip.locator("td.key").all_text_contents())
    box = tip.bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= width


def test_no_tooltip_is_printed(opened, page_of_all):
    tip = hovered(opened(page_of_all), "accuracy_over_alpha")
    tip.page.emulate_media(media="print")
    assert not tip.is_visible()
    assert tip.page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("name", ["all", "compared", "negation"])
def test_on_a_telephone_every_column_is_reached_and_a_table_says_that_it_scrolls(opened, places, name):
    tab = opened(places[name], 390, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for figure in tab.locator("figure.table:visible").all():
        place, hint = figure.locator(".scroll"), figure.locator(".hint")
        scrolls = place.evaluate("p => p.scrollWidth > p.clientWidth + 1")
        assert hint.is_visible() == scrolls, figure.inner_text()
        place.evaluate("p => p.scrollTo(p.scrollWidth, 0)")
        last, first = figure.locator("thead th").last.bounding_box(), figure.locator("thead th").first.bounding_box()
        assert first["x"] + first["width"] <= last["x"] + 1 and last["x"] + last["width"] <= 390
    assert tab.locator(".hint:visible").count() >= 1
    tab.emulate_media(media="print")
    assert tab.locator(".hint:visible").count() == 0


def test_the_column_of_the_merged_model_is_reached_by_the_keyboard(opened, page_of_all):
    tab = opened(page_of_all, 390)
    table = tab.locator("#accuracy .scroll").first
    merged = table.locator("thead th", has_text="merged").first
    table.focus()
    for _ in range(20):
        box, first = merged.bounding_box(), table.locator("thead th").first.bounding_box()
        if first["x"] + first["width"] <= box["x"] and box["x"] + box["width"] <= 390:
            return
        tab.keyboard.press("ArrowRight")
        tab.wait_for_timeout(100)
    raise AssertionError("never beside the names of tasks")


def test_on_a_wide_screen_all_tables_fit_and_none_says_that_it_scrolls(opened, page_of_all):
    tab = opened(page_of_all, 1600)
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every(p => p.scrollWidth <= p.clientWidth + 1)")
    assert tab.locator(".hint:visible").count() == 0


def test_the_best_row_of_a_comparison_is_marked_and_stays_so_when_sorted(opened, places):
    tab = opened(places["compared"])
    table = tab.locator("#accuracy table").first
    best = table.locator("tr.best")
    assert best.count() == 1 and best.locator("th").inner_text().split() == ["linear", "best"]
    assert "Best row, by the highest merged: linear." in tab.locator("#accuracy .notes").first.inner_text()
    table.locator("thead button").nth(3).click()
    assert best.locator("th").inner_text().split() == ["linear", "best"]
    errors = tab.locator("#disentanglement table").first
    assert errors.locator("tr.best th").inner_text().split() == ["attention", "best"]


def test_the_page_speaks_of_results_and_not_of_records(opened, places):
    words = opened(places["all"]).locator("body").inner_text().lower()
    assert "record" not in words and "results.jsonl" in words
