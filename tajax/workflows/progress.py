"""What a person sees while a loop runs: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tajax import processes


class Progress:
    """Progress of one loop: steps done, the latest metrics, images a second, time left.

    Args:
        title: what is running, such as `finetune dtd`.
        total: steps in all.
        start: steps done before this process began.
        items_per_step: images a step; None leaves the rate out.
        every: seconds between lines where the output is not a terminal.
    """

    def __init__(
        self, title: str, *, total: int, start: int = 0, items_per_step: int | None = None, every: float = 15.0
    ):
        self.title, self.total, self.start = title, total, start
        self.items_per_step, self.every = items_per_step, every
        self.began = self.printed = time.monotonic()
        self.summary: str | None = None
        self.bar: Bar | None = None
        self.silent = not processes.is_first()  # of many processes all would say the same
        if sys.stderr.isatty() and not self.silent:
            columns = (
                TextColumn("{task.description:<18}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.row = self.bar.add_task(title, total=total, completed=start, metrics="")

    def __enter__(self) -> Progress:
        """Starts the clock and the bar."""
        self.began = self.printed = time.monotonic()
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Takes the bar away and leaves one line about what was done, if anything was."""
        if self.bar:
            self.bar.stop()
        if self.summary and failure[0] is None and not self.silent:
            seconds = time.monotonic() - self.began
            print(f"{self.title}: {self.summary}  {seconds:.0f} s", file=sys.stderr, flush=True)

    def update(self, done: int, metrics: Mapping[str, float]) -> None:
        """Shows that `done` steps of all are done.

        Args:
            done: steps done, those before `start` included.
            metrics: numbers to show, by name.
        """
        now = time.monotonic()
        steps_per_second = (done - self.start) / max(now - self.began, 1e-9)
        shown = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        if self.items_per_step is not None:
            shown += f"  {steps_per_second * self.items_per_step:.0f} images/s"
        self.summary = f"{done}/{self.total}  {shown}"
        if self.bar:
            self.bar.update(self.row, completed=done, metrics=shown)
        elif now - self.printed >= self.every and not self.silent:
            self.printed = now
            left = (self.total - done) / steps_per_second
            print(f"{self.title}: {self.summary}  {left:.0f} s left", file=sys.stderr, flush=True)
