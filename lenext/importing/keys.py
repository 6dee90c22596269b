"""The keys of a config.json, each asked for once or refused."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenext.errors import UserError

# Of how a model was trained, is served, or calls its tokens: without effect on logits.
WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels
    architectures attention_dropout attention_probs_dropout_prob attn_pdrop auto_map bad_words_ids
    begin_suppress bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label initializer_range
    is_encoder_decoder is_llama_config label2id length_penalty max_length max_sequence_length
    max_window_layers min_length model_type n_ctx n_special no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token_id predict_special_tokens prefix pretraining_tp problem_type
    remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()  # noqa: SIM905 # a literal a word would fill the page
)


def read_number(value: Any, what: str) -> float:
    """A finite number above 0.

    Raises:
      UserError: it is none; `what` says where.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        shown = repr(value)
        shown = shown if len(shown) < 80 else f"{shown[:60]}…"
        raise UserError(f"{what}={shown}: should be a number above 0")
    return float(value)


class Keys:
    """The keys of a config.json; what nobody has asked for in the end is refused.

    Args:
      path: of the file.
      content: of it.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]):
        self.path, self.content = path, content
        self.asked: set[str] = set(WITHOUT_EFFECT)

    def get(self, key: str, default: Any) -> Any:
        """A value; where it is missing or null, the default."""
        self.asked.add(key)
        value = self.content.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 up, and below 2^31: no size of an array is more.

        Raises:
          UserError: it is none.
        """
        value = self.get(key, default)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.path}: {key}={value!r}: should be a whole number from 1 up")
        if value >= 2**31:  # how many digits it has nobody knows
            raise UserError(f"{self.path}: {key}: should be below 2^31")
        return value

    def number(self, key: str, default: float) -> float:
        """A number above 0.

        Raises:
          UserError: it is none.
        """
        return read_number(self.get(key, default), f"{self.path}: {key}")

    def flag(self, key: str, default: bool) -> bool:
        """A truth.

        Raises:
          UserError: it is none.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key}={value!r}: should be true or false")
        return value

    def only(self, key: str, *supported: Any) -> None:
        """Checks that a key has one of the values that are supported, of which the first is usual.

        Raises:
          UserError: it has another.
        """
        value = self.get(key, supported[0])
        if value not in supported:
            known = " or ".join(map(repr, supported))
            raise UserError(f"{self.path}: {key}={value!r} is not supported, only {known}")

    def check_rest(self) -> None:
        """Checks that nothing is left that might change what the model computes.

        Raises:
          UserError: something is.
        """
        for key, value in self.content.items():
            if key not in self.asked and value not in (None, False, "", [], {}):
                raise UserError(
                    f"{self.path}: {key}={value!r} is not known here and may change the model; if "
                    "it does not, take it out"
                )
