"""How a pooling is named, old and new; its values are tested in test_bert.py."""

import pytest

from tajax.encoders.text.pooling import pooling_from_config, pooling_to_config


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({}, ("mean",)),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        (
            {"pooling_mode_lasttoken": True, "pooling_mode_weightedmean_tokens": True, "pooling_mode_max_tokens": True},
            ("max", "weightedmean", "lasttoken"),
        ),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode": "cls", "embedding_dimension": 8, "include_prompt": True}, ("cls",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"pooling_mode": "max", "pooling_mode_mean_tokens": True}, ("max",)),
    ],
)
def test_both_ways_of_naming(config, modes):
    assert pooling_from_config(config, width=8) == modes
    assert pooling_from_config(pooling_to_config(modes, width=8), width=8) == modes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": "median"}, "'median' is not known; choose of cls, max, mean"),
        ({"pooling_mode": ["mean", "mean"]}, "names a mode twice"),
        ({"pooling_mode": []}, "must be a mode or a list"),
        ({"pooling_mode_attention": True}, "pooling by 'pooling_mode_attention' is not known"),
        ({"word_embedding_dimension": 16}, "word_embedding_dimension is 16, but tokens have width 8"),
        ({"include_prompt": False}, "include_prompt is false"),
    ],
)
def test_others_are_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        pooling_from_config(config, width=8)
