"""Tensors of a BERT's checkpoint ↔ parameter trees, total in both directions.

One table (`ROWS`) holds every leaf of the tree with its name in a Hugging Face checkpoint. Each tensor is claimed once,
each shape is checked, and whatever is left over or missing is named in the error. BERT's own pooler is no parameter
here; its tensors are carried along and written back as they were.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tajax.encoders.text.bert import abstract_params
from tajax.encoders.text.geometry import BertConfig
from tajax.models.adapters import Linear, Naming
from tajax.models.convert import check_layers, few, misfits, stacked
from tajax.models.foreign import changed_weights, is_optimizer
from tajax.models.state_dicts import WRAPPERS
from tajax.trees import check_same_tree, flatten_paths, unflatten_paths
from tajax.types import Params

__all__ = [
    "ROWS",
    "Found",
    "find_model",
    "linear_modules",
    "params_from_tensors",
    "tensor_views",
    "tensors_from_params",
]


class Row(NamedTuple):
    """One leaf of the parameter tree.

    Attributes:
        path: The leaf, 'a/b/c'. A path under `blocks` stacks the layers, one tensor each.
        name: Of its tensor; `{}` stands for the layer.
        transposed: Whether the checkpoint keeps `[out, in]`, as PyTorch's linear layers do, where a kernel is
            `[in, out]`.
    """

    path: str
    name: str
    transposed: bool = False


def _affine(path: str, name: str) -> list[Row]:
    return [Row(f"{path}/scale", f"{name}.weight"), Row(f"{path}/bias", f"{name}.bias")]


def _dense(path: str, name: str) -> list[Row]:
    return [Row(f"{path}/kernel", f"{name}.weight", transposed=True), Row(f"{path}/bias", f"{name}.bias")]


_LAYER, _LEADER = "encoder.layer.{}", "embeddings.word_embeddings.weight"
ROWS: tuple[Row, ...] = (
    Row("token_embedding", _LEADER),
    Row("position_embedding", "embeddings.position_embeddings.weight"),
    Row("type_embedding", "embeddings.token_type_embeddings.weight"),
    *_affine("ln_embedding", "embeddings.LayerNorm"),
    *_dense("blocks/attn/query", f"{_LAYER}.attention.self.query"),
    *_dense("blocks/attn/key", f"{_LAYER}.attention.self.key"),
    *_dense("blocks/attn/value", f"{_LAYER}.attention.self.value"),
    *_dense("blocks/attn/out", f"{_LAYER}.attention.output.dense"),
    *_affine("blocks/ln_1", f"{_LAYER}.attention.output.LayerNorm"),
    *_dense("blocks/mlp/fc_in", f"{_LAYER}.intermediate.dense"),
    *_dense("blocks/mlp/fc_out", f"{_LAYER}.output.dense"),
    *_affine("blocks/ln_2", f"{_LAYER}.output.LayerNorm"),
)

_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Ranges and zeros that some versions wrote; they may be there."""

_HEADS = ("cls", "classifier", "qa_outputs")
"""Modules beside a BERT that was trained for something else than features; they are not read."""

_POOLER = {"pooler.dense.weight": 2, "pooler.dense.bias": 1}
_OLD_NAMES = (
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)


class Found(NamedTuple):
    """A BERT among the tensors of a checkpoint."""

    names: Mapping[str, str]
    """Its tensors: names as the model has them, and as the file has them."""
    notes: tuple[str, ...]
    """What was removed from names or changed in them, and which tensors outside the model are not read."""
    outside: tuple[str, ...]
    """Tensors outside the model that are neither of a head nor of an optimiser."""


def find_model(names: Collection[str], *, which: str | None = None, place: str = "NAME") -> Found:
    """The one BERT among the tensors of a checkpoint, whatever prefix its names have.

    Args:
        names: Of all tensors.
        which: Of several models the one whose prefix this is.
        place: Where the checkpoint lies, for the message that offers a choice.

    Raises:
        ValueError: no model; several, and `which` does not tell which; a tensor twice; or weights that something beside
            them changes: an adapter, quantisation.

    Example:
        >>> found = find_model(["0.auto_model.embeddings.word_embeddings.weight", "optimizer.state.0.exp_avg"])
        >>> found.names
        {'embeddings.word_embeddings.weight': '0.auto_model.embeddings.word_embeddings.weight'}
    """
    if changed := changed_weights(names):
        raise ValueError(changed)
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    prefixes = [
        name.removesuffix(_LEADER) for name in plain.values() if re.search(r"(^|\.)" + re.escape(_LEADER) + "$", name)
    ]
    if not prefixes:
        raise ValueError(
            f"The {len(names)} tensors hold no BERT among {few(names)}: looked for {_LEADER!r}, also under a prefix "
            "such as 'bert.' or '0.auto_model.'."
        )
    if which is not None:
        fitting = [prefix for prefix in prefixes if prefix.rstrip(".") == which]
    else:
        fitting = prefixes
    if len(fitting) != 1:
        choices = " or ".join(
            f"{place}#{prefix.rstrip('.')}" if prefix else place for prefix in dict.fromkeys(prefixes)
        )
        said = f"There are {len(prefixes)} BERTs" if which is None else f"#{which} names {len(fitting)} BERTs"
        raise ValueError(f"{said} among the tensors. Choose one: {choices}.")
    (prefix,) = fitting
    held: dict[str, str] = {}
    heads: list[str] = []
    optimizer: list[str] = []
    outside: list[str] = []
    old = 0
    for name, short in plain.items():
        if is_optimizer(short):
            optimizer.append(name)
        elif not short.startswith(prefix):
            (heads if short.split(".")[0] in _HEADS else outside).append(name)
        else:
            own = short.removeprefix(prefix)
            for pattern, new in _OLD_NAMES:
                own, count = pattern.subn(new, own)
                old += count
            if own in held:
                raise ValueError(f"{held[own]!r} and {name!r} are one tensor of the model: keep one in the file.")
            held[own] = name
    notes = [f"prefix {prefix!r} removed from names"] if prefix else []
    notes += [f"{old} layer norms' tensors under the older names gamma and beta"] if old else []
    for what, group in (("a head", heads), ("an optimiser", optimizer)):
        notes += [f"tensors of {what} are not read ({len(group)}): {few(group)}"] if group else []
    return Found(held, tuple(notes), tuple(outside))


