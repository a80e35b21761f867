"""Encoders that others fine-tuned, in whatever format they were published, as parameters of our image tower.

With the base they were made from, `tajax.task_vector(base.params["image"], finetuned.params)` is their task vector.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tajax.models import files
from tajax.models.adapters import is_adapter, read_adapter
from tajax.models.convert import image_params_from_tensors, image_tensor_names
from tajax.models.geometry import ClipConfig, differing
from tajax.models.hub import locate, split_choice
from tajax.models.loading import LoadedClip
from tajax.models.preprocessor import read_preprocessing
from tajax.models.rounding import Rounding, keep_unmoved, like_pretrained, settled
from tajax.models.torch_names import linear_modules
from tajax.trees import flatten_paths
from tajax.types import Params

__all__ = ["Finetuned", "load_finetuned"]

_LISTS = re.compile(r"(?P<which>params0?)\.(?P<number>\d+)")


class Finetuned(NamedTuple):
    """A fine-tuned image tower."""

    params: Params
    """A tree like `params["image"]` of the base, with its dtypes."""
    linearized: bool
    """Whether these are parameters of the expansion around the base, for `tajax.linearize` and not for the encoder."""
    path: Path
    """The file of weights."""
    format: str
    """What was found: 'huggingface', 'open_clip', 'module' (whole, pickled), 'linearized' or 'adapter'."""
    rounding: Rounding | None = None
    """How much of θ − θ₀ is rounding, where the file or the base is of less than the base's precision."""
    notes: tuple[str, ...] = ()
    """What was not taken as it stands in the file: prefixes, tensors that are not read, rounding."""


def load_finetuned(name_or_path: str | Path, base: LoadedClip, *, revision: str | None = None) -> Finetuned:
    """The image tower that somebody fine-tuned from a base, read without running anything in its file.

    Read are, told apart by content:

    - Hugging Face's `CLIPVisionModel` (fusion_bench's checkpoints), which has no projection: the base's is kept;
      `CLIPVisionModelWithProjection`; a whole `CLIPModel`, and the merged models that tajax writes;
    - state dicts under OpenAI's and open_clip's names, also inside a training checkpoint, under another prefix, or
      wrapped by DDP, FSDP, activation checkpointing or torch.compile;
    - whole pickled modules, such as `src.modeling.ImageEncoder` of the task-vector and the tangent papers;
    - linearised encoders of the tangent paper: two lists of parameters, θ and θ₀, of which the second must be the base;
    - LoRA adapters in PEFT's directories, of the base or of its image tower, see `tajax.models.adapters`.

    What belongs to a text tower or stands outside the model, such as a head or an optimiser, is not looked at. Leaves
    and layers that equal θ₀ but for the rounding of half precision are those of θ₀, see `tajax.models.rounding`.

    Args:
        name_or_path: A hub id, a directory, a `.safetensors` file, or a PyTorch file; where it holds several models,
            with `#model_ema` at the end, which takes that whose names begin so.
        base: The model that it was fine-tuned from.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        FileNotFoundError: nothing there, or no weights in it.
        ValueError: a damaged file, a pickle that asks for code, an image tower of another geometry, activation or
            preprocessing, tensors that are missing, left over, not finite or there twice, several models, quantised
            weights, an adapter of another kind, a linearised encoder around another θ₀. The message names the file and
            the first of what is wrong.

    Source: Ilharco et al. 2023 and Ortiz-Jimenez et al. 2023 for the modules, in the code of both papers.

    Example:
        >>> from tajax.models import load
        >>> base = load("tiny")
        >>> finetuned = load_finetuned(base.directory, base)  # fine-tuned by nothing at all
        >>> finetuned.format, finetuned.linearized
        ('huggingface', False)
    """
    place, which = split_choice(name_or_path)
    path = locate(place, revision=revision)
    if is_adapter(path):
        return _read_adapter(path, base)
    checkpoint = files.open_checkpoint(path, which=which)
    try:
        found = (_read_linearized if checkpoint.format == "linearized" else _read_tower)(checkpoint, base)
    except ValueError as error:
        if str(checkpoint.path) in str(error):
            raise
        raise ValueError(f"{checkpoint.path}: {error}") from error
    _check_preprocessing(checkpoint.path.parent, base)
    if found.rounding:
        level = logging.WARNING if found.rounding.matters else logging.INFO
        logging.getLogger(__name__).log(level, "%s: %s.", checkpoint.path, found.rounding)
    return found


