"""Small models with random weights, a tokenizer of numbered words, prompts and texts for both."""

from __future__ import annotations

import numpy as np
import torch

from data_utils.tokenizers.command_tokens import given_commands
from data_utils.tokenizers.text_tokenizers import WordList
from data_utils.tokenizers.tokenizer import Tokenizer
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.modeling_glm import GLMModel


class WordTokenizer(Tokenizer):
    """Split on blanks: ``wN`` is id N, command texts are their ids; decoding joins with blanks."""

    def __init__(
        self, command_ids: dict[str, int], *, num_tokens: int, task_mask: bool = True, unknown_id: int | None = None
    ) -> None:
        """``unknown_id`` None: unknown words are an error."""
        ids = {name: index for name, index in command_ids.items() if task_mask or name not in ("sMASK", "gMASK")}
        words = WordList([f"w{index}" for index in range(num_tokens)], unknown_id=unknown_id)
        super().__init__(words, given_commands(ids, num_tokens), family="words")


TINY_COMMAND_IDS = {
    "pad": 50, "eos": 50, "ENC": 51, "MASK": 52, "sMASK": 53, "gMASK": 54, "sop": 55, "eop": 56, "sep": 57,
}  # fmt: skip
WORDS = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58)
PROMPTS = [
    "w1 w2 [MASK] w3",
    "[MASK]",
    "w9 [sMASK] w8 [MASK] w7 w6 w5 w4 w3 [MASK] w30 w31 w32",
    "w40 w41 w42 w43 w44 w45 w46 [gMASK]",
    "w1 [MASK] [MASK] w2",
    "w12 w13 w14 [MASK] w15",
]
DECODING = {
    "greedy": DecodingSettings(max_length=7, top_k=1),
    "sampling": DecodingSettings(max_length=7, temperature=0.8, top_k=12, top_p=0.9),
    "full sampling": DecodingSettings(max_length=7),
    "processors": DecodingSettings(max_length=7, top_k=1, min_length=3, no_repeat_ngram_size=2),
    "beams": DecodingSettings(max_length=7, num_beams=3, length_penalty=0.7),
    "beams with processors": DecodingSettings(max_length=6, num_beams=4, min_length=2, no_repeat_ngram_size=2),
    "drawn beams": DecodingSettings(max_length=5, num_beams=2, draw_candidates=True),
}


def random_model(*, seed: int = 0, vocab_size: int = 64, positions: int = 64, num_layers: int = 2) -> GLMModel:
    """Return a small model whose weights are large enough that its choices are no near-ties."""
    generator = torch.Generator().manual_seed(seed)
    config = GLMConfig(num_layers, 32, 4, vocab_size, max_position_embeddings=positions, initializer_std=0.4)
    return GLMModel(config, generator=generator).eval()


def made_up_texts(count: int, *, seed: int = 0, longest: int = 4) -> list[tuple[str, list[str]]]:
    """Return contexts of numbered words, most with a blank, and one to five continuations for each."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> list[str]:
        return [f"w{number}" for number in generator.integers(0, 50, length)]

    texts = []
    for number in range(count):
        words = draw(int(generator.integers(2, 20)))
        if number % 4:
            words.insert(int(generator.integers(0, len(words) + 1)), "[MASK]")
        continuations = [draw(int(generator.integers(1, longest + 1))) for _ in range(int(generator.integers(1, 6)))]
        texts.append((" ".join(words), [" ".join(continuation) for continuation in continuations]))
    return texts
