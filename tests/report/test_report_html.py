"""The page in a browser: it opens without errors or requests, shows its figures, sorts, fits, and runs no names."""

import io
import itertools
import re

import pytest
from PIL import Image

from tajax import report, results
from tajax.report import page, runs, sections
from tests.report.test_report import TASKS, records

HOSTILE = (  # names of three tasks and classes
    "<script>window.hit = 1</script>",
    "</script><img src=x onerror='window.hit=2'>\"';--></style><svg onload=window.hit=3>\\" + "x" * 300,
    "\u202e\u05d0\u05d1\n\t\x00\ud800\u2028{{ 7 * 7 }} ${window.hit=4} datum.v'"
    "[0](constructor.constructor('window.hit=5')())\\",
)


def every_kind(*, seed=0, regime="attention", names=TASKS, config_hash="0123456789ab"):
    """A record of every stage that a page shows, of three tasks."""
    base = {"config_hash": config_hash, "seed": seed, "regime": regime, "model": "tiny"}
    renamed = dict(zip(TASKS, names, strict=True))
    made = [r | ({"task": renamed[r["task"]]} if "task" in r else {}) for r in records(seed=seed, regime=regime)]
    made = [r | base for r in made]
    grid, pair = [-2.0, -1.0, 0.0, 1.0, 2.0], list(names[:2])
    terms = [[[abs(a * b) / (8 + seed) for b in grid] for a in grid]] * 2
    for distance in ("prediction", "symmetric_kl"):
        error = {"summary": 0.2, "relative": 0.5, "own": [0.5, 0.4], "coefs": grid, "terms": terms, "images": [9, 9]}
        made.append({"stage": "disentanglement", "tasks": pair, "split": "test", "distance": distance} | error)
    geometry = {"tasks": list(names), "parameters": 9, "norms": [3.0, 4.0, 5.0], "pretrained_norm": 9.0}
    geometry["cosines"] = [[1.0, 0.1, -0.2], [0.1, 1.0, 0.3], [-0.2, 0.3, 1.0]]
    layers = {"layer_norms": [[1.0, 2.0]] * 3, "layer_pretrained_norms": [4.0, 4.0], "layer_cosines": [0.1, 0.2]}
    made.append({"stage": "geometry", "module": "all"} | geometry)
    made.append({"stage": "geometry", "module": "blocks"} | geometry | layers)
    for task in names:
        for coef in (0.0, 0.5, 1.0):
            gap = {"norm": coef, "relative_gap": coef / 3, "relative_movement": coef, "top1": 0.9, "agreement": 0.8}
            place = {"task": task, "split": "test", "scaling_coef": coef}
            made.append({"stage": "kernel_behaviour", "linearized_top1": 0.7} | place | gap)
            for on in (task, "objects"):
                made.append({"stage": "negation_sweep", "measured_on": on, "top1": 0.9 - coef / 2} | place)
        for step in (50, 100, 150):
            made.append({"stage": "finetune", "task": task, "step": step, "loss": 2 - step / 100, "top1": 0.5})
        kernel = {
            "reading": "nystrom",
            "kernel": "plain",
            "output": "trace",
            "directions": 0,
            "eigenvalues": [2.0, 1.0],
        }
        energy = {"energy_new": [1.0], "energy_new_control": [0.5], "share": 0.7, "shares": [0.8, 0.7]}
        about = {"initialization": "pretrained", "images": 4, "split": "test", "control": "objects"}
        made.append({"stage": "ntk", "task": task, "reverse_share": 0.5, "separation": 0.9} | kernel | energy | about)
        counts = {"count": 20, "correctness": [[10, 4], [1, 5]], "confusion": [[0, 0, 11], [0, 1, 4], [1, 1, 5]]}
        example = {"kind": "lost by merging", "row": 3, "label": 0, "pretrained": 1, "single": 0, "merged": 1}
        files = [example | {"file": f"examples/{name}.png"} for name in ("good", "absent", "broken", "../../secret")]
        made.append({"stage": "predictions", "task": task, "classes": list(names), "examples": files} | counts)
    return [base | record for record in made]


