"""The synthetic visual world: captioned scenes, eight bundled tasks, and a control task.

`BUILDERS` has the TFDS builders by name; `SPECS` the records that describe the eight tasks, `CONTROL` that of the
control and `ALL` those of both. `prepare` and `prepare_all` put data sets into a data directory, `render_scene` and
`render_example` draw one picture.
"""

from tajax.data.builders.datasets import BUILDERS, TASK_NAMES, prepare, prepare_all
from tajax.data.builders.scenes import render_scene
from tajax.data.builders.tasks import ALL, CONTROL, SPECS, TaskSpec, render_example

__all__ = [
    "ALL", "BUILDERS", "CONTROL", "SPECS", "TASK_NAMES", "TaskSpec", "prepare", "prepare_all", "render_example",
    "render_scene",
]  # fmt: skip
