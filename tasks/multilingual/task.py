"""Understanding tasks in several languages: their figures are those of each language and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.metrics import evaluate
from tasks.multilingual.metrics import by_language
from tasks.multilingual.readers import NO_SENTENCE
from tasks.superglue.readers import InputExample
from tasks.superglue.task import Task


@dataclass(frozen=True)
class MultilingualTask(Task):
    """A task whose examples know their language."""

    def evaluate(self, predictions: Sequence[int], examples: Sequence[InputExample]) -> dict[str, float]:
        """Return the task's metrics by name, as ``by_language`` calls them."""

        def measure(numbers: Sequence[int]) -> dict[str, float]:
            chosen = [examples[number] for number in numbers]
            said = [predictions[number] for number in numbers]
            return evaluate(self.metrics, said, list(map(self.label_index, chosen)), chosen)

        return by_language(measure, [example.language for example in examples])


@dataclass(frozen=True)
class PawsxTask(MultilingualTask):
    """PAWS-X: rows that the translators left out (``NS``) count as in published figures, which stand apart as well."""

    def evaluate(self, predictions: Sequence[int], examples: Sequence[InputExample]) -> dict[str, float]:
        figures = super().evaluate(predictions, examples)
        kept = [n for n, one in enumerate(examples) if NO_SENTENCE not in (one.text_a.strip(), one.text_b.strip())]
        if 0 < len(kept) < len(examples):
            rest = super().evaluate([predictions[number] for number in kept], [examples[number] for number in kept])
            figures |= {f"{name}-without-ns": rest[name] for name in self.metrics}
            figures["ns-rows"] = float(len(examples) - len(kept))
        return figures
