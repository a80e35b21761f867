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
from typing import Any, cast

import grain
import numpy as np
from absl import flags

from tajax.data import coverage, draws, memory
from tajax.data.contents import Contents, check_splits
from tajax.data.forms import Form, Pixels
from tajax.data.preprocess import INTERPOLATIONS
from tajax.data.sources import ImageSource, Source, TextSource
from tajax.data.tasks import Task, open_task
from tajax.data.tokens import token_rows
from tajax.types import Batch, InputSpec, Preprocessing, Tokenization

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
        form: the examples, and how they become rows of inputs.
        batch_size: B, rows of every batch.
        seed: of the order.
        endless: shuffled and without end, or one pass in order.
        start_batch: batches left out at the beginning.
        workers: processes that make batches; 0: threads of this process.
        share: (i, n), the i-th of n equal parts of the rows of every batch, and no other.
    """

    form: Form
    batch_size: int
    seed: int
    endless: bool
    start_batch: int = 0
    workers: int = 0
    share: tuple[int, int] = (0, 1)

    @property
    def source(self) -> Source:
        """The examples."""
        return self.form.source

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
        workers = 0 if self.form.copies else self.workers  # nothing to share out
        threads = 1 if self.form.copies or workers else min(16, os.cpu_count() or 1)
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
        mine = slice(part * self.batch_size // parts, (part + 1) * self.batch_size // parts)
        epoch, within = divmod(number, -(-len(self.source) // self.batch_size)) if self.endless else (0, number)
        positions = np.arange(within * self.batch_size, (within + 1) * self.batch_size)
        real = positions < len(self.source)
        indices = self._order(epoch)[positions[real]]
        leaves: tuple[Any, ...] = (*self.form.rows(epoch, indices, mine), real[mine])
        return Batch(*leaves)

    def _order(self, epoch: int) -> np.ndarray:
        if self.endless:
            return draws.permutation(len(self.source), seed=self.seed, purpose=draws.ORDER, epoch=int(epoch))
        return np.arange(len(self.source)) if self.form.order is None else self.form.order


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
    are in memory (.npz) or were checked when they were prepared (TFDS); the latter are read to skip. A text without a
    word counts as one that cannot be read.

    Args:
        task: an opened task.
        on_bad_image: as in `load`.
        option: what the message says to pass in order to skip, where that is not `on_bad_image`.

    Returns:
        The task itself, or with "skip" what is left of it without the images that cannot be read.

    Raises:
        BadImageError, BadTextError: images that cannot be read, or texts, of all splits, counted and named.
        ValueError: nothing is left of a split, or of the training images of a class.
    """
    named = {f"{task.name}/{split}": source for split, source in task.splits.items()}
    left = memory.check(named, on_bad_image=on_bad_image, option=option)
    if left == named:
        return task
    splits = dict(zip(task.splits, left.values(), strict=True))
    check_splits(Contents(task.class_names, splits), f"{task.name}, without the {task.modality} that cannot be read,")
    fewer = {split: len(source) - len(splits[split]) for split, source in task.splits.items()}
    counts = [f"{count:,} of {len(task.splits[split]):,} in {split}" for split, count in fewer.items() if count]
    lines = [f"{task.modality} that cannot be read are left out: {', '.join(counts)}"]
    lines += coverage.warnings(task.class_names, splits)
    said = dict.fromkeys((*task.warnings, *(f"{task.name}: {line}" for line in lines)))
    return dataclasses.replace(task, splits=splits, warnings=tuple(said))


def check_takes(task: Task, preprocessing: InputSpec) -> None:
    """Raises `ValueError` if a task is of images and the model takes texts, or the other way round."""
    takes = "texts" if isinstance(preprocessing, Tokenization) else "images"
    if task.modality != takes:
        raise ValueError(f"task {task.name!r} ({task.origin}) is of {task.modality}, and the model takes {takes}")


