"""Task analogies: from two halves of a task's classes and one changed, does the other changed half follow?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import data, report, results

HERE = Path(__file__).resolve().parent
SOURCES = {  # tasks that are cut in halves; "{data}" is the folder of real images
    "bundled": ("digits", "letters"),
    "real": ("{data}/mnist.npz", "{data}/fashion_mnist.npz"),
    "text": ("trec", "banking77"),
    "b32": ("mnist", "svhn"),
    "b16": ("mnist", "svhn"),
    "l14": ("mnist", "svhn"),
}
STEPS = {"bundled": 100, "real": 100, "text": 100}  # of fine-tuning; of real CLIP as many as the papers' tasks take
CLIP_STEPS = 2000
LIMIT = 5000  # images or texts of a half in each split
CHANGES = {"images": "in inverted colours", "texts": "with the words of each text in reverse order"}
"""What happens to the examples of B and D."""
SUFFIXES = {"images": "inverted", "texts": "reversed"}
COMPARED = ("zero-shot", "C alone", "analogy", "fine-tuned")


def main() -> None:
    regimes = ("standard", "attention", "linear")
    options = protocol.arguments(__doc__, regimes=regimes).parse_args()
    folder = destination.chosen(options, HERE)
    runs: dict[tuple[str, str], list[Run]] = {}
    for source in SOURCES[options.benchmark]:
        name, paths = make_quadruple(options, source)
        for regime in options.regimes:
            runs[name, regime] = [_run(options, regime, seed, name, paths) for seed in options.seeds]
    every = [run for group in runs.values() for run in group]
    table = overview(runs, CHANGES[protocol.examples(options.benchmark)])
    table = table._replace(notes=(*table.notes, summary.took(every)))
    stages = ("zero_shot", "single_task", "analogy_sweep", "task_analogy")
    summary.write(folder, options.benchmark, [table], [r for run in every for r in summary.kept(run, *stages)])
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")


def _run(options: argparse.Namespace, regime: str, seed: int, name: str, paths: tuple[str, ...]) -> Run:
    steps = STEPS.get(options.benchmark, CLIP_STEPS)
    fields = {"workflow": "task_analogy", "tasks": paths, "finetune.steps": steps}
    return protocol.finetuned(options, regime, seed, label=f"analogy_{name}", **fields)


def make_quadruple(options: argparse.Namespace, source: str) -> tuple[str, tuple[str, ...]]:
    """Four tasks as .npz files: the first half of the classes, the same changed, the second half, that changed.

    Images are inverted, of texts the words are put into reverse order.

    Returns:
        The name of the source, and the paths in the order A, B, C, D.
    """
    entry = source.format(data=options.data)
    folder = options.runs / options.benchmark / "analogies"
    data_dir = protocol.make_config(options, "standard", 0).data_dir
    task = data.open_task(entry, data_dir=data_dir)
    classes = len(task.class_names)
    paths = []
    for half, labels in (("first", range(classes // 2)), ("second", range(classes // 2, classes))):
        suffixes = "", f"_{SUFFIXES[task.modality]}"
        plain, changed = (folder / f"{task.name}_{half}{suffix}.npz" for suffix in suffixes)
        if not (plain.exists() and changed.exists()):
            arrays = _half(task, labels)
            turned = {k: _changed(a, task.modality) if k.endswith(task.modality) else a for k, a in arrays.items()}
            folder.mkdir(parents=True, exist_ok=True)
            for path, content in ((plain, arrays), (changed, turned)):
                temporary = path.with_suffix(".tmp.npz")
                np.savez(temporary, **content)
                temporary.replace(path)
        paths += [str(plain), str(changed)]
    return task.name, tuple(paths)


def _half(task: data.Task, labels: range) -> dict[str, np.ndarray]:
    """The images or texts of some classes, labelled anew from 0."""
    arrays = {"class_names": np.array([task.class_names[k] for k in labels]), "templates": np.array(task.templates)}
    for split in ("train", "val", "test"):
        source, examples, found = task.split(split), [], []
        for index in range(len(source)):
            example, label = source[index]
            if label in labels:
                examples.append(example if task.modality == "texts" else np.asarray(example.convert("RGB")))
                found.append(label - labels.start)
            if len(found) == LIMIT:
                break
        arrays |= {f"{split}_{task.modality}": np.array(examples), f"{split}_labels": np.array(found)}
    return arrays


def _changed(examples: np.ndarray, modality: str) -> np.ndarray:
    """What `CHANGES` says, of images `[N, H, W, 3]` or texts `[N]`."""
    if modality == "images":
        return 255 - examples
    return np.array([" ".join(reversed(text.split())) for text in examples.tolist()])


def _accuracies(run: Run) -> Mapping[str, float]:
    """Test accuracy on D of everything that is compared."""
    found = results.find(run.records, stage="task_analogy", split="test")
    target = str(found[0]["task"])
    groups = (
        results.find(run.records, stage="zero_shot", task=target, split="test"),
        results.find(found, vector="c_alone"),
        results.find(found, vector="analogy"),
        results.find(run.records, stage="single_task", task=target, split="test"),
    )
    return {name: record["top1"] for name, (record,) in zip(COMPARED, groups, strict=True)}


def overview(runs: Mapping[tuple[str, str], list[Run]], change: str) -> report.Table:
    """A line for each task that was cut in halves and each regime."""
    rows = []
    for (name, regime), group in runs.items():
        measured = [_accuracies(run) for run in group]
        accuracies = (summary.percents(one[compared] for one in measured) for compared in COMPARED)
        chosen = [
            results.find(run.records, stage="task_analogy", split="test", vector="analogy")[0]["scaling_coef"]
            for run in group
        ]
        rows.append((name, regime, str(len(group)), *accuracies, report.spread(chosen, 2)))
    notes = (
        f"Test accuracy on D, the second half of the classes {change}, ± deviation over seeds, in %. "
        "Analogy: θ₀ + α(τ_C + τ_B − τ_A), with α tuned on validation images of D, as for C alone.",
    )
    columns = ("task", "regime", "seeds", "zero-shot", "C alone", "analogy", "fine-tuned on D", "α")
    return report.Table(f"Analogies: the second half of the classes {change}", columns, tuple(rows), notes)


def draw(runs: Mapping[tuple[str, str], list[Run]]) -> Figure:
    """For each task a panel: accuracy on D of what is compared, by regime."""
    names = list(dict.fromkeys(name for name, _ in runs))
    figure = Figure(figsize=(9, 3.2))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        bars = {
            regime: [[100 * value for value in list(_accuracies(run).values())[1:]] for run in group]
            for (of, regime), group in runs.items()
            if of == name
        }
        figures.bars(axes, COMPARED[1:], bars)
        first = next(group[0] for (of, _), group in runs.items() if of == name)
        before = 100 * _accuracies(first)[COMPARED[0]]  # of the model that all regimes start from
        axes.axhline(before, label="pre-trained model", **figures.BASELINE | {"zorder": 3})
        axes.set_title(figures.words(name))
    panels[0].set(ylabel="test accuracy on D, %", ylim=(0, 100))
    seeds = len(next(iter(runs.values())))
    note = r"analogy: $\theta_0 + \alpha(\tau_C + \tau_B - \tau_A)$; fine-tuned: on D itself; "
    figures.legend(figure, note + figures.over_seeds("whiskers", seeds))
    return figure


if __name__ == "__main__":
    main()
