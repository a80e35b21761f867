"""Merge encoders that were fine-tuned elsewhere: task vectors from their checkpoints, evaluated, added, α tuned.

`--config.merging.method=weight_average` tunes none: it is the mean of the models as they are.

The default are the task vectors of `configs/standard.py`; with b32, b16 and l14 the encoders that fusion_bench keeps on
the Hugging Face hub, for the papers' eight tasks; with minilm those of `configs/standard.py:minilm`, on the eight sets
of texts in DIR:

    python -m tajax.main --config=configs/merge.py
    python -m tajax.main --config=configs/merge.py:b32 --config.merging.method=ties
    python -m tajax.main --config=configs/merge.py:b32 --config.tasks="('mnist', 'dtd')" \
        --config.checkpoints="('path/to/mnist_encoder', 'owner/name-on-the-hub')"
    python -m tajax.main --config=configs/merge.py:b32 --config.checkpoints="('checkpoints/{task}/finetuned.pt',)"
    python -m tajax.main --config=configs/merge.py:minilm --config.data_dir=DIR

A place is a directory or file in Hugging Face's (with minilm also sentence-transformers'), open_clip's or the papers'
formats, a task vector of tajax, or a hub
id; each is told by its content. Linearised checkpoints want `--config.regime=linear`. Other workflows take checkpoints,
too: `--config.workflow=disentanglement`.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant

PUBLISHED = {"b32": "clip-vit-base-patch32", "b16": "clip-vit-base-patch16", "l14": "clip-vit-large-patch14"}
NAMES = {  # of tasks there, where they differ from ours; EMNIST's encoder knows letters, ours are digits
    "cars": "stanford-cars",
    "emnist": "emnist_letters",
    "flowers102": "oxford_flowers102",
    "oxford_iiit_pet": "oxford-iiit-pet",
    "rendered_sst2": "rendered-sst2",
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = with_variant(default_config(), variant)
    model = PUBLISHED.get(variant.partition("_")[0])
    if model:
        config.checkpoints = tuple(f"tanganke/{model}_{NAMES.get(task, task)}" for task in config.tasks)
    else:
        config.checkpoints = (f"runs/standard_{variant}/task_vectors/{{task}}.safetensors",)
    return config
