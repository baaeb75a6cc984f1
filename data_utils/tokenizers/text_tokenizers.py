"""Text to ids of one vocabulary, without command tokens: WordPiece, byte-level BPE, SentencePiece, a list of words.

Each class is a thin layer over ``tokenizers`` or ``sentencepiece`` that gives the ids of the released models, to the
last rare character.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from files.reading import lines_of, read_text

CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
ASCII_PUNCTUATION = ((33, 47), (58, 64), (91, 96), (123, 126))
BERT_SPECIALS = frozenset(("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"))
CACHED_CHARACTERS = 1 << 22  # of words: some 100 MB of Python objects
LONGEST_WORD = 100  # characters; a longer word is one unknown token


class TextTokenizer(Protocol):
    """What a family has to provide."""

    size: int  # ids of the vocabulary
    digest: str  # of the vocabulary's content

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text."""

    def id_to_token(self, token_id: int) -> str:
        """Return the raw piece."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a raw piece, None when there is none."""

    def decode_runs(self, runs: Sequence[Sequence[int] | str]) -> str:
        """Return the text of runs of ids, with command texts between them."""


def _digest(*contents: bytes) -> str:
    total = hashlib.sha256()
    for content in contents:
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


class WordCache:
    """Encode sequences of words through ``encode_words``, which gets only the words not seen before.

    Text repeats its words: looking one up is several times faster than encoding it again.
    """

    def __init__(self, encode_words: Callable[[list[str]], Iterable[list[int]]], *, capacity: int = CACHED_CHARACTERS):
        """Hold words of about ``capacity`` characters in total; beyond that start again from nothing."""
        self._encode_words = encode_words
        self._capacity = capacity
        self._ids: dict[str, list[int]] = {}
        self._num_characters = 0

    def encode(self, sequences: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return for each sequence the ids of its words, concatenated."""
        missing = list(set(chain.from_iterable(sequences)).difference(self._ids))
        if missing:
            self._ids.update(zip(missing, self._encode_words(missing), strict=True))
            self._num_characters += sum(map(len, missing))
        look_up = self._ids.__getitem__
        encoded = [list(chain.from_iterable(map(look_up, words))) for words in sequences]
        if self._num_characters > self._capacity:
            self._ids = {}
            self._num_characters = 0
        return encoded

    def __getstate__(self) -> dict[str, object]:
        """Leave the words behind: another process collects its own."""
        return {**self.__dict__, "_ids": {}, "_num_characters": 0}


class _Cleaning(dict):
    """Per character: drop control characters, make blanks spaces, put spaces around ideographs. Filled on demand."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            result = " "
        elif code in (0, 0xFFFD) or category.startswith("C"):
            result = ""
        elif any(low <= code <= high for low, high in CJK_RANGES):
            result = f" {character} "
        else:
            result = character
        self[code] = result
        return result


class _Splitting(dict):
    """Per character: put spaces around punctuation and, for lower-cased text, drop accents. Filled on demand."""

    def __init__(self, *, drop_accents: bool) -> None:
        super().__init__()
        self.drop_accents = drop_accents

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if self.drop_accents and category == "Mn":
            result = ""
        elif category.startswith("P") or any(low <= code <= high for low, high in ASCII_PUNCTUATION):
            result = f" {character} "
        else:
            result = character
        self[code] = result
        return result


class WordPiece:
    """BERT's WordPiece with BERT's own cleaning; the library's normaliser differs on rare characters."""

    def __init__(self, vocabulary: Path, *, lower_case: bool = True) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        try:
            pieces = lines_of(read_text(vocabulary))  # a piece may be another kind of line end
        except ValueError as error:
            raise ValueError(f"{error}; is it a BERT vocab.txt?") from None
        self._pieces = pieces
        self._ids = {piece: index for index, piece in enumerate(pieces)}
        if "[UNK]" not in self._ids:
            raise ValueError(f"{vocabulary}: no [UNK] in it; is it a BERT vocab.txt?")
        model = models.WordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self._cache = WordCache(self._encode_words)
        self.lower_case = lower_case
        self._cleaning = _Cleaning()
        self._splitting = _Splitting(drop_accents=lower_case)
        self.size = len(pieces)
        self.digest = _digest(vocabulary.read_bytes(), b"lower" if lower_case else b"cased")

    def normalize(self, text: str) -> str:
        """Return the text whose blank-separated words are looked up in the vocabulary."""
        text = text.translate(self._cleaning)
        if self.lower_case:
            text = text.lower()
            if not text.isascii():
                text = unicodedata.normalize("NFD", text)
        return text.translate(self._splitting)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._cache.encode([self.normalize(text).split() for text in texts])

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(words, add_special_tokens=False)]

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text; a special text that is a word of its own is one piece."""
        pieces: list[str] = []
        for word in text.translate(self._cleaning).split():
            pieces += [word] if word in BERT_SPECIALS else [self._pieces[i] for i in self.encode_batch([word])[0]]
        return pieces

    def id_to_token(self, token_id: int) -> str:
        return self._pieces[token_id]

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a piece; blanks around it do not matter."""
        return self._ids.get(token.strip())

    def decode_runs(self, runs: Sequence[Sequence[int] | str]) -> str:
        """Join the pieces by spaces and glue continuations to what is before them."""
        pieces: list[str] = []
        for run in runs:
            for piece in [run] if isinstance(run, str) else (self._pieces[index] for index in run):
                if piece.startswith("##") and pieces:
                    pieces[-1] += piece[2:]
                else:
                    pieces.append(piece)
        return " ".join(pieces)


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level piece stands for: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


