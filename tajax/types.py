"""The types that pass between the rooms of tajax: parameters, models as functions, batches, heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PyTree, Shaped

Params: TypeAlias = PyTree[ArrayLike]
"""Parameters, or a task vector: any pytree of arrays, usually nested dictionaries."""

Tree = TypeVar("Tree")
"""The type of a parameter tree, where what comes out is a tree of the same type: `dict[str, Array]` of such, say."""

LeafMask: TypeAlias = bool | Bool[np.ndarray, " L"]
"""Whether a leaf is trained; or, of a leaf that stacks L layers along its leading axis, which of them are."""

Mask: TypeAlias = PyTree[LeafMask]
"""A `LeafMask` for each leaf of a parameter tree."""

Trained: TypeAlias = dict[str, Array]
"""The trained leaves alone, by path; of a leaf that is trained in some layers, those layers."""

Remat: TypeAlias = Literal["none", "dots", "layers"]
"""How much of each layer the backward pass computes again instead of keeping it: nothing; all but the products of
activations with kernels, the dense layers; or everything but what a layer is given."""

Moved: TypeAlias = Mapping[str, ArrayLike]
"""The leaves of a task vector, by path, without those that are zero in all vectors it is used with."""

Precision: TypeAlias = Literal["highest", "default", "bf16"]
"""How exactly an encoder computes: with float32 products, with those that the device makes of float32 unless it is told
otherwise, or in bfloat16."""

JsonObject: TypeAlias = dict[str, Any]
"""What JSON calls an object. Any, because what a name stands for is known to whoever wrote it alone."""


@runtime_checkable
class ApplyFn(Protocol):
    """A model as a pure function, `(params, *inputs) -> outputs`, with the batch as the leading axis."""

    # Any, because each model has other inputs: to a type checker these two stand for "whatever follows".
    def __call__(self, params: Params, /, *inputs: Any, **options: Any) -> Array:
        """Outputs [B, ...] of the model at `params`."""
        ...


@runtime_checkable
class MergeFn(Protocol):
    """A merging method, `(pretrained, taus, *, ...) -> params`; its own options are keyword-only."""

    # Any, as above: each method has other options.
    def __call__(self, pretrained: Params, taus: Sequence[Params], *args: Any, **options: Any) -> Params:
        """The merged parameters: a tree like `pretrained`, with its dtypes."""
        ...


class Batch(NamedTuple):
    """Labelled examples bound for the device. Rows with a False mask are padding and count for nothing.

    On the host the leaves are NumPy arrays, which JAX's functions take as well as its own.
    """

    inputs: PyTree[Shaped[Array, "B ..."]]
    """What the encoder takes: of images the pixels after resize and crop, before normalisation, uint8 [B, H, W, 3]; of
    texts the ids of their tokens, int32 [B, L], −1 in padding."""
    label: Int[Array, " B"]
    """Class index, int32. Any value in padded rows."""
    mask: Bool[Array, " B"]
    """False in padded rows."""


class Head(NamedTuple):
    """A frozen linear classifier on L2-normalised features: the logits of x are (x / ‖x‖) W.

    K may exceed `num_classes`, so that one compiled program serves tasks with different numbers of classes.
    """

    weights: Float[Array, "E K"]
    """float32; the temperature is already multiplied in. Columns from `num_classes` on are padding."""
    num_classes: Int[Array, ""]
    """int32 scalar: how many of the K columns are classes."""
    normalizes: Bool[Array, ""] | bool = True
    """Whether x is divided by its norm. Not where an expansion goes through the norm: the logits are then x W."""


class Resize(NamedTuple):
    """What is done to an image of any shape before the centre square of it is cut out."""

    side: int
    """Pixels that the shorter side becomes, or both do; at least as many as the input has."""
    squash: bool = False
    """Whether both sides become that long, which changes the image's proportions."""
    interpolation: str = "bicubic"
    """Filter of Pillow's by its name in lower case."""


class Preprocessing(NamedTuple):
    """How an image becomes the input of an encoder."""

    size: int
    """Side of the square input, in pixels."""
    mean: tuple[float, ...]
    """Per channel, on the scale where white is 1."""
    std: tuple[float, ...]
    """Per channel, on the same scale."""
    resize: Resize | None = None
    """None: CLIP's, the shorter side to `size`, bicubically."""

    def to_json(self) -> JsonObject:
        """As what a run keeps and compares."""
        told = self._asdict() | {"resize": self.resize and self.resize._asdict()}
        return {name: value for name, value in told.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """How a text becomes the input of an encoder: a row of token ids, int32, with −1 in padding.

    Attributes:
        split: texts -> the ids of each, int32 [L], special tokens among them, of any length.
        max_length: tokens of a row at most, special ones among them. Longer texts are cut.
        ending: special tokens that stand at the end of each text, and are kept where it is cut.
        facts: what ids depend on, as JSON values: a digest of the vocabulary and what is done to texts before.
    """

    split: Callable[[Sequence[str]], Sequence[Int[np.ndarray, " L"]]]
    max_length: int
    ending: int
    facts: JsonObject

    def to_json(self) -> JsonObject:
        """As what a run keeps and compares."""
        return {**self.facts, "max_length": self.max_length}


InputSpec: TypeAlias = Preprocessing | Tokenization
"""How an example becomes a row of a batch: an image, or a text."""
