"""What the splits of a task do not cover: classes without an example, and too few examples to tell an accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tajax.data.contents import some
from tajax.data.sources import Source, what_of

FEWEST = 5  # examples a class, on average over the classes


def warnings(class_names: Sequence[str], splits: Mapping[str, Source]) -> Iterator[str]:
    """A line for each split that lacks classes, and for each with fewer than `FEWEST` examples a class on average.

    The average is known of every source. Which classes there are is known where labels are: of folders and .npz files,
    and not of TFDS, where it would mean reading every record.
    """
    for split, source in splits.items():
        what = what_of(source)
        if source.labels is not None:
            counts = np.bincount(source.labels, minlength=len(class_names))
            absent = [class_names[label] for label in np.flatnonzero(counts == 0).tolist()]
            if absent:
                yield (
                    f"{len(absent)} of {len(class_names)} classes have no {what[:-1]} in the {split} split: "
                    f"{some(absent)}"
                )
        mean = len(source) / len(class_names)
        if mean < FEWEST:
            yield (
                f"the {split} split has {len(source)} {what} of {len(class_names)} classes, {mean:.1f} a class on "
                f"average; with fewer than {FEWEST}, {_CONSEQUENCES[split].format(what)}"
            )


_CONSEQUENCES = {
    "train": "a fine-tuned model may know the {} alone",
    "val": "what is tuned on it is chosen by chance",
    "test": "accuracy on it says little",
}
