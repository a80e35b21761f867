"""Prepare bundled data sets: `python -m tajax.data.builders DATA_DIR [NAME …]`, by default the eight tasks."""

import sys

from tajax.data.builders import TASK_NAMES, prepare


def main(arguments: list[str]) -> None:
    """Prepare the data sets named after the directory, one after the other."""
    if not arguments:
        sys.exit(__doc__)
    data_dir, *names = arguments
    for name in names or TASK_NAMES:
        prepare(name, data_dir=data_dir)


if __name__ == "__main__":
    main(sys.argv[1:])
