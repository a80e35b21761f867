"""Types and shapes checked while the core's tests run: `--jaxtyping-packages=tajax,tests.core.shapes.check`."""

import contextlib

import jaxtyping


def check(function):
    """Checks a function's arguments and result; an int will do where a float is wanted, as type checkers have it."""
    from beartype import BeartypeConf, beartype  # of the extra `dev`

    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))


@contextlib.contextmanager
def unchecked():
    """Here nothing is checked: what is wrong on purpose, or what works beyond its types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
