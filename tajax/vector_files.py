"""Task vectors on disk, to share: safetensors without code, which any safetensors library reads.

Leaves that were frozen are left out and come back as zeros; of others the zeros may be, where that is smaller
(`save_task_vector(…, sparse=True)`). The metadata say of what model, on what task and how the
vector was made (`vector_metadata`). Under the names of a PyTorch model, `naming='huggingface'` or `'open_clip'`,
`state_dict[name] += coef * tau[name]` applies the vector there, without tajax.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import ArrayLike, DTypeLike

import tajax
from tajax import atomic, host, tensor_files, trees
from tajax.sparse import packed, unpacked
from tajax.trees import check_same_names
from tajax.types import Mask, Params

__all__ = ["is_task_vector", "load_task_vector", "read_metadata", "save_task_vector", "vector_metadata"]

FORMAT = tensor_files.TASK_VECTOR
RESERVED = ("format", "trained", "naming", "zero_rows", "dtype", "sparse")
ENTRIES = "#entries"
"""Behind the name of a leaf: which of its entries are stored, as bits (`tajax.sparse.packed`)."""
_HEADER = 200  # bytes that one more tensor takes in the header of a file, some more than it does
NAMINGS = ("tajax", "huggingface", "open_clip")
STORED = ("float16", "bfloat16", "float32", "float64")

# Fields that are kept as JSON, and what they may hold; None is left out. All others are texts.
_JSON = {
    "trainable": lambda v: isinstance(v, str | list | dict),
    "layers": lambda v: isinstance(v, list) and len(v) == 2 and all(type(end) is int for end in v),
    "linearized": lambda v: isinstance(v, bool),
    "through_norm": lambda v: isinstance(v, bool),
    "seed": lambda v: type(v) is int and v >= 0,
    "trained_parameters": lambda v: type(v) is int and v > 0,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def vector_metadata(
    *,
    model: str,
    base_sha256: str,
    task: str,
    revision: str | None = None,
    family: str | None = None,
    regime: str | None = None,
    trainable: object = None,
    layers: tuple[int, int] | None = None,
    linearized: bool = False,
    through_norm: bool | None = None,
    seed: int | None = None,
    config_hash: str | None = None,
    trained_parameters: int | None = None,
) -> dict[str, object]:
    """What a task vector says of itself, for `save_task_vector`.

    Args:
        model: the base model, as `encoders.load` takes it.
        base_sha256: `Identity.sha256` of the base, of a CLIP `LoadedClip.image_sha256`.
        task: what it was fine-tuned on.
        revision: the base's commit on the hub, `LoadedClip.revision`; None for a local or the bundled model.
        family: of the base, as `encoders.load` takes it; None: its default.
        regime: the name of the regime.
        trainable: the rule that said what is trained, as for `param_mask`.
        layers: the half-open range of layers that were trained; None for all.
        linearized: whether it was trained in the expansion around the base, and means little outside it.
        through_norm: of such a one, whether the expansion is of the normalised features; None is no.
        seed: of the run.
        config_hash: of the run.
        trained_parameters: how many numbers were trained, where these are not all that the rule names.

    Returns:
        The fields that are not None, and `tajax_version`.

    Raises:
        ValueError: a field of another kind; the message names it.

    Example:
        >>> fields = vector_metadata(model="tiny", base_sha256="0" * 64, task="digits", trainable="attention", seed=1)
        >>> fields["trainable"], fields["linearized"], "revision" in fields
        ('attention', False, False)
    """
    fields = {key: value for key, value in locals().items() if value is not None}
    fields["tajax_version"] = tajax.__version__
    return _decoded(_encoded(fields), "a new task vector")


def save_task_vector(
    path: str | Path,
    tau: Params,
    metadata: Mapping[str, object],
    *,
    mask: Mask | None = None,
    dtype: DTypeLike | None = None,
    naming: str = "tajax",
    sparse: bool = False,
) -> None:
    """Writes a task vector as a safetensors file, whole or not at all.

    Args:
        path: the file; its directory is created if absent.
        tau: a tree of arrays, float.
        metadata: what the vector is, of `vector_metadata`. Further values that are not strings are written as JSON.
        mask: as of `param_mask`, like `tau`. What it freezes must be zero; leaves that are frozen in all their
            layers are not stored.
        dtype: of the numbers on disk; as they are by default. float16 halves the file at a relative error of at most
            2⁻¹¹ (entries below 6·10⁻⁵: an absolute one of 3·10⁻⁸), bfloat16 at one of 2⁻⁸ at any magnitude.
        naming: 'tajax' for the paths of the tree; 'huggingface' or 'open_clip' for the names of a PyTorch CLIP, one
            tensor a layer, of an image tower's vector alone. Frozen layers are not stored; where open_clip keeps
            query, key and value in one tensor and some of them are frozen, their rows are zeros, and the entry
            `zero_rows` of the metadata names them.
        sparse: store of each leaf the entries that are not zero, in the order of memory, and as `NAME#entries` which
            they are, a bit an entry (uint8, first entry in the highest bit), where that is smaller. With naming 'tajax'
            alone; versions of tajax before this option refuse such files, by the name of a tensor.

    Raises:
        ValueError: an entry is NaN or infinite, or overflows `dtype`; what is frozen is not zero; a key of `metadata`
            is taken or its value of another kind; an unknown dtype or naming; a leaf that has no name there, or a name
            that ends in `#entries`; `sparse` with the names of PyTorch.
    """
    what = f"task vector for {path}"
    taken = [key for key in RESERVED if key in metadata]
    if taken:
        raise ValueError(f"metadata of {path} uses the reserved key {taken[0]!r}. Reserved: {', '.join(RESERVED)}.")
    if naming not in NAMINGS:
        raise ValueError(f"naming {naming!r} is unknown; choose one of {', '.join(NAMINGS)}.")
    if sparse and naming != "tajax":
        raise ValueError(f"{what} cannot be sparse under {naming} names, which promise whole tensors: leave that out.")
    texts = _encoded(metadata)
    _decoded(texts, what)
    trees.check_finite(tau, what)
    leaves = {name: np.asarray(leaf) for name, leaf in trees.flatten_paths(tau).items()}
    trained: dict[str, Any] = trees.flatten_paths(mask) if mask is not None else dict.fromkeys(leaves, True)
    check_same_names(what, trained, leaves, "the mask")
    for name, leaf in leaves.items():
        if np.any(leaf[np.logical_not(trained[name])]):  # one bool takes all of the leaf, or nothing
            raise ValueError(f"{what}: {name} is frozen by the mask and yet not zero")
    zero_rows: dict[str, list[str]] = {}
    if naming == "tajax":
        tensors = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items() if np.any(trained[name])}
    else:
        from tajax.models import torch_names  # here, because it brings Flax

        tensors, zero_rows = torch_names.tensors_from_leaves(leaves, naming, trained)
    if dtype is not None:
        tensors = {name: _stored(name, tensor, dtype, what) for name, tensor in tensors.items()}
    texts["dtype"] = ", ".join(sorted({tensor.dtype.name for tensor in tensors.values()}))
    if sparse and (of_few := {name: parts for name, tensor in tensors.items() if (parts := _few(tensor))}):
        if clash := [name for name in tensors if name.endswith(ENTRIES)]:
            raise ValueError(f"{what}: no leaf of a sparse file may be called {clash[0]!r}.")
        tensors |= {name: values for name, (values, _) in of_few.items()}
        tensors |= {name + ENTRIES: bits for name, (_, bits) in of_few.items()}
        texts["sparse"] = json.dumps(sorted(of_few))
    texts |= {"format": FORMAT, "trained": json.dumps(sorted(tensors)), "naming": naming}
    if zero_rows:
        texts["zero_rows"] = json.dumps(zero_rows)
    atomic.write(path, safetensors.numpy.save(tensors, metadata=texts))


def load_task_vector(
    path: str | Path, like: Params, *, base_sha256: str | None = None, force: bool = False
) -> tuple[Params, dict[str, object]]:
    """A task vector and its metadata, from a file of `save_task_vector`, whatever its naming.

    Args:
        path: the file; or on the Hugging Face hub, as a string, `owner/name/file.safetensors`, with `@revision`
            where it matters (`models.hub`).
        like: parameters of the model it belongs to; their values are not used.
        base_sha256: of the model it is to be applied to, `LoadedClip.image_sha256`: a vector that was made from
            another base, or does not say from which, is refused. None does not ask.
        force: take it all the same.

    Returns:
        τ as a tree like `like` in NumPy, zero in the leaves and layers that were frozen, in the wider of the file's and
        the model's dtype; leaves of zeros take no memory and cannot be written to (`tajax.host`). And the metadata,
        fields of `vector_metadata` as what they were, all others as strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no task vector; its tensors are missing, unknown to the model, of another
            shape, or not finite; it was made from another base. The message names file, tensor and shapes.
    """
    file = _located(path)
    metadata = read_metadata(file)
    what = f"task vector {file}"
    if base_sha256 is not None and not force:
        _check_base(file, metadata, base_sha256)
    tensors, texts = tensor_files.mapped(file)
    check_same_names(what, _listed(texts.get("trained", "[]"), what), tensors, "the list in its metadata")
    leaves = trees.flatten_paths(like)
    shapes = {name: np.shape(leaf) for name, leaf in leaves.items()}
    for name in _listed(texts.get("sparse", "[]"), what):
        tensors[name] = _whole(name, tensors.pop(name, None), tensors.pop(name + ENTRIES, None), shapes, what)
    if (naming := str(metadata.get("naming", "tajax"))) != "tajax":
        from tajax.models import torch_names

        try:
            tensors = torch_names.leaves_from_tensors(tensors, naming, shapes)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    check_same_names(what, set(tensors) & set(leaves), tensors, "the model")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{what}: {name} has shape {tensor.shape}, the model's is {shapes[name]}")
        complex_leaf = jnp.issubdtype(trees.dtype_of(leaves[name]), jnp.complexfloating)
        if not jnp.issubdtype(tensor.dtype, jnp.inexact if complex_leaf else jnp.floating):
            raise ValueError(f"{what}: {name} holds {tensor.dtype.name}, not a float")
    whole = {name: _widened(tensors.pop(name, None), leaf) for name, leaf in leaves.items()}
    tau = jax.tree.unflatten(jax.tree.structure(like), list(whole.values()))
    trees.check_finite(tau, what)
    return tau, metadata


def read_metadata(path: str | Path) -> dict[str, object]:
    """What a task-vector file says of itself; its tensors are not read.

    Returns:
        As of `load_task_vector`, without what the format itself needs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no task vector, or a field is of another kind. The message names file and field.
    """
    path = _located(path)
    texts = tensor_files.read_metadata(path)
    if texts.get("format") != FORMAT:
        raise ValueError(f"{path} is not a task vector of tajax: its metadata does not say {FORMAT!r}.")
    return _decoded({key: text for key, text in texts.items() if key not in ("format", "trained", "sparse")}, str(path))


def is_task_vector(path: str | Path) -> bool:
    """Whether a file is a task vector of tajax, told from its header; False for whatever else it is, or for no file.

    Example:
        >>> is_task_vector("absent.safetensors")
        False
    """
    try:
        return Path(path).is_file() and tensor_files.read_metadata(path).get("format") == FORMAT
    except ValueError:
        return False


def _located(path: str | Path) -> Path:
    local = Path(os.path.expanduser(path))
    if local.is_file():
        return local
    if isinstance(path, str) and path.partition("@")[0].count("/") > 1 and not local.parent.is_dir():
        from tajax.models import hub

        if hub.hub_name(path):
            return hub.locate(path)
    raise FileNotFoundError(f"no task vector {path}.")


def _check_base(path: Path, metadata: Mapping[str, object], base_sha256: str) -> None:
    made_from = metadata.get("base_sha256")
    if made_from == base_sha256:
        return
    if made_from is None:
        raise ValueError(f"{path} does not say from which base it was made. Pass force=True to use it.")
    at = f" at {metadata['revision']}" if "revision" in metadata else ""
    raise ValueError(
        f"{path} was made from an encoder with sha256 {made_from} ({metadata.get('model')}{at}), but that of this "
        f"base is {base_sha256}: the vector does not fit. Load the base that it names, or pass force=True to use it."
    )


def _stored(name: str, tensor: np.ndarray, dtype: DTypeLike, what: str) -> np.ndarray:
    dtype = jnp.dtype(dtype)
    if dtype.name not in STORED:
        raise ValueError(f"dtype must be one of {', '.join(STORED)}, got {dtype.name}.")
    if np.iscomplexobj(tensor):
        raise ValueError(f"{what}: {name} is complex, and {dtype.name} is not; leave the dtype out.")
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"{what}: {name} overflows {dtype.name} (max |τ| {np.abs(tensor).max():.3g})")
    return cast


def _few(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The entries that are not zero, whose bits are not all 0, and which they are; None where that is not smaller."""
    flat = tensor.reshape(-1)
    there = np.asarray(flat.view(np.uint8).reshape(flat.size, -1).any(axis=1) if flat.size else [], bool)
    values, bits = flat[there], packed(there)
    return (values, bits) if values.nbytes + bits.nbytes + _HEADER < flat.nbytes else None


