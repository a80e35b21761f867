"""Batches of a task: in order and padded for evaluation, endless and shuffled for training.

Batch `k` is a pure function of (task, split, geometry, seed, k). So a stream can start anywhere, threads and worker
processes cannot change it, and it is deterministic to the bit.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from tajax.data import coverage, draws, memory
from tajax.data.contents import Contents, check_splits
from tajax.data.preprocess import random_resized_crop, resize_center_crop
from tajax.data.sources import ArraySource, BadImageError, Source
from tajax.data.tasks import Task, open_task
from tajax.types import Batch, Preprocessing

_ENDLESS = 2**48  # batches; centuries of training, and still a length that Grain can slice
_BUFFER = 2  # finished batches that wait, beside those in the making
_open_streams: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Streams left open end before the interpreter takes apart what Grain needs for it."""
    for stream in list(_open_streams):
        stream.close()


@dataclass(frozen=True)
class Batches:
    """A stream of batches that can be read any number of times, each time from `start_batch` on.

    Attributes:
        source: the examples.
        batch_size: B, rows of every batch.
        size: pixels on a side.
        augment: random resized crops instead of the evaluation geometry.
        seed: of order and crops.
        endless: shuffled and without end, or one pass in order.
        start_batch: batches left out at the beginning.
        workers: processes that make batches; 0: threads of this process.
        share: (i, n), the i-th of n equal parts of the rows of every batch, and no other.
    """

    source: Source
    batch_size: int
    size: int
    augment: bool
    seed: int
    endless: bool
    start_batch: int = 0
    workers: int = 0
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        """The number of batches in a pass.

        Raises:
            TypeError: the stream is endless.
        """
        if self.endless:
            raise TypeError("an endless stream of batches has no length; len(stream.source) counts the examples")
        return max(0, -(-len(self.source) // self.batch_size) - self.start_batch)

    def __iter__(self) -> Iterator[Batch]:
        """Batches with NumPy leaves, made ahead in threads or processes."""
        stream = self._stream()
        _open_streams.add(stream)
        return stream

    def _stream(self) -> Generator[Batch]:
        copies_only = memory.is_array(self.source, self.size) and not self.augment
        workers = 0 if copies_only else self.workers  # nothing to share out
        threads = 1 if copies_only or workers else min(16, os.cpu_count() or 1)
        read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_BUFFER + threads)
        dataset = grain.MapDataset.source(_Numbered(self)).to_iter_dataset(read_options)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read theirs; outside absl.app nobody parsed them
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BUFFER)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_follow_the_parent)
        with contextlib.closing(iter(dataset)) as stream:
            for batch in _without_ctrl_c(stream) if workers else stream:
                if workers:  # the arrays lie in memory shared with a worker: free it at once
                    copies: list[Any] = [np.array(leaf) for leaf in batch]
                    batch = Batch(*copies)
                yield batch

    def batch(self, number: int) -> Batch:
        """Batch `number` of the whole stream, counted from its true beginning."""
        part, parts = self.share
        rows = self.batch_size // parts
        start = number * self.batch_size + part * rows
        positions = np.arange(start, start + rows)
        mask = np.ones(rows, bool)
        if self.endless:
            epochs, positions = np.divmod(positions, len(self.source))
        else:
            mask = positions < len(self.source)
            positions = positions[mask]
            epochs = np.zeros_like(positions)
        orders = [self._order(epoch)[positions[epochs == epoch]] for epoch in np.unique(epochs)]
        indices = np.concatenate(orders) if orders else np.zeros(0, np.intp)
        image = np.zeros((rows, self.size, self.size, 3), np.uint8)
        label = np.zeros(rows, np.int32)
        if isinstance(self.source, ArraySource) and memory.is_array(self.source, self.size) and not self.augment:
            images = np.asarray(self.source.images)
            np.take(images, indices, axis=0, out=image[: len(indices)], mode="clip")  # "raise" copies twice
            label[: len(indices)] = self.source.labels[indices]
        else:
            for row, (epoch, index) in enumerate(zip(epochs.tolist(), indices.tolist(), strict=True)):
                try:
                    picture, label[row] = self.source[index]
                except BadImageError as error:  # of a prepared data set, whose records are read as they are wanted
                    way_out = "on_bad_image='skip' looks at all images first and leaves out those that cannot be read."
                    raise BadImageError(f"{error}\nThe next ones were not looked at: {way_out}") from error
                image[row] = self._geometry(picture, epoch, index)
        leaves: tuple[Any, ...] = (image, label, mask)
        return Batch(*leaves)

    def _order(self, epoch: int) -> np.ndarray:
        if not self.endless:
            return np.arange(len(self.source))
        return draws.permutation(len(self.source), seed=self.seed, purpose=draws.ORDER, epoch=int(epoch))

    def _geometry(self, picture: Image.Image, epoch: int, index: int) -> np.ndarray:
        if self.augment:
            return random_resized_crop(picture, self.size, seed=self.seed, epoch=epoch, index=index)
        return resize_center_crop(picture, self.size)


def _without_ctrl_c(stream: Iterator[Batch]) -> Iterator[Batch]:
    """The stream, whose worker processes keep SIGINT waiting while they import, which takes them seconds.

    The first batch makes Grain start them, in threads; threads and processes inherit which signals wait.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield from stream
        return
    resource_tracker.ensure_running()  # before: it lets signals through again in the thread that starts it
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        first = next(stream, None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
    if first is not None:
        yield first
        del first  # what lies in shared memory, too
        yield from stream


def _follow_the_parent(worker: int, workers: int) -> None:
    """A worker ends with its parent, however that ends, and not at the Ctrl-C that a terminal sends to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that waited is dropped

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent").start()


