"""Where the leading eigenfunctions of the NTK live: on the images of one task, or on any image.

Ortiz-Jimenez, Favero and Frossard 2023 (§5) show for pre-trained CLIP that eigenfunctions of a task's kernel carry
their *local energy*, E_loc(x) = Σ_ρ φ_ρ(x)² over the R leading ones, on the task's own images and not on those of a
control task, and that a random initialisation lacks this. Their code is unreleased and the text leaves open under which
distribution the φ_ρ are eigenfunctions. Both readings are here; n task images and m control images stand for the
distributions, always with probability 1/n and 1/m each.

**Nyström reading** (`nystrom_reading`). φ_ρ are eigenfunctions under the task's distribution, (1/n) Σ_i φ_ρ(x_i)² = 1
over its images, and carried to control images x by φ_ρ(x) = (1 / λ_ρ n) Σ_i k(x, x_i) φ_ρ(x_i). On the n images
themselves E_loc is R on average for *any* kernel, and for one that is nearly diagonal it falls to 0 on every other
image, those of the same task included. That comparison alone says nothing, so the reading also has *held-out* energies:
eigenfunctions under either half of the task's images, carried to the other half and to the control images. If task and
control were the same distribution, these two would agree in expectation.

**Mixture reading** (`mixture_reading`). φ_ρ are eigenfunctions under ½ task + ½ control (so n = m), and the share of
each on the task's images, p_ρ = (1/2n) Σ_{i in task} φ_ρ(x_i)², says where it lives. Their sum favours whichever side
has the larger kernel, and is ½ on average both if every eigenfunction lives on one side and if all live on both. The
*contrast* (2 p_ρ − 1)² tells these apart: 1 on one side alone, 0 on both alike. By chance, over random assignments of
the N = 2n images to the sides, its expectation is (N Σ_i q_i² − 1) / (N − 1) with q_i = φ_ρ(x_i)² / N, which is 1 for
an eigenfunction that lives on one image. What exceeds chance is (contrast − chance) / (1 − chance), after means over ρ.

"Leading" means a fixed number R of largest eigenvalues, the same in everything that is compared. Energies come one for
each eigenfunction, so that sums over fewer cost nothing. None of the numbers changes when the kernel is multiplied by a
constant; `cosine_kernel` takes out the gradient norm of every single image as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from tajax.ntk.kernel import trained_outputs
from tajax.ntk.spectrum import Spectrum, eigenfunctions, eigenfunctions_of_product, energies, extend
from tajax.types import ApplyFn, Mask, Params

Indices = Int[np.ndarray, " _"] | Sequence[int]


class Operator(NamedTuple):
    """A kernel on a set of inputs, through the two things asked of it; inputs are named by their numbers."""

    leading: Callable[[Indices, int], Spectrum]
    """Inputs and R to the eigenfunctions under the distribution of these inputs."""
    carry: Callable[[Spectrum, Indices, Indices], np.ndarray]
    """Eigenfunctions, the inputs they were found on, and M others, to their values there, [M, ..., R]."""


class Nystrom(NamedTuple):
    """Energies φ_ρ(x)² of the R leading eigenfunctions under a task's distribution."""

    eigenvalues: Float[np.ndarray, " R"]
    """λ_ρ under all n images of the task."""
    own: Float[np.ndarray, "n R"]
    """On the images they were found on: 1 on average."""
    control: Float[np.ndarray, "m R"]
    """The same eigenfunctions on control images."""
    held_out: Float[np.ndarray, "n R"]
    """On each image of the task, of the eigenfunctions found on the half that it is not in."""
    held_out_control: Float[np.ndarray, "2*m R"]
    """On each control image twice, of the eigenfunctions of one half and of the other: not their mean, which would be
    less spread than the energies it is held against."""


