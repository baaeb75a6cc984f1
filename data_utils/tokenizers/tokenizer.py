"""Tokenizers of the GLM models: a text tokenizer and a table of command tokens.

``build_tokenizer`` is the one way to get one; ids equal those of the released models.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from data_utils.tokenizers.command_tokens import (
    COMMAND_TABLES,
    CommandOptions,
    CommandTable,
    CommandToken,
    SpecialTokens,
    given_commands,
)
from data_utils.tokenizers.text_tokenizers import ByteLevelBPE, SentencePiece, TextTokenizer, WordList, WordPiece
from data_utils.tokenizers.vocabularies import find_vocabulary, sentencepiece_file

if TYPE_CHECKING:
    import numpy as np

# What a piece must contain to end a sentence, by who asks.
SENTENCE_ENDS = {
    "span": ".?!;:。？！；…\n",  # blank construction
    "document": ".?!;:\n",  # packing of documents
    "causal": ".?!",  # packing of plain causal samples
}
# --tokenizer-model-type of the Chinese vocabulary, and whether its [gMASK] has an id of its own; other values of
# ChineseSPTokenizer name the SentencePiece file of a multilingual model.
CHINESE_MODEL_TYPES = {"glm-large": True, "glm-10b": False}
TOKENIZER_TYPES = (
    "BertWordPieceTokenizer",
    "GPT2BPETokenizer",
    "ChineseSPTokenizer",
    "SentencePieceTokenizer",
    "CharacterLevelTokenizer",
)


def sentence_end_table(texts: Sequence[str | None], predicate: str) -> np.ndarray:
    """Return bool [len(texts)]: which texts contain a mark that ends a sentence; None contains none.

    ``predicate`` is a key of ``SENTENCE_ENDS``.
    """
    import numpy as np

    marks = frozenset(SENTENCE_ENDS[predicate])
    return np.array([text is not None and not marks.isdisjoint(text) for text in texts], dtype=bool)


def _valid_unicode(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates; almost every text comes back as it is."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _may_hold_commands(text: str) -> bool:
    return "[" in text or "<|" in text


class Tokenizer:
    """Encode and decode text with command tokens such as ``[MASK]`` in it; ``files`` are those of the vocabulary."""

    def __init__(
        self, text_tokenizer: TextTokenizer, table: CommandTable, *, family: str, files: Sequence[Path] = ()
    ) -> None:
        self.family = family
        self.files = tuple(files)
        self.text_tokenizer = text_tokenizer
        self.command_tokens: tuple[CommandToken, ...] = table.tokens
        self.num_tokens = table.num_tokens
        self.num_text_tokens = table.num_text_tokens
        self._by_name = {token.name: token for token in table.tokens}
        self._by_text = {token.text: token for token in table.tokens}
        self._by_id = {token.id: token for token in table.tokens}
        texts = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, texts)) + ")")
        self._sentence_ends: dict[str, np.ndarray] = {}
        if self.command_id("eos") != self.command_id("pad"):
            raise ValueError("the tokenizer's pad and eos tokens differ; GLM needs them to be the same")

    def encode(self, text: str, *, as_text: bool = False) -> list[int]:
        """Return the ids of ``text``; command texts become their ids (not ``as_text``), nothing is added."""
        return self.encode_batch([text], as_text=as_text)[0]

    def encode_batch(self, texts: Sequence[str], *, as_text: bool = False) -> list[list[int]]:
        """Return the ids of each text, all fragments of them encoded in one call of the library.

        Command texts become their ids; with ``as_text`` they are text like any other. Lone surrogates, which are no
        characters, count as U+FFFD.
        """
        fragments: list[str] = []
        plans: list[list[CommandToken | None]] = []  # per text its parts in order; None is the next fragment
        for text in map(_valid_unicode, texts):
            parts: list[CommandToken | None] = []
            if text.strip():
                for piece in [text] if as_text else self._split(text):
                    if isinstance(piece, str):
                        fragments.append(piece)
                        parts.append(None)
                    else:
                        parts.append(piece)
            plans.append(parts)
        encoded = iter(self.text_tokenizer.encode_batch(fragments))
        results = []
        for parts in plans:
            if parts == [None]:
                results.append(next(encoded))
                continue
            ids: list[int] = []
            for part in parts:
                if part is None:
                    ids += next(encoded)
                else:
                    ids.append(part.id)
            results.append(ids)
        return results

    def count_commands(self, texts: Iterable[str]) -> Counter[str]:
        """Return how often each command text, such as ``[MASK]``, occurs in ``texts``."""
        return Counter(chain.from_iterable(self._pattern.findall(text) for text in texts if _may_hold_commands(text)))

    def _split(self, text: str) -> list[str | CommandToken]:
        """Cut a text at command texts; blanks in front of a left-stripping command go, empty pieces vanish."""
        if not _may_hold_commands(text):
            return [text]
        pieces = self._pattern.split(text)  # text, command, text, command, ..., text
        parts: list[str | CommandToken] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                parts.append(self._by_text[piece])
                continue
            following = self._by_text[pieces[index + 1]] if index + 1 < len(pieces) else None
            kept = piece.rstrip() if following is not None and following.lstrip else piece
            if kept:
                parts.append(kept)
        return parts

    def encode_as_tokens(self, text: str) -> list[str]:
        """Return the pieces of ``text``; command texts are ordinary text here."""
        return self.text_tokenizer.tokens(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; ids that stand for nothing are skipped."""
        runs: list[list[int] | str] = []
        for index in ids:
            command = self._by_id.get(int(index))
            if command is not None:
                runs.append(command.text)
            elif 0 <= index < self.text_tokenizer.size:
                if not runs or isinstance(runs[-1], str):
                    runs.append([])
                runs[-1].append(int(index))  # type: ignore[union-attr]
        return self.text_tokenizer.decode_runs(runs)

    def id_to_token(self, token_id: int) -> str:
        """Return the command text or raw piece of an id. Raises ValueError for an id that has none."""
        command = self._by_id.get(token_id)
        if command is not None:
            return command.text
        if not 0 <= token_id < self.text_tokenizer.size:
            raise ValueError(f"id {token_id} stands for no token; the tokenizer has {self.num_tokens}")
        return self.text_tokenizer.id_to_token(token_id)

    def token_to_id(self, token: str) -> int:
        """Return the id of a command text or raw piece. Raises ValueError when there is none.

        A text that is both is the command, but in a multilingual vocabulary, where it is the piece.
        """
        command = self._by_text.get(token.strip())
        index = self.text_tokenizer.token_to_id(token) if command is None or self.family == "multilingual" else None
        if index is None and command is not None:
            index = command.id
        if index is None:
            raise ValueError(f"token {token!r} is not in the vocabulary")
        return index

    def command_id(self, name: str) -> int:
        """Return the id of the command called ``name`` (MASK, sop ...). Raises ValueError listing the known ones."""
        if name not in self._by_name:
            raise ValueError(
                f"the tokenizer has no command token {name!r}; it has {', '.join(self._by_name)} (gMASK and sMASK need "
                "--task-mask, dBLOCK needs --block-mask-prob, sop and eop need --block-lm)"
            )
        return self._by_name[name].id

    def has_command(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def special(self) -> SpecialTokens:
        """The ids that blank infilling is made of. Raises ValueError for a tokenizer without them."""
        if not self.has_command("sop"):
            raise ValueError("the tokenizer has no <|startofpiece|>: filling blanks needs --block-lm")
        names = {"pad": "pad", "eos": "eos", "cls": "ENC", "mask": "MASK", "sep": "sep", "sop": "sop", "eop": "eop"}
        optional = {"smask": "sMASK", "gmask": "gMASK", "decoder_mask": "dBLOCK"}
        ids = {field: self.command_id(name) for field, name in names.items()}
        ids |= {field: self.command_id(name) for field, name in optional.items() if self.has_command(name)}
        return SpecialTokens(**ids)

    def padded_size(self, multiple: int = 128) -> int:
        """Return the rows of the embedding table: ``num_tokens`` rounded up to a multiple."""
        return -(-self.num_tokens // multiple) * multiple

    def sentence_end_table(self, predicate: str) -> np.ndarray:
        """Return bool [num_tokens]: which ids end a sentence; ``predicate`` is a key of ``SENTENCE_ENDS``.

        Without task masks the unfixed Chinese table has an id beyond ``num_tokens``: the result is longer then.
        """
        if predicate not in self._sentence_ends:
            texts: list[str | None] = []
            for index in range(max(self.num_tokens, max(self._by_id) + 1)):
                known = index in self._by_id or index < self.text_tokenizer.size
                texts.append(self.id_to_token(index) if known else None)
            self._sentence_ends[predicate] = sentence_end_table(texts, predicate)
        return self._sentence_ends[predicate]

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash that is equal for tokenizers that give the same ids."""
        commands = repr([(token.text, token.id, token.lstrip) for token in self.command_tokens])
        content = f"{self.family} {self.text_tokenizer.digest} {commands}"
        return hashlib.sha256(content.encode("utf-8")).hexdigest()


def word_list_tokenizer(words: Sequence[str], commands: Mapping[str, int]) -> Tokenizer:
    """Return a tokenizer of a ``WordList`` and of ``commands``, name to id: for examples and benchmarks."""
    table = given_commands(commands, num_tokens=max(len(words), *(index + 1 for index in commands.values())))
    return Tokenizer(WordList(words), table, family="words")


def build_tokenizer(
    tokenizer_type: str,
    *,
    model_type: str | None = None,
    path: str | Path | None = None,
    block_symbols: bool = True,
    task_mask: bool = False,
    decoder_mask: bool = False,
    num_sentinels: int = 0,
    fix_command_token: bool = True,
    vocab_dir: str | Path | None = None,
    cache_dir: str | None = None,
) -> Tokenizer:
    """Build a tokenizer.

    Args:
        tokenizer_type: one of ``TOKENIZER_TYPES``.
        model_type: vocabulary of the type: ``bert-base-uncased`` ..., ``gpt2`` or ``roberta...``; of
            ChineseSPTokenizer a key of ``CHINESE_MODEL_TYPES``, or the SentencePiece file of a multilingual model.
        path: the vocabulary file, or the folder that holds the files; needed for SentencePieceTokenizer.
        block_symbols, task_mask, decoder_mask, num_sentinels, fix_command_token: which command tokens there are; see
            ``CommandOptions``.
        vocab_dir, cache_dir: where released vocabularies are looked for; see ``find_vocabulary``.

    Raises:
        ValueError: an unknown type, or vocabulary files that are missing or damaged.
    """
    options = CommandOptions(block_symbols, task_mask, decoder_mask, num_sentinels, fix_command_token)
    text_tokenizer: TextTokenizer
    if tokenizer_type == "BertWordPieceTokenizer":
        family, name = "bert", model_type or "bert-large-uncased"
        cased = "-cased" in name or "chinese" in name
        files = find_vocabulary(
            family, path=path, vocab_dir=vocab_dir, cache_dir=cache_dir, variant=name if cased else None
        )
        text_tokenizer = WordPiece(files[0], lower_case=not cased)
    elif tokenizer_type == "GPT2BPETokenizer":
        family = "roberta" if (model_type or "").startswith("roberta") else "gpt2"
        if family == "gpt2" and not (model_type or "gpt2").startswith("gpt2"):
            raise ValueError(f"--tokenizer-model-type {model_type} is none of GPT2BPETokenizer; choose gpt2 or roberta")
        files = find_vocabulary(family, path=path, vocab_dir=vocab_dir, cache_dir=cache_dir)
        text_tokenizer = ByteLevelBPE(*files)
    elif tokenizer_type == "ChineseSPTokenizer" and model_type is not None and model_type not in CHINESE_MODEL_TYPES:
        family = "multilingual"
        files = [sentencepiece_file(path or model_type)]
        text_tokenizer = SentencePiece(files[0], separator=" ")
    elif tokenizer_type == "ChineseSPTokenizer":
        family = "chinese"
        if model_type is not None:
            options = replace(options, fix_command_token=CHINESE_MODEL_TYPES[model_type])
        files = find_vocabulary(family, path=path, vocab_dir=vocab_dir, cache_dir=cache_dir)
        text_tokenizer = SentencePiece(files[0])
    elif tokenizer_type == "SentencePieceTokenizer":
        family = "sentencepiece"
        if path is None or not Path(path).is_file():
            raise ValueError(
                f"{path or '(none)'}: no such SentencePiece model; name one with --tokenizer-path, or train one: "
                "bash scripts/train_tokenizer.sh FILES --vocab-size N"
            )
        files = [Path(path)]
        text_tokenizer = SentencePiece(files[0])
    elif tokenizer_type == "CharacterLevelTokenizer":
        raise ValueError(
            "CharacterLevelTokenizer never worked in the original and is not supported; a SentencePiece model of "
            "characters does the same: bash scripts/train_tokenizer.sh FILES --model-type char"
        )
    else:
        raise ValueError(f"tokenizer type {tokenizer_type!r}; choose one of {', '.join(TOKENIZER_TYPES)}")

    def id_of(piece: str) -> int:
        index = text_tokenizer.token_to_id(piece)
        if index is None:
            raise ValueError(
                f"{files[0]}: the {family} vocabulary has no {piece}: it belongs to another --tokenizer-type or "
                "--tokenizer-model-type"
            )
        return index

    table = COMMAND_TABLES[family](text_tokenizer.size, options, id_of)
    return Tokenizer(text_tokenizer, table, family=family, files=files)
