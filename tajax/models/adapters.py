"""LoRA adapters as PEFT keeps them: a directory with `adapter_config.json` and `adapter_model.safetensors`.

An adapter has two tensors for each linear module that it changes, `lora_A.weight` [r, in] and `lora_B.weight`
[out, r], and stands for the weights W₀ + s·BA, s = α/r (α/√r with `use_rslora`). Where a module lies in a parameter
tree, a family of encoders says by a table from names to `Linear`; everything here is the same for all of them.

A kernel here is [in, out], so what is added to it is s·AᵀBᵀ. Whatever else an adapter can be is refused by name: the
dense weights that it stands for would be others than those read.

Source: Hu et al. 2022, "LoRA", §4.1; the files are those of PEFT 0.21, `LoraConfig` and `save_pretrained`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from tajax import atomic, tensor_files
from tajax.models import files, hub
from tajax.models.convert import few
from tajax.models.layout import ADAPTER, ADAPTER_WEIGHTS, PICKLED_WEIGHTS, WEIGHTS, is_there
from tajax.trees import flatten_paths
from tajax.types import JsonObject, Params

__all__ = ["Adapter", "Linear", "Naming", "Pair", "is_adapter", "read_adapter", "write_adapter"]


class Linear(NamedTuple):
    """Where the weight of a linear module of a PyTorch model lies in a parameter tree."""

    path: str
    """Of the kernel."""
    layer: int | None = None
    """Of a kernel [L, in, out] that stacks layers."""
    part: int = 0
    """Which of `parts` equal parts of the kernel's outputs, where several modules share one kernel."""
    parts: int = 1

    def columns(self, outputs: int) -> slice:
        """Those of the kernel's outputs that are the module's.

        Example:
            >>> Linear("mlp/fc_in/kernel", part=1, parts=2).columns(6)
            slice(3, 6, None)
        """
        width = outputs // self.parts
        return slice(self.part * width, (self.part + 1) * width)


Naming = Mapping[str, Linear]
"""The linear modules of a model by name, as one of the classes of its own library calls them."""


class Pair(NamedTuple):
    """The factors of one module, in the layout of kernels: what is added is s·`a`·`b`."""

    a: np.ndarray
    """[in, r], A transposed."""
    b: np.ndarray
    """[r, out], B transposed."""


class Adapter(NamedTuple):
    """An adapter that was read, and applied to its base."""

    params: Params
    """θ, a tree like θ₀ with its dtypes; a layer that is not adapted is bit for bit that of θ₀."""
    path: Path
    """The file of tensors."""
    notes: tuple[str, ...]
    """What was not taken as it stands in the files."""


def is_adapter(path: Path) -> bool:
    """Whether a directory or a file holds an adapter, and no weights of a whole model beside it.

    Raises:
        FileNotFoundError, PermissionError, ValueError: as `layout.is_there`.

    Example:
        >>> is_adapter(Path("no/such/directory"))
        False
    """
    if not path.is_dir():
        return path.name in ADAPTER_WEIGHTS and is_there(path)
    whole = any(is_there(path / name) for name in (*WEIGHTS, *PICKLED_WEIGHTS))
    return not whole and is_there(path / ADAPTER) and _tensor_file(path) is not None


