"""The loops on 1, 2, 4 and 8 virtual devices, in a process of its own; prints one JSON object.

XLA reads the number of virtual devices when JAX starts, so this cannot run inside pytest. Used by test_parallel.py.
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

    from tajax import affine, apply_task_vector, combine, disentanglement, evaluate, finetune, parallel, trees
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
        return [Batch(*(a[end - size : end] for a in rows)) for size, end in zip(sizes, ends, strict=True)]

    def tallies(count, sizes, linearized):
        devices = parallel.local_devices(count)
        step = evaluate.make_sweep_step(encode, linearized=linearized, devices=devices)
        return [leaf.tolist() for leaf in evaluate.sweep(step, params, taus, coefs, head, cut(sizes), devices=devices)]

    def correct_from_rows(count):
        devices = parallel.local_devices(count)
        step = evaluate.make_affine_step(encode, devices=devices)
        split = evaluate.affine_split(step, params, taus, head, cut(RAGGED), devices=devices)
        return affine.tally_at(*split, np.ones(27, bool), coefs).correct.tolist(), split.labels.tolist()

    def disturbed(count):
        """Predictions that a second vector changes at each point, from the model and from its expansion."""
        devices, distances = parallel.local_devices(count), (disentanglement.MODULES["prediction"],)
        grid, found = [-1.0, 0.0, 2.0], np.zeros((2, 1, 3, 3))
        features = evaluate.make_features_step(encode, devices=devices)
        responses = evaluate.make_responses_step(encode, devices=devices)
        constants = parallel.replicate((params, tuple(trees.moved_leaves(taus))), devices)
        for batch in cut(RAGGED):
            batch = parallel.pad_batch(batch, count)
            placed = parallel.share_batch(batch, devices)
            outputs = functools.partial(lambda placed, point: features(*constants, np.float32(point), placed), placed)
            alone = [np.asarray(outputs((alpha, 0.0))) for alpha in grid]
            found[0] += disentanglement.pointwise_sums(distances, grid, alone, outputs, batch.mask, head)
            rows = responses(*constants, placed).swapaxes(0, 1)
            found[1] += disentanglement.affine_sums(distances, jnp.array(grid), *rows, batch.mask, head)
        return found.tolist()

    mask, tx = trees.param_mask(params, "all"), optax.sgd(0.1)

    def trained(count, accumulation_steps):
        devices = parallel.local_devices(count)
        step = finetune.make_train_step(encode, tx, mask, accumulation_steps=accumulation_steps)
        state = finetune.init_state(params, tx)
        batches = [Batch(*(a[k : k + 14] for a in rows)) for k in (0, 6, 13)]  # 14 rows: padded for 4 and 8 devices
        losses = []
        state = finetune.finetune(
            step, state, params, head, batches, num_steps=3, log_every=1, devices=devices,
            on_log=lambda done, means: losses.append(means),
        )  # fmt: skip
        (used,) = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)}
        return {"params": jax.tree.map(np.ndarray.tolist, jax.device_get(state.params)), "log": losses, "devices": used}

    def transfers(accumulation_steps):
        """Kinds of communication in the compiled step for eight devices."""
        step = finetune.make_train_step(encode, tx, mask, accumulation_steps=accumulation_steps)
        constants = parallel.replicate((finetune.init_state(params, tx), params, head))
        batch = parallel.split_batch(Batch(*(a[:16] for a in rows)))
        program = step.lower(*constants, batch).compile().as_text()
        return sorted(set(re.findall(r"(all-[a-z]+|collective-[a-z]+|reduce-scatter)(?=\()", program)))

    def refusal(count):
        try:
            parallel.local_devices(count)
        except ValueError as error:
            return str(error)

    found = {"present": jax.local_device_count(), "refusals": {count: refusal(count) for count in (0, 9)}}
    found["transfers"] = {parts: transfers(parts) for parts in (1, 2)}
    found["finetune"] = {1: {1: trained(1, 1)}, 8: {parts: trained(8, parts) for parts in (1, 2)}}
    for linearized in (False, True):
        name = "linear" if linearized else "standard"
        found[name] = {"whole": tallies(1, [27], linearized)} | {n: tallies(n, RAGGED, linearized) for n in COUNTS}
    found["disturbed"] = {count: disturbed(count) for count in COUNTS}
    found["rows"] = {count: correct_from_rows(count) for count in COUNTS}
    found["labels"] = labels.tolist()
    return found


if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    json.dump(measure(), sys.stdout)
