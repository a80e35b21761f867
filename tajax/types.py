"""The types that pass between the rooms of tajax: parameters, models as functions, batches, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

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

Moved: TypeAlias = Mapping[str, ArrayLike]
"""The leaves of a task vector, by path, without those that are zero in all vectors it is used with."""

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
    """What the encoder takes: of images the pixels after resize and crop, before normalisation, uint8 [B, H, W, 3]."""
    label: Int[Array, " B"]
    """Class index, int32. Any value in padded rows."""
    mask: Bool[Array, " B"]
    """False in padded rows."""


class Head(NamedTuple):
    """A frozen linear classifier on L2-normalised features.

    K may exceed `num_classes`, so that one compiled program serves tasks with different numbers of classes.
    """

    weights: Float[Array, "E K"]
    """float32; the temperature is already multiplied in. Columns from `num_classes` on are padding."""
    num_classes: Int[Array, ""]
    """int32 scalar: how many of the K columns are classes."""


class Preprocessing(NamedTuple):
    """How an image becomes the input of an encoder."""

    size: int
    """Side of the square input, in pixels."""
    mean: tuple[float, ...]
    """Per channel, on the scale where white is 1."""
    std: tuple[float, ...]
    """Per channel, on the same scale."""
