"""Small models and tokenizers of the Hugging Face layout, and the same weights in our own model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from model.config import GLMConfig as OwnConfig
from model.hf.configuration_glm import GLMConfig
from model.hf.modeling_glm import GLMForConditionalGeneration, GLMPreTrainedModel
from model.hf.tokenization_glm import (
    CLS,
    END_OF_PIECE,
    END_OF_TEXT,
    GENERATION_MASK,
    MASK,
    SENTENCE_MASK,
    SEP,
    START_OF_PIECE,
    UNK,
    GLMGPT2Tokenizer,
)
from model.modeling_glm import GLMModel as OwnModel

NO_DROPOUT = {"embedding_dropout_prob": 0.0, "attention_dropout_prob": 0.0, "output_dropout_prob": 0.0}
# The command ids of tests/helpers/small_models.py::TINY_COMMAND_IDS under their texts.
TINY_TEXTS = {
    END_OF_TEXT: 50, CLS: 51, MASK: 52, SENTENCE_MASK: 53, GENERATION_MASK: 54, START_OF_PIECE: 55, END_OF_PIECE: 56,
    SEP: 57, UNK: 58,
}  # fmt: skip


def tiny_config(**options: Any) -> GLMConfig:
    """Return the configuration of a model with the sizes of tests/helpers/small_models.py::random_model."""
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "max_sequence_length": 64}
    return GLMConfig(**{**sizes, "output_predict": True, **options})


def fresh_model(
    kind: type[GLMPreTrainedModel] = GLMForConditionalGeneration, *, seed: int = 0, **options: Any
) -> GLMPreTrainedModel:
    """Return a model with random weights, large enough that its choices are no near-ties."""
    torch.manual_seed(seed)
    model = kind(tiny_config(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm.weight" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def own_copy(model: GLMPreTrainedModel, **options: Any) -> OwnModel:
    """Return our own model with the same weights."""
    fields = model.config
    config = OwnConfig(
        fields.num_layers,
        fields.hidden_size,
        fields.num_attention_heads,
        fields.vocab_size,
        max_position_embeddings=fields.max_sequence_length,
        block_position_encoding=fields.block_position_encoding,
        attention_scale=fields.attention_scale,
        **options,
    )
    own = OwnModel(config)
    weights = {name.removeprefix("glm."): tensor for name, tensor in model.state_dict().items()}
    own.load_state_dict({name: weights[name] for name in own.state_dict()})
    return own.eval()


def word_tokenizer(special_ids: dict[str, int], *, num_tokens: int) -> GLMGPT2Tokenizer:
    """Return a tokenizer of numbered words: ``w7`` is id 7, the texts of ``special_ids`` have those ids."""
    names = {index: text for text, index in special_ids.items()}
    assert len(names) == len(special_ids), special_ids
    vocabulary = {names.get(index, f"w{index}"): index for index in range(num_tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names[max(names)]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special_ids))
    return GLMGPT2Tokenizer(tokenizer_object=tokenizer)


def words(ids: Sequence[int]) -> str:
    """Return the text that ``word_tokenizer`` turns into ``ids``."""
    return " ".join(f"w{index}" for index in ids)


def tiny_tokenizer() -> GLMGPT2Tokenizer:
    """Return the tokenizer of the small models: a text is wrapped as the GPT-2 family does."""
    from tokenizers import processors

    tokenizer = word_tokenizer(TINY_TEXTS, num_tokens=64)
    special = [(text, TINY_TEXTS[text]) for text in (CLS, END_OF_TEXT)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {END_OF_TEXT}", special_tokens=special
    )
    return tokenizer


def save_with_code(model: GLMPreTrainedModel, folder: Path, tokenizer: GLMGPT2Tokenizer | None = None) -> Path:
    """Save a model, and a tokenizer, with the code that transformers runs."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def block_inputs(*, batch_size: int = 3, length: int = 10, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return random ids [b,s] and 2-D positions [b,2,s]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(64, (batch_size, length), generator=generator)
    return ids, torch.randint(20, (batch_size, 2, length), generator=generator)
