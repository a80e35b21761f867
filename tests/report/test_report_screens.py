"""What a reader of the page meets in a browser: tooltips in whole words, clean paper, tables wider than a telephone."""

import io

import pytest

from tajax import report
from tests.report.test_report_html import every_kind, write_run


@pytest.fixture(scope="module")
def page_of_all(tmp_path_factory):
    """The report of a run with every kind of record."""
    directory = write_run(tmp_path_factory.mktemp("runs") / "all_0", every_kind())
    report.write(directory, file=io.StringIO())
    return directory / "report.html"


def hovered(tab, figure):
    """The tooltip of a point of a figure."""
    point = tab.locator(f"[data-name={figure}] .mark-symbol path[aria-label]").first
    point.scroll_into_view_if_needed()
    point.hover()
    tip = tab.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    return tip


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
