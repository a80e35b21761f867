"""What a display of a run is told of; this one shows nothing."""

from __future__ import annotations

from tajax.progress.state import Item, Plan, Stage


class Display:
    """Is told of each change, with the plan after it and the time. Others show what they have a method for."""

    def began(self, plan: Plan, stage: Stage, now: float) -> None:
        """A stage has begun."""

    def moved(self, plan: Plan, stage: Stage, item: Item, now: float) -> None:
        """So much of an item is done."""

    def item_ended(self, plan: Plan, stage: Stage, item: Item, now: float) -> None:
        """An item is done."""

    def ended(self, plan: Plan, stage: Stage, now: float) -> None:
        """A stage is done."""

    def stopped(self, plan: Plan, now: float) -> None:
        """The run has ended before its time; who ended it says why."""

    def closed(self, plan: Plan, now: float) -> None:
        """The run is done."""

    def say(self, text: str) -> None:
        """A message."""
