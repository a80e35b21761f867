"""The reference model: CLIP's image tower in plain PyTorch, with the weights of a tajax tree bit for bit.

Written from the description of the architecture (Radford et al. 2021, §2), independently of `tajax.models.clip`.
Modules have the names that the leaves of the tree have, so one mapping carries weights and task vectors across.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tajax.models import VisionConfig
from tajax.trees import flatten_paths
from tajax.types import Params

State = Mapping[str, Tensor]
"""A state dict, or a task vector in that form."""

ATTENTION_WEIGHTS = tuple(f"attn.{name}.weight" for name in ("query", "key", "value", "out"))
"""How the names of the weights end that attention-only fine-tuning trains."""

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Attention(nn.Module):
    """Multi-head self-attention, `[B, N, D]` → `[B, N, D]`."""

    def __init__(self, config: VisionConfig, maths_attention: bool):
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.maths_attention = config.num_attention_heads, maths_attention
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """The mixed values through W_o."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.maths_attention:
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            mixed = scores.softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D]` → `[B, N, D]`."""
        return self.fc_out(self.activation(self.fc_in(x)))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: VisionConfig, maths_attention: bool):
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2))
        self.attn, self.mlp = Attention(config, maths_attention), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D]` → `[B, N, D]`."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ImageTower(nn.Module):
    """Normalised images `[B, 3, H, W]` → features `[B, E]`, not normalised.

    Args:
        config: The geometry.
        maths_attention: Attention by an explicit softmax, which forward-mode differentiation needs, in place of the
            fused `scaled_dot_product_attention`.
    """

    def __init__(self, config: VisionConfig, *, maths_attention: bool = False):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(config.grid_size**2 + 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.ln_pre, self.ln_post = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.blocks = nn.Sequential(*(Block(config, maths_attention) for _ in range(config.num_hidden_layers)))
        self.projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.position_embedding
        return self.projection(self.ln_post(self.blocks(self.ln_pre(x))[:, 0]))


def state_from_tree(tree: Params) -> dict[str, Tensor]:
    """The state dict of `ImageTower` that holds a tree like tajax's image tower: its weights, or a task vector."""
    state = {}
    for path, leaf in flatten_paths(tree).items():
        leaf = np.asarray(leaf)
        inside = path.removeprefix("blocks/")
        if inside == path:
            state[_torch_name(path)] = _torch_layout(path, leaf)
        else:
            for layer, value in enumerate(leaf):
                state[f"blocks.{layer}.{_torch_name(inside)}"] = _torch_layout(path, value)
    return state


def image_tower(config: VisionConfig, params: Params, *, maths_attention: bool = False) -> ImageTower:
    """The tower with the weights of a tajax tree, its parameters frozen."""
    with torch.device("meta"):  # nothing is drawn only to be replaced
        model = ImageTower(config, maths_attention=maths_attention)
    model.load_state_dict(state_from_tree(params), assign=True)
    return model.requires_grad_(False)


def use_all_cores() -> None:
    """PyTorch computes on every core that this process may use."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def _torch_name(path: str) -> str:
    *modules, name = path.split("/")
    return ".".join([*modules, {"kernel": "weight", "scale": "weight"}.get(name, name)])


def _torch_layout(path: str, leaf: np.ndarray) -> Tensor:
    if path.endswith("/kernel"):  # [in, out] → [out, in]; of the patches [p, p, 3, D] → [D, 3, p, p]
        leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    return torch.tensor(np.ascontiguousarray(leaf))
