"""What the rounding of GPUs and TPUs changes of task arithmetic: accuracies, and what vectors do to features."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import destination, protocol, summary
from experiments.precision.rounding import MANTISSA_BITS, round_products
from experiments.protocol import Run
from tajax import apply_task_vector, combine, data, encoders, linear_responses, linearize, report, vector_files
from tajax.regimes import REGIMES
from tajax.report import Table
from tajax.results import Record
from tajax.types import Precision

HERE = Path(__file__).resolve().parent
EXAMPLES = 256


class Rounding(NamedTuple):
    """How exactly an encoder is trained and evaluated.

    Attributes:
        precision: `config.precision`.
        products: how those of float32 are rounded, a key of `MANTISSA_BITS`; None: not at all, as on a CPU.
        words: what tables call it.
    """

    precision: Precision
    products: str | None
    words: str


ROUNDINGS = {
    "float32": Rounding("default", None, "float32: a CPU, or `highest`"),
    "tf32": Rounding("default", "tf32", "products of TF32: a GPU's `default`"),
    "bf16_products": Rounding("default", "bf16_products", "products of bfloat16: a TPU's `default`"),
    "bf16": Rounding("bf16", None, "all in bfloat16: `bf16`"),
}


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=("standard", "linear"))
    parser.add_argument(
        "--roundings", nargs="+", choices=tuple(ROUNDINGS), default=tuple(ROUNDINGS), help="what is compared"
    )
    parser.add_argument("--only", choices=tuple(ROUNDINGS), help="make the runs of this rounding, and no tables")
    options = parser.parse_args()
    if options.only:
        make(options)
        return
    folder = destination.chosen(options, HERE)
    for name in options.roundings:  # a process has one rounding
        ended = subprocess.run([sys.executable, "-m", "experiments.precision.run", *sys.argv[1:], "--only", name])
        if ended.returncode:
            sys.exit(ended.returncode)
    runs = {
        (regime, name): [_run(options, name, regime, seed) for seed in options.seeds]
        for regime in options.regimes
        for name in options.roundings
    }
    every = [run for group in runs.values() for run in group]
    where = protocol.tasks_in_words(options)
    tables = [_accuracies(runs, where), _effects(options, where)]
    tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, summary.took(every)))
    kept = [record for (_, name), group in runs.items() for run in group for record in _kept(run, name)]
    summary.write(folder, options.benchmark, tables, kept)


def make(options: argparse.Namespace) -> None:
    """The runs of one rounding, and the features of float32's models as it rounds them."""
    rounding = ROUNDINGS[options.only]
    if rounding.products:
        round_products(MANTISSA_BITS[rounding.products])
    for regime in options.regimes:
        for seed in options.seeds:
            run, place = _run(options, options.only, regime, seed), _place(options, options.only, regime, seed)
            if not place.exists():
                vectors = _run(options, "float32", regime, seed).directory / "task_vectors"
                np.savez(place, **features(run, vectors, rounding.precision))


