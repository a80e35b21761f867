"""What the papers' code does with the reference model: a model edited anew for each coefficient, then evaluated.

Kept as quick as that procedure allows: no gradients are recorded, tensors are contiguous, attention is fused wherever
forward-mode differentiation is not needed, AdamW is the fused one, and nothing is read back from disk but the images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from reference import ImageTower, State
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import DataLoader, Dataset

from tajax.types import Preprocessing

Model = Callable[[Tensor], Tensor]
"""Normalised images `[B, 3, H, W]` → features `[B, E]`."""

ReadImages = Callable[[], Iterable[Tensor]]
"""A pass over a data set: batches of normalised images."""


class ImageFiles(Dataset):
    """Image files as tensors `[3, size, size]`: decoded, resized (bicubic), cropped at the centre, normalised."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing):
        self.paths, self.size = paths, preprocessing.size
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        short = min(image.size)
        image = image.resize([self.size * side // short for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - self.size) // 2 for side in image.size)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


def read_files(paths: Sequence[Path], preprocessing: Preprocessing, *, batch_size: int) -> ReadImages:
    """A pass that reads and decodes every file again."""
    return lambda: DataLoader(ImageFiles(paths, preprocessing), batch_size=batch_size)


def logits_of(model: Model, images: Iterable[Tensor], head: Tensor) -> Tensor:
    """Logits `[N, K]` of a model on a data set under a head `[E, K]`, features L2-normalised."""
    return torch.cat([F.normalize(model(batch), dim=-1) @ head for batch in images])


def add_vectors(taus: Sequence[State]) -> dict[str, Tensor]:
    """Σ_t τ_t, pair by pair and entry by entry."""
    total = dict(taus[0])
    for tau in taus[1:]:
        total = {name: total[name] + tau[name] for name in total}
    return total


def scaled_sum(taus: Sequence[State], coefs: Sequence[float]) -> dict[str, Tensor]:
    """Σ_t c_t τ_t."""
    pairs = zip(taus, coefs, strict=True)
    return add_vectors([{name: coef * value for name, value in tau.items()} for tau, coef in pairs])


def edited(model: ImageTower, taus: Sequence[State], coefs: Sequence[float]) -> ImageTower:
    """A new model at θ₀ + Σ_t c_t τ_t."""
    step, state = scaled_sum(taus, coefs), model.state_dict()
    rebuilt = copy.deepcopy(model)
    rebuilt.load_state_dict({name: state[name] + step[name] for name in state})
    return rebuilt


def linearized(model: ImageTower, step: State) -> Model:
    """f(θ₀) + J·step, by forward-mode differentiation in the weights that `step` names; the others stay constants."""
    weights = dict(model.named_parameters())
    origin = {name: weights[name] for name in step}

    def features(images: Tensor) -> Tensor:
        outputs, tangent = jvp(lambda params: functional_call(model, params, (images,)), (origin,), (dict(step),))
        return outputs + tangent

    return features


def edited_linearized(model: ImageTower, taus: Sequence[State], coefs: Sequence[float]) -> Model:
    """A new linearised model at θ₀ + Σ_t c_t τ_t."""
    return linearized(copy.deepcopy(model), scaled_sum(taus, coefs))


def sweep(
    edit: Callable[[ImageTower, Sequence[State], Sequence[float]], Model],
    model: ImageTower,
    taus: Sequence[State],
    coefs: Sequence[Sequence[float]],
    head: Tensor,
    read: ReadImages,
) -> np.ndarray:
    """Logits `[G, N, K]` at every row of coefficients: edit the model, read the data set, evaluate it.

    Args:
        edit: `edited`, or `edited_linearized` with a model of maths attention.
        model: at θ₀.
        taus: T task vectors.
        coefs: G rows of T coefficients.
        head: `[E, K]`.
        read: a pass over the data set.
    """
    with torch.no_grad():  # not inference mode: forward-mode differentiation refuses its tensors
        return np.stack([logits_of(edit(model, taus, row), read(), head).numpy() for row in coefs])


def make_train_step(
    model: ImageTower, trained: Sequence[str], head: Tensor, *, tangent_space: bool, learning_rate: float
) -> Callable[[Tensor, Tensor], float]:
    """A step of AdamW on the cross-entropy of the frozen head, with gradients clipped at norm 1.

    Args:
        model: at θ₀; in the tangent space it stays there, else it is trained in place.
        trained: names of the weights to train; all others are frozen.
        head: `[E, K]`.
        tangent_space: train the first-order expansion around θ₀, whose forward pass is a jvp.
        learning_rate: constant.

    Returns:
        `step(images, labels) -> loss` before the update.
    """
    weights = dict(model.named_parameters())
    if tangent_space:
        weights = {name: nn.Parameter(weights[name].clone()) for name in trained}
    parameters = [weights[name].requires_grad_() for name in trained]
    origin = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.1, fused=True)

    def step(images: Tensor, labels: Tensor) -> float:
        apply = linearized(model, {n: weights[n] - origin[n] for n in trained}) if tangent_space else model
        loss = F.cross_entropy(F.normalize(apply(images), dim=-1) @ head, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    return step


@torch.no_grad()
def merge(pretrained: State, taus: Sequence[State], coef: float) -> dict[str, Tensor]:
    """θ₀ + α Σ_t τ_t by loops over dictionaries."""
    total = add_vectors(taus)
    return {name: pretrained[name] + coef * total[name] for name in pretrained}
