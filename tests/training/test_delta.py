"""DELTA: the losses of teacher and student by hand, and who has a gradient of what; in float64."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import finetune, optim
from tajax.curvature import penalty as energy
from tajax.losses import cross_entropy, head_logits
from tajax.parametrization import masked
from tajax.training import delta
from tests.training.test_tak import apply, factors_of, mean_square, world  # noqa: F401  # a fixture

OPTIONS = {"drift": 0.7, "distill": 2.0, "student_drift": 0.3}
MASK = {"first": True, "second": False}


@pytest.fixture
def moved(world):  # noqa: F811
    """Both vectors somewhere, and what the penalty sees there at step 5."""
    draw = np.random.default_rng(8)
    both = delta.teacher_and_student(MASK)
    start = both.init(world.params)
    trained = {path: leaf + 0.3 * draw.normal(size=leaf.shape) for path, leaf in start.items()}
    each = [energy.reweighted(energy.selected(factors_of(world.params, x), ["first"]), "response") for x in world.tasks]
    data = (world.head, energy.per_task(each), jax.random.key(3))
    batch = world.batch._replace(mask=jnp.array([True] * 5 + [False]), label=world.batch.label.at[5].set(77))

    def respond(trained, inputs):
        theta = both.restore(world.params, trained)
        moved = jax.tree.map(jnp.subtract, theta, world.params)
        return jax.jvp(lambda params: apply(params, inputs), (world.params,), (moved,))[1]

    seen = SimpleNamespace(
        pretrained=world.params,
        restore=lambda trained: both.restore(world.params, trained),
        encode=apply,
        respond=respond,
        batch=batch,
        data=data,
        step=jnp.int32(5),
    )
    return SimpleNamespace(trained=trained, seen=seen, batch=batch)


def test_the_penalty_is_the_sum_of_its_parts(world, moved):  # noqa: F811
    """By whole Jacobians and plain sums over the five examples that count."""
    a = float(jax.random.uniform(jax.random.fold_in(jax.random.key(3), 5), minval=0.5))
    assert 0.5 <= a < 1
    x, labels, theta0 = moved.batch.inputs[:5], moved.batch.label[:5], world.params
    teacher, student = (moved.trained[f"{who}/first"] - theta0["first"] for who in ("teacher", "student"))
    drifts = [
        sum(mean_square(theta0, {"first": np.asarray(tau)}, t) for t in world.tasks) for tau in (teacher, student)
    ]
    loss = cross_entropy(head_logits(x @ (theta0["first"] + student) @ theta0["second"], world.head), labels).mean()
    origin = apply(theta0, x)
    apart = x @ (a * student) @ theta0["second"] - a * (x @ teacher @ theta0["second"])  # one layer: f is affine in it
    distance = np.mean(np.sum(apart**2, axis=1)) / np.mean(np.sum(np.asarray(origin) ** 2, axis=1))
    want = 0.7 * drifts[0] + loss + 2.0 * distance + 0.3 * drifts[1]
    assert delta.make_penalty(OPTIONS)(moved.trained, moved.seen) == pytest.approx(float(want), rel=1e-9)


def test_the_teacher_does_not_see_its_student(moved):
    """Of the penalty it has the gradient of its own drift, and the student that of everything else."""
    whole = jax.grad(delta.make_penalty(OPTIONS))(moved.trained, moved.seen)
    alone = jax.grad(delta.make_penalty(OPTIONS | {"distill": 0.0, "student_drift": 0.0}))(moved.trained, moved.seen)
    np.testing.assert_allclose(whole["teacher/first"], alone["teacher/first"], rtol=1e-12)
    assert np.abs(whole["student/first"] - alone["student/first"]).max() > 1e-3


def test_without_drift_and_distance_they_are_linear_and_standard(world):  # noqa: F811
    nothing = dict.fromkeys(OPTIONS, 0.0)
    tx, batch = optim.adamw(0.05, clip_norm=None), world.batch

    def trained(parametrization, *, linearized, **options):
        step = finetune.make_train_step(apply, tx, parametrization, linearized=linearized, **options)
        state = finetune.init_state(parametrization.init(world.params), tx)
        factors = energy.per_task([energy.selected(factors_of(world.params, x), ["first"]) for x in world.tasks])
        data = (world.head, factors, jax.random.key(0))
        for _ in range(4):
            state, metrics = step(state, world.params, world.head, batch, data)
        return state.trained, metrics

    both, metrics = trained(delta.teacher_and_student(MASK), linearized=True, penalty=delta.make_penalty(nothing))
    linear, alone = trained(masked(MASK), linearized=True)
    standard, _ = trained(masked(MASK), linearized=False)
    np.testing.assert_allclose(both["teacher/first"], linear["first"], rtol=1e-12)
    np.testing.assert_allclose(both["student/first"], standard["first"], rtol=1e-12)
    assert metrics["loss"] == pytest.approx(float(alone["loss"]), rel=1e-12)  # the teacher's


def test_the_vector_is_the_students(world):  # noqa: F811
    both = delta.teacher_and_student(MASK)
    trained = {"teacher/first": jnp.zeros((3, 5)), "student/first": jnp.ones((3, 5))}
    assert np.all(both.finetuned(world.params, trained)["first"] == 1)
    assert both.finetuned(world.params, trained)["second"] is world.params["second"]
