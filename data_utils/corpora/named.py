"""Corpora: which text ``--train-data`` means, and how a row becomes documents.

``--train-data`` takes names of ``NAMED_CORPORA``, files, folders, globs and data sets (``hf:``). Where a named corpus
lies is said by ``name=path``, by the environment (``GLM_CORPUS_WIKIPEDIA`` ...), or by a folder or file of that name
below ``GLM_CORPORA_DIR``. Files that are given by path hold JSON rows with a text field, or text lines.
"""

from __future__ import annotations

import difflib
import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data_utils.corpora.files import (
    TEXT_UNITS,
    NoText,
    Piece,
    Row,
    Shard,
    find_files,
    parse_value,
    pieces_of,
    read_rows,
)
from data_utils.corpora.huggingface import PREFIX, DataSet
from data_utils.corpora.language_detection import DetectorMissingError, english_detector
from files.reading import NAMES_OF_KINDS, described, missing

logger = logging.getLogger("glm")

SHORTEST_TEXT = 100  # characters; shorter web texts, answers and news are left out
SHORTEST_BEST_ANSWER = 10
MANY_UPVOTES = 1000  # make a short answer worth keeping
LONGEST_QUESTION = 100  # characters of a question's description; a longer one is cut and marked
CUT_MARK = "......"
DOWNSAMPLED_SOURCES = {"PubMed Central": 0.3, "ArXiv": 0.3, "FreeLaw": 0.3}
DROPPED_SOURCES = frozenset(
    ("Github", "StackExchange", "DM Mathematics", "Ubuntu IRC", "EuroParl", "YoutubeSubtitles", "Enron Emails")
)
PLAIN_PUNCTUATION = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-"})
DRAW_SEED = 1234


@dataclass(frozen=True)
class TextDocument:
    """One document.

    Attributes:
        text: what is to be predicted.
        prompt: read in front of it, but not predicted.
        more: further pairs (prompt, text).
        closed_by_eop: whether each text gets an [eop] token at its end.
        group: part of the corpus it comes from, for the report.
    """

    text: str
    prompt: str = ""
    more: tuple[tuple[str, str], ...] = ()
    closed_by_eop: bool = False
    group: str = ""

    @property
    def pieces(self) -> list[str]:
        """Return prompts and texts in turn."""
        return [self.prompt, self.text, *(piece for pair in self.more for piece in pair)]


@dataclass(frozen=True)
class RowContext:
    """What a rule may ask for beside the row: one uniform number in [0, 1), and whether a text is English."""

    draw: Callable[[], float]
    is_english: Callable[[str], bool]


Rule = Callable[[Any, RowContext], list[TextDocument]]


# ------------------------------------------------------------------------------------------------------ rules


