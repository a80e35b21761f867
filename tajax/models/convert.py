"""Tensors of a checkpoint ↔ parameter trees, total in both directions.

One table (`ROWS`) holds every leaf of the tree with its name in a Hugging Face checkpoint and its name in an
OpenAI or open_clip checkpoint. Reading and writing both walk it: each tensor is claimed once, each shape is
checked, and whatever is left over or missing is named in the error.

A PyTorch linear layer keeps `[out, in]`, a linen kernel `[in, out]`; a convolution `[D, 3, p, p]` here is
`[p, p, 3, D]`; open_clip stacks W_q, W_k, W_v into one `in_proj` tensor of three equal parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tajax.models.clip import abstract_params
from tajax.models.geometry import ClipConfig
from tajax.trees import check_same_tree, flatten_paths, unflatten_paths
from tajax.types import Params

__all__ = [
    "BUFFERS",
    "NAMINGS",
    "ROWS",
    "Row",
    "detect_naming",
    "image_params_from_tensors",
    "image_tensor_names",
    "params_from_tensors",
    "tensor_views",
    "tensors_from_params",
]

NAMINGS = ("huggingface", "open_clip")


class Row(NamedTuple):
    """One leaf of the parameter tree and its tensor under each naming.

    Attributes:
        path: The leaf, 'a/b/c'. A path under `blocks` stacks the layers, one tensor each.
        huggingface: Its name; `{}` stands for the layer.
        open_clip: Its name; a trailing `#i` means part i of three along the first axis.
        axes: Axes of the checkpoint's tensor in the order of the leaf's, per naming; None is as it stands.
    """

    path: str
    huggingface: str
    open_clip: str
    axes: Mapping[str, tuple[int, ...] | None]


_SAME = dict.fromkeys(NAMINGS)
_DENSE = dict.fromkeys(NAMINGS, (1, 0))
_CONVOLUTION = dict.fromkeys(NAMINGS, (2, 3, 1, 0))
_PROJECTION = {"huggingface": (1, 0), "open_clip": None}  # OpenAI kept its projections as [D, E]


def _affine(path: str, huggingface: str, open_clip: str) -> list[Row]:
    """The rows of a layer norm."""
    return [
        Row(f"{path}/scale", f"{huggingface}.weight", f"{open_clip}.weight", _SAME),
        Row(f"{path}/bias", f"{huggingface}.bias", f"{open_clip}.bias", _SAME),
    ]


def _dense(path: str, huggingface: str, open_clip: str) -> list[Row]:
    """The rows of a linear layer; `open_clip` has `*` where weight or bias goes."""
    return [
        Row(f"{path}/kernel", f"{huggingface}.weight", open_clip.replace("*", "weight"), _DENSE),
        Row(f"{path}/bias", f"{huggingface}.bias", open_clip.replace("*", "bias"), _SAME),
    ]


def _blocks(path: str, huggingface: str, open_clip: str) -> list[Row]:
    """The rows of a stack of layers."""
    hf, oc = f"{huggingface}.layers.{{}}", f"{open_clip}.resblocks.{{}}"
    return [
        *_affine(f"{path}/ln_1", f"{hf}.layer_norm1", f"{oc}.ln_1"),
        *_dense(f"{path}/attn/query", f"{hf}.self_attn.q_proj", f"{oc}.attn.in_proj_*#0"),
        *_dense(f"{path}/attn/key", f"{hf}.self_attn.k_proj", f"{oc}.attn.in_proj_*#1"),
        *_dense(f"{path}/attn/value", f"{hf}.self_attn.v_proj", f"{oc}.attn.in_proj_*#2"),
        *_dense(f"{path}/attn/out", f"{hf}.self_attn.out_proj", f"{oc}.attn.out_proj.*"),
        *_affine(f"{path}/ln_2", f"{hf}.layer_norm2", f"{oc}.ln_2"),
        *_dense(f"{path}/mlp/fc_in", f"{hf}.mlp.fc1", f"{oc}.mlp.c_fc.*"),
        *_dense(f"{path}/mlp/fc_out", f"{hf}.mlp.fc2", f"{oc}.mlp.c_proj.*"),
    ]


_VISION, _TEXT = "vision_model.embeddings", "text_model.embeddings"
ROWS: tuple[Row, ...] = (
    Row("image/class_embedding", f"{_VISION}.class_embedding", "visual.class_embedding", _SAME),
    Row("image/position_embedding", f"{_VISION}.position_embedding.weight", "visual.positional_embedding", _SAME),
    Row("image/patch_embedding/kernel", f"{_VISION}.patch_embedding.weight", "visual.conv1.weight", _CONVOLUTION),
    *_affine("image/ln_pre", "vision_model.pre_layrnorm", "visual.ln_pre"),  # the reference's spelling
    *_blocks("image/blocks", "vision_model.encoder", "visual.transformer"),
    *_affine("image/ln_post", "vision_model.post_layernorm", "visual.ln_post"),
    Row("image/projection/kernel", "visual_projection.weight", "visual.proj", _PROJECTION),
    Row("text/token_embedding", f"{_TEXT}.token_embedding.weight", "token_embedding.weight", _SAME),
    Row("text/position_embedding", f"{_TEXT}.position_embedding.weight", "positional_embedding", _SAME),
    *_blocks("text/blocks", "text_model.encoder", "transformer"),
    *_affine("text/ln_final", "text_model.final_layer_norm", "ln_final"),
    Row("text/projection/kernel", "text_projection.weight", "text_projection", _PROJECTION),
    Row("logit_scale", "logit_scale", "logit_scale", _SAME),
)

BUFFERS: Mapping[str, frozenset[str]] = {
    "huggingface": frozenset({f"{_VISION}.position_ids", f"{_TEXT}.position_ids"}),
    "open_clip": frozenset({"attn_mask", "input_resolution", "context_length", "vocab_size"}),
}
"""Entries that hold no parameter (ranges, a mask, sizes), which some versions wrote; they may be there."""

_IMAGE = "image/"
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "huggingface": ("text_model.", "text_projection.", "logit_scale"),
    "open_clip": ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text", "logit_"),
}
"""How the names begin that belong to a CLIP, and not to its image tower."""


def detect_naming(names: Collection[str]) -> str:
    """'huggingface' or 'open_clip', told from the tensors' names.

    Raises:
        ValueError: neither, or both at once; the first names are shown.
    """
    leaders = {"huggingface": ("vision_model.", "text_model."), "open_clip": ("visual.", "transformer.")}
    found = [naming for naming, starts in leaders.items() if any(name.startswith(starts) for name in names)]
    if len(found) != 1:
        which = "two namings at once" if found else "neither naming"
        raise ValueError(
            f"The {len(names)} tensors follow {which} of a CLIP: {few(names)}. "
            "Expected Hugging Face's ('vision_model.…', 'text_model.…') or open_clip's ('visual.…', "
            "'transformer.…')."
        )
    return found[0]


def params_from_tensors(tensors: Mapping[str, np.ndarray], config: ClipConfig) -> Params:
    """The parameter tree `{'image': …, 'text': …, 'logit_scale': []}` held by a checkpoint's tensors.

    Args:
        tensors: Every tensor of the checkpoint by name, Hugging Face's or open_clip's.
        config: The geometry they must have.

    Returns:
        NumPy leaves of their own with the dtype of their tensors.

    Raises:
        ValueError: tensors are missing, left over, of another shape, or not floats. The first of each kind are
            named, all are counted.
    """
    naming = detect_naming(tensors)
    leaves, problems = _claim(ROWS, tensors, naming, config)
    if problems:
        raise ValueError(
            f"The checkpoint ({len(tensors)} tensors under {naming} names) does not fit its configuration. "
            f"{problems}. Check that the configuration belongs to these weights."
        )
    return unflatten_paths(leaves)


def image_params_from_tensors(
    tensors: Mapping[str, np.ndarray], config: ClipConfig, *, pretrained: Params | None = None
) -> Params:
    """The image tower that a checkpoint's tensors hold, whatever they hold of the text tower.

    Args:
        tensors: The model's tensors by name, Hugging Face's or open_clip's.
        config: The geometry they must have.
        pretrained: Parameters of the image tower, whose projection is taken where the tensors are those of Hugging
            Face's `CLIPVisionModel`, which has none.

    Returns:
        NumPy leaves with the dtype of their tensors.

    Raises:
        ValueError: as `params_from_tensors`.
    """
    naming = detect_naming(tensors)
    rows = [row for row in ROWS if row.path.startswith(_IMAGE)]
    projection = next(row for row in rows if row.path == _IMAGE + "projection/kernel")
    kept = naming == "huggingface" and projection.huggingface not in tensors and pretrained is not None
    rows = [row for row in rows if not (kept and row is projection)]
    leaves, problems = _claim(rows, tensors, naming, config, ignored=_OTHERS[naming])
    if problems:
        raise ValueError(f"The image tower ({naming} names) is not one of this geometry. {problems}.")
    if kept:
        leaves[projection.path] = np.asarray(flatten_paths(pretrained)["projection/kernel"])
    return unflatten_paths({path.removeprefix(_IMAGE): leaf for path, leaf in leaves.items()})


def image_tensor_names(config: ClipConfig, naming: str) -> set[str]:
    """The names of an image tower's tensors.

    Example:
        >>> len(image_tensor_names(ClipConfig(), "huggingface")), len(image_tensor_names(ClipConfig(), "open_clip"))
        (200, 152)
    """
    shapes = flatten_paths(abstract_params(config))
    rows = [row for row in ROWS if row.path.startswith(_IMAGE)]
    return {name for row in rows for name, _ in _sources(row, naming, np.shape(shapes[row.path]))}


def _claim(
    rows: Sequence[Row],
    tensors: Mapping[str, np.ndarray],
    naming: str,
    config: ClipConfig,
    *,
    ignored: tuple[str, ...] = (),
) -> tuple[dict[str, np.ndarray], str]:
    """The leaves of some rows by path, and what is wrong with the tensors: an empty text if nothing is."""
    shapes = {path: np.shape(leaf) for path, leaf in flatten_paths(abstract_params(config)).items()}
    check_layers(max(shapes[row.path][0] for row in rows if _is_stacked(row)), tensors)
    missing: dict[str, None] = {}
    unfit: dict[str, str] = {}
    leaves: dict[str, np.ndarray] = {}
    for row in rows:
        shape, axes = shapes[row.path], row.axes[naming]
        expected = _tensor_shape(row, naming, shape)
        parts = []
        for name, part in _sources(row, naming, shape):
            if name not in tensors:
                missing[name] = None
                continue
            value = np.asarray(tensors[name])
            if not expected and value.size == 1:  # a scalar that somebody kept as a vector, for FSDP's sake
                value = value.reshape(())
            if value.shape != expected or not jnp.issubdtype(value.dtype, jnp.floating):
                found = f"{value.dtype.name} {list(value.shape)}"
                unfit[name] = f"{name} is {found}, expected float {list(expected)}"
                continue
            value = value if part is None else np.split(value, 3)[part]
            parts.append(value if axes is None else value.transpose(axes))
        if not missing and not unfit:
            leaves[row.path] = stacked(parts) if _is_stacked(row) else np.array(parts[0], order="C")
    claimed = {name for row in rows for name, _ in _sources(row, naming, shapes[row.path])}
    extra = [name for name in tensors if name not in claimed | BUFFERS[naming] and not name.startswith(ignored)]
    return leaves, misfits(missing, unfit.values(), extra)


def tensors_from_params(params: Params, config: ClipConfig, *, naming: str = "huggingface") -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that hold a parameter tree: the inverse of `params_from_tensors`.

    Args:
        params: `{'image': …, 'text': …, 'logit_scale': []}`.
        config: Its geometry.
        naming: 'huggingface' or 'open_clip'.

    Returns:
        Contiguous NumPy arrays with the dtypes of the leaves.

    Raises:
        ValueError: an unknown naming; leaves missing, left over or of another shape.
    """
    views = tensor_views(params, config, naming=naming)
    return {name: np.asarray(view, order="C") for name, view in views.items()}


