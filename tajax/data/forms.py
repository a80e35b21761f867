"""How the examples of a batch become rows of inputs: what a stream of batches leaves to the kind of its examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from tajax.data.preprocess import random_resized_crop, resize_center_crop
from tajax.data.sources import ArraySource, BadImageError, ImageSource, Source
from tajax.types import Preprocessing


class Form(Protocol):
    """Rows of inputs from the examples of a source. With the same arguments always the same, to the bit."""

    @property
    def source(self) -> Source:
        """The examples."""
        ...

    @property
    def copies(self) -> bool:
        """Whether rows are copied as they are, so that there is no work to share out."""
        ...

    @property
    def order(self) -> Int[np.ndarray, " N"] | None:
        """In which order a pass takes the examples; None: as they are stored."""
        ...

    def rows(
        self, epoch: int, indices: Int[np.ndarray, " N"], mine: slice
    ) -> tuple[Shaped[np.ndarray, "B ..."], Int[np.ndarray, " B"]]:
        """Inputs and labels of the examples `indices[mine]` of a batch of an epoch, of which `indices` are all.

        There are as many rows as `mine` is long; those behind the last example are padding.
        """
        ...


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images at the model's size, uint8 [B, size, size, 3].

    Attributes:
        source: the images.
        preprocessing: the size, and how images get it.
        copies: the source is an array of images in evaluation geometry: its rows are those of batches.
        augment: random resized crops instead of the evaluation geometry.
        seed: of the crops.
    """

    source: ImageSource
    preprocessing: Preprocessing
    copies: bool
    augment: bool
    seed: int
    order: None = None

    def rows(self, epoch: int, indices: np.ndarray, mine: slice) -> tuple[np.ndarray, np.ndarray]:
        """As in `Form`."""
        indices = indices[mine]
        size = self.preprocessing.size
        image = np.zeros((mine.stop - mine.start, size, size, 3), np.uint8)
        label = np.zeros(len(image), np.int32)
        if isinstance(self.source, ArraySource) and self.copies:
            images = np.asarray(self.source.images)
            np.take(images, indices, axis=0, out=image[: len(indices)], mode="clip")  # "raise" copies twice
            label[: len(indices)] = self.source.labels[indices]
            return image, label
        for row, index in enumerate(indices.tolist()):
            try:
                picture, label[row] = self.source[index]
            except BadImageError as error:  # of a prepared data set, whose records are read as they are wanted
                way_out = "on_bad_image='skip' looks at all images first and leaves out those that cannot be read."
                raise BadImageError(f"{error}\nThe next ones were not looked at: {way_out}") from error
            image[row] = self._geometry(picture, epoch, index)
        return image, label

    def _geometry(self, picture: Image.Image, epoch: int, index: int) -> np.ndarray:
        size, resize = self.preprocessing.size, self.preprocessing.resize
        if self.augment:
            return random_resized_crop(picture, size, resize, seed=self.seed, epoch=epoch, index=index)
        return resize_center_crop(picture, size, resize)
