"""Derivatives along several tangents at once are those of `jax.jvp` along each, and loops keep nothing for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tajax
from tajax.forward import push_all
from tests.programs import equations

WIDTH, DEPTH, ROWS = 3, 4, 5


def layer(x, part):
    """A layer that is linear in neither of its arguments."""
    return jnp.tanh(x @ part["kernel"]) + x * jnp.square(part["bias"])[None], None


def plain(params, x):
    """Layers in a loop, which has their parameters as they are stacked."""
    return lax.scan(layer, x, params["blocks"])[0] * params["scale"][None]


def cut(blocks, sizes):
    """Stacks of so many layers each."""
    parts = {name: lax.split(leaf, sizes) for name, leaf in blocks.items()}
    return [{name: part[n] for name, part in parts.items()} for n in range(len(sizes))]


def split(params, x):
    """The last layer apart: the loop has a part of the stack."""
    body, last = cut(params["blocks"], (len(params["blocks"]["bias"]) - 1, 1))
    x = lax.scan(layer, x, body)[0]
    return layer(x, jax.tree.map(lambda leaf: leaf[0], last))[0] * params["scale"][None]


def split_twice(params, x):
    """Parts of parts, one of them read by a loop and by something else, and from its end."""
    front, rest = cut(params["blocks"], (1, 3))
    two, one = cut(rest, (2, 1))
    x = lax.scan(layer, x, two, reverse=True)[0]
    x = lax.scan(layer, x, front)[0] + jnp.sum(two["kernel"], axis=(0, 1))[None]
    return lax.scan(layer, x, one)[0] * params["scale"][None]


def constant(params, x):
    """What moves is no row of a stack but the same in every step, and moves what is carried from the second on."""

    def step(carry, _):
        y, z, count = carry
        return (y + jnp.sin(z), z * params["scale"][None], count + 1), None

    y, z, count = lax.scan(step, (x, jnp.cos(x), 0), None, length=DEPTH)[0]
    return y * z + count


def of_each_step(params, x):
    """What the steps give, an integer and something without a tangent among it."""

    def step(x, part):
        return layer(x, part)[0], (x, jnp.argmax(x, axis=-1), lax.stop_gradient(x), jnp.sum(part["bias"]) * x)

    end, (seen, best, still, weighted) = lax.scan(step, x, params["blocks"], unroll=2)
    return end + jnp.sum(seen * weighted + still, axis=0) + jnp.sum(best, axis=0)[:, None]


def nested(params, x):
    """A loop in a loop, in a compiled function in one that is computed again."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    @jax.jit
    def step(x, part):
        return lax.fori_loop(0, 2, lambda _, x: layer(x, part)[0], x), None

    return jax.jit(lambda x: lax.scan(step, x, params["blocks"])[0])(x) * params["scale"][None]


def with_rules_of_its_own(params, x):
    """A rule for its derivative, a branch, and a loop within a function that `vmap` has mapped."""

    @jax.custom_jvp
    def doubled(x):
        return jnp.sin(x)

    doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))

    def step(x, part):
        x = layer(x[None], part)[0][0]
        return lax.cond(x.sum() > 0, jnp.sin, jnp.cos, doubled(x)), None

    return jax.vmap(lambda row: lax.scan(step, row, params["blocks"])[0])(x) * params["scale"][None]


PROGRAMS = [plain, split, split_twice, constant, of_each_step, nested, with_rules_of_its_own]


@pytest.fixture
def setting(key, x64):
    """Parameters, three tangents and inputs, in double precision."""

    def draw(key):
        kernel, bias = (jax.random.normal(k, (DEPTH, WIDTH, WIDTH)) for k in jax.random.split(key))
        return {"blocks": {"kernel": kernel, "bias": bias[:, 0]}, "scale": bias[0, 1]}

    params, *taus = map(draw, jax.random.split(key, 4))
    return params, taus, jax.random.normal(key, (ROWS, WIDTH))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("chosen", [("blocks", "scale"), ("blocks",), ("scale",)], ids=str)
def test_each_tangent_moves_the_outputs_as_alone(setting, program, chosen):
    params, taus, x = setting
    of_chosen = lambda part: program(params | part, x)  # noqa: E731
    point, *steps = [{name: tree[name] for name in chosen} for tree in (params, *taus)]
    outputs, pushed = jax.jit(functools.partial(push_all, of_chosen))(point, steps)
    np.testing.assert_allclose(outputs, program(params, x), rtol=1e-12)
    for step, got in zip(steps, pushed, strict=True):
        want = jax.jvp(of_chosen, (point,), (step,))[1]
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("program", [plain, split, nested])
def test_masks_of_layers_hold_in_loops(setting, program):
    params, (tau, *_), x = setting
    chosen = np.array([False, True, False, True])
    mask = {"blocks": {"kernel": chosen, "bias": False}, "scale": False}
    inside = jax.tree.map(jnp.zeros_like, tau)
    inside["blocks"]["kernel"] = tau["blocks"]["kernel"] * chosen[:, None, None]
    _, (response,) = tajax.linear_responses(program, params, [tau], x, mask=mask)
    np.testing.assert_allclose(response, jax.jvp(lambda p: program(p, x), (params,), (inside,))[1], rtol=1e-11)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_loop_gives_nothing_for_the_tangents(setting, program):
    """Residuals of its steps would be outputs of it, one for each step."""
    params, taus, x = setting
    plain = jax.make_jaxpr(program)(params, x)
    before = [len(eqn.outvars) - eqn.params["num_carry"] for eqn in equations(plain.jaxpr, "scan")]
    pushed = jax.make_jaxpr(lambda *given: tajax.linear_responses(program, *given))(params, taus, x)
    each = [len(eqn.outvars) - eqn.params["num_carry"] for eqn in equations(pushed.jaxpr, "scan")]
    assert len(each) == len(before)
    assert all(count <= own * (1 + len(taus)) for count, own in zip(each, before, strict=True))


def test_the_primal_is_computed_once_for_all_tangents(setting):
    params, (tau, *_), x = setting
    count = lambda taus: str(  # noqa: E731
        jax.make_jaxpr(lambda *given: tajax.linear_responses(split, *given))(params, taus, x)
    ).count("= tanh")
    assert count([tau]) == count([tau] * 5) == 2  # in the loop, and in the last layer


def test_memory_does_not_grow_with_the_number_of_layers():
    """Beside the arguments: a step's own, however many there are, and whatever the number of task vectors."""
    width, rows = 32, 256

    def temporary(depth, count):
        shape = jax.ShapeDtypeStruct
        blocks = {"kernel": shape((depth, width, width), jnp.float32), "bias": shape((depth, width), jnp.float32)}

        params = {"blocks": blocks, "scale": shape((width,), jnp.float32)}
        responses = jax.jit(lambda *given: tajax.linear_responses(split, *given))
        lowered = responses.lower(params, [params] * count, shape((rows, width), jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    activations, stack = 4 * rows * width, 4 * 8 * width * (width + 1)
    assert temporary(16, 2) - temporary(8, 2) < activations  # kept by each layer: at least 8 more of them
    assert temporary(16, 6) - temporary(16, 2) < 4 * (8 * activations) + stack  # copies of stacks: 4 · 2 more
