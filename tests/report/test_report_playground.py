"""The playground: the page shows what `affine.tally_at` counts, image by image, and says where it comes from."""

import base64
import io
import json
import re

import jax
import numpy as np
import pytest

from tajax import coded_scores, report, results
from tajax.affine import AffineLogits, tally_at
from tajax.coded_scores import About
from tajax.report import page, playground, runs, sections
from tajax.report.__main__ import main
from tests.report.test_report_html import every_kind, write_run

TASKS = ("shapes", "a </script> & b", "digits")
CONTROL = "objects"
IMAGES, CLASSES = 64, {"shapes": 5, "a </script> & b": 9, "digits": 3, CONTROL: 4}
SETTINGS = ((0.0, 0.0, 0.0), (0.35, 0.35, 0.35), (1.0, -1.0, 0.123456789), (-0.07, 0.5, 1.0))
BEST = {"single": [0.9, 0.9, 0.9], "common": 0.41, "common_value": 0.8, "coefs": [0.61, 0.25, 0.87], "value": 0.9}


def scores_of(name):
    """Scores in which a task's own vector helps it, and labels."""
    draw, classes = np.random.default_rng([5, CLASSES[name]]), CLASSES[name]
    labels = draw.integers(classes, size=IMAGES)
    scores = draw.normal(size=(IMAGES, 1 + len(TASKS), classes))
    scores[:, 0] *= 2
    if name in TASKS:
        scores[np.arange(IMAGES), 1 + TASKS.index(name), labels] += 3
    else:
        scores[np.arange(IMAGES), 0, labels] += 3
    return scores.astype(np.float32), labels


def write_playground(directory, *, names=(*TASKS, CONTROL), tuned=0.35):
    """A linear run whose page has a playground."""
    base = {"config_hash": "0123456789ab", "seed": 0, "regime": "linear", "model": "tiny", "elapsed_seconds": 1.0}
    made = []
    for name in names:
        scores, labels = scores_of(name)
        bounds, top1 = (-1.0, 1.0), {"split": "val", "top1": 0.5, "task": name}
        coded = coded_scores.encode(scores, labels, bounds=bounds, most=CLASSES[name])
        share = coded_scores.changed(scores, coded, coded_scores.draws(bounds, len(TASKS)))
        about = About(name, TASKS, bounds, CLASSES[name], share)
        coded_scores.write(directory / "playground" / f"{name}.safetensors", coded, about)
        made.append({"stage": "playground", "task": name, "directions": list(TASKS), "split": "val", "count": IMAGES})
        if name in TASKS and tuned is not None:
            addition = {"stage": "task_addition", "scaling_coef": tuned, "method": "task_arithmetic"}
            made += [{**top1, **addition, "normalized_top1": 0.6}, {**top1, "stage": "single_task"}]
    made.append({"stage": "playground_coefs", "directions": list(TASKS), **BEST})
    for record in made:
        results.append(directory / "results.jsonl", base | record)
    return directory


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    directory = write_playground(tmp_path_factory.mktemp("runs") / "linear_0")
    report.write(directory, file=io.StringIO())
    return directory


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    directory = write_run(tmp_path_factory.mktemp("runs") / "ordinary_0", every_kind())
    report.write(directory, file=io.StringIO())
    return directory


def play_of(directory):
    (run,) = runs.read(directory)
    return playground.of_run(run)


def counted(name, coefs, *, rounded):
    """Which images `tally_at` counts as correct, each alone: of the codes, or of the scores as they were."""
    scores, labels = scores_of(name)
    if rounded:
        coded = coded_scores.encode(scores, labels, bounds=(-1.0, 1.0), most=CLASSES[name])
        scores = coded_scores.dense(coded, CLASSES[name])
    features = np.random.default_rng(3).normal(size=(IMAGES, 1 + len(TASKS), 6)).astype(np.float32)
    rows = AffineLogits(scores, np.einsum("nse,nue->nsu", features, features), np.int32(CLASSES[name]))

    def alone(image):
        return tally_at(rows, labels, np.arange(IMAGES) == image, np.array([coefs], np.float32)).correct[0]

    return "".join(map(str, jax.jit(jax.vmap(alone))(np.arange(IMAGES)).tolist()))


def shown(tab):
    """What the page says: which images are right, accuracies, and the sums above."""
    rows = tab.locator("[data-measured]")
    right = [rows.nth(n).get_attribute("data-right") for n in range(rows.count())]
    accuracies = rows.locator("strong").all_text_contents()
    sums = [tab.locator(f"#play-{name}").inner_text() for name in ("mean", "normalized", "control")]
    return right, accuracies, sums


def until(tab, expression):
    """Waits until an expression holds; the page's policy keeps Playwright from polling it there."""
    for _ in range(200):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(25)
    raise AssertionError(f"never: {expression}")


