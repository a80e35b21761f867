"""The interpolation of positions is what PyTorch's is, without PyTorch: by Pillow, by hand, and by its laws."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from tajax.encoders.vit.positions import KERNELS, bicubic_matrix

SIZES = [(37, 16), (5, 2), (4, 9), (7, 7)]


@pytest.mark.parametrize("old, new", SIZES)
def test_with_antialias_it_is_pillows(old, new, rng):
    """Pillow resizes images of floats with the same kernel, in float32 with weights of double precision."""
    table = rng(720).normal(size=(old, old)).astype(np.float32)
    pillow = np.asarray(Image.fromarray(table, mode="F").resize((new, new), Image.Resampling.BICUBIC))
    matrix = bicubic_matrix(old, new, **KERNELS["dinov2_with_registers"]._asdict())
    np.testing.assert_allclose(matrix @ table @ matrix.T, pillow, atol=2e-6)


def test_without_it_the_weights_are_those_of_the_kernel_by_hand():
    """Halving puts each new value in the middle of two old ones: k(½) = 0.59375, k(1½) = −0.09375 for a = −¾."""
    near, far = 0.59375, -0.09375
    want = [[near + far, near, far, 0], [0, far, near, near + far]]
    want[0][0], want[1][3] = near + far, near + far  # what lies beyond the border is the value at the border
    np.testing.assert_allclose(bicubic_matrix(4, 2, a=-0.75, antialias=False), want, atol=1e-15)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("old, new", SIZES)
def test_constants_stay_and_mirror_images_are_mirrored(kind, old, new):
    matrix = bicubic_matrix(old, new, **KERNELS[kind]._asdict())
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install -e '.[parity]'")
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("old, new", SIZES)
def test_it_is_pytorchs_in_float64(kind, old, new, rng):
    import torch

    table = rng(721).normal(size=(old, old, 3))
    antialias = kind != "dinov2"
    theirs = torch.nn.functional.interpolate(
        torch.tensor(table.transpose(2, 0, 1)[None]),
        size=(new, new),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    matrix = bicubic_matrix(old, new, **KERNELS[kind]._asdict())
    ours = np.einsum("ij,jkd,lk->dil", matrix, table, matrix)
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-12)
