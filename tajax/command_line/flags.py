"""The words of the command line, checked before anything is loaded: which config, where, and how."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from tajax import config as configuration
from tajax import processes
from tajax.command_line import files
from tajax.command_line.names import check_names
from tajax.config.checks import field_type
from tajax.rules import RULES

HELP = ("--help", "-help", "-h", "--helpfull", "-helpfull")
USAGE = "Usage: tajax --config=NAME[:VARIANT]; tajax --help says more."


class Command(NamedTuple):
    """What a command line asks for."""

    config: ConfigDict
    workdir: Path
    overwrite: bool = False
    quiet: bool = False


def define(argv: Sequence[str]) -> flags.FlagValues:
    """The command's flags, in a set of their own so that one process can parse several command lines."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "what to run: a name or a path of a config file, and a variant", values, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "directory of the run (default: runs/CONFIG_VARIANT)", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace a finished run in the way", flag_values=values)
    flags.DEFINE_bool(
        "quiet", False, "show errors and warnings alone; results are in the files", short_name="q", flag_values=values
    )
    flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=values)
    flags.DEFINE_bool("help", False, "show this page", short_name="h", flag_values=values)
    flags.DEFINE_bool("helpfull", False, "show every field and flag", flag_values=values)
    return processes.define_flags(values)


def read(argv: Sequence[str]) -> flags.FlagValues:
    """The flags with their values; `config` is None where none is given.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: a flag, field, variant or value that does not exist, or a word that is no flag.
    """
    try:
        argv = list(resolved(flags.FlagValues().read_flags_from_files(list(argv), force_gnu=False)))
        values = define(argv)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in define(()) if name not in ("h", "q")]
        fields = [f"--config.{name}" for name in configuration.flatten(configuration.default_config())]
        meant = [f for f in fields if error.flagname in (f[2:].partition(".")[2], f.rpartition(".")[2])]
        least = min((field.count(".") for field in meant), default=0)  # a method's own options are not thought of first
        if meant := [field for field in meant if field.count(".") == least]:
            raise ValueError(
                f"unknown flag '--{error.flagname}'. Did you mean {' or '.join(meant)}? {_FIELDS}"
            ) from error
        known = fields if "." in error.flagname else known  # one that is misspelt before the field
        configuration.one_of("flag", f"--{error.flagname}", known, way_out=_FIELDS)
        raise
    except (flags.Error, SyntaxError) as error:  # an error inside a config file arrives with its traceback in the text
        raise ValueError(re.split(r"\n\s*\w+Error: ", str(error))[-1].strip()) from error
    except (ValueError, TypeError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"the config file fails with {type(error).__name__}: {error}.") from error
    if rest[1:]:
        raise ValueError(f"unexpected argument {rest[1]!r}. {USAGE}")
    if values["config"].present and not isinstance(values.config, ConfigDict):
        getattr(values.config, "lock", None)  # raises OSError where ml_collections has kept one for later
        raise ValueError(
            f"the config file gives {values.config!r}, and no config. Let its get_config() start from "
            "tajax.config.default_config() and return it."
        )
    return values


_FIELDS = "Fields of the config are set with --config.FIELD=VALUE."
_ALL_FIELDS = "All fields: tajax --config=NAME --help."


def resolved(argv: Sequence[str]) -> Iterator[str]:
    """The words, with the path of a file for the name of a config; fields that do not exist are refused.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: no such field, or several values that are not written as a tuple.
    """
    value_follows, field = False, ""
    for word in argv:
        given = re.match("" if value_follows else "--?config=", word)
        if given:
            head = given[0]
            name, colon, variant = word.removeprefix(head).partition(":")
            yield f"{head}{files.locate(name)}{colon}{variant}"
        else:
            if field and not word.startswith("-"):
                check_tuple(field, word)
            field = ""
            if override := re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", word, re.DOTALL):
                fields = configuration.flatten(configuration.default_config())
                field = configuration.one_of("config field", override[1], fields, way_out=_ALL_FIELDS)
                if override[2] is not None:
                    check_tuple(field, override[2])
            yield word
        value_follows = word in ("--config", "-config") and not value_follows


def check_tuple(field: str, value: str) -> None:
    """Refuses several values that are not written as Python writes a tuple, and shows how they are.

    Example:
        >>> check_tuple("tasks", "shapes,digits")
        Traceback (most recent call last):
        ...
        ValueError: --config.tasks=shapes,digits: several values are written as in Python, and quoted for the shell:
        --config.tasks="('shapes', 'digits')". One alone needs neither.
        >>> check_tuple("tasks", "reviews.csv#text=review,label=stars")  # is one
    """
    default = configuration.default_config()
    rules = field == "trainable" and set(re.split(r"[,\s]+", value)) <= set(RULES)
    parted = _CHOICE.sub(_JOINT, value) if "#" in value else value
    if not rules and field_type(default, field) is not tuple or not re.search(r"[,\s()\[\]]", parted.strip()):
        return
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        now = configuration.flatten(default)[field]
        inner = parted.strip("()[]'\" ,")
        words = re.split(r"[\s'\"]*,[\s'\"]*" if "," in inner else r"\s+", inner)
        written = tuple(word.replace(_JOINT, ",") for word in words)
        shown = repr(now[:3] if isinstance(now, tuple) and now and not isinstance(now[0], str) else written)
        raise ValueError(
            f"--config.{field}={value}: several values are written as in Python, and quoted for the shell:\n"
            f'--config.{field}="{shown}". One alone needs neither.'
        ) from None


_CHOICE = re.compile(r",(?=(?:text|label|split)=)")  # commas inside of one task, reviews.csv#text=review,label=stars
_JOINT = "\0"


def parse(argv: Sequence[str]) -> Command:
    """What a command line asks for; this process joins the others that its flags name, and nothing is written.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: any word, field or value that is wrong, or no config.
    """
    values = read(argv)
    if values.config is None:
        raise ValueError(f"no config given. {USAGE} {files.choices()}")
    config: ConfigDict = values.config
    configuration.validate(config)
    stem = Path(config_flags.get_config_filename(values["config"]).split(":")[0]).stem
    chosen = config.workflow if any("config.workflow" in word for word in argv) else ""
    named = Path("runs", "_".join(filter(None, (stem, config.variant, chosen))))
    processes.join(values)  # before JAX is used
    check_names(config)
    return Command(config, Path(os.path.expanduser(values.workdir or named)), values.overwrite, values.quiet)
