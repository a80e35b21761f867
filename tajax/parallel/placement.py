"""What a loop or a workflow asks of the way in which arrays are placed, and nothing else of devices."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

from tajax.types import Batch

Tree = TypeVar("Tree")
Step = Callable[..., Tree]


class Placement(Hashable, Protocol):
    """Where parameters and batches live, and how a step runs on them. `str` of one names its devices.

    Every method is to be called by all processes alike.
    """

    def shardings(self, tree: Tree, *, moments: bool = False) -> Tree:
        """Where `params` puts each leaf of a tree of arrays, or of their shapes: a tree of shardings.

        Raises:
            ValueError: a leaf cannot be divided as asked; it is named.
        """

    def params(self, tree: Tree, *, moments: bool = False) -> Tree:
        """A tree on the devices, once rather than at each call: θ₀, task vectors, what is trained, a head.

        With several processes the tree has to be the same in all of them. `moments` are those of an optimiser, which
        nothing but its update reads.
        """

    def keep(self, tree: Tree, *, moments: bool = False) -> Tree:
        """In a step of `compiled`: the tree, each leaf where `params` puts it."""

    def compiled(self, step: Step[Tree]) -> Step[Tree]:
        """A pure `step(state, *constants, batch) -> …` compiled for `params` and `batch`, its first argument donated.

        What it gives is each process's own; it can be lowered as a jitted function can.
        """

    def batch(self, batch: Tree) -> Tree:
        """A batch on the devices for a compiled step that sees all of its rows.

        A `Batch` is padded if need be; the rows of any other tree the devices have to divide.
        """

    def shares(self, batch: Batch) -> Batch:
        """A batch on the devices for steps of `sum` and `rows`, padded if need be; to be used any number of times."""

    def pad(self, batch: Batch) -> Batch:
        """The batch on the host, with the rows of mask False that `batch` and `shares` would add."""

    def sum(self, step: Step[Tree]) -> Step[Tree]:
        """A pure `step(*constants, batch) -> sums` compiled for `shares`: sums over the rows of all processes.

        Rows whose mask is False must add nothing. Integer sums do not depend on the number of devices or processes.
        """

    def rows(self, step: Step[Tree]) -> Step[Tree]:
        """A pure `step(*constants, batch) -> rows` compiled for `shares`: the rows of all processes, in their order.

        Leaves of what it returns have the rows first; those of padding come last.
        """

    def host(self, tree: Tree) -> Tree:
        """The tree with whole leaves that this process can read: never a part in place of an array."""

    def largest(self) -> Callable[[int], int]:
        """A function `number -> the largest number of any process` that does not wait for the devices.

        Every process has to call it as often as every other; what it returns is the same in all of them. With several
        processes the answer is about the numbers of some calls ago, 0 at first.
        """

    def check_batch_size(self, batch_size: int, *, what: str) -> None:
        """Raises ValueError, in which `what` names the number, if batches of this size cannot be divided."""
