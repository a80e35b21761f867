"""Tables and figures of kernel behaviour, closed vocabulary and geometry, from records made by hand."""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import protocol
from tajax import results

ROOT = Path(__file__).parents[2] / "experiments"
TASKS = ("a", "b")


@pytest.fixture
def play(tmp_path, monkeypatch):
    """`play(experiment, records(regime, seed, label))`: what its command writes when the runs hold these records."""

    def play(name, records, *flags):
        module = importlib.import_module(f"experiments.{name}.run")
        shutil.copy(ROOT / name / "README.md", tmp_path / "README.md")
        monkeypatch.setattr(module, "HERE", tmp_path)

        def finetuned(options, regime, seed, *, label="", **fields):
            own = {"regime": regime, "seed": seed, "config_hash": "0", "elapsed_seconds": 60.0}
            first = {"stage": "run", "cpu_count": 2, "device_kind": "cpu"}
            made = [own | record for record in (first, *records(regime, seed, label))]
            return protocol.Run(None, tmp_path, made)

        monkeypatch.setattr(protocol, "finetuned", finetuned)
        monkeypatch.setattr(protocol, "analysed", lambda run, workflow, **fields: run)
        monkeypatch.setattr(sys, "argv", ["run", "--benchmark=real", "--yes", *flags])
        module.main()
        assert (tmp_path / "results" / "real.png").stat().st_size > 10_000
        kept = results.read(tmp_path / "results" / "real.jsonl")
        text = (tmp_path / "README.md").read_text().partition("<!-- real -->")[2].partition("<!-- /real -->")[0]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        return rows, kept

    return play


def test_kernel_behaviour_compares_gaps_at_equal_length(play):
    """The gap is a tenth of the length for standard, whose vectors are 4 long, and a fifth for attention, 2 long."""

    def records(regime, seed, label):
        length, slope = {"standard": (4.0, 0.1), "attention": (2.0, 0.2), "linear": (3.0, 0.0)}[regime]
        for task in TASKS:
            for coef in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
                gap = {"norm": coef * length, "relative_gap": coef * length * slope, "relative_movement": 0.5}
                place = {"stage": "kernel_behaviour", "task": task, "split": "test", "scaling_coef": coef}
                accuracies = {"top1": 0.8 + 0.1 * seed, "linearized_top1": 0.6, "agreement": 0.7, "count": 10}
                yield place | gap | accuracies

    rows, kept = play("kernel_behaviour", records, "--regimes", "standard", "attention", "linear", "--seeds", "0", "1")
    by_regime = {row[0]: row[1:] for row in rows}
    assert by_regime["standard"] == [
        *("2", "4.00±0.00", "0.400±0.000", "0.200±0.000", "0.500±0.000"),
        *("85.0±7.1 *", "60.0±0.0", "70.0±0.0"),
    ]
    assert by_regime["attention"][1:4] == ["2.00±0.00", "0.400±0.000", "0.400±0.000"]
    assert by_regime["linear"][5:7] == ["85.0±7.1", "60.0±0.0 *"]  # trained in the tangent space
    assert len(kept) == 3 * 2 * (1 + 2 * 8)


def test_closed_vocabulary_shows_both_kinds_of_head_and_the_probes(play):
    def records(regime, seed, label):
        fitted = label == "linear_probe"
        for task in TASKS:
            if fitted:
                head = {"regularization": 1e-6, "images": 9, "train_top1": 1.0, "val_top1": 0.9, "converged": True}
                yield {"stage": "head", "task": task} | head
            merged = {"top1": 0.4 + 0.2 * fitted, "normalized_top1": 0.5, "scaling_coef": 0.3}
            for stage, values in {"zero_shot": {"top1": 0.2 + 0.1 * fitted}, "task_addition": merged}.items():
                yield {"stage": stage, "task": task, "split": "test"} | values
            yield {"stage": "single_task", "task": task, "split": "test", "top1": 0.8}

    rows, kept = play("closed_vocabulary", records, "--regimes", "standard", "linear", "--seeds", "4")
    assert ["zero shot", "linear", "1", "20.0", "80.0", "40.0", "50.0", "0.300"] in rows
    assert ["linear probe", "standard", "1", "30.0", "80.0", "60.0", "50.0", "0.300"] in rows
    assert ["a", "1e-06", "9", "100.0", "90.0", "30.0"] in rows
    assert {record["stage"] for record in kept} == {"run", "head", "zero_shot", "single_task", "task_addition"}


def test_geometry_shares_the_squared_length_among_kinds_of_modules(play):
    """9 of 25 in the attention, 16 of 25 in the MLP; cosines 0.2 and 0.4 in two seeds."""

    def records(regime, seed, label):
        cosine = 0.2 * (1 + seed)
        place = {"stage": "geometry", "tasks": list(TASKS), "pretrained_norm": 50.0, "parameters": 4}
        layers = {"layer_norms": [[3.0, 4.0]] * 2, "layer_pretrained_norms": [9.0, 9.0], "layer_cosines": [0.1, 0.3]}
        angles = {"cosines": [[1.0, cosine], [cosine, 1.0]]}
        for module, norm in {"all": 5.0, "blocks/attn/query": 3.0, "blocks/mlp/fc_in": 4.0}.items():
            yield place | angles | {"module": module, "norms": [norm, norm]}
        yield place | angles | layers | {"module": "blocks", "norms": [5.0, 5.0]}

    rows, kept = play("geometry", records, "--regimes", "standard", "--seeds", "0", "1")
    cosines = ["0.300±0.141"] * 3
    assert ["standard", "2", "5.00±0.00", "10.0±0.0", *cosines, "0.100±0.000", "0.300±0.000"] in rows
    assert ["standard", "36.0±0.0", "64.0±0.0", *["0.0±0.0"] * 3] in rows
    assert len(kept) == 2 * 5
    assert np.isclose(results.find(kept, module="all", seed=1)[0]["cosines"][0][1], 0.4)
