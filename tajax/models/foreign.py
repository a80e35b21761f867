"""What is recognised and not read: other models, adapters, quantised weights and other formats, with the way out."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from tajax.models.layout import ADAPTER

__all__ = ["NO_WEIGHTS", "changed_weights", "in_directory", "is_optimizer", "other_model"]

NO_WEIGHTS = ("adapter_model", "optimizer", "rng_state", "scaler", "scheduler", "training_args")
"""How the names of files begin that lie beside weights and hold none of their own."""

_LORA = (
    "a LoRA adapter, which changes weights that lie elsewhere: load_finetuned and config.checkpoints of a run read the "
    "directory that PEFT saved it in, with the model that it was trained on. Else merge it with PEFT, "
    "`PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(directory)`, and give that directory"
)
_QUANTIZED = "Give the weights that were quantised, as bfloat16 or wider"
_CHANGED = (
    (r"(^|[._])lora_|\.(hada|lokr|ia3|oft|boft|vera)_", _LORA),
    (r"\.(SCB|absmax|quant_map|nested_absmax)$|\.quant_state\.", f"weights quantised by bitsandbytes. {_QUANTIZED}"),
    (r"\.(qweight|qzeros|g_idx)$", f"weights quantised by GPTQ or AWQ. {_QUANTIZED}"),
    (r"\.(weight_scale|weight_scale_inv|input_scale)$", f"8-bit weights with scales. {_QUANTIZED}"),
    (r"(^|[._])flat_param", "FSDP's flattened parameters. Save them with StateDictType.FULL_STATE_DICT"),
)
"""Tensors whose presence says that the weights beside them are not those of the model, and what they are."""

_MODELS = (
    (r"(^|\.)blocks/", "a task vector of tajax: read it with vector_files.load_task_vector"),
    (r"vision_model\.head\.probe$|vision_model\.embeddings\.patch_embedding\.bias$", "a SigLIP"),
    (r"visual\.(layer1\.0\.conv1|attnpool\.)", "a CLIP with a ResNet; only ViTs are read"),
    (r"visual\.trunk\.", "an open_clip model with an image tower of timm; only open_clip's own ViTs are read"),
    (r"(^|\.)layer_?scale1?\.lambda1$|\.ls1\.gamma$|(^|\.)mask_token$", "a DINOv2, DINOv3 or BEiT"),
    (r"(^|\.)(cls_token|patch_embed\.proj\.weight)$", "a ViT under the names of timm or DINO"),
    (r"(^|\.)layer1\.0\.conv1\.weight$", "a ResNet"),
    (r"(^|\.)text_model\.(embeddings|encoder)\.", "the text tower of a CLIP without its image tower"),
    (r"(^|\.)embeddings\.word_embeddings\.weight$|\.attention\.self\.query\.", "a BERT or another text encoder"),
    (r"(^|\.)(lm_head|embed_tokens|wte)\.weight$", "a language model"),
    (r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)$", "the state of an optimiser, not the weights"),
    (r"^((module|classification_head|head|fc|linear)\.)*(weight|bias)$", "a classification head, not the encoder"),
)
"""Tensors by which something is known that has no image tower of a CLIP's ViT; the first that fits."""

_BESIDE = (
    (ADAPTER, _LORA),
    ("modules.json", "a sentence-transformers directory: give the directory of its CLIP, such as {0}/0_CLIPModel"),
    ("*.distcp", "shards of torch.distributed: join them with torch.distributed.checkpoint.format_utils"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint: run its zero_to_fp32.py, and give what that writes"),
    ("checkpoint-*/", "the output of a trainer: give one of its checkpoint-… directories"),
    ("*.msgpack", "weights of Flax: convert them with transformers 4 and from_flax=True"),
    ("*.h5", "weights of TensorFlow: convert them with transformers 4 and from_tf=True"),
    ("saved_model.pb", "a SavedModel of TensorFlow: give the weights that it was made from"),
    ("*.onnx", "an ONNX file: give the weights that it was made from"),
    ("*.gguf", "a GGUF file: give the weights that it was made from"),
)
"""What a directory without weights may hold instead."""

_OPTIMIZER = re.compile(
    r"(^|\.)(optim|optimizers?|optimizer_states?|optimizer_state_dict|lr_schedulers?|schedulers?|scaler)(\.|$)"
    r"|\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)$"
)


def changed_weights(names: Collection[str]) -> str | None:
    """Why the weights among these tensors are not the model's as they stand; None if nothing says so.

    Example:
        >>> changed_weights(["visual.proj", "visual.conv1.weight"]) is None
        True
        >>> changed_weights(["model.visual.conv1.qweight"])
        'model.visual.conv1.qweight is of weights quantised by GPTQ or AWQ. Give the weights that were ... or wider.'
    """
    for pattern, what in _CHANGED:
        told = next((name for name in names if re.search(pattern, name) and not is_optimizer(name)), None)
        if told:
            return f"{told} is of {what}."
    return None


def other_model(names: Collection[str]) -> str:
    """A sentence about tensors among which no CLIP was found, which says what they are where that is known."""
    for pattern, what in _MODELS:
        if any(re.search(pattern, name) for name in names):
            return f"This is {what}."
    return "Give a CLIP with a ViT, or its image tower, under the names of Hugging Face, open_clip or OpenAI."


def in_directory(directory: Path) -> str:
    """A sentence about a directory in which no weights were found; empty where nothing in it is known."""
    for pattern, what in _BESIDE:
        if found := next(iter(sorted(directory.glob(pattern))), None):
            return f"Its {found.name} says: {what.format(directory)}."
    return ""


def is_optimizer(name: str) -> bool:
    """Whether a tensor belongs to an optimiser or a schedule.

    Example:
        >>> is_optimizer("optimizer.state.3.exp_avg"), is_optimizer("visual.proj")
        (True, False)
    """
    return bool(_OPTIMIZER.search(name))