@dataclass(frozen=True)
class _Numbered:
    """The stream as the random-access source that Grain reads, one element a batch."""

    batches: Batches

    def __len__(self) -> int:
        return _ENDLESS if self.batches.endless else len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        return self.batches.batch(self.batches.start_batch + int(number))


def check_images(task: Task, *, on_bad_image: str = "error", option: str = "on_bad_image='skip'") -> Task:
    """Reads every image file of a task once, all splits, so that a broken one is known before any training.

    `load` does the same for its own split; what was found here is not read again. Nothing to do for tasks whose images
    are in memory (.npz) or were checked when they were prepared (TFDS); the latter are read to skip.

    Args:
        task: an opened task.
        on_bad_image: as in `load`.
        option: what the message says to pass in order to skip, where that is not `on_bad_image`.

    Returns:
        The task itself, or with "skip" what is left of it without the images that cannot be read.

    Raises:
        BadImageError: images that cannot be read, of all splits, counted and named.
        ValueError: nothing is left of a split, or of the training images of a class.
    """
    named = {f"{task.name}/{split}": source for split, source in task.splits.items()}
    left = memory.check(named, on_bad_image=on_bad_image, option=option)
    if left == named:
        return task
    splits = dict(zip(task.splits, left.values(), strict=True))
    check_splits(Contents(task.class_names, splits), f"{task.name}, without the images that cannot be read,")
    fewer = {split: len(source) - len(splits[split]) for split, source in task.splits.items()}
    counts = [f"{count:,} of {len(task.splits[split]):,} in {split}" for split, count in fewer.items() if count]
    lines = [f"images that cannot be read are left out: {', '.join(counts)}"]
    lines += coverage.warnings(task.class_names, splits)
    said = dict.fromkeys((*task.warnings, *(f"{task.name}: {line}" for line in lines)))
    return dataclasses.replace(task, splits=splits, warnings=tuple(said))


def check_batches(batch_size: int, preprocessing: Preprocessing) -> None:
    """Raises `ValueError` unless there are such batches."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if preprocessing.size < 1:
        raise ValueError(f"preprocessing.size is {preprocessing.size}; it must be at least 1 pixel")


def load(
    task: Task | str | os.PathLike[str],
    split: str,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    data_dir: str | os.PathLike[str] | None = None,
    augment: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
    start_batch: int = 0,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    on_bad_image: str = "error",
    memory_bytes: int = memory.MEMORY_BYTES,
) -> Batches:
    """Batches of one split of a task: uint8 images at the model's size, labels, and a mask of the real rows.

    With `epochs=1`, every example once, in order; the last batch is padded with rows whose mask is False. With
    `epochs=None`, full batches without end, shuffled anew in every epoch; an epoch that ends inside a batch is
    continued by the next one, so no example is dropped.

    Small splits are decoded once and kept in memory. Batches of larger ones are made ahead in threads, or in worker
    processes.

    Args:
        task: an opened task, or an entry that `open_task` understands.
        split: "train", "val" or "test".
        batch_size: B, at least 1.
        preprocessing: its `size` is the side of the images. Mean and deviation are applied on the device: `normalize`.
        data_dir: for `open_task`; unused with an opened task.
        augment: random resized crops (scale 0.9–1.0) instead of resize and centre crop.
        seed: of the order of an endless stream and of the crops.
        epochs: 1, or None for an endless stream.
        start_batch: begin with this batch of the stream. What follows is bit for bit what the whole stream would give.
        workers: processes that decode images. 0: threads of this process, enough unless the images are many and large.
        share: (i, n), the i-th of n equal parts of every batch, for one of n processes: no other image is decoded,
            except in small splits that are kept in memory whole.
        on_bad_image: "error", or "skip" to leave unreadable images out with a warning that counts them.
        memory_bytes: largest decoded split kept in memory; 0 keeps none.

    Returns:
        An iterable of `Batch` with NumPy leaves: image uint8 [B, size, size, 3], label int32 [B], mask bool [B]; B/n
        rows of a share.

    Raises:
        ValueError: an argument out of range; unreadable images; labels outside the class list.
        FileNotFoundError: the entry is a path that does not exist.
    """
    if epochs not in (1, None):
        raise ValueError(f"epochs is {epochs!r}; choose 1 (one pass in order) or None (endless and shuffled)")
    check_batches(batch_size, preprocessing)
    for name, value in {"start_batch": start_batch, "workers": workers, "memory_bytes": memory_bytes}.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")
    part, parts = share
    if not 0 <= part < parts or batch_size % parts:
        raise ValueError(f"share is {share} of a batch of {batch_size}; give (i, n), 0 <= i < n, with n dividing it")
    task = task if isinstance(task, Task) else open_task(task, data_dir=data_dir)
    source = memory.ready(
        task.split(split),
        size=None if augment else preprocessing.size,
        where=f"{task.name}/{split}",
        on_bad_image=on_bad_image,
        memory_bytes=memory_bytes,
    )
    return Batches(
        source=source,
        batch_size=batch_size,
        size=preprocessing.size,
        augment=augment,
        seed=draws.check_seed(seed),
        endless=epochs is None,
        start_batch=start_batch,
        workers=workers,
        share=share,
    )