class Mixture(NamedTuple):
    """The R leading eigenfunctions under ½ task + ½ control."""

    eigenvalues: Float[np.ndarray, " R"]
    """λ_ρ."""
    own: Float[np.ndarray, "n R"]
    """φ_ρ(x)² on the task's images."""
    control: Float[np.ndarray, "n R"]
    """φ_ρ(x)² on the control images; both sides together have mean 1."""
    share: Float[np.ndarray, " R"]
    """p_ρ, the part of the energy on the task's images."""
    chance: Float[np.ndarray, " R"]
    """Expectation of the contrast over random assignments of the images to the two sides."""

    @property
    def contrast(self) -> Float[np.ndarray, " R"]:
        """(2 p_ρ − 1)²: 1 for an eigenfunction on one side alone, 0 for one on both alike."""
        return np.square(2 * self.share - 1)

    @property
    def excess(self) -> float:
        """Mean contrast beyond chance, (c̄ − chance) / (1 − chance): at most 1, and 0 where origins are random.

        0 as well where chance is 1: eigenfunctions on single images say nothing about tasks.
        """
        contrast, chance = float(self.contrast.mean()), float(self.chance.mean())
        return (contrast - chance) / (1 - chance) if chance < 1 - 1e-9 else 0.0


def matrix_operator(kernel: Float[ArrayLike, "N N"]) -> Operator:
    """A kernel that is written out, such as the trace kernel of `tajax.empirical_ntk`, or one feature's."""
    matrix = np.asarray(kernel, np.float64)

    def part(rows: Indices, columns: Indices) -> np.ndarray:
        return matrix[np.asarray(rows)[:, None], np.asarray(columns)]

    def leading(inputs: Indices, count: int) -> Spectrum:
        return eigenfunctions(part(inputs, inputs), count=count)

    return Operator(leading, lambda known, inputs, others: extend(known, part(others, inputs)))


def make_ntk_operator(
    apply_fn: ApplyFn,
    params: Params,
    *,
    mask: Mask | None = None,
    batch_size: int | None = None,
) -> Callable[[Float[ArrayLike, "N ..."]], Operator]:
    """`inputs -> Operator` of the full NTK, E×E matrices Θ(x, x′) = J(x) J(x′)ᵀ; compiled once for many sets of inputs.

    It multiplies by vectors alone: no kernel, no Jacobian. Its eigenfunctions have values in ℝᴱ, one for each output,
    and the energy `|φ_ρ(x)|²` is summed over them. One product costs a backward and a tangent pass over the inputs; R
    eigenfunctions take some 3R to 6R of them.

    Args:
        apply_fn: f, with outputs [B, E].
        params: θ.
        mask: leaves of θ that J differentiates in, all by default.
        batch_size: inputs a pass, all by default; memory, not the result. One that divides all numbers of inputs asked
            for is compiled once.

    Raises:
        ValueError: the mask trains nothing or does not fit the parameters.
    """
    theta, outputs = trained_outputs(apply_fn, params, mask)

    @jax.jit
    def pull(theta: dict[str, Array], x: Array, v: Array) -> dict[str, Array]:
        return jax.vjp(lambda trained: outputs(trained, x), theta)[1](v)[0]

    @jax.jit
    def push(theta: dict[str, Array], x: Array, direction: dict[str, Array]) -> Array:
        return jax.jvp(lambda trained: outputs(trained, x), (theta,), (direction,))[1]

    def parts(chosen: Indices) -> list[np.ndarray]:
        indices = np.asarray(chosen)
        step = batch_size or len(indices)
        return [indices[start : start + step] for start in range(0, len(indices), step)]

    def operator(inputs: ArrayLike) -> Operator:
        every = jnp.asarray(inputs)
        one = jax.eval_shape(outputs, theta, every[:1])

        def product(to: Indices, chosen: Indices, v: np.ndarray) -> np.ndarray:
            sections = np.cumsum([len(part) for part in parts(chosen)])[:-1]
            direction = jax.tree.map(jnp.zeros_like, theta)
            for part, values in zip(parts(chosen), np.split(np.asarray(v), sections), strict=True):
                direction = jax.tree.map(jnp.add, direction, pull(theta, every[part], jnp.asarray(values, one.dtype)))
            return np.concatenate([np.asarray(push(theta, every[part], direction)) for part in parts(to)])

        def leading(chosen: Indices, count: int) -> Spectrum:
            shape = (len(chosen), *one.shape[1:])
            return eigenfunctions_of_product(lambda v: product(chosen, chosen, v), shape, count=count)

        return Operator(leading, lambda known, chosen, others: extend(known, lambda v: product(others, chosen, v)))

    return operator