def _whole(
    name: str,
    values: np.ndarray | None,
    bits: np.ndarray | None,
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
) -> np.ndarray:
    """The tensor of which `_few` made these; neither of them is believed."""
    if values is None or bits is None:
        raise ValueError(f"{what}: of the sparse tensor {name} its values or {name}{ENTRIES} are missing")
    if name not in shapes:
        raise ValueError(f"{what} holds {name}, which is not in the model")
    try:
        there = unpacked(bits, shapes[name])
    except ValueError as error:
        raise ValueError(f"{what}: {name}{ENTRIES} does not fit the model's shape {shapes[name]}: {error}") from error
    if values.shape != (count := int(there.sum()),):
        raise ValueError(f"{what}: {name} holds values of shape {values.shape} for {count} entries")
    tensor = np.zeros(shapes[name], values.dtype)
    tensor[there] = values
    return tensor


def _widened(tensor: np.ndarray | None, leaf: ArrayLike) -> np.ndarray:
    """A leaf of the vector; zeros where the file has none. As of `task_vector`, float where the model has integers."""
    dtype = trees.dtype_of(leaf) if trees.is_float(leaf) else jnp.float32
    wide = jax.dtypes.canonicalize_dtype(dtype if tensor is None else jnp.promote_types(tensor.dtype, dtype))
    if tensor is None or not host.moves(tensor):
        return host.zeros(np.shape(leaf), wide)
    return np.array(tensor, wide)  # a copy: the file may change afterwards


