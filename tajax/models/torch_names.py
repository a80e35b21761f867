"""Some leaves of an image tower under the tensor names of PyTorch's models, layer by layer, and back.

`convert.py` moves whole checkpoints; a task vector may hold a few leaves, and of those a few layers. What is left out
is zero. open_clip keeps W_q, W_k, W_v in one tensor: where only some of them moved, the others' rows are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tajax.models.adapters import Linear, Naming
from tajax.models.convert import NAMINGS, ROWS, Row, few
from tajax.types import LeafMask

__all__ = ["linear_modules", "leaves_from_tensors", "tensors_from_leaves"]

_PARTS = ("query", "key", "value")
_IMAGE = "image/"


def tensors_from_leaves(
    leaves: Mapping[str, np.ndarray], naming: str, trained: Mapping[str, LeafMask]
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The tensors that hold the trained leaves and layers of an image tower.

    Args:
        leaves: by path within the image tower, such as `blocks/attn/query/kernel`; zero where not trained.
        naming: 'huggingface' or 'open_clip'.
        trained: whether each leaf is stored, or a bool array [L] of its layers.

    Returns:
        The tensors by name, contiguous; and for each tensor of which a part only was trained, the parts that were
        filled with zeros.

    Raises:
        ValueError: an unknown naming, or a leaf that no image tower has.

    Example:
        >>> query, train = np.ones((1, 4, 4), np.float32), {"blocks/attn/query/kernel": True}
        >>> tensors, filled = tensors_from_leaves({"blocks/attn/query/kernel": query}, "open_clip", train)
        >>> {name: tensor.shape for name, tensor in tensors.items()}
        {'visual.transformer.resblocks.0.attn.in_proj_weight': (12, 4)}
        >>> filled
        {'visual.transformer.resblocks.0.attn.in_proj_weight': ['key', 'value']}
    """
    rows = _rows(naming)
    unknown = [path for path in leaves if path not in rows]
    if unknown:
        raise ValueError(f"{few(unknown)}: no such parameter of a CLIP's image tower, so no {naming} name for it.")
    whole: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in leaves.items():
        for name, part, layer in _places(rows[path], naming, np.shape(leaf)):
            chosen = np.asarray(trained[path])
            if not np.any(chosen[layer] if chosen.ndim else chosen):
                continue
            value = _turned(np.asarray(leaf) if layer is None else np.asarray(leaf)[layer], rows[path], naming)
            if part is None:
                whole[name] = value
            else:
                parts.setdefault(name, {})[part] = value
    filled = {name: [_PARTS[i] for i in range(3) if i not in held] for name, held in parts.items() if len(held) < 3}
    for name, held in parts.items():
        blank = np.zeros_like(next(iter(held.values())))
        whole[name] = np.concatenate([held.get(i, blank) for i in range(3)])
    # Row by row in memory: what turned them left views, and `safetensors` writes the bytes as they lie.
    return {name: np.asarray(tensor, order="C") for name, tensor in whole.items()}, filled


def leaves_from_tensors(
    tensors: Mapping[str, np.ndarray], naming: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The leaves that some tensors hold: the inverse of `tensors_from_leaves`.

    Args:
        tensors: by name, of the image tower alone.
        naming: 'huggingface' or 'open_clip'.
        shapes: of every leaf of the image tower, by path.

    Returns:
        The leaves of which a tensor is there, zero in the layers of which none is.

    Raises:
        ValueError: an unknown naming, a tensor that the image tower does not have, or one of another shape.
    """
    rows, leaves = _rows(naming), dict[str, np.ndarray]()
    claimed: set[str] = set()
    for path, shape in shapes.items():
        for name, part, layer in _places(rows[path], naming, shape):
            if name not in tensors:
                continue
            claimed.add(name)
            row, one = rows[path], shape if layer is None else shape[1:]
            expected = tuple(one[axis] for axis in _back(row, naming, len(one)))
            if part is not None:
                expected = (3 * expected[0], *expected[1:])
            value = np.asarray(tensors[name])
            if value.shape != expected:
                raise ValueError(f"{name} has shape {value.shape}, the model's is {expected}")
            value = value if part is None else np.split(value, 3)[part]
            axes = row.axes[naming]
            leaf = leaves.setdefault(path, np.zeros(shape, value.dtype))
            leaf[... if layer is None else layer] = value if axes is None else value.transpose(axes)
    extra = sorted(set(tensors) - claimed)
    if extra:
        raise ValueError(f"holds {few(extra)}, which the model's image tower does not have under {naming} names")
    return leaves


def linear_modules(depth: int) -> tuple[Naming, ...]:
    """The linear modules of an image tower of so many layers, under two namings.

    As `transformers.CLIPModel` calls them, and as the `CLIPVisionModel` of transformers 5 does.

    Example:
        >>> whole, tower = linear_modules(2)
        >>> whole["vision_model.encoder.layers.1.mlp.fc1"], len(whole)
        (Linear(path='blocks/mlp/fc_in/kernel', layer=1, part=0, parts=1), 13)
        >>> next(iter(tower))
        'encoder.layers.0.self_attn.q_proj'
    """
    dense = {path: row.huggingface for path, row in _rows("huggingface").items() if row.axes["huggingface"] == (1, 0)}
    whole = {
        name.removesuffix(".weight").format(layer): Linear(path, layer)
        for path, name in dense.items()
        for layer in (range(depth) if "{}" in name else (None,))
    }
    return whole, {name.removeprefix("vision_model."): linear for name, linear in whole.items()}


def _rows(naming: str) -> dict[str, Row]:
    if naming not in NAMINGS:
        raise ValueError(f"naming {naming!r} is unknown; choose one of {', '.join(NAMINGS)}.")
    return {row.path.removeprefix(_IMAGE): row for row in ROWS if row.path.startswith(_IMAGE)}


def _places(row: Row, naming: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None, int | None]]:
    """The tensors that a leaf is spread over: name, part of three, layer; None where there are no parts or layers."""
    name, _, part = getattr(row, naming).partition("#")
    for layer in range(shape[0]) if "{}" in name else (None,):
        yield name.format(layer), int(part) if part else None, layer


def _back(row: Row, naming: str, rank: int) -> tuple[int, ...]:
    """Axes of a leaf in the order of the tensor's."""
    axes = row.axes[naming]
    return tuple(range(rank)) if axes is None else tuple(int(axis) for axis in np.argsort(axes))


def _turned(value: np.ndarray, row: Row, naming: str) -> np.ndarray:
    return value.transpose(_back(row, naming, value.ndim))
