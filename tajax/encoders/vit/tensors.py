"""Tensors of a Hugging Face checkpoint ↔ the parameter tree of a ViT, total in both directions.

`rows` holds every leaf with the tensors that it is made of, under the names of transformers 4, which its version 5
still writes to files, or under those of the modules of version 5, which a state dict has. A model may lie under a
prefix (`vit.`, `dinov2.`) and in wrappers; `find_vit` tells where. A PyTorch linear layer keeps `[out, in]`, a linen
kernel `[in, out]`; a convolution `[D, 3, p, p]` here is `[p, p, 3, D]`; tokens and positions have a leading 1 there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.tower import abstract_params
from tajax.models.adapters import Linear, Naming
from tajax.models.convert import check_layers, few, stacked
from tajax.models.foreign import changed_weights, is_optimizer
from tajax.models.state_dicts import unwrapped
from tajax.trees import check_same_tree, flatten_paths, unflatten_paths
from tajax.types import Params

__all__ = [
    "Found",
    "Row",
    "find_vit",
    "linear_modules",
    "params_from_tensors",
    "rows",
    "tensor_views",
    "tensors_from_params",
]

_TOKEN = "embeddings.cls_token"
_DENSE, _CONVOLUTION = (1, 0), (2, 3, 1, 0)
_BESIDE = ("classifier.", "decoder.")
"""How names begin of what stands beside the encoder in a model of transformers."""

_CARRIED = ("pooler.", "embeddings.mask_token", *_BESIDE)
"""How names begin of what belongs to a model and not to the function here."""

_PREFIXES = frozenset({"vit", "dinov2", "dinov2_with_registers"})
"""What models with something beside the encoder call it."""
_TOPS = frozenset({"embeddings", "encoder", "layers", "layernorm", "pooler"})


class Row(NamedTuple):
    """One leaf of the parameter tree, and the tensors that it is made of.

    Attributes:
        path: The leaf, 'a/b/c'. A path under `blocks` stacks the layers.
        names: Of its tensors, put together along their first axis; `{}` stands for the layer.
        axes: Axes of a tensor in the order of the leaf's; None is as it stands.
        leading: Axes of length 1 before them.
    """

    path: str
    names: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    leading: int = 0


def rows(config: VitConfig, *, modern: bool = False) -> tuple[Row, ...]:
    """All leaves of a geometry, under the names of transformers 4 or, `modern`, of the modules of version 5.

    Example:
        >>> [row.names for row in rows(VitConfig()) if row.path == "blocks/attn/out/kernel"]
        [('encoder.layer.{}.attention.output.dense.weight',)]
        >>> [row.names for row in rows(VitConfig(), modern=True) if row.path == "blocks/attn/out/kernel"]
        [('layers.{}.attention.o_proj.weight',)]
    """
    plain = config.model_type == "vit"
    layer = "layers.{}" if modern and plain else "encoder.layer.{}"
    inner = "attention." if modern else "attention.attention."
    linear: dict[str, tuple[str, ...]] = {
        name: (f"{layer}.{inner}{name[0]}_proj" if modern else f"{layer}.{inner}{name}",) for name in _QKV
    }
    linear["out"] = (f"{layer}.attention.{'o_proj' if modern else 'output.dense'}",)
    if config.gated:
        fc_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj") if modern else ("mlp.weights_in",)
        fc_out = "mlp.down_proj" if modern else "mlp.weights_out"
    elif plain and not modern:
        fc_in, fc_out = ("intermediate.dense",), "output.dense"
    else:
        fc_in, fc_out = ("mlp.fc1",), "mlp.fc2"
    linear |= {"fc_in": tuple(f"{layer}.{name}" for name in fc_in), "fc_out": (f"{layer}.{fc_out}",)}
    norms = ("layernorm_before", "layernorm_after") if plain else ("norm1", "norm2")

    found = [
        Row("class_embedding", (_TOKEN,), leading=2),
        Row("position_embedding", ("embeddings.position_embeddings",), leading=1),
        Row("patch_embedding/kernel", ("embeddings.patch_embeddings.projection.weight",), _CONVOLUTION),
        Row("patch_embedding/bias", ("embeddings.patch_embeddings.projection.bias",)),
        *_affine("ln_post", "layernorm"),
    ]
    if config.num_registers:
        found.append(Row("registers", ("embeddings.register_tokens",), leading=1))
    for number, norm in enumerate(norms, start=1):
        found += _affine(f"blocks/ln_{number}", f"{layer}.{norm}")
        if config.layer_scale is not None:
            found.append(Row(f"blocks/scale_{number}", (f"{layer}.layer_scale{number}.lambda1",)))
    for name, sources in linear.items():
        path = f"blocks/{'mlp' if name.startswith('fc') else 'attn'}/{name}"
        found.append(Row(f"{path}/kernel", tuple(f"{source}.weight" for source in sources), _DENSE))
        if config.qkv_bias or name not in _QKV:
            found.append(Row(f"{path}/bias", tuple(f"{source}.bias" for source in sources)))
    return tuple(found)


_QKV = ("query", "key", "value")


def _affine(path: str, name: str) -> list[Row]:
    """The rows of a layer norm."""
    return [Row(f"{path}/scale", (f"{name}.weight",)), Row(f"{path}/bias", (f"{name}.bias",))]


class Found(NamedTuple):
    """A ViT among the tensors of a checkpoint.

    Attributes:
        names: Of what lies inside its prefix, and of what may stand beside it: names as the model has them, and as the
            file has them.
        prefix: What stands before the former in the file, without wrappers.
        modern: Whether they are the names of the modules of transformers 5.
        carried: Those of `names`, as the model has them, that belong to the model and not to the encoder: a pooler, a
            classifier, a mask token, a decoder.
        outside: Names in the file of what belongs to neither: an optimiser, another model.
    """

    names: Mapping[str, str]
    prefix: str
    modern: bool
    carried: tuple[str, ...]
    outside: tuple[str, ...]

    def written(self, name: str) -> str:
        """The name in a file that transformers opens of a tensor that the model has under `name`."""
        word = self.prefix.rstrip(".").rpartition(".")[2]
        return name if name.startswith(_BESIDE) or word not in _PREFIXES else f"{word}.{name}"


def find_vit(names: Collection[str], *, which: str | None = None, place: str = "NAME") -> Found:
    """The one ViT among the tensors of a checkpoint, whatever wrapped it; its class token tells where it is.

    Args:
        names: Of all tensors.
        which: Of several models the one whose names begin so, such as `model_ema`.
        place: Where the checkpoint lies, for the message that offers a choice.

    Raises:
        ValueError: no ViT under transformers' names, what is known of it being said; several and `which` does not tell
            which; one tensor twice; or weights that something beside them changes: an adapter, quantisation.

    Example:
        >>> found = find_vit(["module.vit.embeddings.cls_token", "module.classifier.weight"])
        >>> found.prefix, found.carried, found.names["embeddings.cls_token"]
        ('vit.', ('classifier.weight',), 'module.vit.embeddings.cls_token')
    """
    if changed := changed_weights(names):
        raise ValueError(changed)
    plain = {name: unwrapped(name) for name in names}
    prefixes = [
        name.removesuffix(_TOKEN)
        for name in dict.fromkeys(plain.values())
        if name == _TOKEN or name.endswith(f".{_TOKEN}")
    ]
    if not prefixes:
        raise ValueError(
            f"The {len(names)} tensors hold no '{_TOKEN}' among {few(names)}. {_what_it_is(list(plain.values()))}"
        )
    fitting = [prefix for prefix in prefixes if which is None or prefix.startswith(which.rstrip(".") + ".")]
    if len(fitting) != 1:
        said = (
            f"There are {len(prefixes)} ViTs"
            if which is None
            else f"#{which} names {len(fitting)} of {len(prefixes)} ViTs"
        )
        choices = [f"{place}#{prefix}".rstrip(".") for prefix in prefixes]
        raise ValueError(f"{said}. Choose one: {' or '.join(choices)}.")
    prefix = fitting[0]
    above = prefix.rstrip(".").rpartition(".")[0]
    beside = f"{above}." if above else ""
    held: dict[str, str] = {}
    outside: list[str] = []
    for name, short in plain.items():
        own = short.removeprefix(prefix)
        if is_optimizer(name) or not short.startswith(prefix) or own.split(".")[0] not in _TOPS:
            own = short.removeprefix(beside)
            if is_optimizer(name) or not short.startswith(beside) or not own.startswith(_BESIDE):
                outside.append(name)
                continue
        if own in held:
            raise ValueError(f"{held[own]!r} and {name!r} are one tensor of the model: keep one of them in the file.")
        held[own] = name
    carried = tuple(name for name in held if name.startswith(_CARRIED))
    modern = any(name.endswith(".attention.q_proj.weight") for name in held)
    return Found(held, prefix, modern, carried, tuple(outside))


def _what_it_is(names: Collection[str]) -> str:
    if any(name.split(".")[-1] == "cls_token" or "patch_embed.proj." in name for name in names):
        return (
            "This is a ViT under the names of timm or of DINO's own code: give it in the format of transformers, such "
            "as facebook/dino-vits16 or facebook/dinov2-small."
        )
    if any(name.split(".")[-1] == "class_embedding" for name in names):
        return "This is a CLIP: load it with the family 'clip'."
    return "Give a ViT, a DINO or a DINOv2 in the format of transformers."


def params_from_tensors(tensors: Mapping[str, np.ndarray], config: VitConfig, *, modern: bool = False) -> Params:
    """The parameter tree that a checkpoint's tensors hold.

    Args:
        tensors: Every tensor of the encoder, by the name that the model has.
        config: The geometry they must have.
        modern: Under which names, see `rows`.

    Returns:
        NumPy leaves of their own with the dtype of their tensors.

    Raises:
        ValueError: tensors are missing, left over, of another shape, not floats, or not finite. The first of each kind
            are named, all are counted.
    """
    check_layers(config.num_hidden_layers, tensors)
    _check_positions(tensors, config)
    shapes = {path: np.shape(leaf) for path, leaf in flatten_paths(abstract_params(config)).items()}
    missing: list[str] = []
    unfit: list[str] = []
    claimed: set[str] = set()
    leaves: dict[str, np.ndarray] = {}
    for row in rows(config, modern=modern):
        layers = []
        for sources, expected in _sources(row, shapes[row.path]):
            claimed.update(sources)
            parts = []
            for name in sources:
                if name not in tensors:
                    missing.append(name)
                    continue
                value = np.asarray(tensors[name])
                if value.shape != expected or not jnp.issubdtype(value.dtype, jnp.floating):
                    unfit.append(f"{name} is {value.dtype.name} {list(value.shape)}, expected float {list(expected)}")
                elif count := int(np.size(value) - np.isfinite(value).sum()):
                    unfit.append(f"{name} has {count} entries that are not finite")
                else:
                    parts.append(value)
            if len(parts) == len(sources):
                layers.append(_to_leaf(row, np.concatenate(parts) if len(parts) > 1 else parts[0]))
        if layers and not missing and not unfit:
            leaves[row.path] = stacked(layers) if _is_stacked(row) else np.array(layers[0], order="C")
    extra = [name for name in tensors if name not in claimed]
    kinds = ((missing, "missing", ", "), (unfit, "that do not fit", "; "), (extra, "left over", ", "))
    problems = [f"{len(group)} {what}: {few(group, separator)}" for group, what, separator in kinds if group]
    if problems:
        raise ValueError(
            f"The tensors ({len(tensors)}) are not those of a {config.model_type!r} of this geometry. "
            f"{'. '.join(problems)}. Check that the config.json belongs to these weights."
        )
    return unflatten_paths(leaves)


def _check_positions(tensors: Mapping[str, np.ndarray], config: VitConfig) -> None:
    """That the position table is of the images of the configuration, before a matrix of their size is made."""
    name, rows = "embeddings.position_embeddings", config.table_size**2 + 1
    if name in tensors and (shape := np.shape(tensors[name]))[1:2] != (rows,):
        raise ValueError(
            f"{name} has the shape {list(shape)}, but image_size {config.image_size} and patch_size "
            f"{config.patch_size} of the configuration make {rows} positions. Check that the configuration belongs to "
            "these weights."
        )


def tensors_from_params(params: Params, config: VitConfig, *, modern: bool = False) -> dict[str, np.ndarray]:
    """The tensors that hold a parameter tree, by the name that the model has: the inverse of `params_from_tensors`.

    Raises:
        ValueError: leaves missing, left over or of another shape.
    """
    views = tensor_views(params, config, modern=modern)
    return {name: np.asarray(view, order="C") for name, view in views.items()}


def tensor_views(params: Params, config: VitConfig, *, modern: bool = False) -> dict[str, np.ndarray]:
    """As `tensors_from_params`, but arrays are views of the leaves, transposed ones too, and take no memory.

    Raises:
        ValueError: as `tensors_from_params`.
    """
    check_same_tree(abstract_params(config), params, what=("the configuration", "the parameters"))
    flat = flatten_paths(params)
    tensors: dict[str, np.ndarray] = {}
    for row in rows(config, modern=modern):
        leaf = np.asarray(flat[row.path])
        layers = leaf if _is_stacked(row) else leaf[None]
        for (sources, _), value in zip(_sources(row, leaf.shape), layers, strict=True):
            parts = np.split(_from_leaf(row, value), len(sources))
            tensors |= dict(zip(sources, parts, strict=True))
    return tensors


def linear_modules(config: VitConfig) -> tuple[Naming, ...]:
    """The linear modules of a geometry, as transformers 5 calls them, as its version 4 did, and inside other models.

    Example:
        >>> modern, old, *inside = linear_modules(VitConfig())
        >>> modern["layers.3.attention.o_proj"]
        Linear(path='blocks/attn/out/kernel', layer=3, part=0, parts=1)
        >>> old["encoder.layer.3.attention.output.dense"] == modern["layers.3.attention.o_proj"], len(inside)
        (True, 6)
    """
    found = [
        {
            name.removesuffix(".weight").format(layer): Linear(row.path, layer, part, len(row.names))
            for row in rows(config, modern=modern)
            if row.axes == _DENSE
            for layer in range(config.num_hidden_layers)
            for part, name in enumerate(row.names)
        }
        for modern in (True, False)
    ]
    inside = [{f"{prefix}.{n}": place for n, place in each.items()} for each in found for prefix in sorted(_PREFIXES)]
    return (*found, *inside)


def _is_stacked(row: Row) -> bool:
    return "{}" in row.names[0]


def _to_leaf(row: Row, value: np.ndarray) -> np.ndarray:
    value = value.reshape(value.shape[row.leading :])
    return value if row.axes is None else value.transpose(row.axes)


def _from_leaf(row: Row, value: np.ndarray) -> np.ndarray:
    value = value if row.axes is None else value.transpose(np.argsort(row.axes))
    return value.reshape((1,) * row.leading + value.shape)


def _sources(row: Row, shape: tuple[int, ...]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """The tensors of a leaf and the shape of each, layer by layer."""
    one = shape[1:] if _is_stacked(row) else shape
    whole = one if row.axes is None else tuple(one[i] for i in np.argsort(row.axes))
    whole = (1,) * row.leading + whole
    expected = (whole[0] // len(row.names), *whole[1:])
    for layer in range(shape[0] if _is_stacked(row) else 1):
        yield tuple(name.format(layer) for name in row.names), expected
