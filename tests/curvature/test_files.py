"""Files of factors: they come back as they were, or are refused by what is wrong with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tajax import tensor_files
from tajax.curvature.factors import Factors, Kronecker
from tajax.curvature.files import About, load_factors, read_about, save_factors

ABOUT = About(
    task="pets",
    model="tiny",
    family="clip",
    base_sha256="0" * 64,
    geometry={"heads": 2, "sizes": (1, 2)},
    trainable=("a", "b"),
    layers=None,
    through_norm=False,
    images=5,
    seed=0,
    seconds=0.1,
)
PARAMS = {
    "blocks": {"fc": {"kernel": np.zeros((2, 3, 4)), "bias": np.zeros((2, 4))}, "scale": np.zeros((2, 3))},
    "table": np.zeros((7, 3)),
}
NAME = "blocks/fc/kernel + blocks/fc/bias"


def factors(rng):
    def leaf(*shape):
        root = np.abs(rng.normal(size=shape))
        return jnp.asarray(root @ root.swapaxes(1, 2) if len(shape) == 3 else root, jnp.float32)

    dense, rows = Kronecker(leaf(2, 4, 4), leaf(2, 4, 4), leaf(2)), Kronecker(leaf(1, 7), leaf(1, 3, 3), leaf(1))
    return Factors({NAME: dense, "table": rows}, {"blocks/scale": leaf(2, 3, 3)}, leaf(), leaf())


def test_factors_come_back_bit_for_bit_with_what_they_say_of_themselves(rng, tmp_path):
    made = factors(rng(1))
    save_factors(tmp_path / "deep" / "pets.safetensors", made, ABOUT)
    found, about = load_factors(tmp_path / "deep" / "pets.safetensors", PARAMS)
    assert jax.tree.structure(found) == jax.tree.structure(made)
    jax.tree.map(np.testing.assert_array_equal, found, made)
    assert about == ABOUT._replace(trainable=["a", "b"], geometry={"heads": 2, "sizes": [1, 2]})


def test_what_is_wrong_with_a_file_is_said(rng, tmp_path):
    path = tmp_path / "pets.safetensors"
    save_factors(path, factors(rng(2)), ABOUT)
    tensors, texts = tensor_files.read(path)

    def refused(changed, texts=texts):
        path.write_bytes(safetensors.numpy.save(changed, metadata=texts))
        with pytest.raises(ValueError) as error:
            load_factors(path, PARAMS)
        assert str(path) in str(error.value)
        return str(error.value)

    without = {key: leaf for key, leaf in tensors.items() if key != f"outputs: {NAME}"}
    assert f"lacks outputs: {NAME}" in refused(without)
    assert "holds other" in refused(tensors | {"other": np.zeros(1)})
    assert "'blocks/other', which is no leaf" in refused(tensors | {"gram: blocks/other": np.zeros((1, 2, 2))})
    assert "do not fit its leaves" in refused(tensors | {"gram: blocks/scale": np.zeros((2, 4, 4), np.float32)})
    for key, shape in {"inputs": (2, 3, 3), "outputs": (1, 4, 4), "tokens": (3,)}.items():
        assert "do not fit its leaves" in refused(tensors | {f"{key}: {NAME}": np.zeros(shape, np.float32)})
    swapped = {key.replace(NAME, "blocks/fc/bias + blocks/fc/kernel"): leaf for key, leaf in tensors.items()}
    assert "do not fit its leaves" in refused(swapped)
    assert "not finite" in refused(tensors | {"examples": np.array(np.nan, np.float32)})
    assert f"outputs: {NAME} has numbers below zero" in refused(
        tensors | {f"outputs: {NAME}": -tensors[f"outputs: {NAME}"]}
    )
    assert "examples has numbers below zero" in refused(tensors | {"examples": np.array(-1, np.float32)})
    assert "does not say 'tajax curvature 1'" in refused(tensors, texts | {"format": "tajax curvature 9"})
    assert "lack a field, or one is damaged" in refused(tensors, texts | {"images": "five"})
    with pytest.raises(ValueError, match="not finite"):
        save_factors(path, factors(rng(3))._replace(examples=jnp.float32(np.inf)), ABOUT)
    with pytest.raises(FileNotFoundError):
        read_about(tmp_path / "absent.safetensors")
