"""The stand-in tokenizer and documents that the golden pre-training vectors were recorded with."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_utils.corpora.store import Document
from data_utils.objective.block_infilling import BlankInfillingSettings
from data_utils.tokenizers.command_tokens import given_commands
from data_utils.tokenizers.text_tokenizers import WordList
from data_utils.tokenizers.tokenizer import Tokenizer

NUM_IDS = 2000


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
    options = dict(recorded)
    assert options.pop("encoder_decoder") is False
    return BlankInfillingSettings(**options)
