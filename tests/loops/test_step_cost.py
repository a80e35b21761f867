"""What a fine-tuning step costs in each regime, as compiled: ViT-B/32, batch 16, every layer counted."""

import jax
import jax.numpy as jnp
import pytest

from tajax import finetune, optim, trees
from tajax.config import REGIMES
from tajax.data.preprocess import normalize
from tajax.models import ImageEncoder, VisionConfig
from tajax.parametrization import masked
from tajax.training.linear_low_rank import linear_low_rank
from tajax.training.low_rank import low_rank
from tajax.types import Batch, Head, Preprocessing

B32 = VisionConfig()
FACTORS = {"lora": low_rank, "linear_lora": linear_low_rank}
PREPROCESSING = Preprocessing(224, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def cost():
    """`name -> (flops, bytes of temporary memory)` of the step that the workflow runs, as shares of the standard one's.

    Nothing is executed.
    """
    # XLA counts the body of a scan once: only unrolled layers are all counted.
    encoder = ImageEncoder(B32, unroll=True)

    def encode(params, images):
        return encoder.apply({"params": params}, normalize(images, PREPROCESSING))

    struct = jax.ShapeDtypeStruct
    batch = Batch(struct((16, 224, 224, 3), jnp.uint8), struct((16,), jnp.int32), struct((16,), bool))
    head = Head(struct((B32.projection_dim, 10), jnp.float32), struct((), jnp.int32))
    images = struct(batch.inputs.shape, jnp.float32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)["params"]

    def measure(regime, layers=None):
        mask = trees.param_mask(params, REGIMES[regime].trainable, layers=layers)
        tx, trained = optim.adamw(1e-5, weight_decay=0.1, clip_norm=1.0), masked(mask)
        if regime in FACTORS:
            trained = FACTORS[regime](mask, rank=16, alpha=16.0, seed=0)
        step = finetune.make_train_step(encode, tx, trained, linearized=REGIMES[regime].train_linearized)
        state = jax.eval_shape(lambda params: finetune.init_state(trained.init(params), tx), params)
        compiled = step.lower(state, params, head, batch).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    costs = {regime: measure(regime) for regime in ("standard", "attention", "linear", "linear_attention", *FACTORS)}
    costs["attention of the last half"] = measure("attention", layers=(6, 12))
    return lambda regime: [ours / standard for ours, standard in zip(costs[regime], costs["standard"], strict=True)]


def test_attention_only_training_is_cheaper_than_ordinary(cost):
    flops, memory = cost("attention")
    assert 0.7 < flops < 0.78
    assert memory < 0.9


def test_tangent_space_training_costs_less_than_the_three_passes_it_describes(cost):
    flops, memory = cost("linear")
    assert 1.5 < flops < 1.67
    assert memory < 1.30


def test_tangent_space_of_the_attention_costs_a_fifth_more_than_ordinary_training(cost):
    flops, memory = cost("linear_attention")
    assert 1.1 < flops < 1.21
    assert memory < 1.05


def test_training_the_last_half_of_the_layers_computes_no_gradient_below_them(cost):
    """All of the forward pass remains, a third of the ordinary step, and half of the attention-only backward pass."""
    flops, memory = cost("attention of the last half")
    assert 0.5 < flops < 0.56
    assert memory < 0.5


@pytest.mark.parametrize(("regime", "dense"), [("lora", "attention"), ("linear_lora", "linear_attention")])
def test_low_rank_training_costs_what_training_the_dense_kernels_does(cost, regime, dense):
    """Its gradients go through them, and a product is made of each; what is smaller is the state, no temporary."""
    (flops, memory), (dense_flops, dense_memory) = cost(regime), cost(dense)
    assert 1 <= flops / dense_flops < 1.02
    assert memory / dense_memory < 1.02
