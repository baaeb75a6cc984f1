"""The run of a task that writes texts in several languages: answers to questions, and summaries.

Training, decoding and files are those of ``tasks/seq2seq``; here is what is read, and how each language is scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.multilingual import questions, summaries
from tasks.multilingual.metrics import answer_scores, by_language
from tasks.seq2seq.metrics import bleu_signature, library_scores, rouge_figures
from tasks.seq2seq.outputs import is_no_answer
from tasks.seq2seq.readers import NO_ANSWER, Seq2SeqExample, Seq2SeqOptions
from tasks.seq2seq.run import Seq2SeqRun, Written
from tasks.settings import QUESTION_TASKS

_SENTENCE = re.compile(r".*?(?:[.!?؟।۔](?=\s|$)|[。！？]|$)", re.DOTALL)


def read_multilingual(
    task: str, data_dir: str | Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of a split of one of ``MULTILINGUAL_TASKS``. Raises ValueError as the readers do."""
    read = questions.read_questions if task in QUESTION_TASKS else summaries.read_summaries
    return read(task, Path(data_dir), split, tokenizer=tokenizer, options=options)


class MultilingualRun(Seq2SeqRun):
    """One run of a task of ``tasks/multilingual/questions.py`` or ``summaries.py``."""

    @property
    def rouge_unit(self) -> str:
        """Return what ROUGE counts; ids of the tokenizer fit every language."""
        return self.settings.rouge_unit or "mglm"

    @property
    def normalization(self) -> str:
        """Return how answers are compared."""
        default = "mglm" if self.options.legacy_qa_eval else "mlqa" if self.name == "mlqa" else "squad"
        return self.settings.qa_normalization or default

    @property
    def rules(self) -> dict[str, str]:
        """Return how the figures are made; they are printed and written with the figures."""
        if self.name in QUESTION_TASKS:
            return {"qa-normalization": self.normalization}
        return {**super().rules, "sacrebleu-signature": bleu_signature(chinese=self._chinese_targets(self.first_split))}

    @property
    def first_split(self) -> Sequence[Seq2SeqExample]:
        """Return the examples of the first split that is evaluated; there may be none."""
        splits = [*self.validation, *self.test]
        return splits[0].examples if splits else ()

    def read(self, split: str) -> list[Seq2SeqExample]:
        """Return the examples of a split; with ``--limit`` that many of each language, questions with all windows."""
        folder, limit = self.configuration.data.data_dir, self.configuration.task.limit
        assert folder is not None
        examples = read_multilingual(self.name, folder, split, tokenizer=self.tokenizer, options=self.options)
        if limit is None:
            return examples
        taken: dict[str, dict[object, None]] = {}
        for example in examples:
            chosen = taken.setdefault(example.language, {})
            if len(chosen) < limit:
                chosen[_identity(example)] = None
        return [example for example in examples if _identity(example) in taken[example.language]]

    def scores(self, examples: Sequence[Seq2SeqExample], written: Sequence[Written]) -> dict[str, float]:
        """Return the metrics of texts, of every language and their mean (``by_language``)."""
        texts = [one.text for one in written]
        if self.name in QUESTION_TASKS:
            return question_scores(
                texts, examples, normalization=self.normalization, merged=self.options.legacy_qa_eval
            )

        def measure(numbers: Sequence[int]) -> dict[str, float]:
            said, true = zip(*((texts[number], examples[number].reference) for number in numbers))
            return rouge_figures(said, true, unit=self.rouge_unit, tokenizer=self.tokenizer, task=self.name)

        figures = by_language(measure, [example.language for example in examples])
        said, true = ([" ".join(text.split()) for text in texts], [" ".join(e.reference.split()) for e in examples])
        return figures | library_scores(said, true, chinese=self._chinese_targets(examples))

    def baseline(self, examples: Sequence[Seq2SeqExample]) -> dict[str, float]:
        """Return the metrics of the first sentence of each context, or of the first words of each text."""
        if self.name in QUESTION_TASKS:
            return self.scores(examples, [Written(first_sentence(example.meta["context"])) for example in examples])
        encode, decode = self.tokenizer.encode, self.tokenizer.decode
        length = round(fmean(len(encode(example.reference)) for example in examples))
        return self.scores(examples, [Written(decode(encode(example.source)[:length])) for example in examples])

    def _chinese_targets(self, examples: Sequence[Seq2SeqExample]) -> bool:
        return bool(examples) and all(example.meta.get("tgt_lang") == "zh" for example in examples)


def _identity(example: Seq2SeqExample) -> object:
    """Return what a limit counts: a question, or an example."""
    return example.meta["idx"] if "answers" in example.meta else example.guid


def first_sentence(text: str) -> str:
    """Return the text up to the first mark that ends a sentence in any of the usual scripts."""
    match = _SENTENCE.match(text.strip())
    return match.group().strip() if match else text


def question_scores(
    predictions: Sequence[str], examples: Sequence[Seq2SeqExample], *, normalization: str, merged: bool = False
) -> dict[str, float]:
    """Return exact match and F1 in percent, of every language and their mean (``by_language``).

    Every question of every language counts once: its prediction is that of its first window with one, else no answer,
    which is right where it is the only truth. With ``merged`` languages share ids, as in the original: what counts is
    the first prediction of any language, against the truth of the first one.
    """
    keys = [("" if merged else example.language, example.meta["idx"]) for example in examples]
    predicted: dict[tuple[str, str], str] = {}
    asked: dict[tuple[str, str], Seq2SeqExample] = {}
    for key, prediction, example in zip(keys, predictions, examples, strict=True):
        asked.setdefault(key, example)
        if key not in predicted and not is_no_answer(prediction):
            predicted[key] = prediction
    results = {key: _score(predicted.get(key, NO_ANSWER), example, normalization) for key, example in asked.items()}

    def measure(numbers: Sequence[int]) -> dict[str, float]:
        scores = [results[key] for key in dict.fromkeys(keys[number] for number in numbers)]
        return {"EM": 100 * fmean(em for em, _ in scores), "F1": 100 * fmean(f1 for _, f1 in scores)}

    return by_language(measure, ["" if merged else example.language for example in examples])


def _score(prediction: str, example: Seq2SeqExample, normalization: str) -> tuple[float, float]:
    answers = list(example.meta["answers"])
    if answers == [NO_ANSWER]:
        return (float(is_no_answer(prediction)),) * 2
    language = example.language.split("-")[0]
    return answer_scores(prediction, answers, normalization=normalization, language=language)
