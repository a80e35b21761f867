"""A batch through an encoder and along T task vectors, in each way to tell JAX: time, memory, compiling.

`unrolled` is what tajax did before: `jax.linearize` of a program that has all layers, and one tangent after the other.
`vmap` is `jax.vmap` of `jax.jvp`, `carried` is `tajax.linear_responses`; both of layers in a loop. `--compile-only`
runs nothing and draws no weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import record
import workload
from steps import GEOMETRIES, load_clip
from timing import Contender, alternate

from tajax import models
from tajax.linearization import linear_responses
from tajax.types import ApplyFn, Params

Responses = Callable[[ApplyFn, Params, list[Params], jax.Array], tuple[jax.Array, jax.Array]]


class Form(NamedTuple):
    """One way to tell JAX.

    Attributes:
        responses: From the encoder, θ₀, the task vectors and a batch to f(θ₀) and all J τ.
        unroll: Of the layers.
    """

    responses: Responses
    unroll: int | bool


def one_after_the_other(apply: ApplyFn, params: Params, taus: list[Params], images: jax.Array):
    """The whole program linearised, each tangent pushed through all of it."""
    outputs, push = jax.linearize(lambda params: apply(params, images), params)
    return outputs, jnp.stack([push(tau) for tau in taus])


def all_at_once(apply: ApplyFn, params: Params, taus: list[Params], images: jax.Array):
    """The tangents stacked, and mapped."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *taus)
    pushed = lambda tau: jax.jvp(lambda params: apply(params, images), (params,), (tau,))  # noqa: E731
    return jax.vmap(pushed, out_axes=(None, 0))(stacked)


FORMS = {
    "carried": Form(linear_responses, 1),
    "unrolled": Form(one_after_the_other, True),
    "vmap": Form(all_at_once, 1),
}


def main() -> None:
    parser = workload.argument_parser(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16], help="images")
    parser.add_argument("--vectors", type=int, nargs="+", default=[8], help="task vectors")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--compile-only", action="store_true", help="memory and seconds of compiling alone")
    options = parser.parse_args()
    rows, programs, differences = [], {}, {}
    clip = None if options.compile_only else load_clip(options.model)
    config = GEOMETRIES[options.model] if clip is None else clip.config.vision
    taus = [] if clip is None else workload.task_vectors(clip.params["image"], max(options.vectors), directory=None)
    for size in options.batch_sizes:
        for count in options.vectors:
            what = f"{size} images along {count} vectors"
            given = abstract(config, size, count) if clip is None else drawn(clip, size, taus[:count])
            made = {name: compiled(FORMS[name], config, given) for name in options.forms}
            programs[what] = {name: facts for name, (_, facts) in made.items()}
            if clip is not None:
                runs, differences[what] = timed(
                    what, {name: program for name, (program, _) in made.items()}, given, options
                )
                rows += runs
    record.write(options, rows, programs=programs, differences=differences)


def drawn(clip: models.LoadedClip, size: int, taus: list[Params]) -> tuple[Params, list[Params], jax.Array]:
    """θ₀, task vectors, and normalised images: noise, since time does not depend on what they show."""
    vision = clip.config.vision
    shape = (size, vision.image_size, vision.image_size, vision.num_channels)
    return clip.params["image"], taus, jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def abstract(config: models.VisionConfig, size: int, count: int) -> tuple[Params, list[Params], jax.ShapeDtypeStruct]:
    """The shapes of what `drawn` gives."""
    images = jax.ShapeDtypeStruct((size, config.image_size, config.image_size, config.num_channels), jnp.float32)
    params = jax.eval_shape(models.ImageEncoder(config).init, jax.random.key(0), images)["params"]
    return params, [params] * count, images


def compiled(form: Form, config: models.VisionConfig, given: tuple) -> tuple[jax.stages.Compiled, dict]:
    """The program of a form, and what is known of it before it runs."""
    encoder = models.ImageEncoder(config, unroll=form.unroll)
    apply = lambda params, images: encoder.apply({"params": params}, images)  # noqa: E731
    function = jax.jit(lambda params, taus, images: form.responses(apply, params, taus, images))
    start = time.perf_counter()
    lowered = function.lower(*given)
    between = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    facts = {
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "trace_seconds": between - start,
        "compile_seconds": end - between,
    }
    print(facts, flush=True)
    return program, facts


def timed(what: str, programs: dict, given: tuple, options: argparse.Namespace) -> tuple[list[dict], dict]:
    """Rows of the first form against each other one, and by how much their responses differ."""
    contenders = {
        name: Contender(lambda program=program: jax.block_until_ready(program(*given)))
        for name, program in programs.items()
    }
    timings = alternate(contenders, repeats=options.repeats)
    (first, ours), *others = timings.items()
    rows = [record.faster(f"{what}, {first}", ours, other, against=name) for name, other in others]
    scale = float(jnp.max(jnp.abs(ours.result[1])))
    apart = {name: float(jnp.max(jnp.abs(ours.result[1] - other.result[1]))) / scale for name, other in others}
    return rows, apart


if __name__ == "__main__":
    main()