def params_from_tensors(tensors: Mapping[str, np.ndarray], config: BertConfig) -> tuple[Params, dict[str, np.ndarray]]:
    """The parameter tree that a checkpoint's tensors hold, and those of BERT's pooler, if it has one, as they are.

    Args:
        tensors: Every tensor of the model by Hugging Face's name, without a prefix.
        config: The geometry they must have.

    Returns:
        NumPy leaves of their own with the dtype of their tensors.

    Raises:
        ValueError: tensors are missing, left over, of another shape, or not floats. The first of each kind are named,
            all are counted.
    """
    check_layers(config.num_hidden_layers, tensors)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_paths(abstract_params(config)).items()}  # type: ignore[union-attr]  # all leaves are shapes
    missing: dict[str, None] = {}
    unfit: dict[str, str] = {}
    leaves: dict[str, np.ndarray] = {}

    def claim(name: str, expected: tuple[int, ...]) -> np.ndarray | None:
        if name not in tensors:
            missing[name] = None
            return None
        value = np.asarray(tensors[name])
        if value.shape != expected or not jnp.issubdtype(value.dtype, jnp.floating):
            unfit[name] = f"{name} is {value.dtype.name} {list(value.shape)}, expected float {list(expected)}"
            return None
        return value

    for row in ROWS:
        names, shape = _names(row, config), shapes[row.path]
        expected = shape[1:] if _is_stacked(row) else shape
        values = [claim(name, expected[::-1] if row.transposed else expected) for name in names]
        parts = [value.T if row.transposed else value for value in values if value is not None]
        if len(parts) == len(names):
            leaves[row.path] = stacked(parts) if _is_stacked(row) else np.array(parts[0], order="C")
    carried = {}
    if tensors.keys() & _POOLER.keys():
        held = {name: claim(name, (config.hidden_size,) * axes) for name, axes in _POOLER.items()}
        carried = {name: np.array(value) for name, value in held.items() if value is not None}
    claimed = {name for row in ROWS for name in _names(row, config)} | _POOLER.keys() | set(_BUFFERS)
    extra = [name for name in tensors if name not in claimed]
    if problems := misfits(missing, unfit.values(), extra):
        raise ValueError(
            f"The {len(tensors)} tensors do not fit their configuration. {problems}. Check that config.json belongs to "
            "these weights."
        )
    return unflatten_paths(leaves), carried


def tensors_from_params(params: Params, config: BertConfig) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that hold a parameter tree: the inverse of `params_from_tensors`.

    Returns:
        Contiguous NumPy arrays with the dtypes of the leaves.

    Raises:
        ValueError: leaves missing, left over or of another shape.
    """
    return {name: np.asarray(view, order="C") for name, view in tensor_views(params, config).items()}


def tensor_views(params: Params, config: BertConfig) -> dict[str, np.ndarray]:
    """As `tensors_from_params`, but arrays are views of the leaves, transposed ones too, and take no memory.

    Raises:
        ValueError: as `tensors_from_params`.
    """
    check_same_tree(abstract_params(config), params, what=("the configuration", "the parameters"))
    leaves = flatten_paths(params)
    tensors = {}
    for row in ROWS:
        leaf = np.asarray(leaves[row.path])
        for name, value in zip(_names(row, config), leaf if _is_stacked(row) else leaf[None], strict=True):
            tensors[name] = value.T if row.transposed else value
    return tensors


def linear_modules(depth: int) -> tuple[Naming, ...]:
    """The linear modules of a BERT of so many layers, as `BertModel` calls them, and as models with a head do.

    Example:
        >>> alone, inside = linear_modules(2)
        >>> alone["encoder.layer.1.output.dense"]
        Linear(path='blocks/mlp/fc_out/kernel', layer=1, part=0, parts=1)
        >>> next(iter(inside))
        'bert.encoder.layer.0.attention.self.query'
    """
    alone = {
        row.name.removesuffix(".weight").format(layer): Linear(row.path, layer)
        for row in ROWS
        if row.transposed
        for layer in range(depth)
    }
    return alone, {f"bert.{name}": linear for name, linear in alone.items()}


def _is_stacked(row: Row) -> bool:
    return "{}" in row.name


def _names(row: Row, config: BertConfig) -> list[str]:
    """The tensors that a leaf is made of, one a layer where layers are stacked."""
    return [row.name.format(layer) for layer in range(config.num_hidden_layers if _is_stacked(row) else 1)]
