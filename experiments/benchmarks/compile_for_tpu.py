"""What fine-tuning steps and linearised evaluation need on TPU v5e chips, as compiled for them on any machine.

Nothing runs: XLA compiles for a description of eight chips and says how much memory the program takes on each. Needs
`pip install -e '.[tpu]'` beside the experiments, and no TPU.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}  # before JAX starts: do not look for real chips

import jax
import jax.numpy as jnp
import numpy as np
import record
import workload
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax import affine, finetune, optim, trees
from tajax.config import REGIMES
from tajax.data.preprocess import normalize
from tajax.models import ImageEncoder
from tajax.parametrization import masked
from tajax.types import ApplyFn, Batch, Head, Preprocessing

CHIPS, CLASSES = 8, 10
PREPROCESSING = Preprocessing(224, (0.5,) * 3, (0.25,) * 3)
TRAINING = ("standard", "attention", "linear", "linear_attention")


def main() -> None:
    parser = workload.argument_parser(__doc__, model="b32")
    parser.set_defaults(images=128)
    parser.add_argument("--evaluation-images", type=int, default=256, help="images a batch, on all chips together")
    options = parser.parse_args()
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = Mesh(np.array(chips), ("devices",))
    measured = {}
    for regime in TRAINING:
        measured[f"training step, {regime}, scanned"] = compiled(training(options, mesh, regime))
    for unrolled in (False, True):
        name = f"linearised evaluation of one vector, {'unrolled' if unrolled else 'scanned'}"
        measured[name] = compiled(evaluation(options, mesh, unrolled))
    record.write(options, [], chips=CHIPS, compiled=measured)


def training(options: argparse.Namespace, mesh: Mesh, regime: str) -> Callable:
    """The step of a regime over all chips, its batch divided among them, lowered."""
    encode, params, head, batch = arguments(options, mesh, options.images, unrolled=False)
    mask = trees.param_mask(params, REGIMES[regime].trainable)
    tx, trained = optim.adamw(1e-5), masked(mask)
    step = finetune.make_train_step(encode, tx, trained, linearized=REGIMES[regime].train_linearized)
    state = on_every_chip(mesh, jax.eval_shape(lambda params: finetune.init_state(trained.init(params), tx), params))
    return step.lower(state, params, head, batch)


def evaluation(options: argparse.Namespace, mesh: Mesh, unrolled: bool) -> Callable:
    """The scores of a batch along one task vector, lowered."""
    encode, params, head, batch = arguments(options, mesh, options.evaluation_images, unrolled=unrolled)

    def scores(params, tau, head, images):
        return affine.affine_logits(encode, params, [tau], head, images)

    return jax.jit(scores).lower(params, params, head, batch.inputs)


def arguments(
    options: argparse.Namespace, mesh: Mesh, images: int, *, unrolled: bool
) -> tuple[ApplyFn, dict, Head, Batch]:
    """The encoder, and the shapes of what it is used with: constants on every chip, the batch divided."""
    encoder = ImageEncoder(workload.GEOMETRIES[options.model], unroll=unrolled or 1)
    shape, divided = jax.ShapeDtypeStruct, NamedSharding(mesh, PartitionSpec("devices"))

    def encode(params, images):
        return encoder.apply({"params": params}, normalize(images, PREPROCESSING))

    batch = Batch(
        inputs=shape((images, 224, 224, 3), jnp.uint8, sharding=divided),
        label=shape((images,), jnp.int32, sharding=divided),
        mask=shape((images,), bool, sharding=divided),
    )
    one = shape((1, 224, 224, 3), jnp.float32)
    params = on_every_chip(mesh, jax.eval_shape(encoder.init, jax.random.key(0), one)["params"])
    head = Head(shape((encoder.config.projection_dim, CLASSES), jnp.float32), shape((), jnp.int32))
    return encode, params, on_every_chip(mesh, head), batch


def on_every_chip(mesh: Mesh, tree: object) -> object:
    """The shapes of a tree, each leaf whole on every chip."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)


def compiled(lowered) -> dict[str, float]:
    """Memory a chip in GiB, and the seconds that compiling took."""
    start = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    measured = {
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "compile_seconds": time.perf_counter() - start,
    }
    print(measured, flush=True)
    return measured


if __name__ == "__main__":
    main()
