"""Tasks of the TFDS catalogue: opening without TensorFlow, which splits mean what, what to do when one is missing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from tajax import progress
from tajax.data import archives, network, preparation
from tajax.data.builders import BUILDERS, prepare, prepare_all
from tajax.data.contents import Contents, check_labels, check_splits, some
from tajax.data.sources import BadTextError, RecordSource, Source, TextSource, announce

# Role → names its split may have; the first that exists. Where there is no test split, validation stands in for it.
_ROLES = {
    "train": ("train",),
    "test": ("test", "validation", "val"),
    "val": ("validation", "val", "valid"),
}
_LISTED = 8  # addresses in a message
_SUFFIX = {"images": "png", "texts": "txt"}
_BLOCK = 1024  # texts that are read at a time
# What some builders of TFDS look for in the manual directory and tell in words alone.
BY_HAND = {
    "resisc45": ("NWPU-RESISC45",),
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}
_UNUSED_FILES = {"eurosat/rgb": ("EuroSATallBands.zip",)}  # TFDS lists the files of all configs together


def exists(name: str, data_dir: Path) -> bool:
    """Whether TFDS knows a data set by the first part of `name/config:version`, or has it prepared in `data_dir`."""
    family = _family(name)
    return family in _names() or (family.isidentifier() and any((data_dir / family).glob("**/dataset_info.json")))


def near(name: str) -> list[str]:
    """Names of the catalogue that resemble `name`."""
    return difflib.get_close_matches(_family(name), _names(), n=2)


def _family(name: str) -> str:
    return name.split("/")[0].split(":")[0]


def _names() -> list[str]:
    known = tfds.list_builders(with_community_datasets=False)
    return [name for name in known if not name.startswith("tajax_")] + list(archives.BUILDERS)


def prepare_bundled(names: Sequence[str], data_dir: Path) -> None:
    """Generates those of the bundled tasks that `data_dir` does not hold, on several processors at a time.

    Raises:
        ValueError: they cannot be written there.
    """
    missing = [
        name for name in names if not (data_dir / name / str(BUILDERS[name].VERSION) / "dataset_info.json").exists()
    ]
    if not missing:
        return
    whose = "a bundled task" if len(missing) == 1 else f"{len(missing)} bundled tasks"
    progress.say(f"Drawing the images of {whose}, once; they are kept in {data_dir}")
    try:
        with tqdm(total=len(missing), desc="drawing images", unit="task", disable=None) as bar:
            prepare_all(data_dir=data_dir, names=missing, on_each=lambda count: bar.update(count - bar.n))
    except (OSError, RuntimeError) as error:  # array_record's writer knows no OSError
        raise ValueError(
            f"bundled tasks {', '.join(missing)} cannot be prepared in {data_dir}: {error}. Make room, or choose a "
            "directory you may write to: data_dir=… here, --config.data_dir=… on the command line."
        ) from error


def open_bundled(name: str, data_dir: Path) -> Contents:
    """A bundled task, generated into `data_dir` on first use; errors as in `prepare_bundled`."""
    prepare_bundled([name], data_dir)
    builder = prepare(name, data_dir=data_dir)
    return _contents(builder, {"train": "train", "val": "val", "test": "test"}, _keys(builder, {}))


def open_tfds(
    name: str,
    data_dir: Path,
    *,
    splits: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    hint: str = "",
) -> Contents:
    """Any data set of TFDS for the classification of images or texts, stored as array_record, prepared if it can be.

    Images are read as they are wanted, texts at once.

    Args:
        name: `name`, `name/config` or `name/config:version`.
        data_dir: where TFDS keeps prepared data sets.
        splits: role → TFDS split, such as {"train": "train+validation", "test": "test"}; None: as the names suggest.
        columns: "text" and "label", the features of a data set of texts that has several of a kind; None: those that
            TFDS calls supervised, or the only ones.
        hint: added to the error if the set can neither be opened nor prepared.

    Raises:
        ValueError: no such config; not prepared and not preparable here (says what to do); stored in a format without
            random access; not images or texts with one label; no usable splits; an empty split.
    """
    family, config = _family(name), name.partition("/")[2].split(":")[0]
    configs = list(tfds.builder_cls(family).builder_configs) if family in _names() else None
    if config and configs is not None and config not in configs:
        nearest = difflib.get_close_matches(config, configs, n=5, cutoff=0.3) or configs[:5]
        choices = f"choose from its {len(configs)}, such as {', '.join(nearest)}" if configs else "it has none"
        raise ValueError(f"TFDS data set {family!r} has no config {config!r}; {choices}")
    try:
        builder = tfds.builder(name, data_dir=os.fspath(data_dir))
    except (ValueError, AssertionError, ImportError) as error:  # the last of builders that are made with TensorFlow
        raise ValueError(f"TFDS cannot open {name!r}: {_first_line(error)}") from error
    keys = _keys(builder, columns or {})  # before preparing what could not be used
    if not preparation.is_prepared(builder):
        if family in archives.BUILDERS:
            builder = _prepare_archive(name, data_dir, hint)
        else:
            _prepare(builder, name, data_dir, hint, keys.what)
            builder = tfds.builder(name, data_dir=os.fspath(data_dir))
    chosen = splits or _by_name(builder, keys.what)
    contents = _contents(builder, chosen, keys)
    left_out = [split for split in builder.info.splits if split not in chosen.values()]
    if left_out and not splits:
        contents = contents._replace(warnings=(f"splits of {name} that are not read: {some(left_out)}",))
    return contents


def prepared(name: str, data_dir: Path) -> bool:
    """Whether `open_tfds` would open a data set without preparing it. Never asks the network.

    Args:
        name: as in `open_tfds`; its version does not count.
        data_dir: where TFDS keeps prepared data sets.
    """
    family, _, config = name.partition(":")[0].partition("/")
    place = data_dir / family / config
    if family in BUILDERS:
        place = place / str(BUILDERS[family].VERSION)
    elif family in _names():
        builder = tfds.builder_cls(family)
        configs = builder.builder_configs
        chosen = configs.get(config) or next(iter(configs.values()), None)
        place = data_dir / family / (chosen.name if chosen else "")
        place /= str((chosen and chosen.version) or builder.VERSION)
    else:  # of another program, which TFDS opens by what lies there
        return any(place.glob("**/dataset_info.json"))
    return (place / "dataset_info.json").is_file()


def other_versions(name: str, data_dir: Path) -> list[str]:
    """Versions of a data set in `data_dir`, whether or not the installed TFDS opens them."""
    return sorted(path.parent.name for path in (data_dir / name).glob("*/dataset_info.json"))


def how_to_get(name: str, data_dir: Path, *, command: str | None = None) -> list[str]:
    """What to download, where to put it and what to run for a data set of TFDS that is not prepared, line by line.

    Args:
        name: as in `open_tfds`.
        data_dir: where TFDS keeps prepared data sets.
        command: prepares it; by default an expression of TFDS.
    """
    family, manual = _family(name), archives.manual_directory(data_dir)
    made = f"tfds.builder({name!r}, data_dir={os.fspath(data_dir)!r})"
    command = command or f"{made}.download_and_prepare(file_format='array_record')"
    run = f"run {command}"
    builder = tfds.builder_cls(family)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        words = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        return [f"It needs files fetched by hand, put into {manual}: {words}", f"Then {run}"]
    files = needed_files(name)
    lines = [f"Where there is a network, {run}, and copy {data_dir / name} to the same place here."]
    if files:
        size = tfds.core.utils.Size(sum(info.size for info in files.values()))
        lines.append(f"Or fetch {len(files)} file{'s' * (len(files) > 1)} ({size}) into {manual} and run it here:")
        lines += [f"  {url} ({info.size})" for url, info in list(files.items())[:_LISTED]]
        lines += [f"  and {len(files) - _LISTED} more"] if len(files) > _LISTED else []
    return lines


def needed_files(name: str) -> dict[str, tfds.download.checksums.UrlInfo]:
    """Address → size and file name of what TFDS downloads for a data set; empty if it is fetched by hand."""
    builder = tfds.builder_cls(_family(name))
    if _family(name) in BY_HAND:
        return {}
    unused = _UNUSED_FILES.get(name, ())
    return {url: info for url, info in (builder.url_infos or {}).items() if info.filename not in unused}


def _prepare_archive(name: str, data_dir: Path, hint: str) -> tfds.core.DatasetBuilder:
    try:
        return archives.prepare(_family(name), data_dir=data_dir)
    except (ValueError, OSError) as error:
        raise ValueError(f"data set {name!r} cannot be prepared in {data_dir}: {error}\n{hint}".strip()) from error


def _prepare(builder: tfds.core.DatasetBuilder, name: str, data_dir: Path, hint: str, what: str) -> None:
    manual = archives.manual_directory(data_dir)
    try:
        absent = [file for file in BY_HAND.get(_family(name), ()) if not (manual / file).exists()]
        if absent:  # TFDS would go on without the images of the one that is absent
            raise FileNotFoundError(f"{' and '.join(absent)} not found in {manual}")
        files = needed_files(name) if _family(name) in _names() else {}
        network.check(url for url, info in files.items() if not (manual / (info.filename or url)).exists())
        with preparation.alone(builder) as needed, archives.quiet(), archives.tidy(builder):
            if needed:
                builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads, archives and TensorFlow fail in their own ways; all mean "not here"
        lines = [
            f"data set {name!r} is not prepared in {data_dir}, and preparing it failed: "
            f"{type(error).__name__}: {_first_line(error)}",
        ]
        if isinstance(error, ImportError) or any(word in str(error).lower() for word in ("tensorflow", "cv2")):
            lines.append("This one is prepared with TensorFlow, SUN397 with OpenCV, too: pip install 'tajax[prepare]'.")
        lines += how_to_get(name, data_dir)
        if hint:
            lines.append(hint)
        lines.append(
            f"Or give the same {what} as a folder (train/class name/*.{_SUFFIX[what]}, test/…) or an .npz file."
        )
        raise ValueError("\n".join(lines)) from error


def _contents(builder: tfds.core.DatasetBuilder, splits: Mapping[str, str], keys: _Keys) -> Contents:
    names = tuple(builder.info.features[keys.label].names)
    sources: dict[str, Source] = {}
    for role, split in splits.items():
        absent = [part for part in split.split("+") if part not in builder.info.splits]
        if absent:
            raise ValueError(
                f"{builder.info.full_name} lacks the split {' and '.join(absent)} that is needed for {role!r}; it has "
                f"{', '.join(builder.info.splits)}. Prepare it anew from complete files."
            )
        decoders = {keys.example: tfds.decode.SkipDecoding()} if keys.what == "images" else None
        try:
            records = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            raise ValueError(
                f"{builder.info.full_name} is stored in {builder.data_dir} as {builder.info.file_format.value}, "
                "which has no random access. Convert it once: tfds convert_format --out_file_format=array_record "
                f"--dataset_dir={builder.data_dir}, or prepare it anew in another data_dir."
            ) from error
        where = f"{builder.info.full_name}:{split}"
        if keys.what == "texts":
            sources[role] = _texts(records, keys, names, where)
        else:
            sources[role] = RecordSource(records, keys.example, keys.label, len(names), where)
    contents = Contents(names, sources)
    check_splits(contents, builder.info.full_name)
    return contents


def _texts(records: tfds.core.DataSource, keys: _Keys, names: Sequence[str], where: str) -> TextSource:
    announce(len(records), "texts", where)
    texts: list[str] = []
    labels = np.zeros(len(records), np.int32)
    for start in range(0, len(records), _BLOCK):
        for record in records.__getitems__(range(start, min(start + _BLOCK, len(records)))):
            labels[len(texts)] = record[keys.label]
            try:
                texts.append(record[keys.example].decode())
            except UnicodeDecodeError as error:
                raise BadTextError(f"text {where}[{len(texts)}] is not UTF-8: {error}") from error
    check_labels(labels, names, where)
    return TextSource(texts, labels, where)


def _by_name(builder: tfds.core.DatasetBuilder, what: str) -> dict[str, str]:
    available = list(builder.info.splits)
    chosen: dict[str, str] = {}
    for role, names in _ROLES.items():
        found = [name for name in names if name in available and name not in chosen.values()]
        if found:
            chosen[role] = found[0]
    lacking = [role for role in ("train", "test") if role not in chosen]
    if lacking:
        raise ValueError(
            f"{builder.info.full_name} has no split for {' and '.join(lacking)}; it has {', '.join(available)}. "
            f"Export it to a folder (train/class name/*.{_SUFFIX[what]}, test/…) or an .npz file with the split of "
            "your choice."
        )
    return chosen


class _Keys(NamedTuple):
    """Names of the image or text and of the label in a record, and what it is: "images" or "texts"."""

    example: str
    label: str
    what: str


def _keys(builder: tfds.core.DatasetBuilder, columns: Mapping[str, str]) -> _Keys:
    features = builder.info.features
    supervised = builder.info.supervised_keys or ()

    def of_type(kind: type) -> list[str]:
        return [key for key, feature in features.items() if isinstance(feature, kind)]

    def chosen(kind: type, column: str) -> str | None:
        """The one that was chosen, the supervised one, or the only one."""
        found = of_type(kind)
        if column in columns:
            return columns[column] if columns[column] in found else None
        return next((key for key in supervised if key in found), None) or (found[0] if len(found) == 1 else None)

    image, text = chosen(tfds.features.Image, "image"), chosen(tfds.features.Text, "text")
    label = chosen(tfds.features.ClassLabel, "label")
    of_text = "text" in columns or not of_type(tfds.features.Image) or (image not in supervised and text in supervised)
    example, what = (text, "texts") if of_text else (image, "images")
    if example is None or label is None or "split" in columns:
        asked = f" with {', '.join(f'{key}={column}' for key, column in columns.items())}" if columns else ""
        name = "/".join(filter(None, (builder.name, builder.builder_config and builder.builder_config.name)))
        found = [len(of_type(kind)) for kind in (tfds.features.Text, tfds.features.ClassLabel)]
        several = of_text and min(found) > 0 and max(found) > 1
        way_out = f". Choose them: {name}#text=FEATURE,label=FEATURE" if several else ""
        raise ValueError(
            f"{builder.info.full_name} is not classification of images or of texts{asked}: it needs one image or one "
            "text, and one class label, and has "
            f"{', '.join(f'{key} ({type(feature).__name__})' for key, feature in features.items())}{way_out}"
        )
    if columns and what == "images":
        raise ValueError(f"{builder.info.full_name} is of images, of which no columns are chosen")
    dtype = np.dtype(features[example].np_dtype)
    expected = {"images": np.dtype(np.uint8), "texts": np.dtype(object)}[what]
    if dtype != expected:
        wanted = "uint8" if what == "images" else "strings"
        raise ValueError(f"{builder.info.full_name} stores {dtype} {what}; expected {wanted}")
    return _Keys(example, label, what)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
