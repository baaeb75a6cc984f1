"""The objective: packing documents into samples, choosing spans, making blanks (paper section 2.1)."""

from __future__ import annotations

from enum import Enum


class Objective(str, Enum):
    """What a training batch asks the model to fill: short spans, whole sentences, or the rest of a document.

    The values are what the original's logs and files call them.
    """

    TOKEN = "bert"
    SENTENCE = "sentence"
    DOCUMENT = "gpt"
    DOWNSTREAM = "multi-task"  # batches of downstream tasks, mixed in

    def __str__(self) -> str:
        return self.value
