"""`config.layers`: runs that train some layers of the image tower."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import results


@pytest.mark.parametrize(("config", "rule"), [("attn", "attention"), ("linear", "all")])
def test_a_run_trains_the_chosen_layers_alone(config, rule, run, tmp_path):
    done = run(config, tmp_path, workflow="single_task", layers="(1,2)", finetune__checkpoint_every=2)
    assert done.code == 0, done.err
    tau = load_file(tmp_path / "task_vectors" / "pets.safetensors")
    assert len(tau) == {"attention": 4, "all": 16}[rule]  # of the two-layer tower
    for name, leaf in tau.items():
        assert name.startswith("blocks/")
        assert not np.any(leaf[0]) and np.any(leaf[1]), name
    (record,) = results.find(results.read(tmp_path / "results.jsonl"), stage="run")
    assert record["trained_parameters"] == sum(leaf[1].size for leaf in tau.values())


def test_layers_that_the_model_lacks_end_the_run_before_it_begins(run, tmp_path):
    done = run("attn", tmp_path / "new", workflow="single_task", layers="(1,3)")
    assert done.code != 0
    assert "no range of the 2 layers of 'blocks/attn/key/kernel'" in done.err
    assert not (tmp_path / "new" / "results.jsonl").exists()
