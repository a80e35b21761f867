"""What `--help` shows: the page of the command, of a config, and of the variants of a config."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tajax import config as configuration
from tajax.command_line import files
from tajax.command_line.flags import HELP, define, read
from tajax.config.fields import BUNDLED_TASKS, PROTOCOL_TASKS, SUITE_TASKS, TEXT_TASKS, merging_options
from tajax.merging import METHODS, PREPARATIONS
from tajax.options import Option
from tajax.rules import RULES

Rows = Iterable[tuple[str, str]]
Part = Text | Table | Padding

WIDEST = 110  # columns; longer lines are hard to read
MOST_USED = (  # beside `workflow`, which has a section of its own
    *("tasks", "control", "task_vectors", "checkpoints", "regime", "trainable", "layers", "heads", "seed"),
    *("finetune.steps", "finetune.learning_rate", "finetune.batch_size", "evaluate.scaling_coefs", "merging.method"),
    *("devices", "data_dir"),
)
EXAMPLES = (
    ("{} --config=attn", "attention-only task vectors of the bundled model, added"),
    ("{} --config=attn:b32", "the same with OpenAI's ViT-B/32 on the papers' eight tasks"),
    ("{} --config=attn:help", "the variants of a config, and what each holds"),
    ("{} --config=attn:b32 --help", "every field of a config, its value and what it means"),
    ("{} --config=linear --config.finetune.steps=40 --workdir=runs/short", "other values, another directory"),
    ("{} --config=attn --config.tasks=\"('mnist.npz', 'path/to/folder')\"", "tasks of your own"),
    ("{} --config=attn --config.workflow=geometry --config.task_vectors=runs/attn_tiny", "questions without training"),
)
EXIT_CODES = (
    ("0", "done"),
    ("1", "a defect of tajax, with its traceback"),
    ("2", "bad input or bad luck; the message says what to do, and what was done is kept"),
    ("6", "another process of the run has ended"),
    ("75", "stopped by SIGTERM: all is kept, the same command goes on"),
    ("130", "stopped by Ctrl-C: all is kept, the same command goes on"),
    ("143", "ended at once by a second SIGTERM (130 by a second Ctrl-C): what came after a checkpoint is lost"),
)
ALSO = (
    ("python -m tajax.report RUN …", "the report of a run, or of several side by side"),
    ("python -m tajax.data --check", "which tasks are ready, and how to get the others"),
    ("{} --help merging", "every merging method, with its options"),
    ("python -m tajax.merge BASE FINE_TUNED FINE_TUNED … --out=DIR", "checkpoints to one model, without a task"),
    ("python -m tajax.sharing RUN OWNER/NAME", "task vectors or a model, to the Hugging Face hub"),
)
_VALUES = {
    "config": "NAME[:VARIANT]",
    "workdir": "DIR",
    "coordinator": "HOST:PORT",
    "processes": "N",
    "process": "I",
    "patience": "SECONDS",
}
_READER = re.compile(r"; [a-z_.]+( and [a-z_.]+)?$")


def show_help(argv: Sequence[str]) -> bool:
    """Shows the page that a command line asks for, if it asks for one; nothing is written.

    Args:
        argv: the words. `--help` alone is about the command, with `--config=…` about that config, with `merging`
            about merging methods; `:help` in place of a variant lists the variants.

    Returns:
        Whether there was one.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: the words beside `--help` cannot be read.
    """
    argv = [Path(argv[0]).name if argv else "tajax", *argv[1:]]
    command = "python -m tajax.main" if argv[0] in ("main.py", "__main__.py") else argv[0]
    given = [value for word, value in zip(argv, argv[1:], strict=False) if word in ("--config", "-config")]
    given += [word.partition("=")[2] for word in argv if word.startswith(("--config=", "-config="))]
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    if given and given[-1].endswith(":help"):
        _print(console, variants_page(given[-1].removesuffix(":help"), command))
    elif not set(HELP) & set(argv):
        return False
    elif "merging" in argv[1:]:
        _print(console, merging_page(command))
    elif given:
        _print(console, config_page(read([word for word in argv if word not in HELP]), given[-1], command))
    else:
        _print(console, command_page(command, whole=any(word.endswith("helpfull") for word in argv)))
    return True


def command_page(command: str, *, whole: bool = False) -> Iterator[Part]:
    """The page of the command; `whole` with every field and flag."""
    yield Text("Task arithmetic: fine-tune an encoder per task, keep the differences as task vectors, add them.")
    yield Text(f"\nusage: {command} --config=NAME[:VARIANT] [--config.FIELD=VALUE …] [--workdir=DIR] [flags]")
    here = any(not path.is_absolute() for path in files.found().values())
    yield from _section(
        f"configs ({'in ./configs' if here else 'they come with tajax'}; or a path, --config=path/to/mine.py)",
        ((name, files.summary(path)) for name, path in files.found().items()),
    )
    yield from _section("variants, after a colon", ((name, _in_short(name)) for name in configuration.VARIANTS))
    yield from _section("workflows, --config.workflow=", configuration.WORKFLOWS.items())
    comments, default = configuration.field_comments(), configuration.flatten(configuration.default_config())
    title = "every field" if whole else f"fields that are set most often ({command} --helpfull shows all)"
    shown = [name for name in comments if name in default] if whole else MOST_USED
    rows = ((f"--config.{name}", _meaning(name, comments[name], default[name])) for name in shown)
    yield from _section(title, rows)
    yield Text("\nrules of --config.trainable", "bold")
    yield Padding(Text(f"{', '.join(RULES)}; or patterns over parameter paths"), (0, 0, 0, 2))
    yield from _section("flags", _flag_rows(define(()), whole=whole))
    yield from _section("examples", ((line.format(command), what) for line, what in EXAMPLES), stacked=True)
    yield from _section("exit codes", EXIT_CODES)
    yield from _section("also", ((line.format(command), what) for line, what in ALSO))


def config_page(values: flags.FlagValues, given: str, command: str) -> Iterator[Part]:
    """Every field that a config's workflow reads: its value, whether that is the default, and what it means."""
    configuration.validate(config := values.config)
    comments, default = configuration.field_comments(), configuration.flatten(configuration.default_config())
    yield Text(
        f"{command} --config={given}: every field that {config.workflow} reads, set with --config.FIELD=VALUE.\n"
        "* differs from the default\n"
    )
    table = _grid()
    table.add_column(overflow="fold")
    fields = configuration.flatten(config)
    own = f"merging.{config.merging.method}."
    prepared = tuple(f"merging.{name}." for name in config.merging.prepare)
    shown = [
        name
        for name in comments
        if name in fields and (name not in merging_options() or name.startswith((own, *prepared)))
    ]
    read = {name: configuration.reads(config.workflow, name) for name in shown}
    for name in filter(read.__getitem__, read):
        changed = fields[name] != default[name]
        row = f"{'*' if changed else ' '} {name}", _brief(fields[name]), comments[name]
        table.add_row(*(Text(cell, "bold" if changed else "") for cell in row))
    yield table
    sections = {name.split(".")[0] for name, is_read in read.items() if is_read}
    others = dict.fromkeys(
        name if name.split(".")[0] in sections or "." not in name else f"{name.split('.')[0]}.*"
        for name, is_read in read.items()
        if not is_read
    )
    yield Padding(Text(f"Other workflows read: {', '.join(others)}."), (1, 0, 0, 0))
    if configuration.reads(config.workflow, "merging"):
        yield Padding(Text(f"{command} --help merging: other merging methods and their options."), 0)