@pytest.mark.parametrize("coefs", SETTINGS)
def test_the_page_shows_what_tally_at_counts_image_by_image(opened, linear, coefs):
    tab = opened(linear / "report.html", address=f"#playground={','.join(map(str, coefs))}")
    right, accuracies, sums = shown(tab)
    for name, bits in zip((*TASKS, CONTROL), right, strict=True):
        assert bits == counted(name, coefs, rounded=True) == counted(name, coefs, rounded=False), name
    made = playground.table(play_of(linear), coefs)
    assert accuracies == [row[2] for row in made.rows[:-1]]
    assert [sums[0], sums[1]] == [made.rows[-1][2], made.rows[-1][4]] and sums[2] == made.rows[-2][2]
    assert len(set("".join(right))) == 2


def test_sliders_buttons_and_keys_move_the_numbers_and_the_address(opened, linear):
    tab = opened(linear / "report.html", 390, has_touch=True)

    def coefs():
        return [float(n) for n in tab.evaluate("location.hash").removeprefix("#playground=").split(",")]

    assert tab.locator("#play-command").input_value().endswith("--at=0.35,0.35,0.35")  # the tuned one
    assert "playground" not in tab.evaluate("location.hash")  # untouched, the address is left alone
    tab.get_by_role("slider", name="shapes").focus()
    tab.keyboard.press("ArrowRight")
    assert coefs() == [0.36, 0.35, 0.35]
    assert tab.get_by_role("slider", name="All vectors").get_attribute("aria-valuetext") == "mixed"
    before = shown(tab)
    tab.keyboard.press("Home")
    assert coefs() == [-1, 0.35, 0.35] and shown(tab) != before
    tab.get_by_role("slider", name="All vectors").fill("0.6")
    assert coefs() == [0.6, 0.6, 0.6]
    tab.get_by_role("button", name="Forget digits").tap()
    assert coefs() == [0.6, 0.6, -0.35]
    told = tab.locator("#play-told").inner_text()
    assert told == f"Normalised {shown(tab)[2][1]} %, accuracy {shown(tab)[2][0]} %"
    for name, want in (("Best for each", BEST["coefs"]), ("Best α", [0.41] * 3), ("Pre-trained", [0] * 3)):
        tab.get_by_role("button", name=name).tap()
        assert coefs() == want
    assert [row[2] for row in playground.table(play_of(linear), (0, 0, 0)).rows[:-1]] == shown(tab)[1]
    tab.get_by_role("slider", name="shapes").evaluate("s => { s.value = 0.9; s.dispatchEvent(new Event('input')); }")
    until(tab, "document.getElementById('play-command').value.endsWith('=0.9,0,0')")
    assert coefs() == [0, 0, 0] and tab.locator("#play-told").inner_text() != ""  # while one drags: neither


