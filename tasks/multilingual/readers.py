"""The files of XNLI, PAWS-X and PANX: one file per language, whose rows become examples that know their language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from files.reading import lines_of
from tasks.multilingual.files import language_files
from tasks.readers import Record, read_tab_separated, read_text
from tasks.superglue.readers import NO_FILES, DataProcessor, InputExample, split_files

COLUMNS = ("sentence1", "sentence2", "label")
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
            for number, example in enumerate(self.read_file(path, split), start=len(examples)):
                guid = f"{split}-{number + self.first}"
                examples.append(replace(example, guid=guid, idx=number + 1, language=language))
        return examples

    def records(self, path: Path) -> Iterable[Record]:
        """Yield the rows of two texts and a label, which test files may leave out."""
        for record in read_tab_separated(path, header=False):
            if len(record.fields) not in (2, 3):
                raise record.error(f"{len(record.fields)} columns; two texts and a label are needed, tabs between them")
            cells = "\t".join(record.fields.values()).strip().split("\t")
            yield replace(record, fields=dict(zip(COLUMNS, cells)))

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        text_a, text_b = record.text(COLUMNS[0]), record.text(COLUMNS[1])
        yield InputExample("", text_a, text_b, self.label(record))


class XnliProcessor(LanguageProcessor):
    """premise, hypothesis, label. Some editions say ``contradictory``."""

    labels = ("neutral", "entailment", "contradiction")
    patterns: ClassVar = {"train": ("train*.tsv",), "dev": ("dev*.tsv",), "test": ("test*.txt", "test*.tsv")}

    def label(self, record: Record, labels: Iterable[Any] | None = None, *, key: Any = "label") -> Any:
        if str(record.get(key)).strip() == "contradictory":
            return "contradiction"
        return super().label(record, labels, key=key)


class PawsxProcessor(LanguageProcessor):
    """sentence1, sentence2, label; the released test files have a header and an id in front."""

    labels = ("0", "1")
    patterns: ClassVar = {
        "train": ("train*.tsv",),
        "dev": ("dev*.tsv",),
        "test": ("x-final/*/test_2k.tsv", "test*.tsv"),
    }

    def records(self, path: Path) -> Iterable[Record]:
        return read_tab_separated(path) if path.name == "test_2k.tsv" else super().records(path)


class PanxProcessor(LanguageProcessor):
    """A token and its tag a line, a blank line after each sentence; one example per token.

    ``meta``: ``index`` of the token in its sentence, ``sentence`` (a name) and ``tag`` as the file has it, which
    entities are made of. Test files of the download have no tags.
    """

    labels = ("LOC", "PER", "ORG", "O")
    tags: ClassVar = ("O", *(f"{kind}-{label}" for kind in "BI" for label in ("LOC", "PER", "ORG")))
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

    def records(self, path: Path) -> Iterator[Record]:
        """Yield a record per token, with the tokens of its sentence under ``sentence``."""
        sentence: list[Record] = []
        lines = lines_of(read_text(path))
        for line, text in enumerate([*lines, ""], start=1):
            if text.strip():
                cells = text.split("\t")
                record = Record(path, line, len(sentence), dict(zip(("token", "tag"), cells)))
                if len(cells) > 2 or not cells[0]:
                    raise record.error(f"{text[:60]!r} is no token with a tag after a tab")
                sentence.append(record)
            elif sentence:
                tokens = [record["token"] for record in sentence]
                for record in sentence:
                    yield replace(record, fields={**record.fields, "sentence": tokens, "first": sentence[0].line})
                sentence = []

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        tag = self.label(record, self.tags, key="tag")
        yield InputExample(
            "",
            "".join(f" {token}" for token in record["sentence"]),
            record.text("token"),
            None if tag is None else tag[-3:],
            meta={"index": record.number, "sentence": f"{record.path.name} {record['first']}", "tag": tag or ""},
        )
