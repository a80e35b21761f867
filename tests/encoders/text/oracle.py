"""BERT and its pooling in NumPy from a checkpoint's tensors: one text at a time without padding, slow and obvious."""

import numpy as np
from scipy.special import erf

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def shapes(config):
    """The tensors of a checkpoint by Hugging Face's names, written here a second time."""
    d, m = config.hidden_size, config.intermediate_size
    rows = {"word": config.vocab_size, "position": config.max_position_embeddings, "token_type": config.type_vocab_size}
    found = {f"embeddings.{name}_embeddings.weight": (count, d) for name, count in rows.items()}
    dense = {"attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d)}
    dense |= {"attention.output.dense": (d, d), "intermediate.dense": (m, d), "output.dense": (d, m)}
    norms = ["embeddings.LayerNorm"]
    for i in range(config.num_hidden_layers):
        for name, (out, inputs) in dense.items():
            found |= {
                f"encoder.layer.{i}.{name}.weight": (out, inputs),
                f"encoder.layer.{i}.{name}.bias": (out,),
            }
        norms += [f"encoder.layer.{i}.{part}.LayerNorm" for part in ("attention.output", "output")]
    for name in norms:
        found |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return found | {"pooler.dense.weight": (d, d), "pooler.dense.bias": (d,)}


def draw(config, random):
    """Such tensors, float32, large enough that attention is far from even."""

    def tensor(name, shape):
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        return (scale * random.normal(size=shape) + (1 if "LayerNorm.weight" in name else 0)).astype(np.float32)

    return {name: tensor(name, shape) for name, shape in shapes(config).items()}


def tokens(tensors, config, ids):
    """The last layer's tokens [L, D] of one text, float64."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}

    def dense(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.layer_norm_eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for i in range(config.num_hidden_layers):
        at = f"encoder.layer.{i}"
        q, k, v = (dense(f"{at}.attention.self.{name}", x) for name in ("query", "key", "value"))
        mixed = np.empty_like(x)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
            mixed[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
        x = norm(f"{at}.attention.output.LayerNorm", x + dense(f"{at}.attention.output.dense", mixed))
        inner = ACTIVATIONS[config.hidden_act](dense(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", inner))
    return x


def pooled(x, mode):
    """One feature of the tokens [L, D] of a text."""
    positions = np.arange(1, len(x) + 1)[:, None]
    return {
        "cls": x[0],
        "max": x.max(0),
        "mean": x.sum(0) / len(x),
        "mean_sqrt_len_tokens": x.sum(0) / np.sqrt(len(x)),
        "weightedmean": (positions * x).sum(0) / positions.sum(),
        "lasttoken": x[-1],
    }[mode]
