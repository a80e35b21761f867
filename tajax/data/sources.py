"""Random access to labelled images or texts, wherever they are: arrays, files, TFDS records, rows of another source.

A source gives example `i` as a Pillow image in RGB, or a text, and its label; what a model makes of it comes later, in
the pipeline. Images that cannot be read raise `BadImageError`, which names them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from tajax import progress
from tajax.data.preprocess import to_rgb

_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


_ANNOUNCE = 5000  # examples whose reading takes long enough to be announced


def announce(count: int, what: str, where: str) -> None:
    """Says that examples are about to be read, where they are so many that it takes a while."""
    if count > _ANNOUNCE:
        progress.say(f"Reading the {count:,} {what} of {where} once")


class BadExampleError(ValueError):
    """An example that cannot be used. The message names the file or where it stands."""


class BadImageError(BadExampleError):
    """An image that is not one, or ends too early."""


class BadTextError(BadExampleError):
    """A text without a word."""


class BadLabelError(ValueError):
    """A label outside the class list. The message names the example."""


class Source(Protocol):
    """Labelled examples in a fixed order."""

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N]; None where reading them would mean reading every image."""
        ...

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The example, an image in RGB at its own size or a text, and its label."""
        ...

    def describe(self, index: int) -> str:
        """A name for example `index` in messages: a path, or where it stands in its data set."""
        ...


class ImageSource(Source, Protocol):
    """Labelled images in a fixed order."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The image in RGB at its own size, and its label."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, without decoding where the format allows."""
        ...


def decode(encoded: bytes, name: str, *, quick: bool = False) -> Image.Image:
    """An encoded image as RGB.

    Args:
        encoded: a whole PNG, JPEG, WebP or BMP file.
        name: what to call it in the error.
        quick: read the whole file but leave out what only the pixels need (JPEG: most of the inverse transform). For
            checks; the size of the result is then unspecified.

    Raises:
        BadImageError: it cannot be decoded to the end.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # those of MPO are one photograph
            raise ValueError(f"it holds {frames} images, an animation or pages, and one is wanted")
        if quick:
            image.draft("RGB", (1, 1))
        image.load()
        return to_rgb(image)
    except _DECODER_ERRORS as error:
        reason = "is empty" if not encoded else f"cannot be decoded: {error}"
        raise BadImageError(f"image {name} {reason}") from error


