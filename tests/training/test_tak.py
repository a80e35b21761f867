"""TAK: the penalty of whole runs against Jacobians, and factors that do not belong to a run refused by name."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import finetune, optim, trees
from tajax.curvature import factors as curvature
from tajax.curvature import penalty as energy
from tajax.parametrization import masked
from tajax.training import tak
from tajax.types import Batch, Head


@pytest.fixture
def world():
    """A linear network of two layers, one token: its factors are exact. Two other tasks, of 4 and 6 examples."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(4)
        params = {"first": jnp.asarray(draw.normal(size=(3, 5))), "second": jnp.asarray(draw.normal(size=(5, 2)))}
        tasks = [jnp.asarray(draw.normal(size=(count, 3))) for count in (4, 6)]
        own = jnp.asarray(draw.normal(size=(6, 3)))
        head = Head(jnp.asarray(draw.normal(size=(2, 2))), jnp.int32(2))
        batch = Batch(own, jnp.array([0, 1, 1, 0, 1, 0], jnp.int32), jnp.ones(6, bool))
        yield SimpleNamespace(params=params, tasks=tasks, head=head, batch=batch)


def apply(params, inputs):
    return inputs @ params["first"] @ params["second"]


def factors_of(params, x):
    """With √2 times each unit vector for v, so that nothing is drawn."""
    again, v = jnp.repeat(x, 2, axis=0), jnp.tile(jnp.sqrt(2.0) * jnp.eye(2), (len(x), 1))
    sums = curvature.make_sums(apply, params, x[:1], list(params), stacked=None)
    return curvature.mean_of(sums(params, again, v, jnp.ones(len(again))))


def mean_square(params, tau, x):
    """E‖Jτ‖² / E‖f‖², by the whole Jacobian."""
    jacobian = jax.jacobian(apply)(params, x)
    response = sum(np.tensordot(jacobian[path], leaf, axes=2) for path, leaf in tau.items())
    return np.sum(response**2) / np.sum(np.asarray(apply(params, x)) ** 2)


@pytest.mark.parametrize("mask", [{"first": True, "second": False}, {"first": False, "second": True}])
def test_the_penalty_is_the_energy_of_the_response_on_the_other_tasks(world, mask):
    """One layer at a time, since products of gradients of two layers are left out."""
    trained = [path for path, chosen in mask.items() if chosen]
    each = [energy.reweighted(energy.selected(factors_of(world.params, x), trained), "response") for x in world.tasks]
    parametrization, strength, tx = masked(mask), 0.3, optim.adamw(0.05)
    step = finetune.make_train_step(
        apply, tx, parametrization, linearized=True, penalty=lambda *given: strength * tak.penalty(*given)
    )
    state, data = finetune.init_state(parametrization.init(world.params), tx), energy.per_task(each)
    seen = []
    for _ in range(4):
        theta = parametrization.restore(world.params, jax.tree.map(jnp.copy, state.trained))
        tau = {path: np.asarray(theta[path] - world.params[path]) for path in trained}
        seen.append(sum(mean_square(world.params, tau, x) for x in world.tasks))
        state, metrics = step(state, world.params, world.head, world.batch, data)
        assert metrics["penalty"] == pytest.approx(strength * seen[-1], rel=1e-9)
    assert seen[0] == 0 and seen[-1] > 0.001


def test_one_pair_of_factors_is_exact_where_the_tasks_have_one_of_them_in_common(world):
    """Here B is the same for all: g depends on no input. Weighing by lengths of features makes another B of each."""
    each = [factors_of(world.params, x) for x in world.tasks]
    tau = jax.tree.map(lambda leaf: 0.1 * leaf**2, world.params)
    exact, pair = (energy.energies(jax.tree.map(lambda a: a[0], energy.summed(some)), tau) for some in (each[:1], each))
    np.testing.assert_allclose(exact["first"], energy.energies(each[0], tau)["first"], rtol=1e-9)
    want = sum(10 * np.sum(np.asarray(apply_of(world.params, tau, x)) ** 2) / 10 for x in world.tasks)
    # Σ B = 2B and A the mean over all 10 examples: twice the mean over them together
    np.testing.assert_allclose(pair["first"], 2 * want / 10, rtol=1e-9)


def apply_of(params, tau, x):
    """The response to the first layer alone."""
    return x @ tau["first"] @ params["second"]


def test_energies_are_convex_and_never_negative(world, rng):
    data = energy.summed([energy.reweighted(factors_of(world.params, x), "paper") for x in world.tasks])
    draw = rng(5)
    for _ in range(5):
        tau, other = (
            {path: jnp.asarray(draw.normal(size=leaf.shape)) for path, leaf in world.params.items()} for _ in range(2)
        )
        middle = jax.tree.map(lambda a, b: (a + b) / 2, tau, other)
        ends = [float(energy.total(data, each)) for each in (tau, other)]
        assert 0 <= float(energy.total(data, middle)) <= sum(ends) / 2
    assert float(energy.total(data, jax.tree.map(jnp.zeros_like, world.params))) == 0
    assert set(trees.flatten_paths(world.params)) == set(data.kronecker) | set(data.gram)
