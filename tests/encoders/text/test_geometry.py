"""What `config.json` may say, and what is refused by name."""

import pytest

from tajax.encoders.text.geometry import BertConfig, kept_keys

BERT = {"model_type": "bert"}


def test_what_is_not_said_is_bert_base():
    assert BertConfig.from_hf(BERT) == BertConfig(vocab_size=30522, hidden_size=768, num_hidden_layers=12)


def test_both_ways():
    config = BertConfig(hidden_size=24, num_attention_heads=3, hidden_act="gelu_new", layer_norm_eps=1e-7)
    assert BertConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "roberta", "describes model_type 'roberta'; of text encoders only 'bert'"),
        ("model_type", "mpnet", "'mpnet'"),
        ("model_type", "distilbert", "'distilbert'"),
        ("model_type", "xlm-roberta", "'xlm-roberta'"),
        ("model_type", "nomic_bert", "'nomic_bert'"),
        ("model_type", "modernbert", "'modernbert'"),
        ("model_type", "clip", "'clip'"),
        ("position_embedding_type", "relative_key", "is 'relative_key', only 'absolute' is read: positions other"),
        ("position_embedding_type", "rotary", "is 'rotary'"),
        ("is_decoder", True, "is_decoder is True, only False is read"),
        ("add_cross_attention", True, "cross attention"),
        ("hidden_act", "relu", "hidden_act 'relu' is unknown; choose one of quick_gelu, gelu"),
        ("pruned_heads", {"1": [0]}, "pruned_heads = {'1': \\[0\\]}, which may change what the model computes"),
        ("auto_map", {"AutoModel": "modeling.Mine"}, "auto_map"),
        ("quantization_config", {"bits": 8}, "quantization_config"),
        ("rotary_emb_base", 10000, "rotary_emb_base = 10000"),
        ("num_attention_heads", 7, "768 does not divide into 7 attention heads; 5 would be left over"),
        ("num_hidden_layers", 0, "num_hidden_layers must be positive, got 0"),
        ("layer_norm_eps", 0.0, "layer_norm_eps must lie between 0 and 1"),
        ("layer_norm_eps", 2**31, "layer_norm_eps must lie between 0 and 1"),
    ],
)
def test_what_changes_the_function_is_refused_by_name(key, value, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_hf(BERT | {key: value})


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "768"), ("hidden_size", True), ("layer_norm_eps", "1e-12")])
def test_values_of_another_kind_are_refused(key, value):
    with pytest.raises(TypeError, match=key):
        BertConfig.from_hf(BERT | {key: value})


def test_a_file_that_names_no_model_is_refused():
    with pytest.raises(ValueError, match="has no model_type"):
        BertConfig.from_hf({"hidden_size": 768})


def test_what_changes_nothing_is_read_over():
    raw = BERT | {"pruned_heads": {}, "is_decoder": False, "use_cache": False, "something_new": None}
    assert BertConfig.from_hf(raw | {"torch_dtype": "float16", "position_embedding_type": None}) == BertConfig()
    assert kept_keys(raw | {"hidden_dropout_prob": 0.3}) == {"hidden_dropout_prob": 0.3}
