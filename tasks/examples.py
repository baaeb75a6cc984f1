"""What a task's files hold, before any pattern or tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "dev", "test", "unlabeled")


@dataclass(frozen=True)
class InputExample:
    """One example of a task.

    Attributes:
        guid: name within the split, such as ``dev-17``; predictions are collected by it.
        text_a, text_b: the texts that patterns are made of.
        label: one of the task's labels, None where the file has none.
        meta: what else the task's patterns and metrics need.
        idx: the name that the prediction file gives; -1 when the data has none.
        num_choices: number of answers to choose from, where it varies from example to example.
        labelled: whether the label is the file's; WiC's missing ones are taken to be false.
    """

    guid: str | int
    text_a: str
    text_b: Any = None
    label: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    idx: Any = -1
    num_choices: int = 1
    labelled: bool = True


@dataclass(frozen=True)
class DataOptions:
    """How a task's files are read.

    Attributes:
        few_superglue: the files of FewGLUE: dev is ``dev32.jsonl`` and test is ``val.jsonl``.
        cloze: examples are scored by the language model, not by a classification head.
        wsc_negative: WSC with a list of candidates.
        for_training: the examples are for a loss, not for a metric: ReCoRD has one example per answer then.
    """

    few_superglue: bool = False
    cloze: bool = True
    wsc_negative: bool = False
    for_training: bool = False
