"""Steps that compute layers again: the same step in less memory, as compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import finetune, models, optim
from tajax.models import ImageEncoder, VisionConfig
from tajax.parametrization import masked
from tajax.types import Batch, Head

GEOMETRY = VisionConfig(
    hidden_size=32,
    intermediate_size=128,
    num_hidden_layers=7,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
    projection_dim=8,
)


@pytest.mark.parametrize("linearized", [False, True])
def test_the_more_is_computed_again_the_less_memory_a_step_takes(key, linearized):
    keys = jax.random.split(key, 3)
    batch = Batch(jax.random.normal(keys[0], (64, 16, 16, 3)), jnp.arange(64) % 5, jnp.ones(64, bool))
    params = jax.jit(ImageEncoder(GEOMETRY).init)(keys[1], batch.inputs)["params"]
    head = Head(jax.random.normal(keys[2], (8, 5)), jnp.int32(5))
    tx, trained = optim.adamw(1e-3, weight_decay=0.1, clip_norm=1.0), masked()
    memory, moved = {}, {}
    for remat in ("none", "dots", "layers"):
        tower = ImageEncoder(GEOMETRY, remat=remat)
        step = finetune.make_train_step(
            lambda params, images, tower=tower: tower.apply({"params": params}, images),
            tx,
            trained,
            linearized=linearized,
        )
        compiled = step.lower(finetune.init_state(trained.init(params), tx), params, head, batch).compile()
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
        state = finetune.init_state(trained.init(params), tx)
        for _ in range(2):  # the first is at θ₀, where the tangent model has no tangent yet
            state, metrics = compiled(state, params, head, batch)
        moved[remat] = metrics["loss"], metrics["grad_norm"]
    print({remat: f"{bytes / 2**20:.1f} MiB" for remat, bytes in memory.items()})
    assert memory["layers"] < 0.8 * memory["dots"] < 0.7 * memory["none"]
    for remat in ("dots", "layers"):
        np.testing.assert_allclose(moved[remat], moved["none"], rtol=1e-5)  # the order of sums


@pytest.mark.parametrize("remat", [True, False, "all"])
def test_another_choice_is_refused_before_anything_is_read(remat):
    """True and False were the choices of earlier versions."""
    with pytest.raises(ValueError, match=f"remat is {remat!r}; choose one of 'none', 'dots', 'layers'"):
        models.load("no/such/directory", remat=remat)
