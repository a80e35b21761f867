"""What a run keeps on its devices from one stage to the next: the pre-trained model, and of task vectors nothing."""

import contextlib
import gc

import jax
import pytest

from tajax import models, progress

CASES = {
    "trained": ("attn", {}),
    "imported, not affine": ("standard", {"merging.method": "ties"}),
    "reused, exact": ("posthoc", {"evaluate.exact": True}),
    "disentanglement": ("attn", {"workflow": "disentanglement"}),
    "disentanglement, expanded": ("posthoc", {"workflow": "disentanglement"}),
    "kernel behaviour": ("attn", {"workflow": "kernel_behaviour"}),
    "geometry": ("attn", {"workflow": "geometry"}),
    "negation, exact": ("posthoc", {"workflow": "task_negation", "evaluate.exact": True}),
}


def on_devices():
    """Bytes of all arrays that are alive, every copy of them."""
    return sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)


@pytest.fixture
def seen(monkeypatch):
    """The bytes that are alive where each stage begins, in order."""
    begun, stage = [], progress.stage

    @contextlib.contextmanager
    def watched(name, *args, **options):
        alive = on_devices()
        if begun and alive > begun[-1][1]:  # what waits for the garbage collector is not kept
            gc.collect()
            alive = on_devices()
        begun.append((name, alive))
        with stage(name, *args, **options) as running:
            yield running

    monkeypatch.setattr(progress, "stage", watched)
    gc.collect()
    return begun


@pytest.fixture(scope="module")
def vectors(world, run):
    """The directory of a run with a vector for each of two tasks."""
    done = run("attn", world / "vectors", workflow="single_task")
    assert done.code == 0, done.err
    return world / "vectors"


@pytest.mark.parametrize("case", CASES)
def test_between_stages_no_task_vector_is_on_the_devices(case, vectors, seen, run, world, tmp_path):
    config, fields = CASES[case]
    if case.startswith("imported"):
        fields = fields | {"checkpoints": (f"{vectors / 'task_vectors'}/{{task}}.safetensors",)}
    elif case != "trained":
        fields = fields | {"task_vectors": vectors}
    if case.startswith("negation"):
        fields = fields | {"tasks": (str(world / "pets.npz"),), "control": world / "tools.npz"}
    done = run(config, tmp_path / "run", **fields)
    assert done.code == 0, done.err
    loaded = dict(seen)["heads"]
    tower = sum(leaf.nbytes for leaf in jax.tree.leaves(models.load(world / "clip").params["image"]))
    assert loaded > tower
    later = seen[[name for name, _ in seen].index("heads") :]
    assert len(later) > 2
    # A tenth of the tower for heads and keys; of one vector a third moves.
    assert [stage for stage, alive in later if alive > loaded + tower / 10] == []