def _encoded_size(encoded: bytes, name: str) -> tuple[int, int]:
    try:
        return Image.open(io.BytesIO(encoded)).size
    except _DECODER_ERRORS as error:
        raise BadImageError(f"image {name} cannot be decoded: {error}") from error


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory.

    Attributes:
        images: uint8 [N, H, W, 3], or a list of N arrays [H, W, 3] of differing sizes.
        labels: int32 [N].
        origin: where they come from, for messages.
        rows: int [N], the numbers under which `describe` knows the examples; None: 0 … N − 1.
    """

    images: np.ndarray | Sequence[np.ndarray] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    origin: str
    rows: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:  # noqa: D105
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:  # noqa: D105
        return Image.fromarray(self.images[index]), int(self.labels[index])

    def describe(self, index: int) -> str:  # noqa: D102
        return f"{self.origin}[{index if self.rows is None else self.rows[index]}]"

    def size(self, index: int) -> tuple[int, int]:  # noqa: D102
        height, width = self.images[index].shape[:2]
        return width, height


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files with known labels.

    Attributes:
        paths: one file an example.
        labels: int32 [N].
    """

    paths: Sequence[Path] = field(repr=False)
    labels: np.ndarray = field(repr=False)

    def __len__(self) -> int:  # noqa: D105
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The whole file.

        Raises:
            BadImageError: it cannot be read.
        """
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise BadImageError(f"image {self.paths[index]} cannot be read: {error}") from error

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:  # noqa: D105
        return decode(self.read(index), self.describe(index)), int(self.labels[index])

    def describe(self, index: int) -> str:  # noqa: D102
        return str(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:  # noqa: D102
        return _encoded_size(self.read(index), self.describe(index))


@dataclass(frozen=True, eq=False)
class RecordSource:
    """Records of a prepared TFDS data set, with images as the encoded bytes that are stored.

    Attributes:
        records: record `i` as a mapping; see `catalog.open_records`.
        image_key: name of the encoded image in a record.
        label_key: name of the label in a record.
        num_classes: labels outside 0 … num_classes − 1 are an error when they are read.
        origin: for messages.
    """

    records: Sequence[Mapping[str, Any]]
    image_key: str
    label_key: str
    num_classes: int
    origin: str
    labels: None = None

    def __len__(self) -> int:  # noqa: D105
        return len(self.records)

    def record(self, index: int) -> Mapping[str, Any]:
        """The record itself.

        Raises:
            BadImageError: its file is damaged, or is not what the data set says.
        """
        try:
            record = self.records[int(index)]
            int(record[self.label_key])
        except (RuntimeError, TypeError, ValueError, KeyError, OSError) as error:  # of array_record and of protobuf
            directory = self.origin.partition(":")[0]
            raise BadImageError(
                f"record {self.describe(index)} cannot be read: {error}. Its files are damaged: delete {directory} in "
                "the data directory (config.data_dir); the same command prepares it anew, or says how."
            ) from error
        return record

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:  # noqa: D105
        record = self.record(index)
        label = int(record[self.label_key])
        if not 0 <= label < self.num_classes:
            raise BadLabelError(
                f"{self.describe(index)} has label {label}, outside the {self.num_classes} classes 0 to "
                f"{self.num_classes - 1}. A data set that hides the labels of this split cannot be evaluated on it."
            )
        return decode(record[self.image_key], self.describe(index)), label

    def describe(self, index: int) -> str:  # noqa: D102
        return f"{self.origin}[{index}]"

    def size(self, index: int) -> tuple[int, int]:  # noqa: D102
        return _encoded_size(self.record(index)[self.image_key], self.describe(index))


@dataclass(frozen=True, eq=False)
class TextSource:
    """Texts in memory.

    Attributes:
        texts: N of them.
        labels: int32 [N].
        origin: where they come from, for messages.
        rows: int [N], the numbers under which `describe` knows the examples; None: 0 … N − 1.
        places: of each before it was cut, such as its file, by these numbers; None: `origin` with the number.
    """

    texts: Sequence[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    origin: str
    rows: np.ndarray | None = field(default=None, repr=False)
    places: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:  # noqa: D105
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[str, int]:  # noqa: D105
        return self.texts[index], int(self.labels[index])

    def describe(self, index: int) -> str:  # noqa: D102
        row = index if self.rows is None else int(self.rows[index])
        return f"{self.origin}[{row}]" if self.places is None else self.places[row]


def what_of(source: Source) -> str:
    """What the examples of a source are called in messages and records: "images" or "texts"."""
    return "texts" if isinstance(source, TextSource) else "images"


@dataclass(frozen=True, eq=False)
class Rows:
    """Some images of another source, in a given order.

    Attributes:
        source: the whole.
        indices: int [N], which of its examples.
    """

    source: ImageSource
    indices: np.ndarray = field(repr=False)

    @property
    def labels(self) -> np.ndarray | None:  # noqa: D102
        return None if self.source.labels is None else self.source.labels[self.indices]

    def __len__(self) -> int:  # noqa: D105
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:  # noqa: D105
        return self.source[int(self.indices[index])]

    def describe(self, index: int) -> str:  # noqa: D102
        return self.source.describe(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:  # noqa: D102
        return self.source.size(int(self.indices[index]))


def rows_of(source: Source, indices: np.ndarray) -> Source:
    """Some examples of a source; what is in memory is cut at once, everything else on access."""
    indices = np.asarray(indices)
    if isinstance(source, TextSource):
        rows = indices if source.rows is None else source.rows[indices]
        texts = [source.texts[i] for i in indices]
        return TextSource(texts, source.labels[indices], source.origin, rows, source.places)
    if isinstance(source, ArraySource) and isinstance(source.images, np.ndarray):
        rows = indices if source.rows is None else source.rows[indices]
        return ArraySource(source.images[indices], source.labels[indices], source.origin, rows)
    if isinstance(source, FileSource):
        return FileSource([source.paths[i] for i in indices], source.labels[indices])
    return Rows(cast(ImageSource, source), indices)