def nystrom_reading(operator: Operator, own: Indices, control: Indices, *, count: int) -> Nystrom:
    """Local energies in the Nyström reading, as the head of this module states it.

    Args:
        operator: the kernel.
        own: numbers of the n images of the task. Even and odd places among them are the two halves, so their order
            should be random.
        control: numbers of the m control images.
        count: R, at most n/2. Fewer come back where a half has fewer eigenvalues above the floor, so that all five
            arrays are about the same ones.

    Raises:
        ValueError: `count` is larger than half of the images.

    Example:
        >>> kernel = np.kron(np.eye(2), np.ones((4, 4)))  # two tasks of four equal images, orthogonal to each other
        >>> found = nystrom_reading(matrix_operator(kernel), range(4), range(4, 8), count=1)
        >>> found.held_out.mean().round(6), found.held_out_control.mean().round(6)
        (np.float64(1.0), np.float64(0.0))
    """
    own, control = np.asarray(own), np.asarray(control)
    halves = own[::2], own[1::2]
    if not 1 <= count <= len(halves[1]):
        raise ValueError(f"count is {count}, want at least 1 and at most half of the {len(own)} images of the task")
    known = operator.leading(own, count)
    elsewhere = energies(operator.carry(known, own, control))
    held_out: list[np.ndarray] = []
    held_out_control: list[np.ndarray] = []
    for half, other in (halves, halves[::-1]):
        found = operator.leading(half, count)
        values = energies(operator.carry(found, half, np.concatenate([other, control])))
        held_out.append(values[: len(other)])
        held_out_control.append(values[len(other) :])
    kept = min(len(known.eigenvalues), *(values.shape[1] for values in held_out))
    woven = np.empty((len(own), kept))
    woven[1::2], woven[::2] = (values[:, :kept] for values in held_out)
    return Nystrom(
        known.eigenvalues[:kept],
        energies(known.eigenfunctions)[:, :kept],
        elsewhere[:, :kept],
        woven,
        np.concatenate([values[:, :kept] for values in held_out_control]),
    )


def mixture_reading(operator: Operator, own: Indices, control: Indices, *, count: int) -> Mixture:
    """Local energies in the mixture reading, as the head of this module states it.

    Args:
        operator: the kernel.
        own: numbers of the n images of the task.
        control: numbers of as many control images.
        count: R, at most 2n.

    Raises:
        ValueError: the two sides have different numbers of images, or `count` is out of range.

    Example:
        >>> kernel = np.diag([2.0, 1.0]) + 1e-3
        >>> mixture_reading(matrix_operator(kernel), [0], [1], count=2).share.round(3).tolist()
        [1.0, 0.0]
    """
    if len(own) != len(control):
        raise ValueError(f"a mixture of equal parts needs as many control images, got {len(own)} and {len(control)}")
    found = operator.leading(np.concatenate([own, control]), count)
    energy = energies(found.eigenfunctions)
    parts = energy / len(energy)  # q_i: columns sum to 1
    chance = (len(parts) * np.square(parts).sum(axis=0) - 1) / (len(parts) - 1)
    n = len(own)
    return Mixture(found.eigenvalues, energy[:n], energy[n:], parts[:n].sum(axis=0), chance)


def energy_share(own: Float[ArrayLike, "n R"], control: Float[ArrayLike, "m R"]) -> Float[np.ndarray, " R"]:
    """Ē_own / (Ē_own + Ē_control), mean local energies, of the first 1, 2, …, R eigenfunctions.

    1: all energy on the task's images; ½: as much on control images, or none anywhere.

    Example:
        >>> energy_share(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])).round(3).tolist()
        [0.5, 0.667]
    """
    first, second = (np.cumsum(np.asarray(side, np.float64).mean(axis=0)) for side in (own, control))
    total = first + second
    return np.divide(first, total, out=np.full_like(first, 0.5), where=total > 0)


def separation(own: Float[ArrayLike, "n R"], control: Float[ArrayLike, "m R"]) -> float:
    """How often an image of the task has more local energy than a control image: the area under the ROC curve.

    Unlike a ratio of means it is not ruled by few images of large energy. ½ is chance; ties count half.

    Example:
        >>> separation(np.array([[3.0], [1.0]]), np.array([[2.0], [0.0]]))
        0.75
    """
    first, second = (np.asarray(side, np.float64).sum(axis=1) for side in (own, control))
    above, equal = first[:, None] > second, first[:, None] == second
    return float(above.mean() + equal.mean() / 2)