def text_in(row: Any, name: str, *, required: bool = False) -> str:
    """Return the text of a field, "" where it is missing or null.

    Raises:
        ValueError: the row is no object, the field holds something else, or a required one is missing or null.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"an object with the key {name!r} is needed, not {_kind_of(row)}")
    value = row.get(name)
    if isinstance(value, str):
        return value
    if value is None and not required:
        return ""
    if name not in row:
        raise MissingFieldError(missing(row, name))
    raise ValueError(f"{name!r} is {_kind_of(value)}; a text is needed")


class MissingFieldError(ValueError):
    """The row has no such field."""


def _kind_of(value: Any) -> str:
    return NAMES_OF_KINDS.get(type(value)) or (repr(value) if isinstance(value, NoText) else type(value).__name__)


def text_key(row: Any, context: RowContext) -> list[TextDocument]:
    """Take ``text`` as it is, empty ones too."""
    return [TextDocument(text_in(row, "text", required=True))]


def non_empty_text_key(row: Any, context: RowContext) -> list[TextDocument]:
    """Take ``text`` where there is some."""
    text = text_in(row, "text")
    return [TextDocument(text)] if text else []


def field_or_line(row: Any, context: RowContext, *, text_field: str) -> list[TextDocument]:
    """Take the text of ``text_field``, or the row itself where it is text (a line)."""
    try:
        text = row if isinstance(row, str) else text_in(row, text_field, required=True)
    except MissingFieldError as error:
        raise ValueError(f"{error}: name the field of the text with --text-field") from None
    return [TextDocument(text)] if text else []


def plain_line(row: Any, context: RowContext) -> list[TextDocument]:
    """Take a line of text."""
    return [TextDocument(row)] if row else []


def prompt_and_text(row: Any, context: RowContext) -> list[TextDocument]:
    """Take ``prompt`` and ``text``."""
    return [TextDocument(text_in(row, "text", required=True), text_in(row, "prompt", required=True))]


def english_web_page(row: Any, context: RowContext) -> list[TextDocument]:
    """Take English texts of more than 100 characters."""
    text = text_in(row, "text", required=True)
    return [TextDocument(text)] if len(text) > SHORTEST_TEXT and context.is_english(text.replace("\n", "")) else []


def news_article(row: Any, context: RowContext) -> list[TextDocument]:
    """Join title, description (unless the text begins with it) and text."""
    title, description, body = (text_in(row, name) for name in ("title", "description", "maintext"))
    text = f"{title.strip()} " if title else ""
    if description and not body.startswith(description):
        text += f"{description.strip()} "
    text += body
    return [TextDocument(text)] if len(text) > SHORTEST_TEXT else []


def pile_document(row: Any, context: RowContext) -> list[TextDocument]:
    """Take the Pile without code, chat and parliament, and 30 % of papers and court opinions."""
    text = text_in(row, "text")
    source = text_in(row.get("meta") or {}, "pile_set_name")
    if not text or not source or source in DROPPED_SOURCES:
        return []
    if source in DOWNSAMPLED_SOURCES and context.draw() > DOWNSAMPLED_SOURCES[source]:
        return []
    return [TextDocument(text, group=source)]


def _shortened(question: str) -> str:
    return question if len(question) <= LONGEST_QUESTION else question[:LONGEST_QUESTION] + CUT_MARK


def zhihu_answer(row: Any, context: RowContext) -> list[TextDocument]:
    """Take long or popular answers, with question and user as prompt."""
    answer = text_in(row, "ans-content")
    if len(answer) <= SHORTEST_TEXT and _count_in(row, "ans-up-num") <= MANY_UPVOTES:
        return []
    title, content, user = (text_in(row, name) for name in ("q_title", "q-content", "user-signature"))
    return [TextDocument(answer, f"问题：{title}问题描述：{_shortened(content)}回答用户：{user} 回答：")]


def _count_in(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name) or 0
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name!r} is {described(value)}; a number is needed") from None


def zhidao_answers(row: Any, context: RowContext) -> list[TextDocument]:
    """Take the best answer and long other answers, with the question as prompt; rows without title are left out."""
    title = text_in(row, "title")
    if row.get("title") is None:
        return []
    prompt = f"问题：{title}问题描述：{_shortened(text_in(row, 'content'))}回答："
    best = text_in(row.get("best_answer") or {}, "content")
    answers = [best] if len(best) > SHORTEST_BEST_ANSWER else []
    others = [text_in(answer, "content") for answer in row.get("other_answers") or []]
    answers += [answer for answer in others if len(answer) > SHORTEST_TEXT]
    return [TextDocument(answer, prompt) for answer in answers]


def encyclopedia_entry(row: Any, context: RowContext) -> list[TextDocument]:
    """Join title, abstract and content."""
    text = "".join(text_in(row, name) for name in ("title", "abstract", "content"))
    return [TextDocument(text)] if text else []


def titled_record(row: Any, context: RowContext) -> list[TextDocument]:
    """Join title and content of a record of more than 100 characters."""
    title = text_in(row, "title")
    text = (f"{title.strip()} " if title else "") + text_in(row, "content")
    return [TextDocument(text)] if len(text) > SHORTEST_TEXT else []


def keys_and_contents(row: Any, context: RowContext) -> list[TextDocument]:
    """Make a summary of all keys, and a text in which every key is the prompt of its content.

    The original never ran this rule; its token cache of the corpus stayed empty.
    """
    keys, contents = row["key"], row["content"]
    if not isinstance(keys, list) or not isinstance(contents, list) or len(keys) != len(contents):
        raise ValueError("'key' and 'content' are not two lists of equal length")
    if not all(isinstance(piece, str) for piece in [*keys, *contents]):
        raise ValueError("'key' or 'content' holds something else than text")
    if not keys:
        return []
    keys = [keys[0], *(f" {key}" for key in keys[1:])]
    pairs = list(zip(keys, (f" {content}" for content in contents), strict=True))
    return [
        TextDocument("".join(keys), "Summary: "),
        TextDocument(pairs[0][1], pairs[0][0], more=tuple(pairs[1:]), closed_by_eop=True),
    ]


# ------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class NamedCorpus:
    """How the rows of a corpus become documents.

    Attributes:
        rule: from a row to its documents.
        row_format: what its files hold, whatever their suffix (``files.ROW_FORMATS``).
        keeps_curly_quotes: leave curly quotes and en dashes; otherwise they become ASCII when tokenized.
        has_prompts_inside: its documents may have more than one prompt.
        draws: the rule draws a random number, which depends on the number of the row in the whole corpus.
    """

    rule: Rule
    row_format: str = "json lines"
    keeps_curly_quotes: bool = False
    has_prompts_inside: bool = False
    draws: bool = False


NAMED_CORPORA: dict[str, NamedCorpus] = {
    "wikipedia": NamedCorpus(text_key),
    "wikipedia-key": NamedCorpus(keys_and_contents, has_prompts_inside=True),
    "wikibook": NamedCorpus(plain_line, "text lines"),
    "bert-base": NamedCorpus(plain_line, "text lines"),
    "bert-large": NamedCorpus(plain_line, "text lines"),
    "openwebtext": NamedCorpus(english_web_page),
    "cc-news": NamedCorpus(news_article),
    "pile": NamedCorpus(pile_document, draws=True),
    "stories": NamedCorpus(non_empty_text_key),
    "zhihu": NamedCorpus(zhihu_answer, keeps_curly_quotes=True),
    "zhidao": NamedCorpus(zhidao_answers, keeps_curly_quotes=True),
    "baike": NamedCorpus(encyclopedia_entry, keeps_curly_quotes=True),
    "wudao": NamedCorpus(titled_record, "records", keeps_curly_quotes=True),
    "test": NamedCorpus(prompt_and_text),
    # Of every language the files LANGUAGE_*.json.gz below one folder, which hold text in spite of their suffix.
    "multilingual": NamedCorpus(plain_line, "text paragraphs", keeps_curly_quotes=True),
}
LANGUAGE_FILE = re.compile(r"([^_]+)_.*\.json\.gz")
BY_LANGUAGE = "multilingual"


@dataclass(frozen=True)
class Corpus:
    """A corpus to read: where its files are and how their rows become documents.

    Attributes:
        name: what the user gave.
        location: file, folder or glob.
        named: key of NAMED_CORPORA; None: any files.
        text_field: key of the text in JSON rows of any files.
        text_unit: what of any text files is a document: ``line``, ``paragraph`` or ``file``.
        commands_in_text: ``[MASK]``, ``<|endofpiece|>`` ... in the text of any files are commands. Otherwise they are
            text like any other; in named corpora they are commands always, as in the original.
        language: only the files of this language, of the corpus ``multilingual``.
        data_set: what the library ``datasets`` is to read; there are no files then, unless they lie here.
        paths: files that were given by path, one by one, and are kept in one store.
    """

    name: str
    location: str
    named: str | None = None
    text_field: str = "text"
    text_unit: str = "line"
    commands_in_text: bool = False
    language: str | None = None
    data_set: DataSet | None = None
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown unit of text."""
        if self.text_unit not in TEXT_UNITS:
            raise ValueError(f"unit of text {self.text_unit!r}; known: {', '.join(TEXT_UNITS)}")

    @cached_property
    def kind(self) -> NamedCorpus:
        """Return how rows become documents."""
        if self.named is not None:
            return NAMED_CORPORA[self.named]
        rule = partial(field_or_line, text_field=self.text_field)
        return NamedCorpus(rule, "by name", keeps_curly_quotes=True)

    @property
    def has_commands(self) -> bool:
        """Return whether command texts are commands."""
        return self.commands_in_text or self.named is not None

    def files(self) -> list[Path]:
        """List the files in the order in which they are read. Raises ValueError when there are none."""
        if self.data_set is not None:
            return self.data_set.files()
        if self.paths:
            return [file for path in self.paths for file in find_files(path)]
        if self.named == BY_LANGUAGE:
            by_language = files_by_language(self.location)
            if self.language is None:
                return [file for files in by_language.values() for file in files]
            if self.language not in by_language:
                raise ValueError(
                    f"{self.location} has no file {self.language}_*.json.gz; its languages are {', '.join(by_language)}"
                )
            return by_language[self.language]
        return find_files(self.location, any_suffix=self.named is not None)

    def pieces(self, files: Sequence[Path], shard: Shard | None = None) -> list[Piece]:
        """List what is read one after the other, of the whole corpus or of a shard.

        Raises:
            ValueError: a data set that cannot be read, or has no such split or field.
        """
        if self.data_set is not None:
            return self.data_set.pieces(self.text_field, shard)
        if shard is None:
            return [Piece(path, path.stat().st_size) for path in files]
        start, end = shard.range_of(sum(path.stat().st_size for path in files))
        return pieces_of(files, row_format=self.kind.row_format, text_unit=self._unit, start=start, end=end)

    def rows_before(self, files: Sequence[Path], shard: Shard) -> int:
        """Return how many rows of the corpus are before those of a shard, where a rule asks for that; else 0."""
        if not self.kind.draws:
            return 0
        start, _ = shard.range_of(sum(path.stat().st_size for path in files))
        pieces = pieces_of(files, row_format=self.kind.row_format, text_unit=self._unit, start=0, end=start)
        return sum(1 for piece in pieces for _ in self.rows(piece))

    def rows(self, piece: Piece) -> Iterator[Row]:
        """Yield the rows of a file, of some lines of one, or of a part of a data set."""
        if self.data_set is not None:
            return self.data_set.rows(piece, self.text_field)
        row_format = self.kind.row_format
        return read_rows(piece.path, row_format=row_format, text_unit=self._unit, start=piece.start, end=piece.end)

    @property
    def _unit(self) -> str:
        return "line" if self.named else self.text_unit

    def parse(self, row: Row, row_number: int) -> list[TextDocument]:
        """Turn row ``row_number`` of the corpus into documents; the same row always gives the same ones.

        Raises:
            ValueError: the row is malformed; the message names file and line.
        """
        value = parse_value(row)
        context = RowContext(lambda: random.Random(f"{DRAW_SEED}:{row_number}").random(), self._is_english)
        try:
            return self.kind.rule(value, context)
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"not a row of corpus {self.named!r} ({type(error).__name__}: {error})"
            raise ValueError(f"{row.place}: {problem}") from None

    def for_tokens(self, text: str) -> str:
        """Return ``text`` as it is tokenized: curly quotes and en dashes are replaced in most named corpora."""
        return text if self.kind.keeps_curly_quotes else text.translate(PLAIN_PUNCTUATION)

    def documents(self, *, skip_malformed: bool = False) -> Iterator[TextDocument]:
        """Yield the documents in the order of the files.

        Raises:
            ValueError: no files, the first malformed row, or a file that cannot be read to its end (passed over with
                ``skip_malformed``, the latter with a warning).
        """
        number = 0
        for piece in self.pieces(self.files()):
            for row in self.rows(piece):
                try:
                    documents = self.parse(row, number)
                except ValueError as error:
                    if not skip_malformed:
                        raise
                    if row.rest_lost:
                        logger.warning(str(error))
                    documents = []
                number += 1
                yield from documents

    def _is_english(self, text: str) -> bool:
        return self._detector(text)

    @cached_property
    def _detector(self) -> Callable[[str], bool]:
        return english_detector()


