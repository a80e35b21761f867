"""Small towers of all three families, and the products in a program."""

import jax

from tajax.encoders.text.bert import Bert
from tajax.encoders.text.geometry import BertConfig
from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.tower import VisionTransformer
from tajax.models import ImageEncoder, VisionConfig
from tests.programs import is_program

DEPTH = 4
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
IMAGES = {"image_size": 8, "patch_size": 4}
TOWERS = {
    "clip": (ImageEncoder, VisionConfig(**SIZES, **IMAGES, projection_dim=16)),
    "vit": (VisionTransformer, VitConfig(**SIZES, **IMAGES, input_size=8)),
    "text": (Bert, BertConfig(**SIZES, vocab_size=20, max_position_embeddings=6)),
}


def products(jaxpr):
    """Products of matrices in a program, those in a loop once for each step of it."""
    count = 0
    for eqn in jaxpr.eqns:
        inner = [value for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program) if is_program(value)]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        count += times * sum(products(getattr(one, "jaxpr", one)) for one in inner)
        count += eqn.primitive.name == "dot_general"
    return count