def _read_adapter(path: Path, base: LoadedClip) -> Finetuned:
    found = read_adapter(
        path,
        base.params["image"],
        linear_modules(base.config.vision.num_hidden_layers),
        base=base.name,
        base_sha256=base.image_sha256,
        ignored=("text_model.", "text_projection"),
        unlike=("CLIPTextModel", "CLIPTextModelWithProjection"),
    )
    _check_preprocessing(found.path.parent, base)
    for note in found.notes:
        logging.getLogger(__name__).warning("%s: %s.", found.path, note)
    return Finetuned(found.params, False, found.path, "adapter", None, found.notes)


def _read_tower(checkpoint: files.Checkpoint, base: LoadedClip) -> Finetuned:
    naming = checkpoint.format
    _check_geometry(checkpoint, base)
    image = {name.split(".")[0] for name in image_tensor_names(base.config, naming)}
    tensors = checkpoint.read([name for name in checkpoint.names if name.split(".")[0] in image])
    pretrained = base.params["image"]
    # no name for the leaves, so that they are gone one by one
    params, rounding = settled(
        _like_base(image_params_from_tensors(tensors, base.config, pretrained=pretrained), base), pretrained
    )
    notes = (*checkpoint.notes, *files.dtype_notes(tensors), *(() if rounding is None else (str(rounding),)))
    return Finetuned(params, False, checkpoint.path, "module" if checkpoint.is_module() else naming, rounding, notes)


def _check_geometry(checkpoint: files.Checkpoint, base: LoadedClip) -> None:
    """Refuse an image tower that its configuration, or the class of its activation, says to be another than the base's.

    Shapes say the rest; what nothing says, the activation of a bare state dict and the number of heads, is taken to be
    the base's.
    """
    wanted = base.config.vision
    config = files.read_config(checkpoint.path.parent, checkpoint.format, projection_dim=wanted.projection_dim)
    found = wanted if config is None else config.vision
    activation = checkpoint.activation()
    if activation is not None:
        found = dataclasses.replace(found, hidden_act=activation)
    if differences := differing(found, wanted):
        raise ValueError(
            f"the image tower is another than that of {base.name}: {'; '.join(differences)}. Give the base that it was "
            "made from."
        )


def _check_preprocessing(directory: Path, base: LoadedClip) -> None:
    """Refuse an encoder where a file beside it says that images are prepared otherwise than for the base."""
    told = read_preprocessing(directory, image_size=base.config.vision.image_size)
    if told and not np.allclose(
        told[0].mean + told[0].std, base.preprocessing.mean + base.preprocessing.std, atol=1e-6
    ):
        raise ValueError(
            f"{directory / told[1]} says mean {told[0].mean} and deviation {told[0].std}, but images of {base.name} "
            f"are prepared with {base.preprocessing.mean} and {base.preprocessing.std} "
            f"({base.sources.get('preprocessing', 'as given')}). Give the base that it was made from, or remove the "
            "file if it is wrong."
        )