def write_run(directory, made):
    directory.mkdir(parents=True)
    for record in made:
        results.append(directory / "results.jsonl", record)
    (directory / "examples").mkdir()
    Image.new("RGB", (3000, 200), "red").save(directory / "examples" / "good.png")
    (directory / "examples" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n<script>")
    Image.new("RGB", (8, 8), "blue").save(directory.parent / "secret.png")
    return directory


@pytest.fixture(scope="module")
def page_of_all(tmp_path_factory):
    """The report of a run with every kind of record."""
    directory = write_run(tmp_path_factory.mktemp("runs") / "all_0", every_kind())
    report.write(directory, file=io.StringIO())
    return directory / "report.html"


@pytest.mark.parametrize("width", [360, 1600])
def test_every_figure_is_drawn_and_fits(opened, page_of_all, width):
    tab = opened(page_of_all, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    panels = tab.locator(".panel")
    assert panels.count() >= 14
    for index in range(panels.count()):
        marks = panels.nth(index).locator("svg.marks").first
        box = marks.bounding_box()
        assert 100 < box["width"] <= width and box["height"] > 60, index
        assert marks.locator("path, text").count() > 5
        assert not any("e+" in text for text in marks.locator("text").all_text_contents()), "a step is written as 1e+2"
    assert tab.locator("figure.plot figcaption").count() == tab.locator("figure.plot").count()


def test_tables_sort_by_click_and_by_key(opened, page_of_all):
    tab = opened(page_of_all)
    table = tab.locator("table.sortable").first
    first = table.locator("tbody tr th")
    title = table.locator("thead th").nth(1)
    before = first.all_text_contents()
    title.locator("button").click()
    assert title.get_attribute("aria-sort") == "descending"
    assert first.all_text_contents() == before[::-1]  # zero-shot rises with the number of the task
    title.locator("button").focus()
    assert tab.evaluate("document.activeElement.closest('th').textContent") == title.text_content()
    tab.keyboard.press("Enter")
    assert title.get_attribute("aria-sort") == "ascending"
    assert first.all_text_contents() == before
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    assert title.get_attribute("aria-sort") == "none"
    assert table.locator("thead th").nth(2).get_attribute("aria-sort") == "descending"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert table.locator("tfoot th").all_text_contents() == ["mean"]


def test_the_page_is_told_to_who_does_not_see_it(opened, page_of_all):
    """Headings go down by one, tables and figures have names, and figures say their numbers."""
    tab = opened(page_of_all, 390)
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    names = tab.evaluate("[...document.querySelectorAll('table')].map(t => t.ariaLabel)")
    assert len(names) > 8 and all(names)
    assert tab.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    charts = tab.evaluate("[...document.querySelectorAll('.panel [role=graphics-document]')].map(c => c.ariaLabel)")
    assert len(charts) == tab.locator(".panel").count() and all(re.search(r"\d", told or "") for told in charts)
    assert any("merged: mean 60.0" in told for told in charts)
    unnamed = (
        "[...document.querySelectorAll('button, summary')].filter(b => !b.textContent.trim() && !b.ariaLabel).length"
    )
    assert tab.evaluate(unnamed) == 0
    wide = "p => p.scrollWidth > p.clientWidth + 1"
    places = tab.evaluate(f"[...document.querySelectorAll('.scroll')].map(p => [({wide})(p), p.tabIndex === 0])")
    assert all(scrolls == reached for scrolls, reached in places) and any(scrolls for scrolls, _ in places)


def test_the_main_numbers_are_on_the_first_screen(opened, page_of_all):
    numbers = opened(page_of_all, 390).locator(".headline dd")
    assert numbers.all_text_contents() == ["40.0", "85.0", "60.0", "70.8", "0.35"]
    assert all(numbers.nth(n).bounding_box()["y"] < 600 for n in range(5))


def test_hover_on_a_map_gives_its_value(opened, page_of_all):
    tab = opened(page_of_all)
    cells = tab.locator("figure.plot", has_text="Disentanglement maps through the heads").locator(".mark-rect path")
    assert cells.count() >= 25
    cells.first.hover()
    tip = tab.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert re.search(r"ξ/2\D*50\.0%", tip.inner_text())  # |−2 · −2| / 8


def test_dark_mode_by_system_and_by_hand(opened, page_of_all):
    tab = opened(page_of_all, color_scheme="light")

    def colors():
        body, text = "getComputedStyle(document.body)", "getComputedStyle(document.querySelector('svg.marks text'))"
        return tab.evaluate(f"[{body}.backgroundColor, {body}.color, {text}.fill]")

    light = colors()
    tab.emulate_media(color_scheme="dark")
    dark = colors()
    assert all(a != b for a, b in zip(light, dark, strict=True))
    for wanted in (light, dark, dark):  # light, dark, and as the system has it again
        tab.locator("#theme").press("Enter")
        assert colors() == wanted


def test_it_prints(opened, page_of_all, browser):
    tab = opened(page_of_all)
    tab.emulate_media(media="print", color_scheme="dark")
    assert not tab.locator("#theme").is_visible() and not tab.locator("nav").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).color") != "rgb(230, 229, 225)"  # ink is dark on paper
    assert tab.pdf(format="A4").startswith(b"%PDF")


def test_no_name_runs_or_breaks_the_page(opened, tmp_path):
    directory = write_run(tmp_path / "<b>" / "run_0", every_kind(names=HOSTILE))
    report.write(directory, file=io.StringIO())
    for width in (360, 1200):
        tab = opened(directory / "report.html", width)
        assert tab.evaluate("window.hit") is None
        assert tab.locator("img[src=x], svg[onload], body b").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert HOSTILE[0] in tab.locator("tbody th").all_text_contents()
        assert tab.locator(".panel[data-drawn=yes]").count() == tab.locator(".panel").count()


def test_runs_side_by_side(opened, tmp_path):
    made = []
    for regime in ("attention", "standard"):
        for seed in (0, 1):
            directory = tmp_path / f"{regime}_{seed}"
            made += runs.read(write_run(directory, every_kind(seed=seed, regime=regime, config_hash=directory.name)))
    (tmp_path / "compared.html").write_bytes(page.html(sections.compose(made)))
    tab = opened(tmp_path / "compared.html", 360)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    rows = tab.locator("#accuracy table").first.locator("tbody tr").all()
    cells = [row.locator("th, td").all_text_contents() for row in rows]
    assert [[row[0], *row[-2:]] for row in cells] == [["attention", "3", "2"], ["standard", "3", "2"]]
    assert tab.locator(".panel[data-drawn=yes]").count() == tab.locator(".panel").count()
