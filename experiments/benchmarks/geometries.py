"""The geometries of CLIP's image towers that benchmarks and checks draw weights for; needs the models alone."""

from tajax import models

GEOMETRIES = {
    "b32": models.VisionConfig(patch_size=32),
    "b16": models.VisionConfig(patch_size=16),
    "l14": models.VisionConfig(
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=768,
    ),
}
"""Image towers whose weights are drawn from a seed."""
