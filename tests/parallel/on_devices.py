"""The loops on 1, 2, 4 and 8 virtual devices, in a process of its own; prints one JSON object.

XLA reads the number of virtual devices when JAX starts, so this cannot run inside pytest. Used by test_parallel.py.
With the flags of `tajax.processes` it is one of several processes, and measures on all of their devices.
"""

import functools
import json
import math
import os
import re
import sys

COUNTS = (1, 2, 4, 8)
SHARDED = ("moments", "fsdp 4")
RAGGED = [11, 11, 5]  # of 27 rows; no size is a multiple of 2


def measure():
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from tajax import (
        affine,
        apply_task_vector,
        combine,
        disentanglement,
        evaluate,
        finetune,
        parallel,
        processes,
        trees,
    )
    from tajax.parametrization import masked
    from tajax.task_vectors import moved_leaves
    from tajax.types import Batch, Head

    rng = np.random.default_rng(20230522)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def encode(params, images):
        x = images.reshape(len(images), -1).astype(jnp.float32) / 127.5 - 1
        return jnp.tanh(x @ params["first"]) @ params["second"]

    params = {"first": normal(12, 8), "second": normal(8, 5)}
    taus = [jax.tree.map(lambda leaf: normal(*leaf.shape), params) for _ in range(2)]
    coefs = np.array([[0.0, 0.0], [0.5, -0.5], [1.0, 1.0]], np.float32)
    head = Head(4 * normal(5, 6), jnp.int32(4))
    images = rng.integers(256, size=(27, 2, 2, 3), dtype=np.uint8)
    # Labels that each point of the sweep gets right for other rows, so that counts differ between points.
    points = [apply_task_vector(params, combine(taus, list(coef))) for coef in coefs]
    logits = [encode(point, images) @ head.weights for point in points]
    guesses = np.stack([np.argmax(z[:, : int(head.num_classes)], axis=1) for z in logits])
    labels = guesses[np.repeat([0, 1, 1, 2, 2, 2], 5)[:27], np.arange(27)].astype(np.int32)
    rows = Batch(images, labels, np.ones(27, bool))

    def cut(sizes):
        ends = np.cumsum(sizes)
        return [own(Batch(*(a[end - size : end] for a in rows))) for size, end in zip(sizes, ends, strict=True)]

    def own(batch):
        """The rows of this process, of a batch that the devices of several divide."""
        index, count = processes.share()
        batch = parallel.pad_batch(batch, len(jax.devices()) if count > 1 else 1)
        size = len(batch.mask) // count
        return Batch(*(a[index * size : (index + 1) * size] for a in batch))

    def placed(count, kind, local=False):
        devices = (parallel.local_devices if local else parallel.devices_of_all)(count)
        name, _, fsdp = kind.partition(" ")
        return parallel.PLACEMENTS[name](devices, rule="first$|kernel$", fsdp=int(fsdp) if fsdp else None)

    def tallies(count, sizes, linearized, kind="replicated"):
        placement = placed(count, kind)
        step = evaluate.make_sweep_step(encode, linearized=linearized, placement=placement)
        swept = evaluate.sweep(step, params, taus, coefs, head, cut(sizes), placement=placement)
        return [leaf.tolist() for leaf in swept]

    def correct_from_rows(count, kind="replicated"):
        placement = placed(count, kind)
        step = evaluate.make_affine_step(encode, placement=placement)
        split = evaluate.affine_split(step, params, taus, head, cut(RAGGED), placement=placement)
        return affine.tally_at(*split, np.ones(27, bool), coefs).correct.tolist(), split.labels.tolist()

    def disturbed(count, kind="replicated"):
        """Predictions that a second vector changes at each point, from the model and from its expansion."""
        placement = placed(count, kind, local=True)
        distances = (disentanglement.MODULES["prediction"],)
        grid, found = np.array([-1.0, 0.0, 2.0]), np.zeros((2, 1, 3, 3))
        features = evaluate.make_features_step(encode, placement=placement)
        responses = evaluate.make_responses_step(encode, placement=placement)
        constants = placement.params((params, tuple(moved_leaves(taus))))
        for batch in cut(RAGGED):
            batch = placement.pad(batch)
            shares = placement.shares(batch)
            outputs = functools.partial(lambda shares, point: features(*constants, np.float32(point), shares), shares)
            found[0] += disentanglement.pointwise_sums(distances, grid, outputs, batch.mask, head)
            affine_outputs = disentanglement.AffineOutputs(*responses(*constants, shares).swapaxes(0, 1))
            found[1] += disentanglement.affine_sums(distances, grid, affine_outputs, batch.mask, head)
        return found.tolist()

    parts, tx = masked(trees.param_mask(params, "all")), optax.sgd(0.1, momentum=0.5)

    def trained(count, accumulation_steps, kind="replicated"):
        placement = placed(count, kind)
        step = finetune.make_train_step(encode, tx, parts, accumulation_steps=accumulation_steps, placement=placement)
        state = finetune.init_state(parts.init(params), tx)
        batches = [own(Batch(*(a[k : k + 14] for a in rows))) for k in (0, 6, 13)]  # padded for 4 and 8 devices
        losses = []
        state = finetune.finetune(
            step, state, params, head, batches, num_steps=3, log_every=1, placement=placement,
            on_log=lambda done, means: losses.append(means),
        )  # fmt: skip
        (used,) = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)}
        after = jax.device_get(parts.restore(params, state.trained))
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if isinstance(leaf, jax.Array) and leaf.ndim]
        of_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in moments)
        return {"params": jax.tree.map(np.ndarray.tolist, after), "log": losses, "devices": used, "moments": of_one}

    def pretrained(count, kind="replicated"):
        """Losses of three steps of contrastive pre-training, whose logits are between rows of all devices."""
        from tajax.models import CLIP, ClipConfig, TextConfig, VisionConfig
        from tajax.types import Preprocessing
        from tajax.workflows.pretrain import make_step

        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 4}
        ids = {"vocab_size": 20, "max_position_embeddings": 5, "bos_token_id": 0, "eos_token_id": 1}
        vision = VisionConfig(**size, image_size=8, patch_size=4)
        model = CLIP(ClipConfig(vision=vision, text=TextConfig(**size, **ids)))
        draw = np.random.default_rng(7)
        tokens = np.concatenate([draw.integers(2, 20, size=(8, 4)), np.ones((8, 1), int)], axis=1)
        pairs = draw.integers(256, size=(8, 8, 8, 3), dtype=np.uint8), np.ones(8, bool), tokens, np.eye(8, dtype=bool)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), tokens[:1])["params"]
        theta = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), shapes)
        theta["logit_scale"] = jnp.float32(3)
        placement, descent = placed(count, kind, local=True), optax.sgd(0.1)
        step = make_step(model, descent, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), placement)
        state, losses = finetune.place_state(finetune.init_state(theta, descent), placement), []
        for _ in range(3):
            state, loss = step(state, jax.random.key(1), *placement.batch(pairs))
            losses.append(float(loss))
        return losses

    def transfers(accumulation_steps):
        """Kinds of communication in the compiled step for eight devices."""
        step = finetune.make_train_step(encode, tx, parts, accumulation_steps=accumulation_steps)
        placement = parallel.Replicated()
        constants = placement.params((finetune.init_state(parts.init(params), tx), params, head))
        batch = placement.batch(Batch(*(a[:16] for a in rows)))
        program = step.lower(*constants, batch).compile().as_text()
        return sorted(set(re.findall(r"(all-[a-z]+|collective-[a-z]+|reduce-scatter)(?=\()", program)))

    def tower(kind):
        """A linearised step of five layers as compiled for eight devices: what each gathers, and its bytes."""
        from tajax import optim
        from tajax.models import ImageEncoder, VisionConfig

        size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 5, "num_attention_heads": 2}
        model = ImageEncoder(
            VisionConfig(**size, projection_dim=16, image_size=8, patch_size=4), unroll=1, remat="layers"
        )
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        theta = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        every, adam, placement = masked(trees.param_mask(theta, "all")), optim.adamw(1e-3), placed(8, kind)
        step = finetune.make_train_step(
            lambda params, pixels: model.apply({"params": params}, pixels / 255), adam, every,
            linearized=True, placement=placement,
        )  # fmt: skip
        batch = Batch(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int32), np.ones(64, bool))
        given, _ = finetune.step_arguments(
            finetune.init_state(every.init(theta), adam), theta, Head(normal(16, 4), jnp.int32(4)), batch,
            placement=placement,
        )  # fmt: skip
        program = step.lower(*given).compile()
        gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", program.as_text())
        memory = program.memory_analysis()
        return {
            "gathered": sorted({math.prod(map(int, shape.split(","))) for shape in gathered}),
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "leaves": {path: leaf.size for path, leaf in trees.flatten_paths(theta).items()},
            "layers": {path: leaf[0].size for path, leaf in trees.flatten_paths(theta["blocks"]).items()},
        }

    def ended():
        """Whether a program of eight devices is over when the call of it is."""

        def long(matrix, batch):
            return jax.lax.fori_loop(0, 50, lambda _, x: jnp.tanh(x @ x), matrix).sum() + batch.mask.sum()

        placement = parallel.Replicated()
        return placement.sum(long)(jnp.eye(128), placement.shares(rows)).is_ready()

    def refusal(function, *args):
        try:
            function(*args)
        except ValueError as error:
            return str(error)

    if processes.joined():
        stopped = parallel.Replicated(jax.devices()).largest()
        return {
            "present": jax.device_count(),
            "finetune": {parts: trained(4, parts) for parts in (1, 2)},
            "standard": tallies(4, RAGGED, linearized=False),
            "linear": tallies(4, RAGGED, linearized=True),
            "rows": correct_from_rows(4),
            "sharded": {
                kind: {
                    "finetune": {parts: trained(4, parts, kind) for parts in (1, 2)},
                    "standard": tallies(4, RAGGED, linearized=False, kind=kind),
                    "linear": tallies(4, RAGGED, linearized=True, kind=kind),
                    "rows": correct_from_rows(4, kind),
                }
                for kind in ("moments 8", "fsdp 8")  # across the processes
            },
            "of the first": parallel.from_first(np.float32([processes.share()[0], -0.0])).tolist(),
            "in order": parallel.rows_of_all(np.array(processes.share()[:1])).tolist(),
            "asked": [stopped(number) for number in (0, 15 * processes.share()[0], 0, 0, 0)],
        }
    found = {"present": jax.local_device_count(), "refusals": {}}
    found["refusals"] = {count: refusal(parallel.local_devices, count) for count in (0, 9)}
    leaf = {"blocks": {"kernel": jax.ShapeDtypeStruct((3, 8, 12), jnp.float32), "bias": jnp.zeros((3, 5))}}
    found["indivisible"] = [
        refusal(placed, 8, "fsdp 3"), refusal(placed(8, "fsdp").shardings, leaf)
    ]  # fmt: skip
    found["transfers"] = {parts: transfers(parts) for parts in (1, 2)}
    found["finetune"] = {1: {1: trained(1, 1)}, 8: {parts: trained(8, parts) for parts in (1, 2)}}
    for linearized in (False, True):
        name = "linear" if linearized else "standard"
        found[name] = {"whole": tallies(1, [27], linearized)} | {n: tallies(n, RAGGED, linearized) for n in COUNTS}
    found["pretrained"] = {count: pretrained(count) for count in (1, 4)}
    found["disturbed"] = {count: disturbed(count) for count in COUNTS}
    found["rows"] = {count: correct_from_rows(count) for count in COUNTS}
    found["labels"], found["ended"] = labels.tolist(), ended()
    found["sharded"] = {
        kind: {
            "finetune": {parts: trained(8, parts, kind) for parts in (1, 2)},
            "standard": tallies(8, RAGGED, linearized=False, kind=kind),
            "linear": tallies(8, RAGGED, linearized=True, kind=kind),
            "rows": correct_from_rows(8, kind),
        }
        for kind in SHARDED
    }
    found["disturbed"]["fsdp"] = disturbed(8, "fsdp 4")
    found["pretrained"]["fsdp"] = pretrained(4, "fsdp 2")
    found["tower"] = {kind: tower(kind) for kind in ("replicated", *SHARDED)}
    return found


if __name__ == "__main__":
    alone = len(sys.argv) == 1
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={8 if alone else 4}",
    }
    if not alone:
        from absl import flags

        from tajax import processes

        values = processes.define_flags(flags.FlagValues())
        values(sys.argv)
        processes.join(values)
    print(json.dumps(measure()))  # after what Gloo prints
    if not alone:
        processes.leave(0, "done")
