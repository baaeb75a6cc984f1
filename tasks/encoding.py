"""Which form the samples of a task take, and making them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from tasks.classification import HEAD_TEXTS, ClassificationEncoder, plain_texts
from tasks.cloze import ClozeEncoder, TaskTokenizer
from tasks.examples import InputExample
from tasks.multichoice import MultichoiceEncoder
from tasks.samples import EncodingOptions, SampleSet, TaskSample

if TYPE_CHECKING:
    from tasks.registry import Task

Encoder: TypeAlias = "ClozeEncoder | ClassificationEncoder | MultichoiceEncoder"


def scores_sequences(task: Task, options: EncodingOptions) -> bool:
    """Return whether answers are scored as sequences of tokens."""
    return options.multi_token or task.multi_token or task.patterns.free_answers


def models_language(task: Task, options: EncodingOptions) -> bool:
    """Return whether the samples are plain language modelling of one answer: WSC without candidates.

    The original gives them another form, of one row, when the loss is ``generative`` or ``mix``.
    """
    one_row = options.compatible and options.loss_func not in ("cross_entropy", "hinge")
    return task.name == "wsc" and options.cloze and not options.wsc_negative and not one_row


def label_index(task: Task, example: InputExample, options: EncodingOptions, *, for_training: bool) -> int:
    """Return the class, or the index of the right choice; 0 for an unlabelled example."""
    if task.name == "wsc" and options.cloze and for_training and not models_language(task, options):
        return 0  # the first row is the span that is right
    if task.name == "multichoice":
        return int(example.label or 0)
    return 0 if example.label is None else task.labels.index(example.label)


def build_samples(
    task: Task,
    examples: Sequence[InputExample],
    tokenizer: TaskTokenizer,
    options: EncodingOptions,
    *,
    for_training: bool = False,
) -> SampleSet:
    """Return one sample per example.

    ``for_training``: the samples are for a loss. WSC's labels are then the row of the right span. Raises ValueError for
    options that the task does not have, and, naming the example, for one that does not fit ``seq_length``.
    """
    encoder = make_encoder(task, tokenizer, options)
    samples = [sample_of(task, example, encoder, options, for_training=for_training) for example in examples]
    if isinstance(encoder, ClozeEncoder) and encoder.num_commands:
        warnings.warn(
            f"{task.name}: {encoder.num_commands} texts hold command tokens such as [MASK], which count as those",
            stacklevel=2,
        )
    return SampleSet(tuple(samples), encoder.num_truncated)


def make_encoder(task: Task, tokenizer: TaskTokenizer, options: EncodingOptions) -> Encoder:
    """Return what turns examples into samples. Raise ValueError for options that the task does not have."""
    if not options.cloze:
        texts = task.head_texts or HEAD_TEXTS.get(task.name, plain_texts)
        return ClassificationEncoder(task.name, texts, tokenizer, options)
    if task.name == "multichoice":
        return MultichoiceEncoder(tokenizer, options)
    return ClozeEncoder(task.patterns, tokenizer, options, multi_token=scores_sequences(task, options))


def sample_of(
    task: Task, example: InputExample, encoder: Encoder, options: EncodingOptions, *, for_training: bool
) -> TaskSample:
    """Return the sample of one example."""
    label = label_index(task, example, options, for_training=for_training)
    if isinstance(encoder, ClozeEncoder) and models_language(task, options):
        return encoder.language_model_sample(example, label=label)
    return encoder.sample(example, label=label)


def labelled_texts(
    task: Task, examples: Sequence[InputExample], tokenizer: TaskTokenizer, options: EncodingOptions
) -> list[list[int]]:
    """Return the examples with their answers filled in, [CLS] and end token around them (``--block-lm-ratio``).

    Every token of them may be blanked out.
    """
    encoder = ClozeEncoder(task.patterns, tokenizer, options, multi_token=scores_sequences(task, options))
    texts = []
    for example in examples:
        # The right answer of WSC is the first one, whatever the form of its samples.
        label = 0 if task.name == "wsc" else label_index(task, example, options, for_training=True)
        ids = encoder.labelled_text(example, label=label)
        texts.append([encoder.commands.enc, *ids, encoder.commands.pad])
    return texts
