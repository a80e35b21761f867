"""TaLoS: only the entries to which the model's own predictions are least sensitive are trained (arXiv 2504.02620).

The sensitivity of an entry θ_j is F_j = Σ_x (∂ log p(ŷ; x)/∂θ_j)², over images or texts x of the task, without
augmentation, one label ŷ ~ p(·; x) drawn for each from the model's own prediction through the task's head: a diagonal
of the Fisher matrix. R rounds: round r scores, and keeps the density^(r/R) of all entries that have the smallest F
among those kept so far. While scores are taken, entries that earlier rounds have dropped stand at a tenth of their θ₀.
Then AdamW trains the kept entries alone, from θ₀; the others have no moments and keep every bit.

What the paper leaves open and is settled here:

- What is *dropped* are the sensitive entries, which will not be trained. They are scaled, whatever leaf they are of,
  as in iterative pruning: so later rounds score a model that leans on the kept ones. Nothing comes back.
- All entries that the mask trains compete, with one threshold over all: of a CLIP these are its dense layers, norms and
  embeddings, patches' included, and nothing else. `--config.trainable` leaves some out.
- An entry with a sensitivity of exactly 0 comes after all others: no scored example meets it, as the embedding of a
  word that none of the texts holds, and weight decay alone would move it.
- Of equal scores the earlier entry, by the order of the leaves and their memory: the count is exact.
- Labels are drawn anew in each round, from the model as it is then.
- The official code is said to differentiate the sampled logit; here it is its log-probability, as in the formula.

Scoring takes one backward pass an example and round, one after the other: memory is that of a single example and some
four times the trained parameters. The kept entries lie, a bit an entry, in `Context.kept`, where a run that goes on
reads them. Their places are constants of the compiled step, 4 bytes an entry, 35 MB for a tenth of ViT-B/32; each task
has others, and is compiled for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import Array
from jaxtyping import Float, PyTree, Shaped

from tajax import atomic, data, parallel, processes, sparse, tensor_files, trees
from tajax.encoders.encoder import Encoder
from tajax.losses import cross_entropy, head_logits
from tajax.parametrization import Parametrization
from tajax.training import Context, Options, TrainingMethod
from tajax.types import ApplyFn, Head, Mask, Params, Trained

__all__ = ["METHOD", "least_sensitive", "sensitivity"]

DROPPED = 0.1
"""What entries that were dropped are multiplied by while the others are scored."""

Score = Callable[[Trained, Array], Trained]
"""From what is trained and a key to the sensitivity of each entry."""


def sensitivity(
    encode: ApplyFn,
    restore: Callable[[Trained], Params],
    trained: Trained,
    head: Head,
    inputs: PyTree[Shaped[Array, "B ..."]],
    key: Array,
) -> Trained:
    """Σ_x (∂ log p(ŷ; x)/∂θ_j)² of each entry, ŷ drawn from p(·; x), the softmax of the head's logits.

    Args:
        encode: `(params, inputs) -> features [B, E]`.
        restore: from what is trained to the parameters.
        trained: where the gradients are taken, in these leaves.
        head: the frozen head.
        inputs: of B examples.
        key: of the labels; example i of B draws from the i-th of B keys split from it.

    Returns:
        A tree like `trained`, float32 at least. Costs B backward passes of one example, one after the other.
    """

    def log_probability(trained: Trained, example: PyTree[Array], key: Array) -> Float[Array, ""]:
        logits = head_logits(encode(restore(trained), jax.tree.map(lambda a: a[None], example)), head)
        label = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return -cross_entropy(logits, label)[0]

    def add(total: Trained, one: tuple[PyTree[Array], Array]) -> tuple[Trained, None]:
        grads = jax.grad(log_probability)(trained, *one)
        return {path: total[path] + jnp.square(g.astype(total[path].dtype)) for path, g in grads.items()}, None

    wide = {path: jnp.promote_types(leaf.dtype, jnp.float32) for path, leaf in trained.items()}
    zeros = {path: jnp.zeros(leaf.shape, wide[path]) for path, leaf in trained.items()}
    count = jax.tree.leaves(inputs)[0].shape[0]
    total, _ = jax.lax.scan(add, zeros, (inputs, jax.random.split(key, count)))
    return total


def least_sensitive(
    score: Score, trained: Trained, *, density: float, rounds: int, key: Array
) -> dict[str, np.ndarray]:
    """The entries that are left after some rounds of dropping the most sensitive ones.

    Args:
        score: from leaves like `trained` and a key to the sensitivities of their entries.
        trained: θ₀ in what the mask trains, by path.
        density: the share of entries that is left at the end, above 0 and at most 1.
        rounds: R. After round r so many entries are left as the nearest whole number to density^(r/R) of all.
        key: round r scores with `fold_in(key, r)`, r counted from 0.

    Returns:
        Of each leaf a bool array of its shape.

    Raises:
        ValueError: the density leaves nothing; a sensitivity is not finite, or all are 0.
    """
    total = sum(leaf.size for leaf in trained.values())
    if not _count(density, total):
        raise ValueError(_nothing_left(density, total))
    kept = {path: np.ones(leaf.shape, bool) for path, leaf in trained.items()}
    for number in range(rounds):
        here = {
            path: jnp.where(kept[path], leaf, (DROPPED * leaf).astype(leaf.dtype)) for path, leaf in trained.items()
        }
        scores = {path: np.asarray(leaf) for path, leaf in score(here, jax.random.fold_in(key, number)).items()}
        for path, leaf in scores.items():
            if not np.isfinite(leaf).all():
                raise ValueError(f"the sensitivity of {path!r} is not finite in {np.sum(~np.isfinite(leaf))} entries")
        if not any(leaf.any() for leaf in scores.values()):
            raise ValueError("all sensitivities are 0: the model is certain of each example, and none tells them apart")
        scores = {path: np.where(leaf > 0, leaf, np.inf) for path, leaf in scores.items()}
        kept = sparse.smallest(scores, _count(density ** ((number + 1) / rounds), total), kept)
    return kept


def _count(density: float, total: int) -> int:
    return round(density * total)


def _nothing_left(density: float, total: int) -> str:
    return f"a density of {density:g} leaves none of the {total} entries that are trained"


def _check(encoder: Encoder, mask: Mask, options: Options) -> None:
    total = trees.count_params(encoder.params, mask)
    if not _count(options["density"], total):
        raise ValueError(f"finetune.density: {_nothing_left(options['density'], total)}. Give a larger one.")


def _parametrization(context: Context) -> Parametrization:
    return sparse.entries(context.mask, _chosen(context))


def _chosen(context: Context) -> dict[str, np.ndarray]:
    """The entries of a task: those that an earlier process kept, or else scored now; of all processes the first's."""
    whole, _ = trees.split(context.encoder.params, context.mask)
    bits = {path: np.zeros(-(-leaf.size // 8), np.uint8) for path, leaf in whole.items()}

    def find() -> None:
        found = _kept(context, whole)
        bits.update({path: found[path] for path in whole})

    processes.broadcast_json(find)  # which waits as long as scoring takes; for arrays there is a limit
    chosen = {path: sparse.unpacked(part, whole[path].shape) for path, part in parallel.from_first(bits).items()}
    found, wanted = (sum(map(np.sum, chosen.values())), _count(context.options["density"], trees.count_params(whole)))
    if found != wanted:
        raise ValueError(f"{context.kept} holds {found} entries, not {wanted}. Remove it.")
    return chosen


def _kept(context: Context, whole: Trained) -> dict[str, np.ndarray]:
    """The entries as bits, from the file that holds them, which is made if there is none."""
    file = context.kept / "entries.safetensors"
    if not file.exists():
        chosen = {path: sparse.packed(where) for path, where in _scored(context, whole).items()}
        atomic.write(file, safetensors.numpy.save(chosen, metadata={"made_for": _made_for(context)}))
    bits, texts = tensor_files.read(file)
    if texts.get("made_for") != _made_for(context):
        raise ValueError(f"{file} holds entries of another run: {texts.get('made_for')}. Remove its directory.")
    trees.check_same_names(str(file), whole, bits, "what is trained")
    return bits


def _made_for(context: Context) -> str:
    made_for = {"base": context.encoder.identity.sha256, "task": context.task.name, "seed": context.seed}
    return json.dumps(made_for | dict(context.options), sort_keys=True)


def _scored(context: Context, whole: Trained) -> dict[str, np.ndarray]:
    pretrained, mask, options = context.encoder.params, context.mask, context.options
    batches = data.load(
        context.task,
        "train",
        batch_size=min(options["scored"], len(context.task.split("train"))),
        preprocessing=context.encoder.inputs,
        seed=context.seed,
        epochs=None,
    )
    inputs = jax.tree.map(jnp.asarray, batches.batch(0).inputs)

    @jax.jit
    def score(pretrained: Params, head: Head, inputs: PyTree[Array], trained: Trained, key: Array) -> Trained:
        restore = trees.split(pretrained, mask)[1]
        return sensitivity(context.encoder.apply, restore, trained, head, inputs, key)

    return least_sensitive(
        partial(score, pretrained, context.head, inputs),
        whole,
        density=options["density"],
        rounds=options["rounds"],
        key=jax.random.key(context.seed),
    )


METHOD = TrainingMethod(
    parametrization=_parametrization,
    per_task=True,
    check=_check,
    entries=lambda total, options: _count(options["density"], total),
)
