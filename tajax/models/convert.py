"""Tensors of a checkpoint ↔ parameter trees, total in both directions.

One table (`ROWS`) holds every leaf of the tree with its name in a Hugging Face checkpoint and its name in an
OpenAI or open_clip checkpoint. Reading and writing both walk it: each tensor is claimed once, each shape is
checked, and whatever is left over or missing is named in the error.

A PyTorch linear layer keeps `[out, in]`, a linen kernel `[in, out]`; a convolution `[D, 3, p, p]` here is
`[p, p, 3, D]`; open_clip stacks W_q, W_k, W_v into one `in_proj` tensor of three equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tajax.models.clip import CLIP
from tajax.models.geometry import ClipConfig, TextConfig, VisionConfig
from tajax.trees import flatten_paths, unflatten_paths
from tajax.types import Params

__all__ = [
    "NAMINGS",
    "ROWS",
    "Row",
    "detect_naming",
    "infer_config",
    "params_from_tensors",
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
    Row(
        "image/position_embedding",
        f"{_VISION}.position_embedding.weight",
        "visual.positional_embedding",
        _SAME,
    ),
    Row(
        "image/patch_embedding/kernel",
        f"{_VISION}.patch_embedding.weight",
        "visual.conv1.weight",
        _CONVOLUTION,
    ),
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
            f"The {len(names)} tensors follow {which} of a CLIP: {_few(names)}. "
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
        NumPy leaves with the dtype of their tensors.

    Raises:
        ValueError: tensors are missing, left over, or of another shape. The first few are named, all are
            counted.
    """
    naming = detect_naming(tensors)
    shapes = _leaf_shapes(config)
    problems: list[str] = []
    claimed: set[str] = set()
    missing: list[str] = []
    leaves: dict[str, np.ndarray] = {}
    for row in ROWS:
        shape, parts = shapes[row.path], []
        for name, part in _sources(row, naming, shape):
            claimed.add(name)
            if name not in tensors:
                missing.append(name)
                continue
            expected = _tensor_shape(row, naming, shape)
            found = tuple(np.shape(tensors[name]))
            if found != expected:
                problems.append(f"{name} has shape {list(found)}, expected {list(expected)} ({row.path})")
                continue
            value = np.asarray(tensors[name])
            value = value if part is None else np.split(value, 3)[part]
            axes = row.axes[naming]
            parts.append(value if axes is None else value.transpose(axes))
        if not problems and not missing:
            leaves[row.path] = np.stack(parts) if _is_stacked(row) else parts[0]
    missing, extra = list(dict.fromkeys(missing)), [n for n in tensors if n not in claimed | BUFFERS[naming]]
    if missing:
        problems.append(f"{len(missing)} missing: {_few(missing)}")
    if extra:
        problems.append(f"{len(extra)} left over: {_few(extra)}")
    if problems:
        raise ValueError(
            f"The checkpoint ({len(tensors)} tensors, {naming} names) does not fit its configuration: "
            + "; ".join(dict.fromkeys(problems[:5] + problems[-2:]))
            + (f"; {len(problems)} problems in all" if len(problems) > 5 else "")
            + ". Check that config.json belongs to these weights."
        )
    return unflatten_paths(leaves)


def tensors_from_params(
    params: Params, config: ClipConfig, *, naming: str = "huggingface"
) -> dict[str, np.ndarray]:
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
    if naming not in NAMINGS:
        raise ValueError(f"naming {naming!r} is unknown; choose one of {', '.join(NAMINGS)}.")
    leaves, shapes = flatten_paths(params), _leaf_shapes(config)
    problems = [f"{len(m)} missing: {_few(m)}" for m in [[p for p in shapes if p not in leaves]] if m]
    problems += [f"{len(m)} left over: {_few(m)}" for m in [[p for p in leaves if p not in shapes]] if m]
    problems += [
        f"{path} has shape {list(np.shape(leaves[path]))}, expected {list(shape)}"
        for path, shape in shapes.items()
        if path in leaves and tuple(np.shape(leaves[path])) != shape
    ]
    if problems:
        raise ValueError(f"The parameters do not fit the configuration: {'; '.join(problems[:5])}.")
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for row in ROWS:
        leaf, axes = np.asarray(leaves[row.path]), row.axes[naming]
        layers = leaf if _is_stacked(row) else leaf[None]
        for (name, part), value in zip(_sources(row, naming, shapes[row.path]), layers, strict=True):
            pieces.setdefault(name, {})[part or 0] = (
                value if axes is None else value.transpose(np.argsort(axes))
            )
    return {
        name: np.asarray(np.concatenate([p[i] for i in range(3)]) if len(p) == 3 else p[0], order="C")
        for name, p in pieces.items()
    }


