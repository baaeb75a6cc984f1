"""Configuration of a GLM for Hugging Face transformers."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig

POOL_TOKENS = ("start", "pad", "cls")
# What a field may be: whole numbers from 1 to the largest that is believed of a file, probabilities, truth values ...
SIZES = {
    "num_layers": 1000, "vocab_size": 1 << 26, "hidden_size": 1 << 17, "num_attention_heads": 1 << 17,
    "max_sequence_length": 1 << 24, "checkpoint_num_layers": 1000, "spell_length": 1 << 20,
}  # fmt: skip
PROBABILITIES = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob", "classifier_dropout")
NUMBERS = ("attention_scale", "initializer_range")
SWITCHES = (
    "checkpoint_activations", "parallel_output", "relative_encoding", "block_position_encoding", "output_predict",
    "use_cache",
)  # fmt: skip
MAY_BE_NULL = ("spell_length", "classifier_dropout")


def check_fields(fields: dict[str, Any]) -> None:
    """Raise ValueError, naming the field, for one that is of another kind or out of its bounds."""

    def is_whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def is_number(value: Any) -> bool:
        return is_whole(value) or (isinstance(value, float) and math.isfinite(value))

    for name, value in fields.items():
        if value is None and name in MAY_BE_NULL:
            continue
        if name in SIZES and not (is_whole(value) and 1 <= value <= SIZES[name]):
            needed = f"a whole number from 1 to {SIZES[name]}"
        elif name in PROBABILITIES and not (is_number(value) and 0 <= value <= 1):
            needed = "a number from 0 to 1"
        elif name in NUMBERS and not (is_number(value) and value >= 0):
            needed = "a number of at least 0"
        elif name in SWITCHES and not isinstance(value, bool):
            needed = "true or false"
        elif name == "pool_token" and value not in POOL_TOKENS:
            needed = f"one of {', '.join(POOL_TOKENS)}"
        else:
            continue
        raise ValueError(f"{name} is {repr(value)[:60]} in the configuration of a GLM; {needed} is needed")


class GLMConfig(PretrainedConfig):
    """Describe a GLM: a prefix language model that fills blanks and has two rows of positions.

    Args:
        num_layers, vocab_size, hidden_size, num_attention_heads: sizes of the network; the feed-forward part is four
            times as wide as ``hidden_size``.
        embedding_dropout_prob, attention_dropout_prob, output_dropout_prob: dropout after the embeddings, on attention
            probabilities, and after each half of a layer.
        max_sequence_length: number of positions; the tables of a model with block positions have one more row.
        checkpoint_activations: recompute layers in the backward pass instead of keeping what is inside of them (the
            same as ``model.gradient_checkpointing_enable()``).
        block_position_encoding: whether there is a second row of positions, which counts inside a blank.
        output_predict: whether ``GLMModel`` returns logits; the task classes do not depend on it.
        attention_scale: above 1, guards explicit half-precision attention scores against overflow.
        initializer_range: standard deviation of fresh weights.
        classifier_dropout: dropout of ``GLMForSequenceClassification``'s head; None takes ``output_dropout_prob``.
        mask_token_ids, sop_token_id: the blanks, and the token that starts a piece. With them ``generate`` also takes a
            text that did not go through ``tokenizer.build_inputs_for_generation``, as pipelines give it.
        checkpoint_num_layers, parallel_output, relative_encoding, spell_length, spell_func, pool_token: kept because
            the files of published models have them. Layers are recomputed one by one, logits are never split;
            Transformer-XL positions (``relative_encoding``), prompt encoders (``spell_length``) and a ``pool_token``
            other than ``cls`` are not part of this code, and using a configuration that asks for one is an error.

    Raises:
        ValueError: a field of another kind or out of bounds, or values that do not fit together.
    """

    model_type = "glm-blank-infilling"  # the library's own "glm" is GLM-4
    attribute_map = {"num_hidden_layers": "num_layers"}  # noqa: RUF012  # the library's convention
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012

    def __init__(  # noqa: PLR0917  # the order of the published class
        self,
        num_layers: int = 24,
        vocab_size: int = 30592,
        hidden_size: int = 1024,
        num_attention_heads: int = 16,
        embedding_dropout_prob: float = 0.1,
        attention_dropout_prob: float = 0.1,
        output_dropout_prob: float = 0.1,
        max_sequence_length: int = 512,
        checkpoint_activations: bool = False,
        checkpoint_num_layers: int = 1,
        parallel_output: bool = True,
        relative_encoding: bool = False,
        block_position_encoding: bool = True,
        output_predict: bool = False,
        spell_length: int | None = None,
        spell_func: str = "lstm",
        attention_scale: float = 1.0,
        initializer_range: float = 0.02,
        pool_token: str = "cls",
        classifier_dropout: float | None = None,
        mask_token_ids: list[int] | None = None,
        sop_token_id: int | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        check_fields({name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")})
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}; "
                "change one of them"
            )
        self.num_layers = num_layers
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.embedding_dropout_prob = embedding_dropout_prob
        self.attention_dropout_prob = attention_dropout_prob
        self.output_dropout_prob = output_dropout_prob
        self.max_sequence_length = max_sequence_length
        self.checkpoint_activations = checkpoint_activations
        self.checkpoint_num_layers = checkpoint_num_layers
        self.parallel_output = parallel_output
        self.relative_encoding = relative_encoding
        self.block_position_encoding = block_position_encoding
        self.output_predict = output_predict
        self.spell_length = spell_length
        self.spell_func = spell_func
        self.attention_scale = attention_scale
        self.initializer_range = initializer_range
        self.pool_token = pool_token
        self.classifier_dropout = classifier_dropout
        self.mask_token_ids = mask_token_ids
        self.sop_token_id = sop_token_id
        self.use_cache = use_cache
        super().__init__(**kwargs)

    @property
    def position_rows(self) -> int:
        """Return the number of rows of each position table."""
        return self.max_sequence_length + (1 if self.block_position_encoding else 0)


GLMConfig.register_for_auto_class()
