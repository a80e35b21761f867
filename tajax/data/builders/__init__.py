"""The synthetic visual world: captioned scenes and eight bundled tasks.

`BUILDERS` has the TFDS builders by name, `prepare` puts one into a data directory, `render_scene` draws one captioned scene.
"""

from tajax.data.builders.datasets import BUILDERS, prepare
from tajax.data.builders.scenes import render_scene

__all__ = ["BUILDERS", "prepare", "render_scene"]