def merging_page(command: str) -> Iterator[Part]:
    """Every merging method: what it makes of the vectors, what it needs beside them, and its options."""
    yield Text(f"{command} --config=NAME --config.merging.method=METHOD [--config.merging.METHOD.OPTION=VALUE …]")
    yield Text("python -m tajax.merge BASE FINE_TUNED FINE_TUNED … --method=METHOD --out=DIR  # without a task")
    for name, row in METHODS.items():
        needs = {"nothing": "", "inputs": "Needs examples of the tasks. ", "labels": "Needs labelled examples. "}
        coef = "" if row.scaled else "Takes no coefficient. "
        yield from _described(name, row.merge, f" {needs[row.needs]}{coef}", row.settings)
    yield Text("\nDone to the vectors before, in this order: --config.merging.prepare=\"('NAME', 'NAME')\"")
    for name, preparation in PREPARATIONS.items():
        yield from _described(name, preparation.prepare, "", preparation.options)


def _described(name: str, function: Callable[..., object], more: str, options: Mapping[str, Option]) -> Iterator[Part]:
    yield Text(f"\n{name}", "bold")
    yield Padding(Text(f"{(inspect.getdoc(function) or '').splitlines()[0]}{more}"), (0, 0, 0, 2))
    table = _grid()
    for keyword, option in options.items():
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        help_of = f"{option.help}{choices} [default: {option.default!r}]"
        table.add_row(Text(f"    merging.{name}.{keyword}"), Text(help_of))
    if options:
        yield table