def write_adapter(
    directory: Path,
    pairs: Mapping[str, Pair],
    *,
    rank: int,
    alpha: float,
    base: str,
    revision: str | None = None,
    base_sha256: str | None = None,
) -> None:
    """Writes a directory that `peft.PeftModel.from_pretrained` opens, whole or not at all; what is there is replaced.

    Args:
        directory: where to; its parents are made.
        pairs: by the names of the modules that are adapted, [in, r] and [r, out], written as float32.
        rank: r.
        alpha: α; what is added is (α/r)·ab.
        base: name or path of the model that was adapted, from which PEFT's `AutoPeftModel` loads it.
        revision: its commit on the hub.
        base_sha256: of its parameters, `Identity.sha256`, by which `read_adapter` knows it.

    Raises:
        ValueError: no pairs, one of another rank, or a number that is not finite.
    """
    tensors = {}
    for name, pair in pairs.items():
        if np.ndim(pair.a) != 2 or np.shape(pair.a)[1] != rank or np.shape(pair.b)[:-1] != (rank,):
            raise ValueError(f"{name}: factors {np.shape(pair.a)} and {np.shape(pair.b)} are not of rank {rank}")
        for letter, factor in (("A", pair.a), ("B", pair.b)):
            value = np.asarray(np.asarray(factor, np.float32).T, order="C")
            if not np.isfinite(value).all():
                raise ValueError(f"{name}: lora_{letter} holds numbers that are not finite")
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = value
    if not tensors:
        raise ValueError(f"an adapter in {directory} would adapt nothing: there are no factors")
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else float(alpha),
        "target_modules": sorted(pairs),  # in full: a part of a name would find those of other towers, too
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    metadata = {"format": "pt"} | ({"base_sha256": base_sha256} if base_sha256 else {})
    with atomic.directory(directory) as partial:
        (partial / ADAPTER_WEIGHTS[0]).write_bytes(safetensors.numpy.save(tensors, metadata=metadata))
        (partial / ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_adapter(
    path: Path,
    pretrained: Params,
    namings: Sequence[Naming],
    *,
    base: str,
    base_sha256: str | None = None,
    ignored: tuple[str, ...] = (),
    unlike: tuple[str, ...] = (),
) -> Adapter:
    """The dense parameters that an adapter makes of its base, θ₀ + s·AᵀBᵀ; products and sums are taken in float64.

    Args:
        path: a directory for which `is_adapter` holds, or the file of tensors in it.
        pretrained: θ₀.
        namings: names of its linear modules. The first that has all of the adapter's counts.
        base: the name of the model whose θ₀ that is.
        base_sha256: of θ₀; an adapter of `write_adapter` that was made from another is refused.
        ignored: how the names begin of modules that belong to the model and not to the encoder.
        unlike: classes of other models whose modules have the same names.

    Raises:
        FileNotFoundError: there is no `adapter_config.json`.
        ValueError: a damaged file; another kind of adapter than plain LoRA on linear modules; a module that the encoder
            has not, one factor without the other, a factor of another rank or shape, or not finite; an adapter of
            another base. The message names the file, and the setting or tensor.
    """
    directory = path if path.is_dir() else path.parent
    file = _tensor_file(directory) if path.is_dir() else path
    if file is None or not is_there(directory / ADAPTER):
        raise FileNotFoundError(f"{directory} has no {ADAPTER if file else ADAPTER_WEIGHTS[0]}: copy it there.")
    config = files.read_json(directory / ADAPTER)
    rank, scale = files.describe(directory / ADAPTER, lambda: _scaled(config))
    notes = files.describe(directory / ADAPTER, lambda: _same_base(config, base, unlike))
    if file.suffix == ".safetensors" and base_sha256 is not None:
        made_from = tensor_files.read_metadata(file).get("base_sha256", base_sha256)
        if made_from != base_sha256:
            raise ValueError(
                f"{file} was made from an encoder with sha256 {made_from}, but that of {base} is {base_sha256}. Give "
                "the base that it was made from."
            )
    _, stored = files.open_tensors(file)

    def applied() -> tuple[Params, tuple[str, ...]]:
        names, left = _modules(stored.names, ignored)
        found = _linears(names, namings)
        held = stored.read([name for both in names.values() for name in both.values()])
        factors = {module: {which: held[name] for which, name in both.items()} for module, both in names.items()}
        said = (f"tensors of the adapter outside the encoder are not read ({len(left)}): {few(left)}",) if left else ()
        return _added(pretrained, factors, found, rank, scale), (*said, *files.dtype_notes(held))

    params, said = files.describe(file, applied)
    return Adapter(params, file, notes + said)


def _tensor_file(directory: Path) -> Path | None:
    return next((directory / name for name in ADAPTER_WEIGHTS if is_there(directory / name)), None)


_FREE = frozenset(
    "auto_mapping base_model_name_or_path eva_config exclude_modules inference_mode "
    "layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core peft_version qalora_group_size r "
    "revision runtime_config target_modules task_type use_rslora".split()
)
"""Settings that say nothing about the weights which the tensors, rank and α do not."""

_WANTED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva"),
}
"""Settings of which these values alone leave the base's other weights, and what tensors mean, as they are."""