def tensor_views(params: Params, config: ClipConfig, *, naming: str = "huggingface") -> dict[str, np.ndarray]:
    """As `tensors_from_params`, but arrays are views of the leaves where they can be, transposed ones too.

    They take no memory, and are for `files.write_tensors`. What open_clip keeps in one tensor is put together.

    Raises:
        ValueError: as `tensors_from_params`.
    """
    if naming not in NAMINGS:
        raise ValueError(f"naming {naming!r} is unknown; choose one of {', '.join(NAMINGS)}.")
    check_same_tree(abstract_params(config), params, what=("the configuration", "the parameters"))
    leaves = flatten_paths(params)
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for row in ROWS:
        leaf, axes = np.asarray(leaves[row.path]), row.axes[naming]
        layers = leaf if _is_stacked(row) else leaf[None]
        for (name, part), value in zip(_sources(row, naming, leaf.shape), layers, strict=True):
            pieces.setdefault(name, {})[part or 0] = value if axes is None else value.transpose(np.argsort(axes))
    return {name: np.concatenate([p[i] for i in range(3)]) if len(p) == 3 else p[0] for name, p in pieces.items()}


def _is_stacked(row: Row) -> bool:
    return "{}" in row.huggingface


def _sources(row: Row, naming: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    """The tensors a leaf is made of, one a layer, each with the part that is meant (None: the whole)."""
    name, _, part = getattr(row, naming).partition("#")
    for layer in range(shape[0] if _is_stacked(row) else 1):
        yield name.format(layer), int(part) if part else None


def _tensor_shape(row: Row, naming: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape a leaf's tensor has in the checkpoint, one layer of it where layers are stacked."""
    shape = shape[1:] if _is_stacked(row) else shape
    axes = row.axes[naming]
    if axes is not None:
        shape = tuple(shape[i] for i in np.argsort(axes))
    return (3 * shape[0], *shape[1:]) if "#" in getattr(row, naming) else shape


def stacked(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Layers along a new leading axis, in the order of memory that devices want, whatever theirs.

    Example:
        >>> stacked([np.ones((2, 3)).T, np.zeros((3, 2))]).flags.c_contiguous
        True
    """
    whole = np.empty((len(layers), *layers[0].shape), np.result_type(*layers))
    return np.stack(layers, out=whole)


def misfits(missing: Collection[str], unfit: Collection[str], extra: Collection[str]) -> str:
    """What is wrong with the tensors of a checkpoint, counted and named, in sentences; empty if nothing is.

    Args:
        missing: Names that are wanted and not there.
        unfit: Of each tensor of another shape or dtype what it is, and what was expected.
        extra: Names that nothing claims.
    """
    kinds = ((missing, "missing", ", "), (unfit, "of another shape or dtype", "; "), (extra, "left over", ", "))
    return ". ".join(f"{len(group)} {what}: {few(group, separator)}" for group, what, separator in kinds if group)


def check_layers(layers: int, tensors: Collection[str]) -> None:
    """That a checkpoint can have so many layers, before a name is made for each tensor of each.

    Raises:
        ValueError: the configuration wants more layers than there are tensors.

    Example:
        >>> check_layers(10**12, ["a", "b"])
        Traceback (most recent call last):
        ...
        ValueError: The configuration says 1000000000000 layers, the checkpoint has 2 tensors in all: a, b. ...
    """
    if layers > len(tensors):
        raise ValueError(
            f"The configuration says {layers} layers, the checkpoint has {len(tensors)} tensors in all: {few(tensors)}."
            " Check that the configuration belongs to these weights."
        )


def few(names: Collection[str], separator: str = ", ", *, limit: int = 4) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    more = f"{separator}… ({len(names) - limit} more)" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
