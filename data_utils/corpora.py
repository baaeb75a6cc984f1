"""Corpora: where text comes from and how a row becomes documents (spec: pretraining 2).

``--train-data`` takes names of ``NAMED_CORPORA``, files, folders and globs. Where a named corpus lies is said by
``name=path``, by the environment (``GLM_CORPUS_WIKIPEDIA`` ...), or by a folder of that name below ``GLM_CORPORA_DIR``.
"""

from __future__ import annotations

import difflib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_utils.corpus_files import Row, find_files, read_rows

SHORTEST_TEXT = 100  # characters; shorter web texts, answers and news are left out
LONGEST_QUESTION = 100  # characters of a question's description that are kept
MANY_UPVOTES = 1000  # make a short answer worth keeping
SHORTEST_BEST_ANSWER = 10
DOWNSAMPLED_SOURCES = {"PubMed Central": 0.3, "ArXiv": 0.3, "FreeLaw": 0.3}
DROPPED_SOURCES = frozenset(
    ("Github", "StackExchange", "DM Mathematics", "Ubuntu IRC", "EuroParl", "YoutubeSubtitles", "Enron Emails")
)
PLAIN_PUNCTUATION = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-"})


@dataclass(frozen=True)
class TextDocument:
    """One document: ``prompt`` is read but not predicted."""

    text: str
    prompt: str = ""


@dataclass(frozen=True)
class RowContext:
    """What a rule may ask for beside the row: a uniform number, and whether a text is English."""

    draw: Callable[[], float]
    is_english: Callable[[str], bool]


Rule = Callable[[Any, RowContext], list[TextDocument]]


def _documents(text: str, prompt: str = "") -> list[TextDocument]:
    return [TextDocument(text, prompt)]


def text_key(row: Any, context: RowContext) -> list[TextDocument]:
    """Take ``text`` as it is, empty ones too."""
    return _documents(row["text"])


def non_empty_text_key(row: Any, context: RowContext) -> list[TextDocument]:
    """Take ``text`` where there is some."""
    return _documents(row["text"]) if row.get("text") else []


def plain_line(row: str, context: RowContext) -> list[TextDocument]:
    """Take a line of text."""
    return _documents(row) if row else []


def prompt_and_text(row: Any, context: RowContext) -> list[TextDocument]:
    """Take ``prompt`` and ``text``."""
    return _documents(row["text"], row["prompt"])


def english_web_page(row: Any, context: RowContext) -> list[TextDocument]:
    """Take English texts of more than 100 characters."""
    text = row["text"]
    return _documents(text) if len(text) > SHORTEST_TEXT and context.is_english(text.replace("\n", " ")) else []


def news_article(row: Any, context: RowContext) -> list[TextDocument]:
    """Join title, description (unless the text begins with it) and text."""
    title, description, body = row.get("title"), row.get("description"), row.get("maintext")
    text = ""
    if title:
        text += title.strip() + " "
    if description and not (body and body.startswith(description)):
        text += description.strip() + " "
    if body:
        text += body
    return _documents(text) if len(text) > SHORTEST_TEXT else []


def pile_document(row: Any, context: RowContext) -> list[TextDocument]:
    """Take the Pile without code, chat and parliament, and 30 % of papers and court opinions."""
    source = (row.get("meta") or {}).get("pile_set_name")
    text = row.get("text")
    if not text or source is None or source in DROPPED_SOURCES:
        return []
    share = DOWNSAMPLED_SOURCES.get(source)
    if share is not None and context.draw() > share:
        return []
    return _documents(text)


def _shortened(question: str | None) -> str:
    question = question or ""
    return question if len(question) <= LONGEST_QUESTION else question[:LONGEST_QUESTION] + "......"


