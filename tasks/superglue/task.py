"""What an understanding task is: where its data is, how an example becomes a sample, its metrics, its predictions.

``tasks/registry.py`` lists the tasks. What is special about one of them is a field here, or a subclass.
"""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.metrics import evaluate
from tasks.superglue.outputs import Format, class_entries, prediction_lines
from tasks.superglue.patterns import PVP
from tasks.superglue.readers import DEFAULT_OPTIONS, DataOptions, DataProcessor, InputExample
from tasks.superglue.samples import (
    ClassificationEncoder,
    ClozeEncoder,
    Encoder,
    EncodingOptions,
    Kind,
    MultichoiceEncoder,
    TaskSample,
    TextChooser,
    plain_texts,
)

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger("glm")


@dataclass(frozen=True)
class SampleSet:
    """The samples of some examples, one per example in their order, and how often a text was shortened."""

    samples: tuple[TaskSample, ...]
    num_truncated: int


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: in lower case; names predictions and is what ``--task`` says.
        processor: reads the files: called with the name and ``DataOptions``.
        pvp: patterns and verbalizers: called with the name and the labels; None where there are none.
        metrics: names in ``tasks.metrics.METRICS``; the first selects the best checkpoint.
        multi_token: verbalizers are scored as sequences even without ``--multi-token``.
        varying_choices: the number of answers differs from example to example.
        choice_head: a classification head scores every answer with one output, instead of every class.
        head_texts: what a classification head reads of an example; None for tasks that have no such form.
        entries: what stands in the prediction file.
        only_mixed: the task only serves multi-task pre-training.
        needs_folder: whether the data is in a folder, ``--data-dir``.
    """

    name: str
    processor: Callable[[str, DataOptions], DataProcessor]
    pvp: Callable[[str, Sequence[Any]], PVP] | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    multi_token: bool = False
    varying_choices: bool = False
    choice_head: bool = False
    head_texts: TextChooser | None = plain_texts
    entries: Format = class_entries
    only_mixed: bool = False
    needs_folder: bool = True

    @property
    def labels(self) -> tuple[Any, ...]:
        """Return the class names in the order of the classes."""
        return tuple(self.processor(self.name, DEFAULT_OPTIONS).labels)

    @property
    def patterns(self) -> PVP:
        """Return the patterns. Raise ValueError for a task without any."""
        if self.pvp is None:
            raise ValueError(f"{self.name} has no patterns: leave out --cloze-eval")
        return self.pvp(self.name, self.labels)

    def examples(
        self, data_dir: str | Path | None, split: str, options: DataOptions = DEFAULT_OPTIONS
    ) -> list[InputExample]:
        """Read a split. Raises ValueError as ``DataProcessor.examples``, and for a split without examples."""
        examples = self.processor(self.name, options).examples(data_dir, split)
        if not examples:
            raise ValueError(f"{self.name}: no examples in the split {split!r} of {data_dir}")
        return examples

    def has_split(self, split: str, options: DataOptions = DEFAULT_OPTIONS) -> bool:
        """Return whether the task has such a split (AG News has no test set, the diagnostics have no dev set)."""
        return self.processor(self.name, options).has_split(split)

    def splits(self, names: Sequence[str]) -> list[str]:
        """Return the splits that ``names`` stand for."""
        return list(names)

    def output_name(self, split: str) -> str:
        """Return what the results of a split are called: ``rte-dev``."""
        return f"{self.name}-{split}"

    def label_index(self, example: InputExample) -> int:
        """Return the class (or right choice) of an example that has a label."""
        return self.labels.index(example.label)

    def sample_label(self, example: InputExample, options: EncodingOptions, *, for_training: bool) -> int | None:
        """Return the label of an example's sample: its class or right choice, None for an unlabelled example."""
        return None if example.label is None else self.label_index(example)

    def encoder(self, tokenizer: Tokenizer, options: EncodingOptions) -> Encoder:
        """Return what turns examples into samples. Raise ValueError for options that the task does not have."""
        return self.cloze_encoder(tokenizer, options) if options.cloze_eval else self.head_encoder(tokenizer, options)

    def head_encoder(self, tokenizer: Tokenizer, options: EncodingOptions) -> ClassificationEncoder:
        """Return what makes samples for a classification head. Raise ValueError for a task that has none."""
        if self.head_texts is None:
            raise ValueError(f"{self.name} has no form for a classification head; give --cloze-eval")
        return ClassificationEncoder(self.head_texts, tokenizer, options)

    def cloze_encoder(self, tokenizer: Tokenizer, options: EncodingOptions) -> ClozeEncoder:
        """Return what makes samples of patterns. Raise ValueError for a task without any."""
        patterns = self.patterns
        multi_token = options.multi_token or self.multi_token or patterns.free_answers
        return ClozeEncoder(patterns, tokenizer, options, multi_token=multi_token)

    def build_samples(
        self,
        examples: Sequence[InputExample],
        tokenizer: Tokenizer,
        options: EncodingOptions,
        *,
        for_training: bool = False,
    ) -> SampleSet:
        """Return one sample per example.

        ``for_training``: the samples are for a loss. WSC's labels are then the row of the right span. Raises ValueError
        for options that the task does not have, and, naming the example, for one that does not fit ``seq_length``.
        """
        encoder = self.encoder(tokenizer, options)
        samples = tuple(
            encoder.sample(example, label=self.sample_label(example, options, for_training=for_training))
            for example in examples
        )
        if encoder.num_commands:
            logger.warning(
                f"{self.name}: {encoder.num_commands} texts hold command tokens such as [MASK], which count as those"
            )
        return SampleSet(samples, encoder.num_truncated)

    def labelled_texts(
        self, examples: Sequence[InputExample], tokenizer: Tokenizer, options: EncodingOptions
    ) -> list[list[int]]:
        """Return the examples with their answers filled in, [CLS] and end token around them (``--block-lm-ratio``).

        Every token of them may be blanked out.
        """
        encoder = self.cloze_encoder(tokenizer, options)
        return [encoder.labelled_text(example, label=self.answer_index(example)) for example in examples]

    def answer_index(self, example: InputExample) -> int:
        """Return which of its answers a labelled example has in labelled texts."""
        return self.label_index(example)

    def prompt_init_tokens(self, tokenizer: Tokenizer, options: EncodingOptions) -> list[int]:
        """Return the ids of the labels' words, in label order, which start a continuous prompt; none without words."""
        patterns = self.patterns
        words = patterns.verbalizers(options.pattern_id).values() if patterns.words else ()
        return [index for word in words for index in tokenizer.encode(word)]

    def predicted_class(self, kind: Kind, best_row: int) -> int:
        """Return the class that the best score stands for."""
        return best_row

    def counted_rows(self, examples: Sequence[InputExample]) -> list[int]:
        """Return which examples metrics are about: those with a label."""
        return [number for number, example in enumerate(examples) if example.label is not None]

    def evaluate(self, predictions: Sequence[int], examples: Sequence[InputExample]) -> dict[str, float]:
        """Return the task's metrics by name. ``predictions`` are classes (or choices) in the order of the examples."""
        return evaluate(self.metrics, predictions, list(map(self.label_index, examples)), examples)

    def majority_baseline(self, examples: Sequence[InputExample]) -> dict[str, float]:
        """Return the metrics of always predicting the most frequent class of these examples.

        There is none where the number of answers differs from example to example.
        """
        if self.varying_choices:
            return {}
        [(majority, _)] = Counter(map(self.label_index, examples)).most_common(1)
        return self.evaluate([majority] * len(examples), examples)

    def prediction_lines(
        self,
        examples: Sequence[InputExample],
        predictions: Sequence[Any],
        *,
        index_key: str = "idx",
        compatible: bool = False,
    ) -> list[str]:
        """Return the lines of a prediction file; see ``tasks.superglue.outputs``."""
        entries = self.entries(self.labels, examples, predictions)
        return prediction_lines(entries, examples, index_key=index_key, compatible=compatible)