def _encoded(metadata: Mapping[str, object]) -> dict[str, str]:
    given = {key: value for key, value in metadata.items() if value is not None}
    return {k: v if isinstance(v, str) and k not in _JSON else json.dumps(_plain(v)) for k, v in given.items()}


def _plain(value: object) -> object:
    """Mappings and sequences of a config as JSON knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _listed(text: str, what: str) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what}: the list of tensors in its metadata is {text[:80]!r}, want a list of names.")
    return names


def _decoded(texts: Mapping[str, str], what: str) -> dict[str, object]:
    fields: dict[str, object] = dict(texts)
    for key, holds in _JSON.items():
        if key in texts:
            try:
                fields[key] = json.loads(texts[key])
            except (ValueError, RecursionError):
                fields[key] = None
            if not holds(fields[key]):
                raise ValueError(f"{what}: the metadata say {key} = {texts[key]!r}, which cannot be.")
    if "base_sha256" in texts and not _SHA256.fullmatch(texts["base_sha256"]):
        raise ValueError(f"{what}: base_sha256 = {texts['base_sha256']!r} is not a SHA-256 of 64 hexadecimal digits.")
    if texts.get("naming", "tajax") not in NAMINGS:
        raise ValueError(f"{what}: naming = {texts['naming']!r} is unknown; known are {', '.join(NAMINGS)}.")
    return fields
