"""Small random ViTs of every kind as directories, their names and their arithmetic written here a second time."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import erf

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
CONFIGS = {
    "vit": SMALL | {"model_type": "vit", "intermediate_size": 24, "image_size": 8},
    "unbiased": SMALL | {"model_type": "vit", "intermediate_size": 24, "image_size": 8, "qkv_bias": False},
    "dinov2": SMALL | {"model_type": "dinov2", "mlp_ratio": 2, "image_size": 20},
    "gated": SMALL | {"model_type": "dinov2", "mlp_ratio": 2, "image_size": 8, "use_swiglu_ffn": True},
    "registers": SMALL
    | {"model_type": "dinov2_with_registers", "mlp_ratio": 2, "image_size": 8, "num_register_tokens": 3},
}
"""What config.json says. The table of 'dinov2' is of 5 × 5 patches, its images have 2 × 2."""

PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 8},
    "crop_size": {"height": 8, "width": 8},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
"""What is done here, to the letter."""


def shapes_of(config, *, modern=False):
    """Every tensor of an encoder and its shape, as transformers 4 writes it or as the modules of version 5 have it."""
    width, plain = config["hidden_size"], config["model_type"] == "vit"
    inner = config["intermediate_size"] if plain else width * config["mlp_ratio"]
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, (config["image_size"] // 4) ** 2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    if "num_register_tokens" in config:
        shapes["embeddings.register_tokens"] = (1, 3, width)
    for number in range(3):
        layer = f"layers.{number}" if modern and plain else f"encoder.layer.{number}"

        def linear(name, outputs, inputs, *, bias=True, layer=layer):
            shapes[f"{layer}.{name}.weight"] = (outputs, inputs)
            if bias:
                shapes[f"{layer}.{name}.bias"] = (outputs,)

        for name in ("query", "key", "value"):
            own = f"attention.{name[0]}_proj" if modern else f"attention.attention.{name}"
            linear(own, width, width, bias=config.get("qkv_bias", True))
        linear("attention.o_proj" if modern else "attention.output.dense", width, width)
        if config.get("use_swiglu_ffn"):
            assert inner == 32
            half = 24  # two thirds of 32, up to a multiple of 8
            if modern:
                linear("mlp.gate_proj", half, width)
                linear("mlp.up_proj", half, width)
            else:
                linear("mlp.weights_in", 2 * half, width)
            linear("mlp.down_proj" if modern else "mlp.weights_out", width, half)
        else:
            old = plain and not modern
            linear("intermediate.dense" if old else "mlp.fc1", inner, width)
            linear("output.dense" if old else "mlp.fc2", width, inner)
        for norm in ("layernorm_before", "layernorm_after") if plain else ("norm1", "norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (width,)
        if not plain:
            shapes[f"{layer}.layer_scale1.lambda1"] = shapes[f"{layer}.layer_scale2.lambda1"] = (width,)
    return shapes


def tensors_of(config, random, *, modern=False):
    """Values of them, float32, of a size at which every part counts."""
    drawn = {}
    for name, shape in shapes_of(config, modern=modern).items():
        value = random.normal(size=shape) * (0.25 if len(shape) in (2, 4) else 0.5)
        drawn[name] = (value + 1 if "norm" in name and name.endswith("weight") else value).astype(np.float32)
    return drawn


def write(directory, config, tensors, preprocessor=PREPROCESSOR):
    """A directory as transformers writes it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return directory


def layer_norm(x, tensors, name, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def reference_features(config, tensors, pixels, positions):
    """Features in float64 from tensors under the names of transformers 4, one image and one head at a time."""
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}
    epsilon = 1e-12 if config["model_type"] == "vit" else 1e-6

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    def one(image):
        kernel = tensors["embeddings.patch_embeddings.projection.weight"]
        bias = tensors["embeddings.patch_embeddings.projection.bias"]
        patches = [
            np.einsum("hwc,dchw->d", image[top : top + 4, left : left + 4], kernel) + bias
            for top in range(0, len(image), 4)
            for left in range(0, len(image), 4)
        ]
        x = np.stack([tensors["embeddings.cls_token"][0, 0], *patches]) + positions
        if "embeddings.register_tokens" in tensors:
            x = np.concatenate([x[:1], tensors["embeddings.register_tokens"][0], x[1:]])
        for number in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            first, second = (
                f"{layer}.{name}"
                for name in (
                    ("layernorm_before", "layernorm_after") if config["model_type"] == "vit" else ("norm1", "norm2")
                )
            )
            normed = layer_norm(x, tensors, first, epsilon)
            query, key, value = (linear(normed, f"{layer}.attention.attention.{n}") for n in ("query", "key", "value"))
            mixed = []
            for head in (slice(0, 8), slice(8, 16)):
                scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(8))
                mixed.append(scores / scores.sum(-1, keepdims=True) @ value[:, head])
            added = linear(np.concatenate(mixed, axis=-1), f"{layer}.attention.output.dense")
            x = x + added * tensors.get(f"{layer}.layer_scale1.lambda1", 1.0)
            normed = layer_norm(x, tensors, second, epsilon)
            if config.get("use_swiglu_ffn"):
                gate, up = np.split(linear(normed, f"{layer}.mlp.weights_in"), 2, axis=-1)
                added = linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.weights_out")
            else:
                plain = config["model_type"] == "vit"
                inner = linear(normed, f"{layer}.{'intermediate.dense' if plain else 'mlp.fc1'}")
                inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
                added = linear(inner, f"{layer}.{'output.dense' if plain else 'mlp.fc2'}")
            x = x + added * tensors.get(f"{layer}.layer_scale2.lambda1", 1.0)
        return layer_norm(x, tensors, "layernorm", epsilon)[0]

    return np.stack([one(image) for image in pixels.astype(np.float64)])


@pytest.fixture(scope="module")
def quick_programs(tmp_path_factory):
    """Tests of small models spend their time in the compiler: a cache that they share."""
    options = {  # for these tests, and JAX's defaults after them
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("programs")), None),
        "jax_persistent_cache_min_compile_time_secs": (0.3, 1.0),
    }
    for name, (value, _) in options.items():
        jax.config.update(name, value)
    yield
    for name, (_, default) in options.items():
        jax.config.update(name, default)


@pytest.fixture(scope="session")
def small(tmp_path_factory, rng):
    """`small(kind)`: the directory of a small ViT, its config and its tensors."""
    made = {}

    def small(kind):
        if kind not in made:
            config = CONFIGS[kind]
            tensors = tensors_of(config, rng(700 + list(CONFIGS).index(kind)))
            made[kind] = write(tmp_path_factory.mktemp("vit") / kind, config, tensors), config, tensors
        return made[kind]

    return small


@pytest.fixture(scope="session")
def images(rng):
    return rng(710).integers(0, 256, size=(3, 8, 8, 3)).astype(np.uint8)
