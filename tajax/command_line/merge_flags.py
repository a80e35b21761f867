"""The flags of `python -m tajax.merge`: its own, those of the chosen method, and those of what is done before."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from tajax import encoders
from tajax.merging import METHODS, PREPARATIONS
from tajax.options import Option

DEFAULT = "task_arithmetic"
"""The method where none is named."""

_EXAMPLES = """\
Each FINE_TUNED is a directory or file in the formats of Hugging Face, open_clip or the papers' code, a LoRA adapter,
a task vector of tajax, or a hub id; each is told by its content. Vectors are kept on disk beside DIR and read leaf by
leaf, so that many large ones fit; core_space, lines, pcb and svc want all of them in memory.

examples:
  python -m tajax.merge openai/clip-vit-base-patch32 tanganke/clip-vit-base-patch32_{mnist,dtd,gtsrb} --out=merged
      the sum of three task vectors, at the coefficient that is usual where nothing is tuned
  python -m tajax.merge BASE A B --method=ties --density=0.1 --scaling-coef=1 --out=merged
  python -m tajax.merge --method=ties --help
      the options of a method
  python -m tajax.merge BASE A B --prepare=trim --trim.density=0.1 --prepare=rescale --out=merged
      each vector without its small entries, then all of one length, then their sum

exit codes: 0 done; 2 nothing was written, or a wrong option; 130 stopped by Ctrl-C, nothing was written.
"""


def parser_for(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The flags; those of the chosen method among them."""
    parser = argparse.ArgumentParser(
        prog="python -m tajax.merge",
        description="Merges encoders that were fine-tuned from one base, without a task or data, into a whole model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("base", metavar="BASE", help="what all were fine-tuned from: a hub id, a directory, or tiny")
    parser.add_argument("places", metavar="FINE_TUNED", nargs="+", help="two or more; see below")
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--method", default=DEFAULT, metavar="NAME", help=f"one of {', '.join(without_data())}")
    parser.add_argument(
        "--prepare",
        action="append",
        default=[],
        metavar="NAME",
        help=f"done to each vector before: {', '.join(PREPARATIONS)}; again for one more",
    )
    parser.add_argument("--scaling-coef", type=float, metavar="λ", help="default: what is usual for the method")
    parser.add_argument("--family", choices=tuple(encoders.FAMILIES), default="clip", help="of the base (%(default)s)")
    parser.add_argument("--format", default="huggingface", metavar="NAME", help="to write: %(default)s, or open_clip")
    parser.add_argument("--linearized", action="store_true", help="these are parameters of the expansion around BASE")
    parser.add_argument("--any-base", action="store_true", help="take what was made from another base, too")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of a method that draws (%(default)s)")
    parser.add_argument("-q", "--quiet", action="store_true", help="show nothing")
    method = _method_in(argv)
    if method in METHODS and METHODS[method].options:
        group = parser.add_argument_group(f"options of {method}")
        for keyword, option in METHODS[method].options.items():
            _add_option(group, f"--{keyword.replace('_', '-')}", option, option.default)
    group = parser.add_argument_group("options of what is done before")
    for name, preparation in PREPARATIONS.items():
        for keyword, option in preparation.options.items():
            _add_option(group, f"--{name}.{keyword.replace('_', '-')}", option, None)
    return parser


def _add_option(group: argparse._ArgumentGroup, flag: str, option: Option, default: object) -> None:
    group.add_argument(
        flag,
        type=_of_type(option),
        default=default,
        choices=option.choices or None,
        metavar=None if option.choices else type(option.default).__name__,
        help=f"{option.help} ({option.default})",
    )


def to_prepare(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What flags say is done before, with its options, which are taken out of the others.

    Raises:
        ValueError: a preparation that stands there twice, or an option of one that does not.
    """
    names = options["prepare"]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--prepare={twice[0]} stands there more than once: it has one set of options. Give it once.")
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, preparation in PREPARATIONS.items():
        for keyword in preparation.options:
            flag = f"{name}.{keyword.replace('_', '-')}"
            value = options.pop(flag.replace("-", "_"))
            if value is not None and name not in chosen:
                raise ValueError(f"--{flag} is {value!r}, but nothing reads it. Leave it out, or add --prepare={name}.")
            if value is not None:
                chosen[name][keyword] = value
    return chosen


def _method_in(argv: Sequence[str]) -> str:
    given = [value for word, value in zip(argv, argv[1:], strict=False) if word == "--method"]
    given += [word.partition("=")[2] for word in argv if word.startswith("--method=")]
    return given[-1] if given else DEFAULT


def _of_type(option: Option) -> Callable[[str], object]:
    kind = type(option.default)
    return {"True": True, "False": False}.__getitem__ if kind is bool else kind


def without_data() -> list[str]:
    """The methods that need no example of the tasks, which are all that it can merge by."""
    return [name for name, row in METHODS.items() if row.needs == "nothing"]
