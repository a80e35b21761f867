"""The control task: what an edit of the model must leave alone."""

from __future__ import annotations

from tajax import data
from tajax.records import Control
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.journal import SPLITS, Journal
from tajax.workflows.single_task import below_chance


def measure_control(journal: Journal, evaluator: Evaluator, control: data.Task) -> dict[str, float]:
    """Records the pre-trained model's accuracy on the control, validation and test; returns it by split."""

    def top1() -> dict[str, float]:
        return {record["split"]: record["top1"] for record in journal.find(Control)}

    for split, (key,) in journal.each(
        Control,
        SPLITS,
        lambda split: {"task": control.name, "split": split},
        units=lambda split: len(control.split(split)),
        name=str,
        note=lambda: f"{control.name} test top1 {top1()['test']:.3f}",
    ):
        (values,) = evaluator.evaluate(control, split)
        journal.record(Control, **key, **values, **below_chance(control, split, values["top1"]))
    return top1()
