"""The table of merging methods: it would show a method that is wrong, and measures what it says it does."""

import argparse
import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmarks import merging_table
from tajax import trees
from tajax.merging import METHODS, task_arithmetic


def test_a_wrong_method_is_far_from_its_oracle(monkeypatch):
    assert merging_table.differences(["task_arithmetic"])["task_arithmetic"] < 1e-12

    def slightly_wrong(pretrained, taus, *, scaling_coef=1.0):
        return task_arithmetic(pretrained, taus, scaling_coef=scaling_coef + 1e-6)

    wrong = dataclasses.replace(METHODS["task_arithmetic"], merge=slightly_wrong)
    monkeypatch.setitem(METHODS, "task_arithmetic", wrong)
    assert merging_table.differences(["task_arithmetic"])["task_arithmetic"] > 1e-7


@pytest.mark.parametrize("name", ["core_space", "dare", "ties"])  # one that is not compiled as a whole, one that draws
def test_a_merge_is_timed(name):
    found = merging_table.cost(name, "toy", 2)
    assert found.tasks == 2 and found.merge > 0 and found.peak >= found.before > 2**20
    assert (found.compile is None) == (name == "core_space")


def test_a_method_is_measured_in_a_process_of_its_own():
    assert merging_table.in_a_process("fisher", "toy", 3) is None
    found = merging_table.in_a_process("slerp", "toy", 3)
    assert found.tasks == 2 and found.merge > 0  # it takes no three


def test_vectors_have_the_shapes_of_the_tower_and_the_rank_that_is_said():
    shapes = merging_table.tower("toy")
    noise, low = (merging_table.drawn(shapes, seed=1, scale=0.5, rank=rank) for rank in (None, 3))
    assert jax.tree.map(np.shape, noise) == jax.tree.map(np.shape, low) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    kernel = trees.flatten_paths(low)["blocks/mlp/fc_in/kernel"]
    assert np.linalg.matrix_rank(kernel).tolist() == [3, 3] and not np.any(trees.flatten_paths(low)["ln_post/scale"])
    for tree in (noise, low):
        np.testing.assert_allclose(np.std(trees.flatten_paths(tree)["blocks/mlp/fc_in/kernel"]), 0.5, rtol=0.2)
    width = merging_table.SIZES["b32"].hidden_size
    flat = trees.flatten_paths(merging_table.tower("b32"))
    assert flat["blocks/attn/query/kernel"].shape == (12, width, width) and flat["projection/kernel"].shape == (
        width,
        512,
    )


def test_the_table_has_a_row_for_each_method():
    cost = merging_table.Cost(8, 1.5, 0.25, 2**30, 3 * 2**30)
    options = argparse.Namespace(size="toy")
    table = merging_table.tabulate({"ties": 1e-15, "fisher": 0.0}, {"ties": cost, "fisher": None}, options)
    assert table.rows[0] == ("ties", "`ties.py`", "nothing", "1.0e-15", "8", "1.5", "0.25", "3", "2")
    assert table.rows[1] == ("fisher", "`fisher.py`", "labels", "0.0e+00", *["–"] * 5)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    alone = merging_table.tabulate({"ties": 1e-15}, {}, argparse.Namespace(size=None))
    assert len(alone.columns) == len(alone.rows[0]) == 4