class WscTask(Task):
    """WSC: candidates for a pronoun are rows, the first of which is the span that the label is about.

    Without candidates (``--wsc-negative``) samples are plain language modelling of that span. The original gives them
    another form, of one row, when the loss is ``generative`` or ``mix``.
    """

    def models_language(self, options: EncodingOptions) -> bool:
        """Return whether samples are plain language modelling."""
        one_row = options.compatible and options.loss_func not in ("cross_entropy", "hinge")
        return options.cloze_eval and not options.wsc_negative and not one_row

    def head_encoder(self, tokenizer: Tokenizer, options: EncodingOptions) -> ClassificationEncoder:
        if options.wsc_negative:
            raise ValueError("--wsc-negative scores candidates by the language model; give --cloze-eval")
        return super().head_encoder(tokenizer, options)

    def cloze_encoder(self, tokenizer: Tokenizer, options: EncodingOptions) -> ClozeEncoder:
        alone = self.models_language(options)
        return ClozeEncoder(self.patterns, tokenizer, options, multi_token=True, language_model=alone)

    def sample_label(self, example: InputExample, options: EncodingOptions, *, for_training: bool) -> int | None:
        if example.label is None:
            return None
        if for_training and options.cloze_eval and not self.models_language(options):
            return 0  # the first row is the span that is right
        return super().sample_label(example, options, for_training=for_training)

    def answer_index(self, example: InputExample) -> int:
        return 0

    def predicted_class(self, kind: Kind, best_row: int) -> int:
        """Return 1 where the first row is the best."""
        return int(best_row == 0) if kind in ("multi_token", "fast_decode") else best_row


class MultichoiceTask(Task):
    """Any file of choices: splits are files, labels the numbers of choices; some examples may have none."""

    def splits(self, names: Sequence[str]) -> list[str]:
        """Return the files that the patterns match (``**`` goes into folders), in order.

        Raise ValueError for none, and for two whose predictions would overwrite each other.
        """
        paths: list[str] = []
        for pattern in names:
            files = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
            if not files:
                raise ValueError(f"{pattern}: no such file; multichoice takes files or patterns of them")
            paths += files
        titles = list(map(self.output_name, paths))
        if twice := [path for path, title in zip(paths, titles) if titles.count(title) > 1]:
            raise ValueError(f"{', '.join(twice)}: predictions of the same name; rename one up to its first dot")
        return paths

    def output_name(self, split: str) -> str:
        """Return the name with that of the file up to its first dot."""
        return f"{self.name}-{Path(split).name.split('.')[0]}"

    def label_index(self, example: InputExample) -> int:
        return int(example.label)

    def encoder(self, tokenizer: Tokenizer, options: EncodingOptions) -> Encoder:
        return MultichoiceEncoder(tokenizer, options) if options.cloze_eval else self.head_encoder(tokenizer, options)