def _scaled(config: JsonObject) -> tuple[int, float]:
    """The rank and the factor s of an adapter whose other settings are those of plain LoRA."""
    for key, wanted in _WANTED.items():
        value = config.get(key, wanted[0])
        if not any(type(value) is type(one) and value == one for one in wanted):
            raise ValueError(
                f"{key} is {value!r}, and of adapters those with {' or '.join(map(repr, wanted))} are read. {_MERGE}"
            )
    for key, value in config.items():
        if key not in _FREE and key not in _WANTED and value not in (None, False, {}, [], ""):
            raise ValueError(f"{key} is {value!r}, which is not implemented for adapters here. {_MERGE}")
    rank, alpha, stabilized = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if type(rank) is not int or rank < 1:
        raise ValueError(f"r is {rank!r}, want a rank of 1 or more.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < abs(alpha) < 1e30:
        raise ValueError(f"lora_alpha is {alpha!r}, want a finite number other than 0.")
    if stabilized not in (None, True, False) or isinstance(stabilized, int) and not isinstance(stabilized, bool):
        raise ValueError(f"use_rslora is {stabilized!r}, want true or false.")
    return rank, float(alpha) / (math.sqrt(rank) if stabilized else rank)


_MERGE = "Merge the adapter with PEFT, `merge_and_unload()`, and give the merged model."


def _same_base(config: JsonObject, base: str, unlike: tuple[str, ...]) -> tuple[str, ...]:
    """A note where the adapter names another base that may be the same; an error where both are names of the hub."""
    mapping = config.get("auto_mapping")
    if isinstance(mapping, Mapping) and mapping.get("base_model_class") in unlike:
        raise ValueError(f"the adapter is of a {mapping['base_model_class']}, not of the encoder that is edited.")
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or named == base:
        return ()
    there, here = (hub.hub_name(name) for name in (named, base))
    if there and here and there.repo_id == here.repo_id:
        return ()
    if there and here and not os.path.exists(base) and not os.path.exists(named):
        raise ValueError(
            f"the adapter was trained on {named!r}, and the base here is {base!r}. Give the base that it was made "
            "from; if both have the same weights, change base_model_name_or_path."
        )
    return (f"the adapter names {named!r} as its base, and is applied to {base!r}",)


_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<which>[AB])(?:\.default)?\.weight")


def _modules(names: Collection[str], ignored: tuple[str, ...]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The tensors A and B of each adapted module, by name in the file; and those that are ignored."""
    modules: dict[str, dict[str, str]] = {}
    left = []
    for name in names:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name} is no lora_A.weight or lora_B.weight of a linear module; of adapters, no others are read. "
                f"{_MERGE}"
            )
        module, which = match["module"], match["which"]
        if module.startswith(ignored):
            left.append(name)
        elif which in modules.setdefault(module, {}):
            raise ValueError(f"{modules[module][which]} and {name} are one tensor: keep one of them in the file.")
        else:
            modules[module][which] = name
    if not modules:
        raise ValueError(f"the adapter changes nothing of the encoder: {few(left) or 'it has no tensors'}.")
    if lonely := [f"{module} has lora_{min(both)} alone" for module, both in modules.items() if len(both) < 2]:
        raise ValueError(f"{few(lonely, '; ')}. A and B belong together.")
    return modules, left


def _linears(modules: Collection[str], namings: Sequence[Naming]) -> Naming:
    """Where each module lies, by the first naming that has all of them."""
    unknown = [[module for module in modules if module not in naming] for naming in namings]
    for naming, missing in zip(namings, unknown, strict=True):
        if not missing:
            return {module: naming[module] for module in modules}
    nearest = min(range(len(unknown)), key=lambda k: len(unknown[k]), default=None)
    if nearest is None:
        raise ValueError("adapters of this family of models are not read.")
    raise ValueError(
        f"the adapter changes {few(unknown[nearest])}, which the base has not as a linear module (it has "
        f"{few(list(namings[nearest]))}). Give the base that it was made from; convolutions, embeddings and modules "
        f"of other libraries are not read. {_MERGE}"
    )


def _added(
    pretrained: Params,
    factors: Mapping[str, Mapping[str, np.ndarray]],
    linears: Naming,
    rank: int,
    scale: float,
) -> Params:
    leaves = dict(flatten_paths(pretrained))
    moved: dict[str, np.ndarray] = {}
    for module, linear in linears.items():
        kernel = moved.setdefault(linear.path, np.array(leaves[linear.path]))
        place = (... if linear.layer is None else linear.layer, slice(None), linear.columns(kernel.shape[-1]))
        inputs, outputs = kernel[place].shape
        _check(module, factors[module], rank, inputs, outputs)
        down, up = (np.asarray(factors[module][which], np.float64).T for which in "AB")
        kernel[place] = np.asarray(kernel[place], np.float64) + scale * (down @ up)
    found = [jnp.asarray(moved[path]) if path in moved else leaf for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(pretrained), found)


def _check(module: str, both: Mapping[str, np.ndarray], rank: int, inputs: int, outputs: int) -> None:
    for which, wanted in (("A", (rank, inputs)), ("B", (outputs, rank))):
        tensor = both[which]
        if np.shape(tensor) != wanted or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(
                f"{module}.lora_{which}.weight is {tensor.dtype.name} {list(np.shape(tensor))}; with r = {rank} and "
                f"the base's module of {inputs} inputs and {outputs} outputs it is float {list(wanted)}"
            )
        if not np.isfinite(tensor).all():
            raise ValueError(f"{module}.lora_{which}.weight holds numbers that are not finite")
