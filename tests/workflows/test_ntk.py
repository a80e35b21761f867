"""The NTK workflow on a minute CLIP, against kernels worked out here from the whole Jacobian."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tajax import data, device_memory, models, results, trees
from tajax.data.preprocess import normalize
from tajax.ntk import cosine_kernel, eigenfunctions, energies, extend
from tajax.workflows import ntk
from tests.workflows.conftest import TASKS, contents

COUNT, LEADING = 8, 2


@pytest.fixture(scope="module")
def localized(world, run):
    """`localized(**overrides)`: the records of a finished run with the task "tools" as control of "pets"."""
    made = {}

    def localized(**overrides):
        key = str(sorted(overrides.items()))
        if key not in made:
            directory = world / f"ntk_{len(made)}"
            fields = {
                "workflow": "ntk",
                "tasks": (str(world / "pets.npz"),),
                "control": world / "tools.npz",
                "ntk.images": COUNT,
                "ntk.eigenfunctions": LEADING,
            }
            finished = run("attn", directory, **(fields | overrides))
            assert finished.code == 0, finished.err
            made[key] = (
                directory,
                results.find(results.read(directory / "results.jsonl"), stage="ntk"),
                finished,
                fields,
            )
        return made[key]

    return localized


def one(records, reading, kernel="plain"):
    (found,) = results.find(records, reading=reading, kernel=kernel)
    return found


@pytest.fixture(scope="module")
def jacobian(world, localized):
    """J [2n, E, P] in the attention kernels of the images that the workflow draws, the task's first."""
    clip, draws_of = models.load(world / "clip"), []
    for name in TASKS:
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(task, "test", batch_size=20, preprocessing=clip.preprocessing)
        order = data.draws.permutation(20, seed=0, purpose=data.draws.ORDER)
        draws_of.append(batch.inputs[order[:COUNT]])
    theta = clip.params["image"]
    flat = trees.flatten_paths(trees.param_mask(theta, "attention"))
    trained, restore = trees.split(theta, trees.param_mask(theta, "attention"))
    assert set(trained) == {path for path, chosen in flat.items() if chosen}
    images = normalize(np.concatenate(draws_of), clip.preprocessing)
    leaves = jax.jit(jax.jacrev(lambda t: clip.encode_image(restore(t), images)))(trained)
    return np.concatenate([np.asarray(j, np.float64).reshape(2 * COUNT, 8, -1) for j in leaves.values()], axis=2)


def nystrom_energies(kernel, inside, outside):
    known = eigenfunctions(kernel[np.ix_(inside, inside)], count=LEADING)
    return energies(extend(known, kernel[np.ix_(outside, inside)])).sum(axis=1)