def _parameter_lists(names: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of θ and of θ₀, in their order.

    Raises:
        ValueError: the lists have gaps, or differ in length.
    """
    lists: dict[str, dict[int, str]] = {"params": {}, "params0": {}}
    for name in names:
        if match := _LISTS.fullmatch(name):
            lists[match["which"]][int(match["number"])] = name
    theta, theta0 = lists["params"], lists["params0"]
    expected = set(range(len(theta)))
    if gaps := sorted((expected ^ theta.keys()) | (expected ^ theta0.keys())):
        raise ValueError(
            f"a linearised encoder with {len(theta)} params and {len(theta0)} params0: number {gaps[0]} of one has no "
            "counterpart."
        )
    return [theta[i] for i in range(len(theta))], [theta0[i] for i in range(len(theta))]


def _read_linearized(checkpoint: files.Checkpoint, base: LoadedClip) -> Finetuned:
    """θ₀ of the base plus what the two lists differ by: θ itself where their θ₀ is the base, or the base rounded."""
    lists = _parameter_lists(checkpoint.names)
    what = " ".join(f"({text[:40]})" for name, text in checkpoint.texts.items() if name.endswith("model_name"))
    orders = {len(order): order for order in _parameter_orders(base.config)}
    order = orders.get(len(lists[0]))
    if order is None:
        raise ValueError(
            f"a linearised encoder {what} of {len(lists[0])} parameters; with the geometry of {base.name} it has "
            f"{' or '.join(map(str, sorted(orders)))}. Give the base it was made from."
        )
    image = image_tensor_names(base.config, "open_clip")
    numbers = {name: i for i, name in enumerate(order) if name in image}
    held = checkpoint.read([names[i] for names in lists for i in numbers.values()])

    def leaves(names: list[str]) -> Params:
        return image_params_from_tensors({name: held[names[i]] for name, i in numbers.items()}, base.config)

    theta, theta0 = (_like_base(leaves(names), base) for names in lists)
    pretrained = _pretrained(base)
    stored_dtype = np.result_type(*(held[lists[1][i]].dtype for i in numbers.values()))
    tolerance = max(float(jnp.finfo(dtype).eps) for dtype in (stored_dtype, jnp.float16))
    for path, leaf in theta0.items():
        gap, size = (float(np.max(np.abs(x))) for x in (leaf - pretrained[path], pretrained[path]))
        if gap > tolerance * size:
            raise ValueError(
                f"a linearised encoder {what} around another θ₀ than {base.name}: {path} differs by up to {gap:.2g}, "
                f"where the largest entry is {size:.2g}. Give the base that it was made from."
            )

    known, _ = keep_unmoved(pretrained, theta0)
    moved = {
        path: np.where(known[path] == leaf, theta[path], leaf + (theta[path] - theta0[path]))
        for path, leaf in pretrained.items()
    }
    params, rounding = settled(moved, base.params["image"])
    notes = (*checkpoint.notes, *files.dtype_notes(held), *(() if rounding is None else (str(rounding),)))
    return Finetuned(params, True, checkpoint.path, "linearized", rounding, notes)


def _parameter_orders(config: ClipConfig) -> list[list[str]]:
    """The names of parameters in the order in which open_clip's modules list them, for each that may be linearised.

    A module lists its own parameters before those of the modules in it. The first is the image tower with what is
    left of the text tower without its transformer, as the tangent paper has it; then the whole; then the image tower.

    Source: open_clip 2.10, `open_clip.model.CLIP` and `open_clip.transformer.VisionTransformer`; Ortiz-Jimenez et al.'s
        code, src/modeling.py, deletes `transformer`.
    """

    def layer_norm(name: str) -> list[str]:
        return [f"{name}.weight", f"{name}.bias"]

    def blocks(name: str, depth: int) -> list[str]:
        layers = []
        for layer in (f"{name}.resblocks.{i}" for i in range(depth)):
            layers += [*layer_norm(f"{layer}.ln_1"), f"{layer}.attn.in_proj_weight", f"{layer}.attn.in_proj_bias"]
            for linear in ("attn.out_proj", None, "mlp.c_fc", "mlp.c_proj"):
                layers += layer_norm(f"{layer}.{linear or 'ln_2'}")  # weight and bias, of linear layers too
        return layers

    visual = ["visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight"]
    visual += layer_norm("visual.ln_pre") + blocks("visual.transformer", config.vision.num_hidden_layers)
    visual += layer_norm("visual.ln_post")
    own, after = ["positional_embedding", "text_projection", "logit_scale"], ["token_embedding.weight"]
    after += layer_norm("ln_final")
    text = blocks("transformer", config.text.num_hidden_layers)
    return [own + visual + after, own + visual + text + after, visual]


def _like_base(leaves: Params, base: LoadedClip) -> dict[str, np.ndarray]:
    return like_pretrained(leaves, base.params["image"], "the image tower")


def _pretrained(base: LoadedClip) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_paths(base.params["image"]).items()}
