"""Golden outputs of the PyTorch CLIP, so that parity can be tested where PyTorch is not installed.

    python tests/models/goldens/make_goldens.py

Weights and inputs come from NumPy's frozen `RandomState`, so the file holds outputs and the names and shapes of the
reference's tensors alone. Everything is computed in float64. Written with torch 2.13.0 and transformers 5.23.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).with_name("clip_goldens.npz")
BATCH, CONTEXT, VOCAB = 3, 12, 40


def _config(hidden_act: str, eos_token_id: int, **vision) -> dict:
    text = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "eos_token_id": eos_token_id}
    shared = {"num_hidden_layers": 3, "hidden_act": hidden_act}
    return {
        "model_type": "clip",
        "projection_dim": 16,
        "text_config": text
        | shared
        | {"hidden_size": 24, "intermediate_size": 56, "num_attention_heads": 3, "bos_token_id": VOCAB - 2},
        "vision_config": {"hidden_size": 32, "intermediate_size": 72, "num_attention_heads": 4, "image_size": 24}
        | shared
        | vision,
    }


CASES = {
    "quick_gelu": _config("quick_gelu", VOCAB - 1, patch_size=8),
    "gelu_legacy_eos": _config("gelu", 2, patch_size=8, layer_norm_eps=1e-3),
    "tanh_ragged_patches": _config("gelu_new", VOCAB - 1, patch_size=7),  # 24 pixels hold 3 patches of 7, and 3 pixels
}


def weights(names: list[str], shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float64 weights for a state dict: scales near one for layer norms, unit-variance maps elsewhere."""
    random = np.random.RandomState(20)
    tensors = {}
    for name, shape in sorted(zip(names, shapes, strict=True)):
        scale = 0.3 if len(shape) < 2 else shape[1] ** -0.5
        tensors[name] = random.standard_normal(shape) * scale + (1.0 if "norm" in name and "weight" in name else 0.0)
    return tensors


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images float64 [B, H, W, 3] and tokens int32 [B, C] with the EOS at different places, and something behind it."""
    random = np.random.RandomState(21)
    images = random.standard_normal((BATCH, 24, 24, 3))
    tokens = random.randint(3, VOCAB - 2, (BATCH, CONTEXT)).astype(np.int32)
    for row, end in enumerate((CONTEXT - 1, 4, 7)):
        tokens[row, end] = VOCAB - 1
    tokens[1, 9] = VOCAB - 1  # a second EOS: the first is pooled
    return images, tokens


def main() -> None:
    """Run the reference and write the goldens."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    goldens = {}
    for case, description in CASES.items():
        model = CLIPModel(CLIPConfig(**description)).double().eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = {name: torch.tensor(value) for name, value in weights(list(shapes), list(shapes.values())).items()}
        model.load_state_dict(state, strict=True)
        images, tokens = inputs()
        with torch.no_grad():
            image = model.get_image_features(torch.tensor(images).permute(0, 3, 1, 2)).pooler_output
            text = model.get_text_features(torch.tensor(tokens.astype(np.int64))).pooler_output
        goldens[f"{case}/image"], goldens[f"{case}/text"] = image.numpy(), text.numpy()
        goldens[f"{case}/names"] = np.array(list(shapes))
        goldens[f"{case}/shapes"] = np.array([",".join(map(str, shape)) for shape in shapes.values()])
    np.savez_compressed(GOLDENS, **goldens)
    print(f"{GOLDENS}: {GOLDENS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
