"""The files of XNLI, PAWS-X and PANX: one file per language, whose rows become examples that know their language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from files.reading import lines_of
from tasks.multilingual.files import language_files
from tasks.readers import Record, read_tab_separated, read_text
from tasks.superglue.readers import NO_FILES, DataProcessor, InputExample, split_files

NO_SENTENCE = "NS"  # stands in PAWS-X for a sentence that the translators left out


class LanguageProcessor(DataProcessor):
    """Reads a split from several files; examples are numbered through all of them.

    Attributes:
        patterns: of each split, globs below the task's folder, the preferred one first.
        train_language: the one language that is trained on; None for every training file there is.
        first: number of the first example in guids.
    """

    files = split_files(train="train", dev="dev", test="test")
    few_files = NO_FILES
    patterns: ClassVar[Mapping[str, Sequence[str]]] = {}
    train_language: ClassVar[str | None] = None
    first: ClassVar[int] = 1

    def examples(self, data_dir: str | Path | None, split: str) -> list[InputExample]:
        """Read a split in the order of file names.

        Raises MissingFileError for missing files, ValueError for a split that the task does not have and for a row
        that is malformed or whose label is not among the labels.
        """
        if split not in self.patterns:
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(self.patterns)}")
        assert data_dir is not None, self.name
        training = split == "train"
        files = language_files(
            Path(data_dir),
            self.patterns[split],
            languages=() if training else self.options.languages,
            only=self.train_language if training else None,
        )
        examples: list[InputExample] = []
        for path, language in files:
            for number, (record, row) in enumerate(self.rows(path, split), start=len(examples)):
                numbers = {"guid": f"{split}-{number + self.first}", "idx": number + 1}
                known = {"language": language, "source": record.place}
                examples.append(InputExample(**row, **numbers, **known))  # type: ignore[arg-type]
        return examples

    def rows(self, path: Path, split: str) -> Iterator[tuple[Record, dict[str, object]]]:
        """Yield the rows of a file with what their examples hold."""
        for record in read_tab_separated(path, header=False):
            yield record, self.pair(record)

    def pair(self, record: Record) -> dict[str, object]:
        """Return the texts and the label of a row of two texts and a label, which a test file may leave out."""
        if len(record.fields) not in (2, 3):
            raise record.error(
                f"{len(record.fields)} columns; {self.name} has two texts and a label, separated by tabs"
            )
        return {"text_a": record.text(0).lstrip(), "text_b": record.text(1), "label": self.label(record, key=2)}


class XnliProcessor(LanguageProcessor):
    """premise, hypothesis, label. Some editions say ``contradictory``."""

    labels = ("neutral", "entailment", "contradiction")
    patterns: ClassVar = {"train": ("train*.tsv",), "dev": ("dev*.tsv",), "test": ("test*.txt", "test*.tsv")}

    def label(self, record: Record, labels: Iterable[Any] | None = None, *, key: Any = "label") -> Any:
        contradictory = str(record.get(key)).strip() == "contradictory"
        return "contradiction" if contradictory else super().label(record, labels, key=key)


class PawsxProcessor(LanguageProcessor):
    """sentence1, sentence2, label; the released test files have a header and an id in front."""

    labels = ("0", "1")
    patterns: ClassVar = {
        "train": ("train*.tsv",),
        "dev": ("dev*.tsv",),
        "test": ("x-final/*/test_2k.tsv", "test*.tsv"),
    }

    def rows(self, path: Path, split: str) -> Iterator[tuple[Record, dict[str, object]]]:
        if path.name != "test_2k.tsv":
            yield from super().rows(path, split)
            return
        for record in read_tab_separated(path):
            texts = {"text_a": record.text("sentence1"), "text_b": record.text("sentence2")}
            yield record, {**texts, "label": self.label(record)}


class PanxProcessor(LanguageProcessor):
    """A token and its tag a line, a blank line after each sentence; one example per token.

    ``meta``: ``index`` of the token in its sentence, ``sentence`` (a number) and ``tag`` as the file has it, which
    entities are made of. Test files of the download have no tags.
    """

    labels = ("LOC", "PER", "ORG", "O")
    patterns: ClassVar = {"train": ("train*.tsv",), "dev": ("dev*.tsv",), "test": ("test*.tsv",)}
    train_language: ClassVar = "en"
    first: ClassVar = 0

    def examples(self, data_dir: str | Path | None, split: str) -> list[InputExample]:
        examples = super().examples(data_dir, split)
        fraction = self.options.dev_fraction
        if split != "dev" or fraction >= 1:
            return examples
        step = round(1 / fraction)
        return examples[step - 1 :: step]

    def rows(self, path: Path, split: str) -> Iterator[tuple[Record, dict[str, object]]]:
        for number, sentence in enumerate(self._sentences(path)):
            text = "".join(f" {record[0]}" for record in sentence)
            for index, record in enumerate(sentence):
                tag = record[1].strip() if len(record.fields) == 2 else ""
                kind, _, name = tag.partition("-")
                if tag and not (tag == "O" or (kind in ("B", "I") and name in self.labels[:3])):
                    raise record.error(f"tag {tag!r}; {self.name} has O and B- or I- with {', '.join(self.labels[:3])}")
                meta = {"index": index, "sentence": f"{path.name} {number}", "tag": tag}
                if not tag:
                    self.unlabelled(record, "no tag")
                yield record, {"text_a": text, "text_b": record[0], "label": tag[-3:] or None, "meta": meta}

    def _sentences(self, path: Path) -> Iterator[list[Record]]:
        sentence: list[Record] = []
        for line, text in enumerate(lines_of(read_text(path)), start=1):
            if text.strip():
                record = Record(path, line, line - 1, dict(enumerate(text.split("\t"))))
                if len(record.fields) > 2 or not record[0]:
                    raise record.error(f"{text[:60]!r} is no token with a tag after a tab")
                sentence.append(record)
            elif sentence:
                yield sentence
                sentence = []
        if sentence:
            yield sentence