def infer_config(tensors: Mapping[str, np.ndarray], *, hidden_act: str = "quick_gelu") -> ClipConfig:
    """The geometry of an OpenAI- or open_clip-named checkpoint, told from its shapes.

    Shapes do not tell the activation, nor the number of heads: OpenAI's and LAION's published models have
    heads of 64, but for image towers of width 1280, 1408 and 1664, which have 16 heads.

    Args:
        tensors: Every tensor by name.
        hidden_act: The activation; OpenAI's is 'quick_gelu', most of LAION's 'gelu'.

    Raises:
        ValueError: not a ViT CLIP under those names, or a width that no published rule splits into heads.
    """
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "token_embedding.weight")
    needed += ("positional_embedding", "visual.transformer.resblocks.0.mlp.c_fc.weight", "text_projection")
    needed += ("transformer.resblocks.0.mlp.c_fc.weight",)
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(
            f"Not a ViT CLIP under open_clip's names: {_few(missing)} missing. Tensors: {_few(tensors)}."
        )
    shape = {name: np.shape(tensors[name]) for name in needed}
    width, _, patch, _ = shape["visual.conv1.weight"]
    grid = math.isqrt(shape["visual.positional_embedding"][0] - 1)
    text_width = shape["token_embedding.weight"][1]
    vocab_size = shape["token_embedding.weight"][0]

    def heads(width: int, published: Mapping[int, int]) -> int:
        if width not in published and width % 64:
            raise ValueError(
                f"Shapes do not tell how many heads split the width {width}: put open_clip_config.json "
                f"beside the weights."
            )
        return published.get(width, width // 64)

    def depth(prefix: str) -> int:
        layers = [name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)]
        return 1 + max(int(layer) for layer in layers)

    return ClipConfig(
        vision=VisionConfig(
            hidden_size=width,
            intermediate_size=shape["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
            num_hidden_layers=depth("visual.transformer.resblocks."),
            num_attention_heads=heads(width, {1280: 16, 1408: 16, 1664: 16}),
            projection_dim=shape["visual.proj"][1],
            image_size=grid * patch,
            patch_size=patch,
            hidden_act=hidden_act,
        ),
        text=TextConfig(
            hidden_size=text_width,
            intermediate_size=shape["transformer.resblocks.0.mlp.c_fc.weight"][0],
            num_hidden_layers=depth("transformer.resblocks."),
            num_attention_heads=heads(text_width, {}),
            projection_dim=shape["text_projection"][1],
            vocab_size=vocab_size,
            max_position_embeddings=shape["positional_embedding"][0],
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            hidden_act=hidden_act,
        ),
    )


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


def _leaf_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, from the modules themselves, so that no geometry is written down twice."""
    vision, text = config.vision, config.text
    images = jax.ShapeDtypeStruct((1, vision.image_size, vision.image_size, vision.num_channels), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, text.max_position_embeddings), jnp.int32)
    tree = jax.eval_shape(CLIP(config).init, jax.random.key(0), images, tokens)["params"]
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_paths(tree).items()}
    if shapes.keys() != {row.path for row in ROWS}:
        raise AssertionError(f"ROWS and the modules differ in {shapes.keys() ^ {row.path for row in ROWS}}.")
    return shapes


def _few(names: Collection[str], limit: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f", … ({len(names) - limit} more)" if len(names) > limit else "")
