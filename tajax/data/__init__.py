"""Tasks and their images or texts: one `load(task, split)` for bundled tasks, TFDS, local folders and files."""

from tajax.data.images import Images, open_images
from tajax.data.largest import largest_batch
from tajax.data.overlap import Overlap, find_overlap
from tajax.data.pipeline import Batches, check_images, check_takes, load
from tajax.data.preprocess import normalize
from tajax.data.readiness import Readiness, check
from tajax.data.samples import drawn, sample
from tajax.data.sources import BadImageError, BadTextError
from tajax.data.table import BUNDLED, PROTOCOL, SUITE, TASKS, TaskSpec
from tajax.data.tasks import Task, check_entry, open_task, open_tasks
from tajax.data.tokens import count_cut, join

__all__ = [
    "BUNDLED",
    "PROTOCOL",
    "SUITE",
    "TASKS",
    "BadImageError",
    "BadTextError",
    "Batches",
    "Images",
    "Overlap",
    "Readiness",
    "Task",
    "TaskSpec",
    "check",
    "check_entry",
    "check_images",
    "check_takes",
    "count_cut",
    "drawn",
    "find_overlap",
    "join",
    "largest_batch",
    "load",
    "normalize",
    "open_images",
    "open_task",
    "open_tasks",
    "sample",
]
