"""Geometries that no model has are refused before anything is compiled."""

import pytest

from tajax.models.geometry import VisionConfig


@pytest.mark.parametrize(
    ("epsilon", "kind"), [(0, ValueError), (2**31, ValueError), (float("nan"), ValueError), (True, TypeError)]
)
def test_an_epsilon_that_no_layer_norm_has_is_refused(epsilon, kind):
    """A whole number of 2³¹ ended in an OverflowError of JAX; 1 or more would flatten what is normalised."""
    with pytest.raises(kind, match="VisionConfig.layer_norm_eps must"):
        VisionConfig(layer_norm_eps=epsilon)
