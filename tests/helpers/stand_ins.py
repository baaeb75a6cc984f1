"""Vocabulary and documents of made-up ids: those of the golden pre-training vectors, and small ones for other tests."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from data_utils.corpora.store import Document
from data_utils.objective.block_infilling import BlankInfillingSettings
from data_utils.tokenizers.command_tokens import given_commands
from data_utils.tokenizers.text_tokenizers import WordList
from data_utils.tokenizers.tokenizer import Tokenizer

NUM_IDS = 2000
# Field of a batch -> its name in the recordings.
RECORDED_FIELDS = {
    "input_ids": "text",
    "target_ids": "target",
    "loss_mask": "loss_mask",
    "position_ids": "position_id",
    "attention_mask": "attention_mask",
}


class StandInVocabulary(Tokenizer):
    """Command ids and sentence ends, as given in a golden file under ``tokenizer``."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        commands = {"pad": recorded["commands"]["eos"], "sep": 2, **recorded["commands"]}
        for number in range(1, 400):
            commands |= {f"MASK{number}": 900 + 2 * (number - 1), f"sop{number}": 901 + 2 * (number - 1)}
        words = WordList([f"w{index}" for index in range(NUM_IDS)])
        super().__init__(words, given_commands(commands, NUM_IDS), family="stand-in")
        self._ends = {
            "span": recorded["sentence_end_ids_collator"],
            "document": recorded["sentence_end_ids_dataset"],
        }

    def sentence_end_table(self, predicate: str) -> np.ndarray:
        table = np.zeros(NUM_IDS, dtype=bool)
        table[self._ends[predicate]] = True
        return table


class StandInDocuments:
    """Documents given as ``{"tokens", "loss_masks"}``."""

    def __init__(self, recorded: list[dict[str, Any]]) -> None:
        self._documents = []
        for document in recorded:
            mask = document["loss_masks"]
            prompt_length = mask.count(0)
            predicted = None if mask == sorted(mask) else np.array(mask)  # a prompt comes first, or anywhere
            self._documents.append(Document(np.array(document["tokens"]), prompt_length, predicted))
        self.lengths = np.array([len(document.tokens) for document in self._documents], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]


def settings_of(recorded: dict[str, Any]) -> BlankInfillingSettings:
    """Return the settings of a recorded constructor call; an option we do not know is an error."""
    renamed = {"average_block_length": "avg_block_length"}
    options = {renamed.get(name, name): value for name, value in recorded.items()}
    assert options.pop("encoder_decoder") is False
    return BlankInfillingSettings(**options)


# The small vocabulary of other tests: ids of commands, of the full stop, and of words.
EOS, ENC, MASK, SOP, EOP, GMASK, SMASK, DBLOCK = 1, 3, 4, 6, 7, 8, 9, 10
FULL_STOP = 20
WORDS = range(100, 200)

VOCABULARY = StandInVocabulary(
    {
        "commands": {
            "pad": EOS, "eos": EOS, "ENC": ENC, "MASK": MASK, "sop": SOP, "eop": EOP, "gMASK": GMASK, "sMASK": SMASK,
            "dBLOCK": DBLOCK,
        },
        "sentence_end_ids_collator": [FULL_STOP],
        "sentence_end_ids_dataset": [FULL_STOP],
    }
)  # fmt: skip


def make_documents(lengths: list[int], *, seed: int = 0, prompt_length: int = 0) -> StandInDocuments:
    """Return documents of the given lengths with a full stop about every eight words."""
    generator = random.Random(seed)
    recorded = []
    for length in lengths:
        tokens = [FULL_STOP if generator.random() < 0.12 else generator.choice(WORDS) for _ in range(length)]
        prompt = min(prompt_length, length)
        recorded.append({"tokens": tokens, "loss_masks": [0] * prompt + [1] * (length - prompt)})
    return StandInDocuments(recorded)


def make_text(length: int, *, seed: int = 0) -> np.ndarray:
    """Return ENC and ``length`` distinct-looking words closed by a full stop and eos, int64."""
    generator = random.Random(seed)
    words = [generator.choice(WORDS) for _ in range(length)]
    return np.array([ENC, *words, FULL_STOP, EOS], dtype=np.int64)
