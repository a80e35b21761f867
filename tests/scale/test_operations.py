"""Operations counted in a jaxpr, against sums by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.scale.operations import count


def counted(function, *shapes):
    return count(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def test_a_product_is_two_operations_for_each_of_its_terms():
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert counted(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), (2, 4, 3, 8), (2, 4, 5, 8)) == 2 * 8 * 3 * 5 * 8


def test_a_convolution_counts_each_entry_of_its_kernel_at_each_place():
    def patches(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counted(patches, (2, 8, 8, 3), (4, 4, 3, 6)) == 2 * (2 * 2 * 2 * 6) * (4 * 4 * 3)


def test_a_grouped_convolution_counts_the_channels_of_its_group():
    def depthwise(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    assert counted(depthwise, (1, 4, 4, 3), (4, 4, 1, 3)) == 2 * 3 * (4 * 4)


def layers(weights, x):
    """Six products, of 2·4·8·8 operations each."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


SHAPES, ONE = ((6, 8, 8), (4, 8)), 2 * 4 * 8 * 8


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    assert counted(layers, *SHAPES) == 6 * ONE


def test_a_gradient_takes_two_products_for_each_and_remat_the_forward_pass_again():
    def loss(weights, x):
        return jnp.sum(layers(weights, x))

    def again(weights, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w) @ w, None))
        return jnp.sum(jax.lax.scan(body, x, weights)[0])

    assert counted(jax.grad(loss, argnums=(0, 1)), *SHAPES) == 3 * 6 * ONE
    # Two products a layer; in the second forward pass nothing needs the last.
    assert counted(jax.grad(again, argnums=(0, 1)), *SHAPES) == (3 * 2 + 1) * 6 * ONE


def test_calls_are_gone_into_and_of_branches_the_dearest_counts():
    def both(x, w):
        return jax.lax.cond(jnp.sum(x) > 0, lambda x: x @ w @ w, lambda x: x @ w, jax.jit(jnp.dot)(x, w))

    assert counted(both, (4, 8), (8, 8)) == 3 * ONE


def test_a_mapped_program_counts_on_all_devices():
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("devices")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)
    assert counted(mapped, (4, 8)) == 2 * 4 * 4 * 8
    abstract = jax.sharding.AbstractMesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=abstract, in_specs=rows, out_specs=rows)
    assert counted(mapped, (4, 8)) == 2 * (2 * 2 * 2 * 8)


def test_a_loop_of_unknown_length_is_refused_if_products_are_in_it():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="how often it runs"):
        counted(until, (4, 4))
    assert counted(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x + 1, x), (4, 4)) == 0