def test_every_control_has_a_name_and_room_for_a_finger(opened, linear):
    tab = opened(linear / "report.html", 390, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.get_by_role("slider").count() == 1 + len(TASKS)
    for kind in ("slider", "button"):
        for one in tab.locator("#playground").get_by_role(kind).all():
            assert one.bounding_box()["height"] >= 44
            assert one.evaluate("e => (e.labels?.[0]?.textContent ?? e.ariaLabel ?? e.textContent).trim()")
    assert tab.locator("#playground [aria-live], #playground [role=status]").count() == 1


def test_strips_follow_the_theme(opened, linear):
    tab = opened(linear / "report.html", color_scheme="light")
    picture = "document.querySelector('.play-row canvas').toDataURL()"
    light = tab.evaluate(picture)
    tab.emulate_media(color_scheme="dark")
    until(tab, f"{picture} !== {light!r}")
    tab.locator("#theme").click()  # light, whatever the system has
    until(tab, f"{picture} === {light!r}")


def test_an_address_of_another_page_changes_nothing_and_says_so(opened, linear):
    for wrong in ("1,1", "0,0,7", "0,x,0", "0,,0", "<b>,0,0"):
        tab = opened(linear / "report.html", address=f"#playground={wrong}")
        assert "want 3, from -1 to 1" in tab.locator("#play-wrong").inner_text()
        assert tab.locator("#play-command").input_value().endswith("--at=0.35,0.35,0.35")
    tab.evaluate("location.hash = '#playground=0.5,0.5,0.5'")
    until(tab, "document.getElementById('play-command').value.endsWith('=0.5,0.5,0.5')")
    assert not tab.locator("#play-wrong").is_visible()


def test_an_ordinary_regime_is_interpolated_and_says_so(opened, ordinary):
    play = play_of(ordinary)
    assert not play.exact and len(play.grid) >= 2
    (run,) = runs.read(ordinary)
    sweep = {(r["task"], r["scaling_coef"]): r["top1"] for r in run.records if r["stage"] == "sweep"}
    low, high = play.grid[:2]
    tab = opened(ordinary / "report.html", address=f"#playground={low}")
    section = tab.locator("#playground")
    assert section.get_by_role("heading").inner_text() == "Playground, interpolated"
    assert "nothing was measured there" in section.inner_text() and section.get_by_role("slider").count() == 1
    for at, share in ((low, 0.0), (high, 1.0), (low + 0.25 * (high - low), 0.25)):
        tab.evaluate(f"location.hash = '#playground={at}'")
        until(tab, f"document.getElementById('play-command').value.endsWith('={at:g}')")
        accuracies = section.locator("strong").all_text_contents()
        for one, written in zip(play.measured, accuracies, strict=True):
            want = (1 - share) * sweep[one.name, low] + share * sweep[one.name, high]
            assert float(written) == pytest.approx(100 * want, abs=0.051)
        assert accuracies == [row[2] for row in playground.table(play, (at,)).rows[:-1]]


def test_the_command_prints_what_the_page_shows_and_writes_nothing(linear, capsys):
    before = {path: path.stat().st_mtime_ns for path in linear.rglob("*")}
    assert main([str(linear), "--at=1,-1,0.25"]) == 0
    printed = capsys.readouterr().out
    for one, coef in zip(play_of(linear).measured, ("1", "-1", "0.25", "–"), strict=True):
        want = f"{100 * playground.top1(play_of(linear), one, (1.0, -1.0, 0.25)):.1f}"
        assert re.search(rf"{re.escape(one.name)} .*{coef} +{want} ", printed), printed
    assert {path: path.stat().st_mtime_ns for path in linear.rglob("*")} == before
    for given, message in (("1,1", "2 coefficients, want 3"), ("0,0,2", "is 2.0, want -1 to 1"), ("a", "want numbers")):
        assert main([str(linear), f"--at={given}"]) == 2
        assert message in capsys.readouterr().err
    assert main([str(linear), str(linear), "--at=0,0,0"]) == 2
    assert "--at is of one run" in capsys.readouterr().err


def test_the_command_on_the_page_is_of_the_run_and_quoted(tmp_path):
    directory = write_playground(tmp_path / "my runs; rm x" / "linear_0")
    assert play_of(directory).command == f"python -m tajax.report '{directory}' --at="


def test_a_run_without_the_files_has_no_playground_and_no_error(linear, tmp_path):
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "results.jsonl").write_bytes((linear / "results.jsonl").read_bytes())
    composed = sections.compose(runs.read(copied))
    assert composed.playground is None and composed.notices == ()
    assert b'id="play' not in page.html(composed)
    assert main([str(copied), "--at=0,0,0"]) == 2


def test_a_damaged_file_takes_the_playground_alone_and_is_named(tmp_path):
    directory = write_playground(tmp_path / "linear_0")
    path = directory / "playground" / "digits.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    composed = sections.compose(runs.read(directory))
    assert composed.playground is None and str(path) in composed.notices[-1]
    with (directory / "results.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    lines[0]["task"] = "../../digits"
    (run,) = runs.read(directory)
    with pytest.raises(ValueError, match="is not in"):
        playground.of_run(run._replace(records=lines))


def test_a_run_that_is_not_done_and_runs_side_by_side_have_none(linear, ordinary, tmp_path):
    part = write_playground(tmp_path / "part", names=TASKS[:2])
    assert play_of(part) is None
    both = sections.compose([*runs.read(linear), *runs.read(ordinary)])
    assert both.playground is None


def test_without_a_tuned_coefficient_the_best_is_shown_first(tmp_path):
    play = play_of(write_playground(tmp_path / "negation_0", tuned=None))
    assert play.start.coefs == (0.41,) * 3 and play.forget == (0.41,) * 3


def test_eight_tasks_of_many_classes_stay_below_two_megabytes(tmp_path):
    """Scores in which each of 60 classes can win, and as many examples as a run keeps by default."""
    from tajax.config import default_config
    from tajax.workflows.playground import LARGEST_PAGE, room

    names, draw = tuple(f"task{n}" for n in range(8)), np.random.default_rng(0)
    images, most = room(8, 8, default_config().save.playground)
    assert images == default_config().save.playground
    scores = draw.normal(size=(images, 9, 60)).astype(np.float32)
    coded = coded_scores.encode(scores, np.zeros(images, int), bounds=(-1.0, 1.0), most=most)
    measured = tuple(playground.Measured(name, False, 0.5, coded) for name in names)
    play = playground.Playground(names, -1.0, 1.0, measured, (), (playground.Preset("θ₀", (0.0,) * 8),), (), (), "", "")
    total = len(page.script_json(playground.data(play)))
    assert 0.9 * LARGEST_PAGE < total < 1.01 * LARGEST_PAGE
    told = playground.data(play)["measured"][0]
    codes = np.frombuffer(base64.b64decode(told["codes"]), "<i2").reshape(-1, 9)
    np.testing.assert_array_equal(codes, coded.codes)
