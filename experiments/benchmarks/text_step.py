"""One optimiser step of a sentence encoder in each regime, on the same tokens, against PyTorch's BertModel.

A training step of 32 texts of 12 to 32 tokens, padded to 32: loss through mean pooling, normalisation and a frozen
head, gradients, clipping, AdamW. Weights of all-MiniLM-L6-v2's geometry are drawn, or read from a directory
(`--model`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import procedures
import record
import reference
import torch
import transformers
from timing import Contender, alternate
from torch import nn

import tajax
from tajax import finetune, optim, parallel
from tajax.allocation import keep_memory
from tajax.encoders.text.bert import Bert, Tokens
from tajax.encoders.text.convert import params_from_tensors
from tajax.encoders.text.geometry import BertConfig
from tajax.parametrization import masked
from tajax.types import Batch, Head, Params

LEARNING_RATE = 1e-5
DRAWN = {
    "minilm-l6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {},
    "toy": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
REGIMES = {  # what is trained, and whether in the tangent space
    "standard": ("all", False),
    "attention": ("attention", False),
    "linear": ("all", True),
    "linear_attention": ("attention", True),
}
ATTENTION_WEIGHTS = ("query.weight", "key.weight", "value.weight", "attention.output.dense.weight")
CLASSES = 20


class MeanOfTokens(nn.Module):
    """Features of texts in PyTorch: the mean of the last layer's tokens that are no padding."""

    def __init__(self, bert: transformers.BertModel):
        super().__init__()
        self.bert = bert

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Ids and mask, `[2, B, L]` → `[B, D]`."""
        ids, mask = tokens
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm-l6", help=f"{', '.join(DRAWN)} (drawn weights), or a directory")
    parser.add_argument("--texts", type=int, default=32, help="texts a step")
    parser.add_argument("--tokens", type=int, default=32, help="columns of a batch")
    parser.add_argument("--regimes", nargs="+", default=["standard", "attention"], choices=REGIMES)
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds, in which each side makes a step")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    options = parser.parse_args()
    keep_memory()  # as runs do; PyTorch's steps have it, too
    reference.use_all_cores()
    config, params = weights(options.model)
    batch, head = inputs(config, options.texts, options.tokens)
    contenders = {}
    for regime in options.regimes:
        contenders[regime] = tajax_step(config, params, head, batch, regime)
        contenders[f"{regime} in PyTorch"] = reference_step(options.model, head, batch, regime)
    timings = alternate(contenders, repeats=options.repeats)
    rows = []
    for regime in options.regimes:
        what = f"training step, {regime}, {options.texts} texts of {options.tokens} tokens"
        theirs = timings[f"{regime} in PyTorch"]
        rows.append(record.cost(what, timings[regime], theirs, target=1.15))
        if regime == "attention" and "standard" in timings:
            rows.append(record.cost(what, timings[regime], timings["standard"], against="tajax, standard", target=0.75))
    losses = {name: timing.result for name, timing in timings.items()}
    record.write(options, rows, last_loss=losses)


def bert(model: str, *, maths_attention: bool = False) -> transformers.BertModel:
    """PyTorch's model at θ₀, without dropout and without the pooler that nothing reads.

    With `maths_attention` its attention is plain products, which have a forward mode.
    """
    torch.manual_seed(0)
    kind = "eager" if maths_attention else "sdpa"
    if model not in DRAWN:
        return transformers.BertModel.from_pretrained(model, add_pooling_layer=False, attn_implementation=kind).eval()
    config = transformers.BertConfig(**DRAWN[model], attn_implementation=kind)
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def weights(model: str) -> tuple[BertConfig, Params]:
    """The geometry and parameters of that model, as tajax has them."""
    found = bert(model)
    config = BertConfig.from_hf(found.config.to_dict())
    leaves, _ = params_from_tensors({name: tensor.numpy() for name, tensor in found.state_dict().items()}, config)
    return config, jax.tree.map(jnp.asarray, leaves)


def inputs(config: BertConfig, texts: int, tokens: int) -> tuple[Batch, Head]:
    """Tokens and labels drawn from a seed, and a head of unit columns times 20."""
    random = np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, (texts, tokens)).astype(np.int32)
    lengths = random.integers(min(12, tokens), tokens + 1, texts)
    mask = np.arange(tokens)[None] < lengths[:, None]
    columns = random.normal(size=(config.hidden_size, CLASSES)).astype(np.float32)
    head = Head(jnp.asarray(20 * columns / np.linalg.norm(columns, axis=0)), jnp.int32(CLASSES))
    labels = random.integers(0, CLASSES, texts).astype(np.int32)
    return Batch(Tokens(ids, mask), labels, np.ones(texts, bool)), head


def tajax_step(config: BertConfig, params: Params, head: Head, batch: Batch, regime: str) -> Contender:
    """A step of tajax's optimiser, which goes on from the last; it returns the loss before it."""
    rule, linearized = REGIMES[regime]
    encoder = Bert(config, ("mean",), unroll=True)
    mask = tajax.param_mask(params, rule)
    optimizer, trained = optim.adamw(LEARNING_RATE), masked(mask)
    train_step = finetune.make_train_step(
        lambda params, tokens: encoder.apply({"params": params}, tokens), optimizer, trained, linearized=linearized
    )
    state = finetune.init_state(trained.init(params), optimizer)
    placement = parallel.Replicated()
    state, pretrained, placed = placement.params((state, params, head))

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, pretrained, placed, placement.batch(batch)))
        return float(metrics["loss"])

    return Contender(step)


def reference_step(model: str, head: Head, batch: Batch, regime: str) -> Contender:
    """The same in PyTorch."""
    rule, tangent_space = REGIMES[regime]
    tower = MeanOfTokens(bert(model, maths_attention=tangent_space))
    names = [name for name, _ in tower.named_parameters()]
    trained = [name for name in names if rule == "all" or name.endswith(ATTENTION_WEIGHTS)]
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(name in trained)
    columns = torch.tensor(np.asarray(head.weights))
    step = procedures.make_train_step(tower, trained, columns, tangent_space=tangent_space, learning_rate=LEARNING_RATE)
    tokens = torch.tensor(np.stack([np.asarray(leaf, np.int64) for leaf in batch.inputs]))
    labels = torch.tensor(np.asarray(batch.label, np.int64))
    return Contender(lambda: step(tokens, labels))


if __name__ == "__main__":
    main()