# ------------------------------------------------------------------------------------------------------ finding


def location_variable(name: str) -> str:
    """Return the environment variable that says where a named corpus lies."""
    return f"GLM_CORPUS_{name.upper().replace('-', '_')}"


def _location_of(name: str) -> str:
    """Return where a named corpus lies by the environment; ValueError when that is not said."""
    location = os.environ.get(location_variable(name))
    if location:
        return location
    folder = os.environ.get("GLM_CORPORA_DIR")
    if not folder:
        raise ValueError(
            f"corpus {name!r}: say where it lies: {name}=PATH, or {location_variable(name)}=PATH, or "
            "GLM_CORPORA_DIR=FOLDER in the environment"
        )
    exact = Path(folder) / name
    candidates = [exact] if exact.exists() else sorted(Path(folder).glob(f"{name}.*"))
    if not candidates:
        raise ValueError(f"corpus {name!r}: neither {exact} nor {exact}.* exists (GLM_CORPORA_DIR is {folder})")
    return str(candidates[0])


def files_by_language(location: str) -> dict[str, list[Path]]:
    """Return the files ``LANGUAGE_*.json.gz`` below a folder by language, all sorted; of equal names the first counts.

    Raises ValueError when there are none.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in find_files(location, any_suffix=True):
        if match := LANGUAGE_FILE.fullmatch(file.name):
            found.setdefault(match[1], {}).setdefault(file.name, file)
    if not found:
        raise ValueError(f"{location} holds no file LANGUAGE_*.json.gz (de_0001.json.gz ...), gzip-compressed text")
    return {language: list(found[language].values()) for language in sorted(found)}


def each_language(source: str) -> list[str]:
    """Return an argument of ``--train-data``, one per language where it is the corpus ``multilingual``."""
    name, _, location = source.partition("=")
    if name != BY_LANGUAGE:
        return [source]
    location = location or _location_of(BY_LANGUAGE)
    return [f"{BY_LANGUAGE}-{language}={location}" for language in files_by_language(location)]


_WEIGHT = re.compile(r"(.+)@(\d+\.?\d*(?:[eE]-?\d+)?|\.\d+)")


def split_weight(source: str) -> tuple[str, float | None]:
    """Return an argument of ``--train-data`` without its weight (``corpus.jsonl@0.3``), and the weight, or None.

    What exists under the whole name has none. Raises ValueError for a weight of 0.
    """
    match = _WEIGHT.fullmatch(source)
    if match is None or os.path.exists(source):
        return source, None
    weight = float(match[2])
    if not 0 < weight < float("inf"):
        raise ValueError(f"{source}: a weight is a number above 0; leave a source out that is not wanted")
    return match[1], weight


def corpus_of_files(paths: Sequence[str]) -> Corpus:
    """Return one corpus of files that were given by path, in their order."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return Corpus(f"{len(paths)} files of {folder}", folder, paths=tuple(paths))