def variants_page(file: str, command: str) -> Iterator[Part]:
    """The variants that a config file offers, and model, tasks and length of each.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: it cannot be read, or offers none.
    """
    path = files.locate(file)
    yield Text(": ".join(filter(None, (file, files.summary(path)))) + "\n")
    offered = []
    for name in configuration.VARIANTS:
        try:
            offered.append((name, read([command, f"--config={path}:{name}"]).config))
        except (ValueError, OSError):
            continue  # not one of its own; what is wrong with all of them is said below
    if not offered:
        config: ConfigDict = read([command, f"--config={path}"]).config
        yield Text("It takes no variant of tajax. Without one:\n")
        offered = [("", config)]
    table = _grid()
    for name, config in offered:
        for label, text in _facts(config):
            table.add_row(Text(name, "bold"), Text(f"{label}: {text}"))
            name = ""
    yield table
    yield Text(f"\n{command} --config={file}{':' + offered[0][0] if offered[0][0] else ''} --help shows every field.")


def _facts(config: ConfigDict) -> Iterator[tuple[str, str]]:
    yield "model", config.model
    yield "workflow", f"{config.workflow}, regime {config.regime}"
    if configuration.reads(config.workflow, "pretrain"):
        yield "length", f"{config.pretrain.steps} steps of {config.pretrain.batch_size}"
        return
    yield f"{len(config.tasks)} tasks", ", ".join(config.tasks)
    if config.control and configuration.reads(config.workflow, "control"):
        yield "control", config.control
    steps, epochs = config.finetune.steps, config.finetune.epochs
    epochs_or_table = f"{epochs} epochs a task" if epochs else "as many epochs as the task table says"
    length = f"{steps} steps a task" if steps else epochs_or_table
    yield "length", f"{length}, batches of {config.finetune.batch_size}"


def _in_short(variant: str) -> str:
    config = configuration.with_variant(configuration.default_config(), variant)
    tasks, count = config.tasks, len(config.tasks)
    sets = {
        BUNDLED_TASKS: f"the {count} bundled tasks",
        PROTOCOL_TASKS: f"the papers' {count} tasks",
        SUITE_TASKS: f"the suite of {count} tasks",
        TEXT_TASKS: f"{count} sets of texts",
    }
    return f"{'the bundled model' if config.model == 'tiny' else config.model}, {sets[tasks]}"


def _meaning(name: str, comment: str, default: object) -> str:
    """A field's comment without the module that reads it, and its default where that says something."""
    known = {"data_dir": "$TAJAX_DATA_DIR or ~/.cache/tajax", "tasks": "those of the variant"}
    shown = "" if default is None else f" [default: {known.get(name) or _brief(default)}]"
    return _READER.sub("", comment) + shown


def _brief(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 8 and not any(isinstance(item, str) for item in value):
        return f"({value[0]}, {value[1]}, …, {value[-1]}): {len(value)} values"
    return repr(value)


def _flag_rows(values: flags.FlagValues, *, whole: bool) -> Iterator[tuple[str, str]]:
    for name in values:
        flag = values[name]
        if flag.name == name:  # and not its short name
            value = "" if flag.boolean else "=" + _VALUES.get(name, "VALUE")
            short = f"-{flag.short_name}, " if flag.short_name else ""
            default = f" [default: {flag.default}]" if isinstance(flag.default, int) and not flag.boolean else ""
            yield f"{short}--{name}{value}", " ".join(flag.help.split()) + default
    if whole:
        yield "--flagfile=FILE", "read further flags from a file, one a line"


def _section(title: str, rows: Rows, *, stacked: bool = False) -> Iterator[Part]:
    yield Text(f"\n{title}", "bold")
    if stacked:
        for first, second in rows:
            yield Text(f"  {first}\n      {second}")
        return
    table = _grid()
    for first, second in rows:
        table.add_row(Text(f"  {first}"), Text(second))
    yield table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    return table


def _print(console: Console, page: Iterable[Part]) -> None:
    with console.capture() as capture:
        for part in page:  # whole or not at all
            console.print(part, soft_wrap=isinstance(part, Text) and not console.is_terminal)
    try:
        print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)
    except BrokenPipeError:  # of `tajax --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
