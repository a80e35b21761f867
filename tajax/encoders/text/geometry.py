"""The geometry of a BERT: what a Hugging Face `config.json` says of it.

Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", §3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tajax.models.convert import few
from tajax.models.geometry import LayersConfig
from tajax.types import JsonObject

__all__ = ["BertConfig", "kept_keys"]

_KEPT = (
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "hidden_dropout_prob",
    "initializer_range",
    "pad_token_id",
)
"""Keys that change no feature but what is trained from a saved model elsewhere: they are written back."""

_OTHERS = frozenset(
    """
    _commit_hash _name_or_path architectures attn_implementation _attn_implementation _attn_implementation_autoset
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cls_token_id decoder_start_token_id
    directionality diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label label2id length_penalty mask_token_id max_length min_length model_max_length no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    sentence_transformers language license
    """.split()
)
"""Keys that change no feature: bookkeeping, and what concerns decoders and heads."""

_ONLY: Mapping[str, tuple[object, str]] = {
    "position_embedding_type": ("absolute", "positions other than absolute change the attention"),
    "is_decoder": (False, "a decoder sees no token behind each one"),
    "add_cross_attention": (False, "cross attention reads what another model gives"),
    "is_encoder_decoder": (False, "an encoder-decoder has two towers"),
}
"""Keys of which one value alone is read, and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(LayersConfig):
    """Geometry of a BERT; the names are Hugging Face's, the defaults those of BERT-base.

    Attributes:
        vocab_size: Rows of the token embedding, V.
        hidden_size: Width D.
        num_hidden_layers: L.
        num_attention_heads: Heads of width D / num_attention_heads.
        intermediate_size: Width between the two dense layers of an MLP.
        hidden_act: Its activation, of `tajax.models.geometry.HIDDEN_ACTS`.
        max_position_embeddings: The longest text in tokens, C.
        type_vocab_size: Rows of the token-type embedding, T. Single texts are of type 0.
        layer_norm_eps: Epsilon of the layer norms.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_hf(cls, config: Mapping[str, object]) -> BertConfig:
        """The geometry in a Hugging Face `config.json`, given as the dictionary that it holds.

        Missing fields take Hugging Face's defaults. Dropout is not applied, here as in the reference's evaluation.

        Raises:
            ValueError: another architecture; positions other than absolute, a decoder, cross attention, pruned heads;
                an unknown activation; a key that is not known to change nothing; heads that do not divide the width.
            TypeError: a size that is not an integer.

        Example:
            >>> BertConfig.from_hf({"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6}).hidden_size
            384
        """
        model_type = config.get("model_type")
        if model_type != "bert":
            said = f"describes model_type {model_type!r}" if "model_type" in config else "has no model_type"
            raise ValueError(
                f"config.json {said}; of text encoders only 'bert' can be loaded, of which all-MiniLM-L6-v2, "
                "bge-small-en-v1.5 and e5-small-v2 are."
            )
        for key, (value, why) in _ONLY.items():
            if config.get(key) not in (None, value):
                raise ValueError(f"config.json: {key} is {config[key]!r}, only {value!r} is read: {why}.")
        fields = {field.name for field in dataclasses.fields(cls)}
        known = fields | set(_KEPT) | _OTHERS | _ONLY.keys() | {"model_type"}
        unknown = [key for key, value in config.items() if key not in known and value not in (None, False, [], {})]
        if unknown:
            raise ValueError(
                f"config.json has {few([f'{key} = {config[key]!r}' for key in unknown])}, which may change what the "
                "model computes and is not known here. Remove it if it changes nothing."
            )
        return cls(**{key: config[key] for key in fields if config.get(key) is not None})  # type: ignore[arg-type]  # checked by it

    def to_hf(self) -> JsonObject:
        """The dictionary to write as `config.json`, which `transformers.BertConfig` reads.

        Example:
            >>> BertConfig.from_hf(BertConfig().to_hf()) == BertConfig()
            True
        """
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "position_embedding_type": "absolute",
            **dataclasses.asdict(self),
        }


def kept_keys(config: Mapping[str, object]) -> JsonObject:
    """What a `config.json` says beside the geometry that further training elsewhere depends on.

    Example:
        >>> kept_keys({"hidden_size": 384, "hidden_dropout_prob": 0.1})
        {'hidden_dropout_prob': 0.1}
    """
    return {key: config[key] for key in _KEPT if key in config}
