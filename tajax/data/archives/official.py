"""What our builders of official archives have in common: finding the parts, fetching what may be fetched, writing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from tajax.data import network
from tajax.data.archives.stores import BadArchiveError, Store, describe, md5_of, open_archive, stores_in
from tajax.data.sources import decode

Examples = Iterator[tuple[str, dict[str, object]]]


@dataclass(frozen=True)
class Part:
    """One thing that a data set is made of.

    Attributes:
        what: the words for it in messages, with its layout.
        patterns: regular expressions for paths of its files, matched at their ends; the first that is found anywhere.
        file: name of the official archive or file that holds it.
        url: its official address, where that works without a login; None: it is fetched by hand.
        md5: the published sum of the file at `url`.
    """

    what: str
    patterns: tuple[str, ...]
    file: str
    url: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Found:
    """Where a part is.

    Attributes:
        store: holds its files.
        matches: their names in the store, each with the groups of the pattern.
        pattern: index of the pattern that was found.
    """

    store: Store
    matches: Mapping[str, tuple[str, ...]]
    pattern: int

    @property
    def name(self) -> str:
        """The first of the files: the file itself where there is one."""
        return next(iter(self.matches))


def find(part: Part, stores: Sequence[Store]) -> Found | None:
    """The first store with files of a part, open files before archives; None if there is none."""
    for index, pattern in enumerate(part.patterns):
        expression = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)
        for store in stores:
            matches = {name: match.groups() for name in store.names if (match := expression.search(name))}
            if matches:
                return Found(store, matches, index)
    return None


class OfficialArchives(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # untyped TFDS
    """A data set read from its publisher's files, found in the manual directory, unpacked or as they come.

    A subclass gives `PLACE` (which entries of the manual directory are its own), `DIRECTORY` (the name of one),
    `PARTS`, `SOURCE` (a sentence that says where to get what has no address), `RELEASES` if there are several, and the
    methods `_info` and `_splits`.
    """

    PLACE: re.Pattern[str]
    DIRECTORY: str
    PARTS: Mapping[str, Part]
    SOURCE: str
    RELEASES: str = ""
    _located: dict[str, Found | None] | None = None

    def described(
        self, image: tfds.features.Image, label: tfds.features.ClassLabel, *, homepage: str
    ) -> tfds.core.DatasetInfo:
        """What `_info` returns: images with one label each."""
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage=homepage,
        )

    @classmethod
    def parts_in(cls, manual: Path) -> dict[str, Found | None]:
        """Which parts a directory holds; reads names of files, and of compressed archives the whole.

        Raises:
            BadArchiveError: an archive is damaged, or holds a path that leads out of it.
        """
        stores = stores_in(manual, cls.PLACE)
        return {name: find(part, stores) for name, part in cls.PARTS.items()}

    @classmethod
    def missing_text(cls, missing: Sequence[str], manual: Path) -> str:
        """What is missing, and what to download and where to put it."""
        parts = [cls.PARTS[name] for name in missing]
        lines = [f"{cls.name} needs files that are not in {manual}:"]
        lines += [f"  {part.what} (official file: {part.file})" for part in parts]
        lines.append(
            f"Put the files there as they are, or unpacked; those with other names into {manual / cls.DIRECTORY}."
        )
        lines.append(cls.SOURCE)
        urls = list(dict.fromkeys(part.url for part in parts if part.url))
        if urls:
            lines.append("Addresses: " + " ".join(urls))
        return "\n".join(lines)

    def locate(self, manual: Path) -> dict[str, Found | None]:
        """The parts in a directory; None for those that are to be downloaded. Looks once in the builder's life.

        Raises:
            BadArchiveError: as `parts_in`; parts are missing that cannot be downloaded, here or anywhere.
        """
        if self._located is None:
            located = self.parts_in(manual)
            missing = [name for name, place in located.items() if place is None]
            urls = [url for name in missing if (url := self.PARTS[name].url) is not None]
            if len(urls) < len(missing):
                raise BadArchiveError(self.missing_text(missing, manual))
            try:
                network.check(urls)
            except ConnectionError as error:
                raise BadArchiveError(f"{self.missing_text(missing, manual)}\nHere there is {error}.") from error
            self._located = located
        return self._located

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        try:
            manual = Path(dl_manager.manual_dir)
        except AssertionError:  # TFDS: absent or empty
            manual = Path(self.data_path.parents[1], "downloads", "manual")
        located = self.locate(manual)
        found = {name: place for name, place in located.items() if place is not None}
        found |= self._fetch([name for name in located if name not in found], dl_manager)
        return {split: self._generate_examples(examples) for split, examples in self._splits(found).items()}

    def _generate_examples(self, examples: Examples) -> Examples:
        yield from examples

    def _fetch(self, missing: Sequence[str], dl_manager: tfds.download.DownloadManager) -> dict[str, Found]:
        found = {}
        for name in missing:
            part = self.PARTS[name]
            path = Path(dl_manager.download(part.url))
            if (sum_ := md5_of(path)) != part.md5:
                raise BadArchiveError(f"{part.url} gave a file with MD5 sum {sum_}, not {part.md5}: {path}. Delete it.")
            place = find(part, [open_archive(path)])
            if place is None:
                raise BadArchiveError(f"{path}, downloaded from {part.url}, holds no {part.what}")
            found[name] = place
        return found

    def _splits(self, found: Mapping[str, Found]) -> dict[str, Examples]:
        """The examples of each split. Contradictions between the parts are raised here, before any image is read."""
        raise NotImplementedError


def labelled_images(
    store: Store, labels: Mapping[str, int], *, convert: Callable[[Image.Image], io.BytesIO] | None = None
) -> Examples:
    """Examples from image files, each decoded once to see that it can be.

    Args:
        store: holds the files.
        labels: name in the store → label.
        convert: from the decoded image to the bytes that are stored; None stores the file as it is.

    Raises:
        BadImageError: a file is no image. The message names it.
        BadArchiveError: the archive ends too early.
    """
    for name, content in store.stream(labels):
        image = decode(content, describe(store, name), quick=convert is None)
        yield name, {"image": convert(image) if convert else io.BytesIO(content), "label": labels[name]}


def check_label(value: object, count: int, where: str, *, first: int = 0) -> int:
    """A stored class number as a label 0 … count − 1.

    Args:
        value: the stored number, as text or as a number.
        count: of classes.
        where: file and row.
        first: the stored number of label 0.

    Raises:
        BadArchiveError: it is no whole number, or outside the classes.
    """
    try:
        number = int(str(value).strip())
    except ValueError:
        number = None
    if number is None or not first <= number < first + count:
        raise BadArchiveError(
            f"{where} has class {value!r}; expected a whole number from {first} to {first + count - 1}"
        )
    return number - first


def check_every_class(labels: Mapping[str, int], class_names: Sequence[str], where: str) -> None:
    """Every class has an image.

    Raises:
        BadArchiveError: one has not, so that files must be missing.
    """
    absent = [class_names[label] for label in sorted(set(range(len(class_names))) - set(labels.values()))]
    if absent:
        raise BadArchiveError(f"{where} has no image of {', '.join(absent[:5])}: it is not the whole data set")