def check_batches(batch_size: int, preprocessing: InputSpec) -> None:
    """Raises `ValueError` unless there are such batches."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if isinstance(preprocessing, Preprocessing) and preprocessing.size < 1:
        raise ValueError(f"preprocessing.size is {preprocessing.size}; it must be at least 1 pixel")
    if isinstance(preprocessing, Preprocessing) and preprocessing.resize is not None:
        side, _, interpolation = preprocessing.resize
        if side < preprocessing.size:
            raise ValueError(
                f"preprocessing.resize.side is {side}: {preprocessing.size} pixels cannot be cut out of it"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"preprocessing.resize.interpolation is {interpolation!r}; choose from {', '.join(INTERPOLATIONS)}"
            )


def load(
    task: Task | str | os.PathLike[str],
    split: str,
    *,
    batch_size: int,
    preprocessing: InputSpec,
    data_dir: str | os.PathLike[str] | None = None,
    augment: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
    start_batch: int = 0,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    on_bad_image: str = "error",
    memory_bytes: int = memory.MEMORY_BYTES,
    by_length: bool = False,
) -> Batches:
    """Batches of one split of a task: images at the model's size or tokens, labels, and a mask of the real rows.

    With `epochs=1`, every example once, in order; the last batch is padded with rows whose mask is False. With
    `epochs=None`, batches without end, shuffled anew in every epoch, of which the last batch is padded likewise.

    Small splits of images are decoded once and kept in memory. Batches of larger ones are made ahead in threads, or in
    worker processes. Texts are tokenised once.

    Args:
        task: an opened task, or an entry that `open_task` understands.
        split: "train", "val" or "test".
        batch_size: B, at least 1.
        preprocessing: what the model takes, `encoder.inputs`. Of images its `size` is the side, and `resize` what comes
            before it; mean and deviation are applied on the device: `normalize`. Texts are cut to its `max_length` in
            tokens.
        data_dir: for `open_task`; unused with an opened task.
        augment: random resized crops (scale 0.9–1.0) instead of resize and centre crop; of images.
        seed: of the order of an endless stream and of the crops.
        epochs: 1, or None for an endless stream.
        start_batch: begin with this batch of the stream. What follows is bit for bit what the whole stream would give.
        workers: processes that decode images. 0: threads of this process, enough unless the images are many and large.
        share: (i, n), the i-th of n equal parts of every batch, for one of n processes: no other image is decoded,
            except in small splits that are kept in memory whole.
        on_bad_image: "error", or "skip" to leave unreadable images out with a warning that counts them.
        memory_bytes: largest decoded split kept in memory; 0 keeps none.
        by_length: of texts, with `epochs=1`: those of similar length together instead of in order, which pads less.

    Returns:
        An iterable of `Batch` with NumPy leaves: inputs uint8 [B, size, size, 3], or int32 [B, L] with −1 behind the
        last token and L of each batch one of a few lengths; label int32 [B], mask bool [B]; B/n rows of a share.

    Raises:
        ValueError: an argument out of range; unreadable images or texts without a word; labels outside the class list;
            a task of texts for a model that takes images, or the other way round.
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
    source, where = task.split(split), f"{task.name}/{split}"
    check_takes(task, preprocessing)
    form: Form
    if isinstance(preprocessing, Tokenization):
        (texts,) = memory.check({where: source}, on_bad_image=on_bad_image).values()
        form = token_rows(cast(TextSource, texts), preprocessing, by_length=by_length)
    else:
        images, copies = memory.ready(
            cast(ImageSource, source),
            preprocessing=None if augment else preprocessing,
            where=where,
            on_bad_image=on_bad_image,
            memory_bytes=memory_bytes,
        )
        form = Pixels(images, preprocessing, copies, augment, draws.check_seed(seed))
    return Batches(
        form=form,
        batch_size=batch_size,
        seed=draws.check_seed(seed),
        endless=epochs is None,
        start_batch=start_batch,
        workers=workers,
        share=share,
    )
