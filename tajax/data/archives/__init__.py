"""Data sets that TFDS lacks, or cannot fetch any more, read from their publishers' files without TensorFlow.

`BUILDERS` has the TFDS builders by name; `prepare` reads the files in `data_dir/downloads/manual`, as they were
downloaded or unpacked, and writes array_record files with the images as they are stored there.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from tajax import progress
from tajax.data import preparation
from tajax.data.archives.cars import TajaxCars
from tajax.data.archives.fer2013 import TajaxFer2013
from tajax.data.archives.gtsrb import TajaxGtsrb
from tajax.data.archives.official import OfficialArchives
from tajax.data.archives.rendered_sst2 import TajaxRenderedSst2
from tajax.data.archives.stores import BadArchiveError

__all__ = ["BUILDERS", "BadArchiveError", "OfficialArchives", "manual_directory", "prepare", "quiet", "tidy"]

BUILDERS: dict[str, type[OfficialArchives]] = {
    builder.name: builder for builder in (TajaxGtsrb, TajaxCars, TajaxFer2013, TajaxRenderedSst2)
}


def manual_directory(data_dir: str | os.PathLike[str]) -> Path:
    """Where TFDS, and we with it, look for files that were downloaded by hand."""
    return Path(data_dir, "downloads", "manual")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without TFDS's messages, and without its progress bars where nobody watches them."""
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.display_progress_bar(sys.stderr.isatty())
        try:
            yield
        finally:
            tfds.display_progress_bar(True)


@contextlib.contextmanager
def tidy(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Preparation that leaves no empty directories behind when it fails; TFDS itself removes the files."""
    try:
        yield
    except BaseException:
        for directory in (Path(builder.data_dir), *Path(builder.data_dir).parents):
            with contextlib.suppress(OSError):  # not empty, or not there
                directory.rmdir()
            if directory.name == builder.name:
                break
        raise


def prepare(name: str, *, data_dir: str | os.PathLike[str]) -> tfds.core.DatasetBuilder:
    """One of `BUILDERS` whose data are in `data_dir`, read from the publisher's files first if they are not.

    TFDS writes into a temporary directory and renames it at the end: whatever fails leaves nothing.

    Args:
        name: a key of `BUILDERS`.
        data_dir: where TFDS keeps prepared data sets; the publisher's files lie in `downloads/manual` in it.

    Returns:
        The builder, ready for `.as_data_source(split)`.

    Raises:
        BadArchiveError: files are missing (the message says what to download and where to put it), damaged, or
            contradict each other.
        BadImageError: a file is no image.
    """
    builder = BUILDERS[name](data_dir=os.fspath(data_dir), file_format="array_record")
    if preparation.is_prepared(builder):
        return builder
    config = tfds.download.DownloadConfig(manual_dir=manual_directory(data_dir), try_download_gcs=False)
    builder.locate(manual_directory(data_dir))  # before TFDS makes a directory
    with preparation.alone(builder) as needed:
        if needed:
            progress.say(f"Preparing {name} in {data_dir} (once, some minutes)")
            with quiet(), tidy(builder):
                builder.download_and_prepare(download_config=config)
    return BUILDERS[name](data_dir=os.fspath(data_dir), file_format="array_record")