@pytest.mark.parametrize("kernel", ["plain", "cosine"])
def test_the_trace_kernel_of_the_attention_weights_in_both_readings(localized, jacobian, kernel):
    _, records, *_ = localized()
    matrix = np.einsum("mep,nep->mn", jacobian, jacobian)
    if kernel == "cosine":
        matrix = cosine_kernel(matrix, np.diag(matrix), np.diag(matrix))
    own, control = list(range(COUNT)), list(range(COUNT, 2 * COUNT))

    nystrom = one(records, "nystrom", kernel)
    known = eigenfunctions(matrix[np.ix_(own, own)], count=LEADING)
    np.testing.assert_allclose(nystrom["eigenvalues"], known.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(nystrom["energy_own"], energies(known.eigenfunctions).sum(axis=1), rtol=1e-3)
    np.testing.assert_allclose(nystrom["energy_control"], nystrom_energies(matrix, own, control), rtol=1e-3)
    odd_on_even = nystrom_energies(matrix, own[1::2], own[::2] + control)
    even_on_odd = nystrom_energies(matrix, own[::2], own[1::2] + control)
    np.testing.assert_allclose(nystrom["energy_new"][::2], odd_on_even[:4], rtol=1e-2)
    np.testing.assert_allclose(nystrom["energy_new"][1::2], even_on_odd[:4], rtol=1e-2)
    everywhere = np.mean(nystrom["energy_new"]), np.mean([odd_on_even[4:], even_on_odd[4:]])
    assert nystrom["share"] == pytest.approx(everywhere[0] / sum(everywhere), rel=1e-2)
    halves = [nystrom_energies(matrix, control[i::2], control[1 - i :: 2] + own) for i in (0, 1)]
    everywhere = np.mean([values[:4] for values in halves]), np.mean([values[4:] for values in halves])
    assert nystrom["reverse_share"] == pytest.approx(everywhere[0] / sum(everywhere), rel=1e-2)
    assert nystrom["shares"][-1] == nystrom["share"] and len(nystrom["shares"]) == LEADING

    mixture = one(records, "mixture", kernel)
    known = eigenfunctions(matrix, count=LEADING)
    parts = energies(known.eigenfunctions)[:COUNT].sum(axis=0) / (2 * COUNT)
    np.testing.assert_allclose(mixture["shares"], parts, rtol=1e-3)
    assert mixture["contrast"] == pytest.approx(np.mean((2 * parts - 1) ** 2), rel=1e-2, abs=1e-4)


def test_each_feature_on_its_own_and_the_mean_of_their_numbers(localized, jacobian):
    _, records, *_ = localized(**{"ntk.output": "diagonal"})
    features = [np.einsum("mp,np->mn", jacobian[:, e], jacobian[:, e]) for e in range(8)]
    largest = [eigenfunctions(k, count=LEADING).eigenvalues for k in features]
    np.testing.assert_allclose(one(records, "mixture")["eigenvalues"], np.mean(largest, axis=0), rtol=1e-4)


def test_matrices_of_features_without_the_kernel(localized, jacobian):
    _, records, *_ = localized(**{"ntk.output": "full"})
    assert {r["kernel"] for r in records} == {"plain"}
    full = np.einsum("mep,nfp->menf", jacobian, jacobian).reshape(16 * 8, -1)
    values = np.linalg.eigvalsh(full)[::-1][:LEADING] / 16
    np.testing.assert_allclose(one(records, "mixture")["eigenvalues"], values, rtol=1e-3)


def test_batching_changes_nothing_and_a_finished_run_is_not_repeated(localized, run):
    directory, records, _, fields = localized()
    _, parts, *_ = localized(**{"ntk.batch_size": 5})
    for reading in ("nystrom", "mixture"):
        np.testing.assert_allclose(one(parts, reading)["energy_own"], one(records, reading)["energy_own"], rtol=1e-3)
    before = contents(directory)
    assert run("attn", directory, **fields).code == 0
    after = contents(directory)
    assert {name: data for name, (_, data) in before.items()} == {name: data for name, (_, data) in after.items()}


def test_the_report_and_a_few_directions_say_so(localized):
    _, records, finished, _ = localized(**{"ntk.directions": 3})
    assert "3 random directions" in " ".join(finished.out.split())
    assert all(r["directions"] == 3 for r in records)


def test_too_few_images_are_known_before_anything_is_computed(world, run, localized):
    *_, fields = localized()
    failed = run("attn", world / "few", **(fields | {"ntk.images": 64, "ntk.eigenfunctions": 11}))
    assert failed.code == 2 and "ntk.eigenfunctions=10 or fewer" in failed.err and "20 test images" in failed.err


def test_gradients_have_half_of_what_the_device_says_unless_told_otherwise(monkeypatch):
    for memory, limit, want in ((None, None, 4 * 2**30), (None, 80_000, 40_000), (3, 80_000, 3 * 2**20)):
        monkeypatch.setattr(device_memory, "limit_bytes", lambda device, limit=limit: limit)
        assert ntk.memory_for(SimpleNamespace(config=ConfigDict({"ntk": {"memory": memory}}))) == want