def features(run: Run, vectors: Path, precision: Precision) -> dict[str, np.ndarray]:
    """Features [B, E] of validation examples of the run's first task, of the mean of the vectors in a folder.

    Returns:
        `at_0`, `at_half`, `at_1`: of θ₀ + α τ̄, in the expansion around θ₀ where the regime is evaluated in it; of such
        a regime also `response`, J(θ₀) τ̄, which evaluation along task vectors adds up.
    """
    config = run.config
    encoder = encoders.load(config.model, family=config.family, precision=precision)
    tasks = data.open_tasks(config.tasks, data_dir=config.data_dir)
    files = [vectors / f"{task.name}.safetensors" for task in tasks]
    taus = [vector_files.load_task_vector(file, encoder.params)[0] for file in files]
    mean = combine(taus, [1 / len(taus)] * len(taus))
    linearized = REGIMES[config.regime].evaluate_linearized
    apply = linearize(encoder.apply, encoder.params) if linearized else encoder.apply
    batch = next(iter(data.load(tasks[0], "val", batch_size=EXAMPLES, preprocessing=encoder.inputs)))
    inputs = jnp.asarray(batch.inputs)
    at = jax.jit(lambda params: apply(params, inputs))
    coefs = {"at_0": 0.0, "at_half": 0.5, "at_1": 1.0}
    found = {name: at(apply_task_vector(encoder.params, mean, coef)) for name, coef in coefs.items()}
    if linearized:
        respond = encoder.apply_for_responses
        push = jax.jit(lambda tau: linear_responses(respond, encoder.params, [tau], inputs)[1][0])
        found["response"] = push(mean)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def effect_lost(rounded: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """How wrong the change of features that the vectors make is: ‖Δ − Δ_float32‖ / ‖Δ_float32‖, Δ = f(1) − f(0)."""
    change, wanted = (of["at_1"] - of["at_0"] for of in (rounded, exact))
    return float(np.linalg.norm(change - wanted) / np.linalg.norm(wanted))


def bend(found: dict[str, np.ndarray]) -> float:
    """How far features are from affine in α: ‖f(1) − 2 f(½) + f(0)‖ / ‖f(1) − f(0)‖."""
    bent = found["at_1"] - 2 * found["at_half"] + found["at_0"]
    return float(np.linalg.norm(bent) / np.linalg.norm(found["at_1"] - found["at_0"]))


def response_lost(rounded: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """How wrong the response that evaluation adds up is: ‖Jτ̄ − (Jτ̄)_float32‖ / ‖(Jτ̄)_float32‖."""
    return float(np.linalg.norm(rounded["response"] - exact["response"]) / np.linalg.norm(exact["response"]))


def _run(options: argparse.Namespace, name: str, regime: str, seed: int) -> Run:
    """Trained, merged and evaluated with a rounding; those of float32 are the runs of all experiments."""
    label = "" if name == "float32" else name
    return protocol.finetuned(options, regime, seed, label=label, precision=ROUNDINGS[name].precision)


def _kept(run: Run, name: str) -> list[Record]:
    """The records of a run, with its rounding: the process did not know that somebody rounded its products."""
    records = summary.kept(run, "zero_shot", "single_task", "task_addition")
    about = {"rounding": name} | ({"products": name} if ROUNDINGS[name].products else {})
    return [record | (about if record["stage"] == "run" else {"rounding": name}) for record in records]


def _place(options: argparse.Namespace, name: str, regime: str, seed: int) -> Path:
    few = "few" if options.few else ""
    return protocol.directory(options, "precision", regime, few, name, seed).with_suffix(".npz")


def _accuracies(runs: dict[tuple[str, str], list[Run]], where: str) -> Table:
    rows = []
    for (regime, name), group in runs.items():
        stages = ("zero_shot", "single_task", "task_addition")
        cells = [summary.percents(summary.mean(run, stage) for run in group) for stage in stages]
        coefs = [next(r["scaling_coef"] for r in run.records if r["stage"] == "task_addition") for run in group]
        rows.append((f"{regime}, {ROUNDINGS[name].words}", *cells, f"{statistics.fmean(coefs):.2f}"))
    columns = ("trained and evaluated in", "zero-shot", "single-task", "merged", "α")
    return Table(f"Rounding and mean test accuracy on {where}, in %", columns, tuple(rows))


def _effects(options: argparse.Namespace, where: str) -> Table:
    rows = []
    for regime in options.regimes:
        for name in options.roundings:
            pairs = [
                [dict(np.load(_place(options, one, regime, seed))) for one in (name, "float32")]
                for seed in options.seeds
            ]
            linearized = REGIMES[regime].evaluate_linearized
            rows.append(
                (
                    f"{regime}, {ROUNDINGS[name].words}",
                    _percent(effect_lost(*pair) for pair in pairs),
                    _percent(bend(rounded) for rounded, _ in pairs) if linearized else "–",
                    _percent(response_lost(*pair) for pair in pairs) if linearized else "–",
                )
            )
    columns = ("evaluated in", "effect of τ̄, error", "bend over α", "response to τ̄, error")
    notes = (
        f"Of float32's vectors and {EXAMPLES} validation examples of one task. τ̄ is the mean of the task vectors.",
        "Effect: f(θ₀ + τ̄) − f(θ₀), in the expansion where the regime has one; its error is the length of the "
        "difference from float32's, relative to that.",
        "Bend: ‖f(1) − 2 f(½) + f(0)‖ / ‖f(1) − f(0)‖ over α. Response: J(θ₀)τ̄, of which evaluation of linearised "
        "models makes affine sums in float32.",
    )
    return Table(
        f"What rounding leaves of a task vector's effect on features, {where}, in %", columns, tuple(rows), notes
    )


def _percent(values: Iterable[float]) -> str:
    return report.spread([100 * value for value in values], 2)


if __name__ == "__main__":
    main()
