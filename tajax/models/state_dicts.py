"""Which tensors of a checkpoint are the model's, whatever wrapped it: names as the model itself has them.

A model may lie in a training checkpoint, inside the modules that data parallelism, FSDP, activation checkpointing and
compilation put around a model and around its blocks, beside an optimiser, a head, or another copy of itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from tajax.models.convert import BUFFERS, NAMINGS, ROWS, few
from tajax.models.foreign import changed_weights, is_optimizer, other_model

__all__ = ["WRAPPERS", "Found", "find_model", "unwrapped"]

WRAPPERS = frozenset({"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_fpw_module"})
WRAPPERS |= {"_checkpoint_wrapped_module"}
"""Parts of names that wrappers put in, wherever they stand; no model has a module of such a name."""

_TOPS = {
    naming: {name.split(".")[0] for name in (*(getattr(row, naming) for row in ROWS), *BUFFERS[naming])}
    for naming in NAMINGS
}
_LISTS = re.compile(r"(?P<prefix>.*?)(?P<list>params0?)\.\d+")


class Found(NamedTuple):
    """A model among the tensors of a checkpoint."""

    names: Mapping[str, str]
    """Its tensors: names as the model has them, and as the file has them."""
    format: str
    """'huggingface', 'open_clip', or 'linearized': two lists of parameters, `params.0` … and `params0.0` …."""
    modules: Mapping[str, str]
    """Of the modules that were asked about: names as the file has them, and as the model has them."""
    notes: tuple[str, ...]
    """What was removed from names, and which tensors outside the model are not read."""
    warnings: tuple[str, ...]
    """Which tensors beside its towers are not read, though they may belong to it."""


class _Candidate(NamedTuple):
    """Where a model may lie: the prefix of its names, and what must be put in its place."""

    prefix: str
    added: str
    word: str
    format: str


def find_model(
    names: Collection[str], modules: Collection[str] = (), *, which: str | None = None, place: str = "NAME"
) -> Found:
    """The one model among the tensors of a checkpoint.

    Its image tower may be alone, without the word that says that it is one; its class embedding tells where it is.

    Args:
        names: Of all tensors.
        modules: Names of modules, to be told as the model has them, too.
        which: Of several models the one whose names begin so, such as `model_ema`.
        place: Where the checkpoint lies, for the message that offers a choice.

    Raises:
        ValueError: no model, what is known of it being said; several and `which` does not tell which, the choices
            being said; or weights that something beside them changes: an adapter, quantisation.

    Example:
        >>> found = find_model(["epoch_model.module.visual.class_embedding", "epoch_model.module.visual.proj"])
        >>> found.names
        {'visual.class_embedding': 'epoch_model.module.visual.class_embedding',
         'visual.proj': 'epoch_model.module.visual.proj'}
        >>> find_model(["embeddings.class_embedding"]).names
        {'vision_model.embeddings.class_embedding': 'embeddings.class_embedding'}
        >>> found = find_model(["model.visual.class_embedding", "ema.visual.class_embedding"], which="ema")
        >>> found.names, found.notes[0]
        ({'visual.class_embedding': 'ema.visual.class_embedding'}, "prefix 'ema.' removed from names")
    """
    if changed := changed_weights(names):
        raise ValueError(changed)
    plain = {name: unwrapped(name) for name in names}
    candidates = _candidates(plain.values())
    if not candidates:
        raise ValueError(
            f"The {len(names)} tensors hold no image tower among {few(names)}: looked for a 'class_embedding' of a "
            f"CLIP's ViT. {other_model(plain.values())}"
        )
    chosen = _choose(candidates, which, place)
    deeper = [c.prefix for c in candidates if c.prefix.startswith(chosen.prefix) and c.prefix != chosen.prefix]
    others = tuple(f"{prefix}." for prefix in deeper)
    tops = _TOPS.get(chosen.format, {"params", "params0"})

    def canonical(name: str) -> str | None:
        """The name inside the model's prefix; None if it stands outside, or inside another model's."""
        inside = not chosen.prefix or name == chosen.prefix or name.startswith(f"{chosen.prefix}.")
        if not inside or name.startswith(others) or is_optimizer(name):
            return None
        return (chosen.added + name.removeprefix(chosen.prefix).removeprefix(".")).removesuffix(".")

    held: dict[str, str] = {}
    beside: list[str] = []
    outside: list[str] = []
    optimizer: list[str] = []
    for name, short in plain.items():
        own = canonical(short)
        if own is None:
            (optimizer if is_optimizer(name) else outside).append(name)
        elif own.split(".")[0] not in tops:
            beside.append(name)
        elif own in held:
            raise ValueError(f"{held[own]!r} and {name!r} are one tensor of the model: keep one of them in the file.")
        else:
            held[own] = name
    notes = [f"prefix '{chosen.prefix}.' removed from names"] if chosen.prefix else []
    if wrappers := sorted({part for name in held.values() for part in name.split(".") if part in WRAPPERS}):
        notes.append(f"wrappers removed from names: {', '.join(wrappers)}")
    notes += [_not_read(what, group) for what, group in (("an optimiser", optimizer), ("others", outside)) if group]
    known = {module: own for module in modules if (own := canonical(unwrapped(module))) is not None}
    warnings = [_not_read("what stands beside its towers", beside)] if beside else []
    return Found(held, chosen.format, known, tuple(notes), tuple(warnings))


def _not_read(what: str, names: Collection[str]) -> str:
    return f"tensors of {what} are not read ({len(names)}): {few(names)}"


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that wrappers put in.

    Example:
        >>> unwrapped("module.visual.transformer.resblocks.0._checkpoint_wrapped_module.ln_1.bias")
        'visual.transformer.resblocks.0.ln_1.bias'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _candidates(names: Collection[str]) -> list[_Candidate]:
    """Every image tower, by its class embedding, and every pair of lists of parameters."""
    found = []
    for name in names:
        *above, last = name.split(".")
        if last == "class_embedding":
            naming, word = "open_clip", "visual"
            if above[-1:] == ["embeddings"]:
                above, naming, word = above[:-1], "huggingface", "vision_model"
            said = above[-1:] == [word]
            found.append(_Candidate(".".join(above[:-1] if said else above), "" if said else f"{word}.", word, naming))
    lists = {(match["prefix"], match["list"]) for name in names if (match := _LISTS.fullmatch(name))}
    pairs = sorted({prefix for prefix, _ in lists if {(prefix, "params"), (prefix, "params0")} <= lists})
    found += [_Candidate(prefix.rstrip("."), "", "params", "linearized") for prefix in pairs]
    return list(dict.fromkeys(found))


def _choose(candidates: list[_Candidate], which: str | None, place: str) -> _Candidate:
    prefixes = Counter(c.prefix for c in candidates)
    alone = [c.prefix and prefixes[c.prefix] == 1 for c in candidates]
    labels = [c.prefix if a else f"{c.prefix}.{c.word}".strip(".") for c, a in zip(candidates, alone, strict=True)]
    fitting = candidates
    if which is not None:
        exact = [c for c, label in zip(candidates, labels, strict=True) if label == which]
        begins = [c for c, label in zip(candidates, labels, strict=True) if f"{label}.".startswith(f"{which}.")]
        fitting = exact or begins
    if len(fitting) == 1:
        return fitting[0]
    count = f"{len(candidates)} image tower{'s' if candidates[1:] else ''}"
    what = f"There are {count}" if which is None else f"#{which} names {len(fitting)} of {count}"
    raise ValueError(f"{what}. Choose one: {' or '.join(f'{place}#{label}' for label in labels)}.")
