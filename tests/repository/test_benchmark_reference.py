"""The PyTorch reference of experiments/benchmarks is the same model: its features, and its linear response."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tajax.linearization import linear_responses
from tajax.models import load

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_modules():
    """`reference` and `procedures`, which import each other by these names, as the scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("reference"), importlib.import_module("procedures")
        for name in ("reference", "procedures"):
            sys.modules.pop(name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # by torch.func itself
def test_reference_has_tajax_features_and_linear_response(benchmark_modules):
    reference, procedures = benchmark_modules
    clip = load("tiny")
    pretrained, vision = clip.params["image"], clip.config.vision
    random = np.random.default_rng(0)
    size = vision.image_size
    images = random.standard_normal((3, size, size, 3), np.float32)
    tau = jax.tree.map(lambda leaf: 0.01 * random.standard_normal(leaf.shape, np.float32), pretrained)
    features, (response,) = jax.jit(lambda images: linear_responses(clip.encode_image, pretrained, [tau], images))(
        images
    )

    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    fused, explicit = (reference.image_tower(vision, pretrained, maths_attention=maths) for maths in (False, True))
    linearized = procedures.linearized(explicit, reference.state_from_tree(tau))
    scale = np.abs(features).max()
    for model, want in ((fused, features), (explicit, features), (linearized, features + response)):
        with torch.no_grad():
            got = model(pixels).numpy()
        np.testing.assert_allclose(got, want, atol=1e-5 * scale, rtol=0)  # float32 through 6 layers: 1e-6 was seen
    assert np.abs(response).max() > 0.01 * scale  # the response is not lost in the tolerance
