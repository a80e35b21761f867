"""Do features and gradients come out as on a CPU, in each precision?

The reference is the CPU in float32, every product in full. Errors are relative, ‖x − y‖ / ‖y‖: of the features of each
image, whose mean and maximum count, and of the gradient of a training loss in all parameters of the tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator import workloads
from tajax.losses import cross_entropy, head_logits
from tajax.models import LoadedClip
from tajax.precision import DTYPES, in_float32
from tajax.types import ApplyFn, Batch, Head, JsonObject, Params, Precision

LIMIT = 1e-3
"""What errors in full float32 may be, at most, of features; ten times that of a gradient. Sums in another order give
about 1e-6 a layer: more is a fault and no rounding."""


MEANINGS: Mapping[Precision, str] = {
    "highest": "float32, every product in full",
    "default": "float32, products as the device does them by itself",
    "bf16": "computation in bfloat16, parameters float32",
}
"""What `config.precision` can be, in words."""


class Outcome(NamedTuple):
    """What a device makes of a batch, on the host."""

    features: np.ndarray
    gradient: Params


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """A row for each tower and precision.

    Raises:
        ArithmeticError: in full float32 the device does not compute what the CPU does.
    """
    device, cpu = jax.local_devices()[0], jax.local_devices(backend="cpu")[0]
    wrong = []
    for tower in workloads.SIZES[sizes].towers:
        clip = workloads.load(sizes, tower)
        given = workloads.head(clip), workloads.batch(clip, workloads.SIZES[sizes].parity)
        reference = outcome(clip, "highest", cpu, *given)
        for precision, meaning in MEANINGS.items():
            errors = compared(outcome(clip, precision, device, *given), reference)
            row = {"model": tower, "precision": precision, "meaning": meaning, "images": len(given[1].label)}
            yield row | errors
            if precision == "highest" and (errors["features_max"] > LIMIT or errors["gradient"] > 10 * LIMIT):
                wrong.append(f"{tower} {errors}")
    if wrong:
        raise ArithmeticError(f"in full float32 the device computes something else than the CPU: {'; '.join(wrong)}")


def outcome(clip: LoadedClip, precision: Precision, device: jax.Device, head: Head, batch: Batch) -> Outcome:
    """Features, and the gradient of the mean cross-entropy in all parameters."""
    encode = workloads.encoder(dataclasses.replace(clip, dtype=DTYPES[precision]))
    encode = in_float32(encode) if precision == "highest" else encode
    given = jax.device_put((clip.params["image"], head, batch), device)
    return Outcome(*jax.device_get(jax.jit(_features_and_gradient(encode))(*given)))


def _features_and_gradient(encode: ApplyFn) -> Callable[[Params, Head, Batch], tuple[jax.Array, Params]]:
    def loss(params: Params, head: Head, batch: Batch) -> tuple[jax.Array, jax.Array]:
        features = encode(params, batch.inputs)
        return jnp.mean(cross_entropy(head_logits(features, head), batch.label)), features

    def both(params: Params, head: Head, batch: Batch) -> tuple[jax.Array, Params]:
        gradient, features = jax.grad(loss, has_aux=True)(params, head, batch)
        return features.astype(jnp.float32), gradient

    return both


def compared(found: Outcome, reference: Outcome) -> dict[str, float]:
    """The relative errors of one outcome to another, in float64."""
    ours, theirs = (np.asarray(each.features, np.float64) for each in (found, reference))
    errors = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    pairs = zip(jax.tree.leaves(found.gradient), jax.tree.leaves(reference.gradient), strict=True)
    squares = [(_square(leaf, other), _square(other, 0)) for leaf, other in pairs]
    difference, length = (float(np.sqrt(sum(parts))) for parts in zip(*squares, strict=True))
    return {
        "features_max": float(errors.max()),
        "features_mean": float(errors.mean()),
        "gradient": difference / length,
    }


def _square(leaf: np.ndarray, other: np.ndarray | float) -> float:
    return float(np.sum(np.square(np.asarray(leaf, np.float64) - other)))
