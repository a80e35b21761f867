"""A plain folder of images, without classes, labels and splits: opened, and as batches for an encoder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tajax.data import folders, memory
from tajax.data.contents import some
from tajax.data.forms import Pixels
from tajax.data.pipeline import Batches, check_batches
from tajax.data.sources import FileSource
from tajax.types import Preprocessing


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The images of a folder, in the order of their names. `images[i]` is a Pillow image in RGB, at its own size.

    Attributes:
        folder: where they lie.
        source: the files, each with the label 0, which means nothing.
        warnings: what of the folder was left out, a line each.
    """

    folder: Path
    source: FileSource = dataclasses.field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files, in order."""
        return tuple(path.name for path in self.source.paths)

    def __len__(self) -> int:  # noqa: D105
        return len(self.source)

    def __getitem__(self, index: int) -> Image.Image:  # noqa: D105
        return self.source[index][0]

    def batches(self, preprocessing: Preprocessing, *, batch_size: int = 256) -> Batches:
        """Every image once, in order, as `load` gives those of a task: a stream that can be read any number of times.

        Args:
            preprocessing: that of the model, `encoder.inputs`.
            batch_size: rows of a batch at most. Fewer images than that make one batch without padding.

        Returns:
            An iterable of `Batch` with NumPy leaves: inputs uint8 [B, size, size, 3], mask bool [B], False in the rows
            that pad the last batch, and label int32 [B], zeros.

        Raises:
            ValueError: a batch or an image of less than 1 row or pixel; a file that was changed since it was opened.
        """
        check_batches(batch_size, preprocessing)
        source, copies = memory.ready(self.source, preprocessing=preprocessing, where=str(self.folder))
        form = Pixels(source, preprocessing, copies, augment=False, seed=0)
        return Batches(form, min(batch_size, len(self)), seed=0, endless=False)


def open_images(folder: str | os.PathLike[str], *, on_bad_image: str = "error") -> Images:
    """The images that lie in a folder, without labels: to see what an encoder makes of pictures of one's own.

    They are those of the folder itself, sorted by name as text; directories in it are left out, and a folder of nothing
    but directories is refused, for it may be a task. A file is an image as it is for `open_task`: by its suffix, or by
    its first bytes. Each is read once here, so that `names` are the rows of what is computed.

    Args:
        folder: its path; `~` is the home directory.
        on_bad_image: "error", or "skip" to leave images that cannot be read out, with a warning that counts them.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it is a file, or has no images; an image in a format that is not read; an unknown `on_bad_image`.
        BadImageError: images that cannot be read, counted and named.
    """
    place = Path(os.path.expanduser(folder))
    paths, left_out = folders.loose_images(place)
    found = FileSource(paths, np.zeros(len(paths), np.int32))
    (source,) = memory.check({str(place): found}, on_bad_image=on_bad_image).values()
    assert isinstance(source, FileSource)  # rows of files are files
    warnings = []
    if left_out:
        warnings.append(f"{len(left_out)} entries of {place} are not images and left out: {some(left_out)}")
    if bad := sorted({path.name for path in paths} - {path.name for path in source.paths}):
        warnings.append(f"{len(bad)} of {len(paths)} images of {place} cannot be read and are left out: {some(bad)}")
    return Images(place, source, tuple(warnings))
