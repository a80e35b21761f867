"""Parameter counts of published sentence encoders, and of every rule for what is trained."""

import pytest

from tajax.encoders.text import FAMILY
from tajax.encoders.text.bert import abstract_params
from tajax.encoders.text.geometry import BertConfig
from tajax.rules import STACKED
from tajax.trees import RULES, count_params, flatten_paths, param_mask

SMALL = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
SHARED = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512}
SHARED |= {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "initializer_range": 0.02}
SHARED |= {"pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": 30522}
SHARED |= {"architectures": ["BertModel"], "use_cache": True, "transformers_version": "4.30.0"}
BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
CONFIGS = {  # what their config.json say; the totals are those of the published files, which have the pooler
    "all-MiniLM-L6-v2": (SHARED | SMALL | {"num_hidden_layers": 6, "gradient_checkpointing": False}, 22_713_216),
    "all-MiniLM-L12-v2": (SHARED | SMALL | {"num_hidden_layers": 12, "gradient_checkpointing": False}, 33_360_000),
    "bge-small-en-v1.5": (
        SHARED | SMALL | LABELS | {"num_hidden_layers": 12, "classifier_dropout": None, "torch_dtype": "float32"},
        33_360_000,
    ),
    "bge-base-en-v1.5": (SHARED | BASE | LABELS | {"classifier_dropout": None}, 109_482_240),
    "e5-small-v2": (SHARED | SMALL | {"num_hidden_layers": 12, "tokenizer_class": "BertTokenizer"}, 33_360_000),
    "e5-base-v2": (SHARED | BASE | {"classifier_dropout": None}, 109_482_240),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_file_without_the_pooler(name):
    raw, total = CONFIGS[name]
    config = BertConfig.from_hf(raw)
    width = config.hidden_size
    assert count_params(abstract_params(config)) == total - (width**2 + width)


@pytest.mark.parametrize("name", CONFIGS)
def test_rules_claim_what_they_say(name):
    config = BertConfig.from_hf(CONFIGS[name][0])
    params = abstract_params(config)
    d, m, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kernels, biases, norms = 4 * d * d, 4 * d, 2 * (2 * layers + 1) * d
    want = {
        "all": count_params(params),
        "attention": layers * kernels,
        "attention_with_bias": layers * (kernels + biases),
        "attention_query_value": layers * kernels // 2,
        "attention_query_key_value": layers * kernels * 3 // 4,
        "mlp": layers * 2 * d * m,
        "linear_layers": layers * (kernels + 2 * d * m),
        "biases": layers * (biases + m + d) + norms // 2,
        "layer_norms": norms,
    } | {f"attention_{part}": layers * d * d for part in ("query", "key", "value", "out")}
    assert want == {rule: count_params(params, param_mask(params, rule)) for rule in RULES}


def test_every_leaf_of_the_outline_is_a_layers_or_an_embeddings():
    paths = flatten_paths(FAMILY.outline())
    layers = [path for path in paths if path.startswith(f"{STACKED}/")]
    assert len(paths) == 21 and len(layers) == 16
    assert {paths[path].shape[0] for path in layers} == {12}
    assert FAMILY.rules == RULES and FAMILY.modality == "texts"
