"""Documents of made-up ids and the vocabulary that goes with them, for tests of the data room."""

from __future__ import annotations

import random

import numpy as np

from tests.helpers.golden_vocabulary import StandInDocuments, StandInVocabulary

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