def zhihu_answer(row: Any, context: RowContext) -> list[TextDocument]:
    """Take long or popular answers, with question and user as prompt."""
    answer = row.get("ans-content") or ""
    upvotes = int(row.get("ans-up-num") or 0)
    if len(answer) <= SHORTEST_TEXT and upvotes <= MANY_UPVOTES:
        return []
    prompt = (
        f"问题：{row.get('q_title') or ''}问题描述：{_shortened(row.get('q-content'))}"
        f"回答用户：{row.get('user-signature') or ''} 回答："
    )
    return _documents(answer, prompt)


def zhidao_answers(row: Any, context: RowContext) -> list[TextDocument]:
    """Take the best answer and long other answers, with the question as prompt."""
    if not row.get("title"):
        return []
    prompt = f"问题：{row['title']}问题描述：{_shortened(row.get('content'))}回答："
    best = (row.get("best_answer") or {}).get("content") or ""
    answers = [best] if len(best) > SHORTEST_BEST_ANSWER else []
    others = [answer.get("content") or "" for answer in row.get("other_answers") or []]
    answers += [answer for answer in others if len(answer) > SHORTEST_TEXT]
    return [TextDocument(answer, prompt) for answer in answers]


def encyclopedia_entry(row: Any, context: RowContext) -> list[TextDocument]:
    """Join title, abstract and content."""
    text = "".join(row.get(key) or "" for key in ("title", "abstract", "content"))
    return _documents(text) if text else []


def titled_record(row: Any, context: RowContext) -> list[TextDocument]:
    """Join title and content of a record of more than 100 characters."""
    title = row.get("title")
    text = f"{title.strip()} " if title else ""
    text += row.get("content") or ""
    return _documents(text) if len(text) > SHORTEST_TEXT else []


@dataclass(frozen=True)
class NamedCorpus:
    """How the rows of a corpus become documents."""

    rule: Rule
    json_rows: bool = True  # of files without a known suffix
    keeps_curly_quotes: bool = False


NAMED_CORPORA: dict[str, NamedCorpus] = {
    "wikipedia": NamedCorpus(text_key),
    "wikibook": NamedCorpus(plain_line, json_rows=False),
    "bert-base": NamedCorpus(plain_line, json_rows=False),
    "bert-large": NamedCorpus(plain_line, json_rows=False),
    "openwebtext": NamedCorpus(english_web_page),
    "cc-news": NamedCorpus(news_article),
    "pile": NamedCorpus(pile_document),
    "stories": NamedCorpus(non_empty_text_key),
    "zhihu": NamedCorpus(zhihu_answer, keeps_curly_quotes=True),
    "zhidao": NamedCorpus(zhidao_answers, keeps_curly_quotes=True),
    "baike": NamedCorpus(encyclopedia_entry, keeps_curly_quotes=True),
    "wudao": NamedCorpus(titled_record, keeps_curly_quotes=True),
    "test": NamedCorpus(prompt_and_text),
}


def plain_punctuation(text: str) -> str:
    """Replace curly quotes and en dashes by their ASCII forms."""
    return text.translate(PLAIN_PUNCTUATION)