# Unicode's White_Space, which is the library's ``\s``; Python's has U+001C..U+001F in addition.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Stretches at whose borders GPT-2's word pattern always ends a word: the library may see them one by one.
_STRETCHES = re.compile(f" ?[^{_SPACE}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+")


class ByteLevelBPE:
    """GPT-2's byte-level BPE, also of RoBERTa's files; special texts of the vocabulary are ordinary text."""

    def __init__(self, vocabulary: Path, merges: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        try:
            model = models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # the library raises nothing more specific
            reason = str(error).splitlines()[0][:100]
            raise ValueError(f"{vocabulary}, {merges.name}: not a BPE vocabulary and its merges ({reason})") from error
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._pieces = {index: piece for piece, index in self._tokenizer.get_vocab(with_added_tokens=False).items()}
        self._bytes = _byte_alphabet()
        self._cache = WordCache(self._encode_words)
        self.size = len(self._pieces)
        if not self.size or self._pieces.keys() != set(range(self.size)):
            raise ValueError(f"{vocabulary}: the ids of its {self.size} pieces are not 0, 1, 2 ...; get the file again")
        self.digest = _digest(vocabulary.read_bytes(), merges.read_bytes())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._cache.encode([_STRETCHES.findall(text) for text in texts])

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(words, add_special_tokens=False)]

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text, in byte form."""
        return [self._pieces[index] for index in self.encode_batch([text])[0]]

    def id_to_token(self, token_id: int) -> str:
        """Return the piece in byte form (a blank is ``Ġ``)."""
        return self._pieces[token_id]

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a piece in byte form."""
        return self._tokenizer.token_to_id(token)

    def decode_runs(self, runs: Sequence[Sequence[int] | str]) -> str:
        """Concatenate the bytes of all pieces; invalid UTF-8 is replaced."""
        content = bytearray()
        for run in runs:
            if isinstance(run, str):
                content += run.encode("utf-8")
            else:
                for index in run:
                    for character in self._pieces[index]:
                        byte = self._bytes.get(character)
                        content += bytes([byte]) if byte is not None else character.encode("utf-8")
        return content.decode("utf-8", errors="replace")


class SentencePiece:
    """Any SentencePiece model, nothing added.

    ``separator`` stands between runs of ids and command texts when decoding. With one, each command text also has a
    run before it, which may be empty: ``[CLS] a`` becomes `` [CLS] a``, as in the multilingual release.
    """

    def __init__(self, model: Path, *, separator: str = "") -> None:
        import sentencepiece

        self.path, self.separator = model, separator
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{model}: not a SentencePiece model ({_why_unreadable(model, error)})") from error
        self.size = self._model.get_piece_size()
        self.digest = _digest(model.read_bytes())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=1)

    def tokens(self, text: str) -> list[str]:
        """Return the pieces of a text; unknown ones in their own letters."""
        return self._model.encode(text, out_type=str)

    def id_to_token(self, token_id: int) -> str:
        return self._model.id_to_piece(token_id)

    def token_to_id(self, token: str) -> int | None:
        index = self._model.piece_to_id(token)
        return None if index == self._model.unk_id() and token != self._model.id_to_piece(index) else index

    def decode_runs(self, runs: Sequence[Sequence[int] | str]) -> str:
        """Decode each run by itself and join them: blanks at the border of a run are lost, as in the original."""
        texts: list[str] = []
        for index, run in enumerate(runs):
            if isinstance(run, str):
                if self.separator and (index == 0 or isinstance(runs[index - 1], str)):
                    texts.append("")
                texts.append(run)
            else:
                texts.append(self._model.decode(list(run)))
        return self.separator.join(texts)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "separator": self.separator}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SentencePiece.__init__(self, state["path"], separator=state["separator"])


def _why_unreadable(model: Path, error: Exception) -> str:
    """Return why a file is no SentencePiece model: downloads end up as pointers, web pages and empty files."""
    head = model.read_bytes()[:64]
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
    if not head:
        return "it is empty; download it again"
    if head.lstrip().startswith(b"<"):
        return "it is a web page; download the file itself"
    return str(error).splitlines()[0][:100]


class WordList:
    """Words with blanks between them, whose ids are their places in a list: for examples, tests and benchmarks."""

    def __init__(self, words: Sequence[str], *, unknown_id: int | None = None) -> None:
        """Without ``unknown_id`` a word that is not in the list raises KeyError."""
        self.words = list(words)
        self.size = len(self.words)
        self.digest = _digest("\n".join(self.words).encode())
        self.unknown_id = unknown_id
        self._ids = {word: index for index, word in enumerate(self.words)}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self.unknown_id is None:
            return [[self._ids[word] for word in text.split()] for text in texts]
        return [[self._ids.get(word, self.unknown_id) for word in text.split()] for text in texts]

    def tokens(self, text: str) -> list[str]:
        return text.split()

    def id_to_token(self, token_id: int) -> str:
        return self.words[token_id]

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def decode_runs(self, runs: Sequence[Sequence[int] | str]) -> str:
        return " ".join(run if isinstance(run, str) else " ".join(self.words[index] for index in run) for run in runs)
