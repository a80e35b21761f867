"""The command line: from its words to a config and a directory, and the pages that explain it.

`files` finds config files by path or by name, `flags` reads the words, `pages` are what `--help` shows.
`merge_flags` are those of `python -m tajax.merge`.
"""

from tajax.command_line.flags import Command, parse
from tajax.command_line.pages import show_help

__all__ = ["Command", "parse", "show_help"]
