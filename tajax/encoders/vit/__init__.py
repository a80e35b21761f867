"""Supervised and self-supervised ViTs: Google's, DINO, DINOv2 and DINOv2 with registers, in Hugging Face's format.

Features are those of the class token after the last layer norm, not L2-normalised. There is no text tower: heads are
fitted (the "closed vocabulary" of Ortiz-Jimenez et al. 2023).
"""

from tajax.encoders.vit.family import FAMILY

__all__ = ["FAMILY"]
