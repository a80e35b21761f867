"""Checkpoints to one model, without a task or an image: `python -m tajax.merge BASE FINE_TUNED … --out=DIR`."""

from __future__ import annotations

import functools
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

import tajax
from tajax import atomic, encoders, interrupts, merging, progress, sharing, trees
from tajax.command_line.merge_flags import DEFAULT, parser_for, to_prepare, without_data
from tajax.encoders.encoder import Encoder
from tajax.merging import PREPARATIONS
from tajax.merging.matrices import in_layers
from tajax.merging.streaming import merge_by_leaf, prepare_alone
from tajax.options import Option
from tajax.progress import Stage
from tajax.rules import nearest
from tajax.types import JsonObject, Params
from tajax.workflows.faults import EXPLAINED
from tajax.workflows.vectors import read_vector

__all__ = ["Source", "main", "merge_checkpoints"]


class Source(NamedTuple):
    """One of the merged."""

    place: str
    format: str
    length: float
    """‖τ‖/‖θ₀‖."""


def merge_checkpoints(
    base: str,
    places: Sequence[str],
    out: str | Path,
    *,
    method: str = DEFAULT,
    prepare: Mapping[str, Mapping[str, bool | float | str]] | None = None,
    scaling_coef: float | None = None,
    family: str = "clip",
    format: str = "huggingface",
    linearized: bool = False,
    any_base: bool = False,
    seed: int = 0,
    **options: bool | float | str,
) -> JsonObject:
    """Merges encoders that were fine-tuned from one base, and writes the whole model with the merged one in it.

    Args:
        base: the model that all were fine-tuned from, as `tajax.encoders.load` takes it.
        places: two or more fine-tuned encoders or task-vector files, as `config.checkpoints` takes them.
        out: the directory to write; it must not exist, or be empty.
        method: of `tajax.merging.METHODS`, one that needs no data.
        prepare: what is done to the vectors before, the first one first: names in `tajax.merging.PREPARATIONS`, each
            with those of its options that are not the defaults.
        scaling_coef: λ; None is what is usual for the method where nothing is tuned (`Method.usual_coef`).
        family: of the base, in `tajax.encoders.FAMILIES`.
        format: what is written, of the family's `formats`.
        linearized: the vectors are meant for the expansion around the base, and so is what is written.
        any_base: take what was made from another base, too.
        seed: of the draws of a method or a preparation that draws.
        **options: of the method.

    Returns:
        The record, which is written as `merge.json` and shown in the card, `README.md`.

    Raises:
        ValueError: before anything is loaded, a place that stands there twice, an unknown method or preparation, a
            method that needs data, an option that it has not or out of its range, a λ that it does not take; later, a
            place that holds no fine-tuned copy of the base, one that is meant for the expansion, a format that cannot
            express the model. Nothing is written then.
        FileExistsError: `out` holds something.
        FileNotFoundError: a place holds nothing.
    """
    out, row = Path(out).expanduser().resolve(), _row(method)
    chosen = _checked(method, row.options, options)
    preparations = {name: _checked(name, _preparation(name).options, given) for name, given in (prepare or {}).items()}
    if scaling_coef is not None and not row.scaled:
        raise ValueError(f"scaling_coef is {scaling_coef:g}, but {method} takes none. Leave it out.")
    coef = (row.usual_coef if scaling_coef is None else float(scaling_coef)) if row.scaled else None
    if len(places) < 2:
        raise ValueError(f"merging takes two fine-tuned models or more, got {len(places)}.")
    if row.check is not None:
        row.check(len(places), **chosen)
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise ValueError(f"{', '.join(twice)} stands there more than once: it would count as often.")
    formats = encoders.family_named(family).formats
    if format not in formats:
        raise ValueError(f"format is {format!r}; of the family {family} can be written: {', '.join(formats)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists. Choose another directory, or remove it.")
    prepared = [Stage("prepare", "prepare the vectors")] if preparations or (row.by_leaf and row.alone) else []
    stages = (Stage("base", work=0), Stage("read", "read the fine-tuned"), *prepared, Stage("merge"))
    progress.plan(_said(method, preparations), str(out), (*stages, Stage("save", work=0)), examples="numbers")
    with progress.stage("base", 1):
        encoder = encoders.load(base, family=family)
        encoder.check_format(format)
    key = jax.random.key(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as spool:
        vectors, sources = [], []
        with progress.stage("read", dict.fromkeys(places, 1)) as running:
            for number, place in running.each(enumerate(places), lambda pair: pair[1]):
                tau, source = _read(encoder, place, linearized=linearized, any_base=any_base)
                vectors.append(_kept(tau, Path(spool, str(number))))
                sources.append(source)
                del tau
        left = _prepare(encoder, preparations, row, chosen, vectors, Path(spool), key) if prepared else chosen
        scaled = {} if coef is None else {"scaling_coef": coef}
        drawn = {"key": key} if row.random else {}
        params = _merged(encoder, row, vectors, **left, **scaled, **drawn)
        del vectors
    made_of = {"name": encoder.identity.name, "revision": encoder.identity.revision, "sha256": encoder.identity.sha256}
    record: JsonObject = {
        "base": made_of,
        "family": family,
        "prepare": preparations,
        "method": method,
        "options": chosen,
        "scaling_coef": coef,
        "seed": seed if row.random or any(PREPARATIONS[name].random for name in preparations) else None,
        "linearized": linearized,
        "sources": [source._asdict() for source in sources],
        "length": _distance(encoder, params) / float(jax.jit(tajax.norm)(encoder.params)),
        "tajax_version": tajax.__version__,
    }
    with progress.stage("save", 1), atomic.directory(out) as partial:
        encoder.save(partial / "model", params, format=format)
        for file in (partial / "model").iterdir():
            file.rename(partial / file.name)
        (partial / "model").rmdir()
        (partial / sharing.MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        (partial / "README.md").write_text(sharing.model_card(partial, out.name))
    progress.finish()
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Merges by what a command line says; returns the exit code."""
    options = vars(parser_for(sys.argv[1:] if argv is None else list(argv)).parse_args(argv))
    quiet = options.pop("quiet")
    try:
        options["prepare"] = to_prepare(options)
        with interrupts.handled(), progress.shown(quiet=quiet):
            record = merge_checkpoints(options.pop("base"), options.pop("places"), **options)
    except KeyboardInterrupt as stop:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return interrupts.exit_code(stop)
    except EXPLAINED as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    at = "" if record["scaling_coef"] is None else f" at λ = {record['scaling_coef']:g}"
    if not quiet:
        print(
            f"{_said(record['method'], record['prepare'])}{at}: ‖τ‖/‖θ₀‖ = {record['length']:.4f}, in {options['out']}"
        )
    return 0


def _row(method: str) -> merging.Method:
    if method not in merging.METHODS:
        near = nearest(method, merging.METHODS, " Did you mean ", count=1, end="?", quote=True)
        raise ValueError(f"unknown merging method {method!r}.{near} Choices: {', '.join(without_data())}.")
    row = merging.METHODS[method]
    if row.needs != "nothing":
        raise ValueError(
            f"{method} needs {row.needs} of the tasks, and there are none here. Choose one of "
            f"{', '.join(without_data())}, or merge in a run: --config=merge --config.merging.method={method}"
        )
    return row


def _checked(name: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method or a preparation, its defaults among them."""
    for keyword, value in given.items():
        if keyword not in known:
            raise ValueError(f"{name} has no option {keyword!r}. It has: {', '.join(known) or 'none'}.")
        option = known[keyword]
        if not option.holds(value) or (option.choices and value not in option.choices):
            raise ValueError(f"{keyword} is {value!r}, want {option.wanted or 'one of ' + ', '.join(option.choices)}.")
    return {keyword: option.default for keyword, option in known.items()} | dict(given)


def _preparation(name: str) -> merging.Preparation:
    if name not in PREPARATIONS:
        near = nearest(name, PREPARATIONS, " Did you mean ", count=1, end="?", quote=True)
        raise ValueError(f"unknown preparation {name!r}.{near} Choices: {', '.join(PREPARATIONS)}.")
    return PREPARATIONS[name]


def _said(method: str, preparations: Iterable[str]) -> str:
    """What is done, as runs call it."""
    return " + ".join((*preparations, method))


def _read(encoder: Encoder, place: str, *, linearized: bool, any_base: bool) -> tuple[Params, Source]:
    found = read_vector(place, encoder, linearized=linearized, any_base=any_base)
    progress.note({"‖τ‖/‖θ₀‖": found.length})
    if warning := found.about.get("warning"):
        progress.say(f"{place}: {warning}")
    if found.linearized and not linearized:
        raise ValueError(
            f"{place} was trained in the expansion around the base, and says nothing to the model itself. Give "
            "--linearized: what is written is then meant for the expansion, too."
        )
    trees.check_finite(found.tau, f"the task vector of {place}")
    return found.tau, Source(place, str(found.about["format"]), found.length)


def _kept(tau: Params, directory: Path) -> dict[str, np.ndarray]:
    """The leaves that are not zero, as memory maps of files; those of another vector there are gone."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    kept = {}
    for number, (path, leaf) in enumerate(trees.flatten_paths(tau).items()):
        if np.any(leaf):
            np.save(directory / f"{number}.npy", np.asarray(leaf))
            kept[path] = np.load(directory / f"{number}.npy", mmap_mode="r", allow_pickle=False)
    return kept


def _whole(encoder: Encoder, kept: Mapping[str, np.ndarray]) -> Params:
    """A vector of which `_kept` made this."""
    leaves = trees.flatten_paths(encoder.params).items()
    filled = [kept[path] if path in kept else np.zeros(np.shape(leaf), np.float32) for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(encoder.params), filled)


def _prepare(
    encoder: Encoder,
    preparations: Mapping[str, Mapping[str, Any]],
    row: merging.Method,
    chosen: Mapping[str, Any],
    vectors: list[dict[str, np.ndarray]],
    spool: Path,
    key: Array,
) -> Mapping[str, Any]:
    """Puts prepared vectors in the places of others, one after the other; what the method does to each is the last.

    Returns:
        The options of the method that are left.
    """
    left, count = chosen, len(vectors)
    first = row.alone if row.by_leaf else None
    own, before = jax.vmap(lambda number: jax.random.fold_in(key, number))(np.arange(2 * count)).reshape(2, count)

    def keep(number: int, tau: Params) -> None:
        vectors[number] = _kept(tau, spool / str(number))
        progress.advance(1)

    with progress.stage("prepare", count * (len(preparations) + (first is not None))):
        for name, options in preparations.items():
            read = [functools.partial(_whole, encoder, tau) for tau in vectors]
            prepared = prepare_alone(PREPARATIONS[name], read, keys=before, **options)
            for number in range(count):  # the prepared one has no name, because there is room for no second one
                keep(number, next(prepared))
        if first is not None:
            layers = {"stacked": encoder.stacked} if row.layered else {}
            for number in range(count):
                drawn = {"key": own[number]} if row.random else {}
                tau, left = first(_whole(encoder, vectors[number]), **chosen, **drawn, **layers)
                keep(number, tau)
                del tau
    return left


def _merged(
    encoder: Encoder, row: merging.Method, vectors: Sequence[Mapping[str, np.ndarray]], **options: Any
) -> Params:
    flat = dict(trees.flatten_paths(encoder.params))
    sizes = {path: np.size(leaf) for path, leaf in flat.items() if any(path in tau for tau in vectors)}
    with progress.stage("merge", sum(sizes.values())):
        if not row.by_leaf:
            whole = [_whole(encoder, tau) for tau in vectors]
            return row(encoder.params, whole, **options, **({"stacked": encoder.stacked} if row.layered else {}))
        for path, leaf in merge_by_leaf(row, encoder.params, vectors, stacked=encoder.stacked, **options):
            flat[path] = leaf
            progress.advance(sizes[path])
    return jax.tree.unflatten(jax.tree.structure(encoder.params), list(flat.values()))


def _distance(encoder: Encoder, params: Params) -> float:
    """‖θ − θ₀‖, with one layer of the difference at a time in memory."""
    flat, total = trees.flatten_paths(params), 0.0
    for path, leaf in trees.flatten_paths(encoder.params).items():
        if flat[path] is not leaf:
            before, after = np.asarray(leaf), np.asarray(flat[path])
            layers = zip(before, after, strict=True) if in_layers(path, encoder.stacked) else ((before, after),)
            total += sum(float(_gap(*layer)) ** 2 for layer in layers)
    return math.sqrt(total)


@jax.jit  # one pass, without an array of differences
def _gap(before: ArrayLike, after: ArrayLike) -> Array:
    return tajax.norm(tajax.task_vector(before, after))


if __name__ == "__main__":
    sys.exit(main())
