"""The command: what is kept, what is run again, what fails, and what the tables show."""

import json

import pytest

from experiments.accelerator import check, kept, parts, tables
from experiments.accelerator.kept import Kept
from experiments.accelerator.parts import PARTS

ROW = {"model": "tiny", "precision": "highest", "images": 4, "features_max": 0.25, "gradient": 0.5}


@pytest.fixture
def file(tmp_path):
    return Kept(tmp_path, "NVIDIA H100 80GB HBM3", 1, "real")


def give(rows):
    """A way to start parts that measures nothing: rows by part, of which one may be an error; and what was started."""
    started = []

    def start(part, sizes, known, seconds):
        started.append(part)
        for row in rows.get(part, [{"seconds": 1.0}]):
            if isinstance(row, Exception):
                raise row
            yield row

    return start, started


def test_a_part_that_breaks_is_recorded_with_what_it_measured_and_the_next_begins(file, capsys):
    start, started = give({"parity": [ROW, ValueError("no such thing")]})
    assert check.run(file, ["parity", "devices"], "real", start=start) == 1
    assert started == ["parity", "devices"]
    stored = json.loads(file.path.read_text())
    assert stored["parts"]["parity"]["state"] == "failed" and stored["parts"]["parity"]["rows"] == [ROW]
    assert stored["parts"]["parity"]["error"] == "ValueError: no such thing"
    assert stored["parts"]["devices"]["state"] == "done"
    assert "FAILED: ValueError: no such thing" in capsys.readouterr().out


def test_a_record_says_where_it_comes_from(file):
    assert check.run(file, ["devices"], "real", start=give({})[0]) == 0
    stored = json.loads(file.path.read_text())
    assert file.path.name == "nvidia_h100_80gb_hbm3.json"
    assert (stored["device_kind"], stored["device_count"], stored["sizes"]) == ("NVIDIA H100 80GB HBM3", 1, "real")
    found = stored["parts"]["devices"]
    assert found["versions"]["jax"] and found["time"] and found["elapsed_seconds"] >= 0 and found["command"]


def test_every_row_is_on_disk_before_the_next_is_measured(file):
    seen = []

    def start(part, sizes, known, seconds):
        for number in range(3):
            yield {"number": number}
            seen.append(len(json.loads(file.path.read_text())["parts"][part]["rows"]))

    check.run(file, ["steps"], "real", start=start)
    assert seen == [1, 2, 3]


def test_parts_that_are_done_are_not_run_again_unless_asked_and_failed_ones_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "device", lambda: ("cpu", 1))
    start, started = give({"devices": [OSError("no")]})
    monkeypatch.setattr(check.run, "__kwdefaults__", check.run.__kwdefaults__ | {"start": start})
    command = ["--what", "parts", "--sizes", "tiny", "--out", str(tmp_path), "--parts", "devices", "parity"]
    assert check.main(command) == 1
    assert check.main(command) == 1
    assert started == ["parity", "devices", "devices"]  # in the order of the table, whatever was typed
    assert check.main([*command, "--again"]) == 1
    assert started[3:] == ["parity", "devices"]
    assert [path.name for path in tmp_path.iterdir()] == ["cpu_tiny.json"]


def test_no_part_begins_when_the_minutes_are_over(file, capsys):
    times = iter((0, 0, 0, 70, 130))
    start, started = give({})
    code = check.run(file, ["parity", "devices", "merging"], "real", minutes=2, start=start, clock=lambda: next(times))
    assert (code, started) == (3, ["parity"])
    assert "not run, because 2 minutes are over: devices, merging" in capsys.readouterr().out
    assert set(file.parts) == {"parity"}


def test_unknown_parts_and_sizes_are_refused(capsys):
    for wrong in (["--parts", "speed"], ["--sizes", "huge"]):
        with pytest.raises(SystemExit) as stopped:
            check.main(wrong)
        assert stopped.value.code == 2
    assert "speed" in capsys.readouterr().err


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "cpu.json").write_text("{")
    with pytest.raises(ValueError, match=r"cpu.json is no JSON.*--out"):
        Kept(tmp_path, "cpu", 1, "real")


def test_what_ends_a_process_is_said():
    with pytest.raises(RuntimeError, match="KeyError: 'none'"):
        list(parts.in_own_process("devices", "none", {}, 300))
    with pytest.raises(RuntimeError, match="its time was over"):
        list(parts.in_own_process("devices", "tiny", {}, 0.1))


def test_a_process_has_the_cpu_beside_the_accelerator_and_leaves_that_to_pytorch(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert parts._platforms(PARTS["parity"]) == {"JAX_PLATFORMS": "cuda,cpu"}
    assert parts._platforms(PARTS["pytorch"]) == {"JAX_PLATFORMS": "cpu"}
    monkeypatch.delenv("JAX_PLATFORMS")
    assert parts._platforms(PARTS["parity"]) == {}


def test_the_device_is_asked_in_another_process():
    assert parts.device() == ("cpu", 1) or parts.device()[1] > 1


def test_tables_show_every_part_that_was_run(file, tmp_path):
    start, _ = give({"parity": [ROW], "devices": [{"devices": 1, "correct": [3, 4]}], "steps": [RuntimeError("a|b")]})
    check.run(file, ["parity", "devices", "steps"], "real", start=start)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- devices -->\nold\n<!-- /devices -->\nafter\n")
    tables.write(file.path.parent, readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "### NVIDIA H100 80GB HBM3 × 1" in text
    assert "| tiny | highest | – | 4 | – | 0.25 | 0.5 |" in text
    assert "| – | 1 | – | 3, 4 |" in text and "One device is all there is" in text
    assert "**Failed**: a|b" in text and "Merging" not in text


def test_every_part_has_a_table_and_a_module_and_stands_in_the_readme():
    assert set(tables.COLUMNS) == set(PARTS)
    readme = (check.HERE / "README.md").read_text()
    for name, part in PARTS.items():
        assert (check.HERE / f"{part.module}.py").is_file() and f"| `{name}` |" in readme


def test_the_readme_shows_the_files_that_lie_beside_it(tmp_path):
    """None of them is of tiny sizes, nor of a CPU."""
    copy = tmp_path / "README.md"
    copy.write_text((check.HERE / "README.md").read_text())
    tables.write(check.HERE / "results", copy)
    assert copy.read_text() == (check.HERE / "README.md").read_text()
    for path in (check.HERE / "results").glob("*.json"):
        found = kept.read(path)
        assert found["sizes"] == "real" and found["device_kind"] != "cpu"