@dataclass(frozen=True)
class Corpus:
    """A corpus to read: its files and the rule for its rows. ``name`` is what the user gave."""

    name: str
    files: tuple[Path, ...]
    text_field: str = "text"
    named: str | None = None  # key of NAMED_CORPORA; None: any files
    language_model: str | None = field(default=None, compare=False)

    def documents(self, *, skip_malformed: bool = False, seed: int = 1234) -> Iterator[TextDocument]:
        """Yield the documents in the order of the files.

        A malformed row ends in a ValueError that names file and line, or is skipped with ``skip_malformed``: then a
        warning tells at the end how many were, and where the first is.
        """
        skipped: list[str] = []
        for number, row in enumerate(self.rows()):
            try:
                yield from self.parse(row, seed=seed + number)
            except ValueError as error:
                if not skip_malformed:
                    raise
                skipped.append(str(error))
        if skipped:
            print(f"warning: {self.name}: skipped {len(skipped)} malformed rows; the first: {skipped[0]}", flush=True)

    def rows(self) -> Iterator[Row]:
        """Yield the raw rows of all files."""
        json_rows = NAMED_CORPORA[self.named].json_rows if self.named else None
        for path in self.files:
            yield from read_rows(path, json_rows=json_rows)

    def parse(self, row: Row, *, seed: int) -> list[TextDocument]:
        """Turn one row into documents. Raises ValueError with file and line for a malformed one."""
        if row.problem:
            raise ValueError(f"{row.place}: {row.problem}; mend the line, or give --skip-malformed")
        if self.named is None:
            return self._parse_any(row)
        corpus = NAMED_CORPORA[self.named]
        context = RowContext(draw=random.Random(seed).random, is_english=self._is_english)
        try:
            documents = corpus.rule(row.value, context)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{row.place}: not a row of corpus {self.named!r} ({type(error).__name__}: {error})") from error
        if corpus.keeps_curly_quotes:
            return documents
        return [TextDocument(plain_punctuation(d.text), plain_punctuation(d.prompt)) for d in documents]

    def _parse_any(self, row: Row) -> list[TextDocument]:
        if isinstance(row.value, str):
            return _documents(row.value)
        if not isinstance(row.value, dict) or not isinstance(row.value.get(self.text_field), str):
            found = ", ".join(map(str, row.value)) if isinstance(row.value, dict) else type(row.value).__name__
            raise ValueError(
                f"{row.place}: no text under the key {self.text_field!r} (found: {found[:80]}); name the key with "
                "--text-field, or give --skip-malformed"
            )
        prompt = row.value.get("prompt")
        return _documents(row.value[self.text_field], prompt if isinstance(prompt, str) else "")

    def _is_english(self, text: str) -> bool:
        return english_detector(self.language_model)(text)


def english_detector(model_path: str | None = None) -> Callable[[str], bool]:
    """Return a function that tells whether a text is English; needs langdetect.

    Raises ValueError with an install hint when it is missing.
    """
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as error:
        raise ValueError("telling English from other languages needs langdetect: pip install langdetect") from error
    DetectorFactory.seed = 0

    def is_english(text: str) -> bool:
        try:
            return detect(text) == "en"
        except LangDetectException:
            return False

    return is_english


def find_corpus(source: str, *, text_field: str = "text") -> Corpus:
    """Return the corpus that an argument of ``--train-data`` names.

    Raises ValueError for a name that is neither registered nor a file, with the nearest names, and for a registered
    name whose place is not known.
    """
    name, separator, location = source.partition("=")
    if separator and name in NAMED_CORPORA:
        return Corpus(source, tuple(find_files(location)), text_field, named=name)
    if source in NAMED_CORPORA and not Path(source).exists():
        variable = f"GLM_CORPUS_{source.upper().replace('-', '_')}"
        location = os.environ.get(variable, "")
        if not location and os.environ.get("GLM_CORPORA_DIR"):
            location = str(Path(os.environ["GLM_CORPORA_DIR"]) / source)
        if not location:
            raise ValueError(
                f"corpus {source!r}: say where it lies: {source}=PATH, or {variable}=PATH, or GLM_CORPORA_DIR=FOLDER "
                "in the environment"
            )
        return Corpus(source, tuple(find_files(location)), text_field, named=source)
    try:
        return Corpus(source, tuple(find_files(source)), text_field)
    except ValueError:
        known = sorted(NAMED_CORPORA)
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{source}: no such file or corpus{hint} Known corpora: {', '.join(known)}; or give a file, a folder or a glob"
        ) from None


def read_documents(source: str, *, text_field: str = "text", skip_malformed: bool = False) -> Iterator[TextDocument]:
    """Yield the documents of one argument of ``--train-data``."""
    yield from find_corpus(source, text_field=text_field).documents(skip_malformed=skip_malformed)
