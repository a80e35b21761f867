"""What a step of every training method costs, as compiled: the first four layers of ViT-B/32, batch 16.

`pytest -s tests/loops/test_method_cost.py` prints the shares of the standard step's, and of linear's.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import finetune, optim, sparse, trees
from tajax.config import REGIMES
from tajax.curvature.factors import make_sums
from tajax.curvature.penalty import selected, summed
from tajax.data.preprocess import normalize
from tajax.models import ImageEncoder, VisionConfig
from tajax.parametrization import masked
from tajax.training import delta, orthoreg, tak, tau_jp
from tajax.training.saft import uphill
from tajax.types import Batch, Head, Preprocessing

GEOMETRY = dataclasses.replace(VisionConfig(), num_hidden_layers=4)
PREPROCESSING = Preprocessing(224, (0.5,) * 3, (0.25,) * 3)
OTHERS = 16
"""Images of other tasks that a step of τJp sees."""


@pytest.fixture(scope="module")
def cost():
    """`name -> (flops, bytes of temporary memory)` of a step; nothing is executed."""
    encoder = ImageEncoder(GEOMETRY, unroll=True)

    def encode(params, images):
        return encoder.apply({"params": params}, normalize(images, PREPROCESSING))

    def batch_of(count):
        struct = jax.ShapeDtypeStruct
        return Batch(struct((count, 224, 224, 3), jnp.uint8), struct((count,), jnp.int32), struct((count,), bool))

    batch, head = batch_of(16), Head(jnp.zeros((GEOMETRY.projection_dim, 10)), jnp.int32(10))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)["params"]
    leaves = trees.flatten_paths(params)

    def factors():
        sums = make_sums(encode, params, batch_of(1).inputs, list(leaves), stacked="blocks")
        made = jax.eval_shape(sums, params, batch.inputs, jnp.zeros((16, GEOMETRY.projection_dim)), jnp.zeros(16))
        return jax.eval_shape(lambda made: summed([selected(made, list(leaves))]), made)

    def entries():
        draw = np.random.default_rng(0)
        return sparse.entries(None, {path: draw.random(leaf.shape) < 0.1 for path, leaf in leaves.items()})

    dense = orthoreg.dense_kernels(params, trees.param_mask(params, "all"), stacked="blocks")
    key = jax.eval_shape(lambda: jax.random.key(0))
    weights = {name: option.default for name, option in REGIMES["delta"].options.items()}
    methods = {
        "standard": {},
        "linear": {},
        "tau_jp": {"penalty": tau_jp.penalty, "given": (None, batch_of(OTHERS))},
        "tak": {"penalty": tak.penalty, "given": (factors(),)},
        "delta": {
            "penalty": delta.make_penalty(weights),
            "parametrization": delta.teacher_and_student(),
            "given": ((head, factors(), key),),
        },
        "orthoreg": {"penalty": orthoreg.METHOD.penalty({}), "given": (dense,)},
        "saft": {"perturb": uphill(0.05)},
        "talos": {"parametrization": entries()},
    }

    def measure(name, penalty=None, perturb=None, parametrization=None, given=()):
        trained, tx = parametrization or masked(), optim.adamw(1e-5, weight_decay=0.1, clip_norm=1.0)
        options = {"linearized": REGIMES[name].train_linearized, "penalty": penalty, "perturb": perturb}
        step = finetune.make_train_step(encode, tx, trained, **options)
        state = jax.eval_shape(lambda params: finetune.init_state(trained.init(params), tx), params)
        compiled = step.lower(state, params, head, batch, *given).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    costs = {name: measure(name, **method) for name, method in methods.items()}
    shares = {name: [a / b for a, b in zip(ours, costs["standard"], strict=True)] for name, ours in costs.items()}
    for name, (flops, memory) in shares.items():
        print(f"{name:10} {flops:6.1%} of the operations, {memory:6.1%} of the temporary memory of a standard step")
    return shares.__getitem__


def test_tau_jp_costs_half_an_expansion_of_its_own_images_more_than_linear(cost):
    (flops, memory), (linear, linear_memory) = cost("tau_jp"), cost("linear")
    assert 1.5 * linear < flops < 2.05 * linear
    assert memory < 2.1 * linear_memory


def test_factors_cost_what_a_step_on_some_twenty_images_does(cost):
    """Their products have the size of the weights, whatever the batch: little beside the 128 images of the protocol."""
    (flops, _), (linear, _) = cost("tak"), cost("linear")
    assert 10 < 16 * (flops - linear) < 30


def test_a_teacher_and_a_student_cost_about_four_times_an_ordinary_step_and_the_factors_twice(cost):
    (flops, _), (linear, _), (tak, _) = cost("delta"), cost("linear"), cost("tak")
    assert 3.5 < flops - 2 * (tak - linear) < 5


def test_sharpness_aware_steps_cost_two_gradients(cost):
    flops, memory = cost("saft")
    assert 1.9 < flops < 2.05
    assert memory < 1.3


def test_the_penalty_on_kernels_costs_what_a_step_on_twenty_images_does(cost):
    """Gram matrices of the weights, again whatever the batch."""
    flops, _ = cost("orthoreg")
    assert 10 < 16 * (flops - 1) < 25


def test_sparse_entries_cost_what_all_do(cost):
    """Gradients of whole leaves are made, and what is not chosen is dropped."""
    flops, _ = cost("talos")
    assert 0.95 < flops < 1.1
