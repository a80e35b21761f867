"""The questions that a run can answer, one a workflow: what rooms below `workflows` must know of each.

The program is the module of that name in `tajax.workflows`. Its row stands here, below all who read it: config (which
fields count, what is checked), command line (what `--help` says), report (what a finished run has recorded).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

ON_TASKS: tuple[str, ...] = ("regime", "trainable", "layers", "model", "family", "initialization", "heads", "tasks")
ON_TASKS += (
    "max_tokens",
    "task_vectors",
    "checkpoints",
    "any_base",
    "data_workers",
    "devices",
    "placement",
    "precision",
    "fsdp",
    "evaluate.batch_size",
    "linearize_through_norm",
)
ON_VECTORS = (*ON_TASKS, "finetune", "tune")


class Question(NamedTuple):
    """What is known of a workflow without its program.

    Attributes:
        text: the question, one line.
        reads: fields of the config, or whole sections, that not all workflows read, and this one does.
        control: why it needs a control task, and which to give; empty if it takes none.
        roles: of its tasks, where their number is fixed.
        processes: whether several may share the work; else it runs in one, with all of its devices.
        each: what its last stage, which bears its name, has a record of at least; of steps, nobody knows how many.
        section: of the report, with its numbers; where it has none, they stand in a plain table.
    """

    text: str
    reads: tuple[str, ...]
    control: str = ""
    roles: tuple[str, ...] = ()
    processes: bool = True
    each: Literal["task", "pair", "run", "step"] = "task"
    section: str = ""


QUESTIONS: Mapping[str, Question] = {
    "single_task": Question("how good one fine-tuned model is at each task", ON_VECTORS, section="accuracy"),
    "task_addition": Question(
        "how much of every task one merged model keeps: θ₀ + α Σ τ, α tuned on validation",
        (
            *(*ON_VECTORS, "evaluate.scaling_coefs", "evaluate.search", "evaluate.exact", "merging"),
            *("save", "save.playground"),
        ),
        section="accuracy",
    ),
    "task_negation": Question(
        "how much of a task θ₀ − ατ forgets before a control task suffers",
        (*ON_VECTORS, "control", "evaluate.scaling_coefs", "evaluate.exact", "evaluate.control_threshold")
        + ("save.playground",),
        control="needs a task that must not suffer. Give --config.control=NAME, such as imagenet",
        section="negation",
    ),
    "task_analogy": Question(
        "whether C + (B − A) knows D, of which it has seen no example; the tasks are the four",
        (*ON_VECTORS, "evaluate.scaling_coefs", "evaluate.exact"),  # the last one to refuse it
        roles=("A", "B", "C", "D"),
        each="run",
        section="negation",
    ),
    "disentanglement": Question(
        "where two task vectors disturb each other: maps of ξ(α₁, α₂)",
        (*ON_VECTORS, "disentanglement"),
        processes=False,
        each="pair",
        section="disentanglement",
    ),
    "kernel_behaviour": Question(
        "how far each fine-tuned model is from its linearisation",
        (*ON_VECTORS, "evaluate.scaling_coefs"),
        processes=False,
        section="kernel",
    ),
    "geometry": Question(
        "how long the task vectors are, where in the model, and at which angles",
        ON_VECTORS,
        each="run",
        section="geometry",
    ),
    "ntk": Question(
        "on whose examples the leading eigenfunctions of the NTK live, at θ₀",
        (*ON_TASKS, "control", "ntk"),
        control="compares tasks with a control. Give --config.control=NAME, such as objects or imagenet",
        processes=False,
        section="ntk",
    ),
    "curvature": Question(
        "which changes of the parameters move each task's features, in factors for the regime tak",
        (*ON_TASKS, "curvature"),
        processes=False,
    ),
    "pretrain": Question(
        "makes the bundled small CLIP from scratch",
        ("pretrain", "devices", "placement", "fsdp"),
        processes=False,
        each="step",
        section="training",
    ),
}
