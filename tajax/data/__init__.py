"""Tasks and their images: one `load(task, split)` for bundled tasks, TFDS, local folders and .npz files."""

from tajax.data.images import Images, open_images
from tajax.data.overlap import Overlap, find_overlap
from tajax.data.pipeline import Batches, check_images, load
from tajax.data.preprocess import normalize
from tajax.data.readiness import Readiness, check
from tajax.data.sources import BadImageError
from tajax.data.table import BUNDLED, PROTOCOL, SUITE, TASKS, TaskSpec
from tajax.data.tasks import Task, check_entry, open_task, open_tasks

__all__ = [
    "BUNDLED",
    "PROTOCOL",
    "SUITE",
    "TASKS",
    "BadImageError",
    "Batches",
    "Images",
    "Overlap",
    "Readiness",
    "Task",
    "TaskSpec",
    "check",
    "check_entry",
    "check_images",
    "find_overlap",
    "load",
    "normalize",
    "open_images",
    "open_task",
    "open_tasks",
]
