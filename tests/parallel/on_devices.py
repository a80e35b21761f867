"""The loops on 1, 2, 4 and 8 virtual devices, in a process of its own; prints one JSON object.

XLA reads the number of virtual devices when JAX starts, so this cannot run inside pytest. Used by test_parallel.py.
With the flags of `tajax.processes` it is one of several processes, and measures on all of their devices.
"""

import functools
import json
import os
import re
import sys

COUNTS = (1, 2, 4, 8)
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

    params = {"first": normal(12, 6), "second": normal(6, 5)}
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

    def tallies(count, sizes, linearized):
        placement = parallel.Replicated(parallel.devices_of_all(count))
        step = evaluate.make_sweep_step(encode, linearized=linearized, placement=placement)
        swept = evaluate.sweep(step, params, taus, coefs, head, cut(sizes), placement=placement)
        return [leaf.tolist() for leaf in swept]

    def correct_from_rows(count):
        placement = parallel.Replicated(parallel.devices_of_all(count))
        step = evaluate.make_affine_step(encode, placement=placement)
        split = evaluate.affine_split(step, params, taus, head, cut(RAGGED), placement=placement)
        return affine.tally_at(*split, np.ones(27, bool), coefs).correct.tolist(), split.labels.tolist()

    def disturbed(count):
        """Predictions that a second vector changes at each point, from the model and from its expansion."""
        placement = parallel.Replicated(parallel.local_devices(count))
        distances = (disentanglement.MODULES["prediction"],)
        grid, found = np.array([-1.0, 0.0, 2.0]), np.zeros((2, 1, 3, 3))
        features = evaluate.make_features_step(encode, placement=placement)
        responses = evaluate.make_responses_step(encode, placement=placement)
        constants = placement.params((params, tuple(moved_leaves(taus))))
        for batch in cut(RAGGED):
            batch = placement.pad(batch)
            placed = placement.shares(batch)
            outputs = functools.partial(lambda placed, point: features(*constants, np.float32(point), placed), placed)
            found[0] += disentanglement.pointwise_sums(distances, grid, outputs, batch.mask, head)
            affine_outputs = disentanglement.AffineOutputs(*responses(*constants, placed).swapaxes(0, 1))
            found[1] += disentanglement.affine_sums(distances, grid, affine_outputs, batch.mask, head)
        return found.tolist()

    parts, tx = masked(trees.param_mask(params, "all")), optax.sgd(0.1)

    def trained(count, accumulation_steps):
        placement = parallel.Replicated(parallel.devices_of_all(count))
        step = finetune.make_train_step(encode, tx, parts, accumulation_steps=accumulation_steps)
        state = finetune.init_state(parts.init(params), tx)
        batches = [own(Batch(*(a[k : k + 14] for a in rows))) for k in (0, 6, 13)]  # padded for 4 and 8 devices
        losses = []
        state = finetune.finetune(
            step, state, params, head, batches, num_steps=3, log_every=1, placement=placement,
            on_log=lambda done, means: losses.append(means),
        )  # fmt: skip
        (used,) = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)}
        after = jax.device_get(parts.restore(params, state.trained))
        return {"params": jax.tree.map(np.ndarray.tolist, after), "log": losses, "devices": used}

    def pretrained(count):
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
        theta = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.asarray(tokens[:1]))["params"]
        placement, descent = parallel.Replicated(parallel.local_devices(count)), optax.sgd(0.1)
        step = make_step(model, descent, Preprocessing(8, (0.5,) * 3, (0.5,) * 3))
        state, losses = placement.params(finetune.init_state(theta, descent)), []
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

    def ended():
        """Whether a program of eight devices is over when the call of it is."""

        def long(matrix, batch):
            return jax.lax.fori_loop(0, 50, lambda _, x: jnp.tanh(x @ x), matrix).sum() + batch.mask.sum()

        placement = parallel.Replicated()
        return placement.sum(long)(jnp.eye(128), placement.shares(rows)).is_ready()

    def refusal(count):
        try:
            parallel.local_devices(count)
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
            "of the first": parallel.from_first(np.float32([processes.share()[0], -0.0])).tolist(),
            "in order": parallel.rows_of_all(np.array(processes.share()[:1])).tolist(),
            "asked": [stopped(number) for number in (0, 15 * processes.share()[0], 0, 0, 0)],
        }
    found = {"present": jax.local_device_count(), "refusals": {count: refusal(count) for count in (0, 9)}}
    found["transfers"] = {parts: transfers(parts) for parts in (1, 2)}
    found["finetune"] = {1: {1: trained(1, 1)}, 8: {parts: trained(8, parts) for parts in (1, 2)}}
    for linearized in (False, True):
        name = "linear" if linearized else "standard"
        found[name] = {"whole": tallies(1, [27], linearized)} | {n: tallies(n, RAGGED, linearized) for n in COUNTS}
    found["pretrained"] = {count: pretrained(count) for count in (1, 4)}
    found["disturbed"] = {count: disturbed(count) for count in COUNTS}
    found["rows"] = {count: correct_from_rows(count) for count in COUNTS}
    found["labels"], found["ended"] = labels.tolist(), ended()
    return found


if __name__ == "__main__":
    alone = len(sys.argv) == 1
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 if alone else 4}",
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