def find_corpus(
    source: str, *, text_field: str = "text", text_unit: str = "line", commands_in_text: bool = False
) -> Corpus:
    """Return the corpus that one argument of ``--train-data`` means.

    Args:
        source: ``name``, ``name=path``, ``hf:name``, or a path (file, folder, glob; the ``.lazy`` cache of the original
            may stand in for a file that is gone).
        text_field, text_unit, commands_in_text: see ``Corpus``.

    Raises:
        ValueError: neither a registered name nor a path (the registered names are listed, nearest first), or a
            registered one whose place is not said.
    """
    if source.startswith(PREFIX):
        data_set = DataSet.parse(source.removeprefix(PREFIX))
        return Corpus(source, data_set.name, None, text_field, text_unit, commands_in_text, data_set=data_set)
    name, separator, location = source.partition("=")
    if separator and name in NAMED_CORPORA:
        return Corpus(source, location, name, text_field, text_unit, commands_in_text)
    if source in NAMED_CORPORA:
        return Corpus(source, _location_of(source), source, text_field, text_unit, commands_in_text)
    if name.startswith(f"{BY_LANGUAGE}-"):
        language = name.removeprefix(f"{BY_LANGUAGE}-")
        location = location or _location_of(BY_LANGUAGE)
        return Corpus(name, location, BY_LANGUAGE, text_field, text_unit, commands_in_text, language)
    looks_like_path = any(mark in source for mark in ("/", os.sep, ".", "*", "?", "["))
    if looks_like_path or Path(source).exists():
        return Corpus(source, source, None, text_field, text_unit, commands_in_text)
    typed = (name if separator else source).lower()
    known = sorted(NAMED_CORPORA, key=lambda k: (-difflib.SequenceMatcher(None, typed, k).ratio(), k))
    raise ValueError(
        f"no corpus {source!r} and no file or folder of that name; known corpora, nearest first: {', '.join(known)}"
    )


def read_documents(
    source: str, *, text_field: str = "text", skip_malformed: bool = False, text_unit: str = "line"
) -> Iterator[TextDocument]:
    """Yield the documents of one argument of ``--train-data``; see ``Corpus.documents``."""
    try:
        corpus = find_corpus(source, text_field=text_field, text_unit=text_unit)
        yield from corpus.documents(skip_malformed=skip_malformed)
    except DetectorMissingError as error:
        raise ValueError(str(error)) from None
