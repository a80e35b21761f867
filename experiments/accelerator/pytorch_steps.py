"""The same training steps in plain PyTorch on the same card: ordinary and attention-only fine-tuning.

In a process that leaves the card to PyTorch: JAX takes three quarters of its memory at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.accelerator import workloads
from experiments.accelerator.timing import timed
from tajax.models import LoadedClip
from tajax.types import JsonObject

if TYPE_CHECKING:
    import torch

REGIMES = ("attention", "standard")


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """A row for each tower and regime, with the batches that fit by the part `steps`; or one that says why not."""
    if importlib.util.find_spec("torch") is None:
        yield {"missing": "no PyTorch here"}
        return
    import torch

    if not torch.cuda.is_available():
        yield {"missing": f"PyTorch {torch.__version__} here sees no CUDA device"}
        return
    torch.set_float32_matmul_precision("high")  # TF32 where the card has it, as JAX does by itself
    torch.backends.cudnn.allow_tf32 = True
    products = "TF32" if torch.cuda.get_device_capability()[0] >= 8 else "float32"
    about = {"torch": torch.__version__, "card": torch.cuda.get_device_name(), "products": products}
    found = {(row["model"], row["regime"]): row["batch"] for row in known.get("steps", {}).get("rows", ())}
    for tower, first in workloads.SIZES[sizes].batches.items():
        clip = workloads.load(sizes, tower)
        for regime in REGIMES:
            batch = found.get((tower, regime)) or first
            row = {"model": tower, "regime": regime, "batch": batch} | about
            try:
                run = make(clip, regime, batch, torch.device("cuda"))
                timing = timed(run, workloads.SIZES[sizes].repeats)
            except torch.cuda.OutOfMemoryError:
                yield row | {"missing": "out of memory"}
                continue
            peak = torch.cuda.max_memory_allocated()
            yield row | timing | {"images_per_second": batch / timing["seconds"], "peak_bytes": peak}


def make(clip: LoadedClip, regime: str, batch: int, device: torch.device) -> Callable[[], float]:
    """A step of fused AdamW with clipping at norm 1 on one batch, which returns the loss before it."""
    import torch
    import torch.nn.functional as F

    from experiments.benchmarks import reference

    model = reference.image_tower(clip.config.vision, clip.params["image"]).to(device)
    trained = _trained(model, regime, reference.ATTENTION_WEIGHTS)
    optimizer = torch.optim.AdamW(trained, lr=workloads.LEARNING_RATE, weight_decay=0.1, fused=True)
    given, head = workloads.batch(clip, batch), workloads.head(clip)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip.preprocessing.mean, clip.preprocessing.std))
    images = ((torch.tensor(given.inputs).permute(0, 3, 1, 2) / 255 - mean) / std).contiguous().to(device)
    labels = torch.tensor(given.label, dtype=torch.int64, device=device)
    weights = torch.tensor(head.weights.tolist(), device=device)

    def run() -> float:
        loss = F.cross_entropy(F.normalize(model(images), dim=-1) @ weights, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return run


def _trained(model: torch.nn.Module, regime: str, attention: Sequence[str]) -> list[torch.nn.Parameter]:
    named = dict(model.named_parameters())
    chosen = (
        named if regime == "standard" else {name: p for name, p in named.items() if name.endswith(tuple(attention))}
    )
    return [parameter.requires_grad_() for parameter in chosen.values()]
