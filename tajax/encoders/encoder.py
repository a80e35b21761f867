"""What a run needs to know of a model, whatever family it is of, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from tajax.losses import unit_scale
from tajax.models import Finetuned
from tajax.models.adapters import Naming
from tajax.precision import in_float32
from tajax.rules import DIVIDED
from tajax.types import ApplyFn, Head, InputSpec, JsonObject, Params, Remat, Tokenization


class Identity(NamedTuple):
    """Which model it is."""

    name: str
    """What it was loaded by."""
    revision: str | None
    """The commit on the hub that its files are of; None for a local or the bundled model."""
    sha256: str
    """Of paths, shapes and float32 values of θ₀: whose task vectors these are."""
    geometry: JsonObject
    """What the weights do not tell, such as the activation and the number of heads: a JSON value."""
    facts: JsonObject
    """What a run records of where all this was read."""


class ZeroShot(NamedTuple):
    """Heads without training, for families that take texts."""

    head: Callable[[Sequence[str], Sequence[str]], Head]
    """From class names and templates to a frozen head; raises as `tajax.models.zero_shot_head`."""
    made_from: Callable[[Sequence[str]], JsonObject]
    """From the prompts to what their features are computed from: JSON values by what they are."""


class Save(Protocol):
    """Writes a whole model with other parameters in place of θ₀."""

    def __call__(self, directory: Path, params: Params, /, *, format: str) -> None:
        """Raises ValueError for a format that is unknown or cannot express the model, before anything is written."""


class WithLayers(Protocol):
    """The function of an encoder whose layers are run in another way, with results that are equal up to rounding."""

    def __call__(self, *, remat: Remat, frozen: int) -> ApplyFn:
        """Its backward pass computes so much of each layer again, and so many first layers are constants in it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A pre-trained encoder as values and pure functions.

    Attributes:
        family: its name in `tajax.encoders.FAMILIES`.
        identity: which model it is.
        params: θ₀, the pre-trained parameters.
        apply: `(params, inputs) -> features [B, E]`, not normalised; takes inputs as `Batch` has them and prepares them
            itself.
        apply_for_responses: the same function as responses and gradients of many outputs want it: nothing is
            recomputed, and layers are unrolled, because what goes backwards through a scan keeps the residuals of all
            layers. (`linear_responses` goes forwards, and layer by layer in any case.)
        feature_dim: E.
        inputs: how an example becomes a row of a batch.
        rules: named rules of what is trained, by path patterns over `params`.
        stacked: the node of `params` below which all leaves stack the layers along their leading axis; None if there is
            none.
        zero_shot: heads from class names; None where the family has fitted heads alone.
        load_finetuned: what somebody fine-tuned from this model, by the place where it lies.
        save: writes a model that the family's own libraries open.
        check_format: raises ValueError if `save` cannot write a format.
        with_layers: `apply` with layers that are run as `for_training` is asked to; None where they cannot be.
        linears: names of its linear modules in the libraries that adapters are for. Adapters are written under the
            first, and read under all; empty where the family has no such library.
    """

    family: str
    identity: Identity
    params: Params
    apply: ApplyFn
    apply_for_responses: ApplyFn
    feature_dim: int
    inputs: InputSpec
    rules: Mapping[str, str]
    stacked: str | None
    zero_shot: ZeroShot | None
    load_finetuned: Callable[[str], Finetuned]
    save: Save
    check_format: Callable[[str], None]
    with_layers: WithLayers | None = None
    linears: tuple[Naming, ...] = ()

    @property
    def remats(self) -> tuple[Remat, ...]:
        """What `for_training` takes, from what needs the most memory to what needs the least."""
        return get_args(Remat) if self.with_layers else ("none",)

    def for_training(self, *, remat: Remat = "none", frozen: int = 0) -> ApplyFn:
        """`apply` for a training step, with features and gradients that are equal up to rounding.

        Args:
            remat: how much of each layer the backward pass computes again, which takes time and spares memory.
            frozen: so many layers, counted from the input, are not trained (`tajax.layers.frozen_layers`), and cost no
                gradient: that of their parameters is exactly zero. Of an encoder without `with_layers` it changes
                nothing.

        Raises:
            ValueError: `remat` is none of `remats`; on the call, that fewer layers can be frozen.

        Example:
            >>> from tajax import encoders
            >>> encoder = encoders.load("tiny")
            >>> images = jnp.zeros((1, encoder.inputs.size, encoder.inputs.size, 3), jnp.uint8)
            >>> encoder.for_training(remat="layers")(encoder.params, images).shape
            (1, 128)
        """
        if remat not in self.remats:
            raise ValueError(
                f"remat is {remat!r}, and an encoder of the family {self.family!r} takes "
                f"{' or '.join(map(repr, self.remats))}"
            )
        return self.with_layers(remat=remat, frozen=frozen) if self.with_layers else self.apply


def through_norm(encoder: Encoder) -> Encoder:
    """The same encoder with features of length 1, x / ‖x‖, so that what is linearised goes through the norm.

    The expansion of x / ‖x‖ at θ₀ is no unit vector, and is not normalised again: heads for it have
    `normalizes=False`, and those that this encoder makes do.

    Example:
        >>> from tajax import encoders
        >>> encoder = encoders.load("tiny")
        >>> images = jnp.zeros((1, encoder.inputs.size, encoder.inputs.size, 3), jnp.uint8)
        >>> float(jnp.linalg.norm(through_norm(encoder).apply(encoder.params, images)).round(5))
        1.0
    """

    def unit(apply: ApplyFn) -> ApplyFn:
        def normalized(params: Params, /, *inputs: Any, **options: Any) -> Array:
            x = apply(params, *inputs, **options)
            return x * unit_scale(jnp.sum(x * x, axis=-1, keepdims=True))

        return normalized

    made = encoder.zero_shot
    return dataclasses.replace(
        _changed(encoder, unit),
        zero_shot=made and made._replace(head=lambda *texts: made.head(*texts)._replace(normalizes=False)),
    )


def exact(encoder: Encoder) -> Encoder:
    """The same encoder with float32 in its products on every device, `tajax.precision.in_float32`.

    Example:
        >>> import jax
        >>> from tajax import encoders
        >>> encoder = exact(encoders.load("tiny"))
        >>> images = jnp.zeros((1, encoder.inputs.size, encoder.inputs.size, 3), jnp.uint8)
        >>> "HIGHEST" in str(jax.make_jaxpr(encoder.apply)(encoder.params, images))
        True
    """
    return _changed(encoder, in_float32)


def _changed(encoder: Encoder, change: Callable[[ApplyFn], ApplyFn]) -> Encoder:
    whole = encoder.with_layers
    return dataclasses.replace(
        encoder,
        apply=change(encoder.apply),
        apply_for_responses=change(encoder.apply_for_responses),
        with_layers=whole and (lambda **layers: change(whole(**layers))),
    )


def shortened(encoder: Encoder, max_tokens: int) -> Encoder:
    """The same encoder, with texts cut to so many tokens, special ones among them.

    Raises:
        ValueError: it takes images, or not so many tokens; or nothing of a text would be left.
    """
    if not isinstance(encoder.inputs, Tokenization):
        raise ValueError(f"max_tokens is {max_tokens}, but {encoder.identity.name} takes images")
    if not encoder.inputs.ending + 2 <= max_tokens <= encoder.inputs.max_length:
        raise ValueError(
            f"max_tokens is {max_tokens}; {encoder.identity.name} takes {encoder.inputs.ending + 2} to "
            f"{encoder.inputs.max_length}"
        )
    return dataclasses.replace(encoder, inputs=dataclasses.replace(encoder.inputs, max_length=max_tokens))


class LoadEncoder(Protocol):
    """How a family loads one of its models."""

    def __call__(self, name: str, /, *, random_seed: int | None = None, dtype: DTypeLike = jnp.float32) -> Encoder:
        """The encoder of a name or path.

        Args:
            name: of the model, or where it lies.
            random_seed: draw its parameters from this seed, as before any pre-training.
            dtype: what it computes in. Its parameters and features, and heads that it makes, are float32 all the same.

        Raises:
            FileNotFoundError, ValueError: as `tajax.models.load`.
        """


class Family(NamedTuple):
    """A kind of model that can be edited: what is known of all of its models, and how one is loaded."""

    load: LoadEncoder
    check_name: Callable[[str], None]
    """Raises ValueError, with the nearest names, for a model that there cannot be; loads and fetches nothing."""
    outline: Callable[[], Params]
    """A tree with the paths that all its models have, by which patterns are checked before one is loaded."""
    rules: Mapping[str, str]
    """Named rules of what is trained: patterns over these paths."""
    modality: Literal["images", "texts"] = "images"
    """What its models take, and tasks must be made of."""
    zero_shot: bool = True
    """Whether its encoders make heads from class names."""
    formats: tuple[str, ...] = ("huggingface",)
    """What `Encoder.save` knows, of which a geometry may still be refused."""
    divided: str = DIVIDED
    """A pattern, searched for in the paths: leaves that devices divide among them where they share parameters."""
