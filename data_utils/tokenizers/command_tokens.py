"""The command tokens of every tokenizer family, with the ids of the released models (docs/formats.md#command-tokens).

Order matters: it is the order in which texts are split, and of names that share an id the later one names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

END_OF_TEXT = "<|endoftext|>"
START_OF_PIECE = "<|startofpiece|>"
END_OF_PIECE = "<|endofpiece|>"

# Returns the id of a piece that the table cannot do without; ValueError when the vocabulary does not hold it.
PieceLookup = Callable[[str], int]


@dataclass(frozen=True)
class CommandToken:
    """A token that stands for itself in a text; ``lstrip`` removes the whitespace in front of it."""

    name: str
    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that blank infilling is made of.

    Attributes:
        pad: fills rows.
        eos: ends a text; the same id as ``pad``.
        cls: opens a context, ``[CLS]`` (called ENC in files).
        mask: stands for a blank, ``[MASK]``.
        sep: stands between two texts, ``[SEP]``.
        sop: is fed first for every blank, ``<|startofpiece|>``.
        eop: ends what fills a blank, ``<|endofpiece|>``.
        smask, gmask: stand for a blank of sentences and for one that a document ends with; None without --task-mask.
        decoder_mask: hides tokens of a piece, ``[dBLOCK]``; None without --block-mask-prob.
    """

    pad: int
    eos: int
    cls: int
    mask: int
    sep: int
    sop: int
    eop: int
    smask: int | None = None
    gmask: int | None = None
    decoder_mask: int | None = None

    @property
    def masks(self) -> frozenset[int]:
        """Return all ids that stand for a blank."""
        return frozenset(index for index in (self.mask, self.smask, self.gmask) if index is not None)

    @property
    def long_mask(self) -> int:
        """Return the mask that a long text replaces: [gMASK] where there is one, else [MASK]."""
        return self.mask if self.gmask is None else self.gmask

    @property
    def ends(self) -> tuple[int, int]:
        """Return the ids each of which ends what fills a blank."""
        return self.eop, self.eos


@dataclass(frozen=True)
class CommandOptions:
    """Which command tokens a model uses.

    ``num_sentinels`` is S where the numbered mask and start tokens run from 1 to S - 1 (``--max-position-embeddings``
    with ``--sentinel-token``); only BERT's table has them.
    """

    block_symbols: bool = True
    task_mask: bool = False
    decoder_mask: bool = False
    num_sentinels: int = 0
    fix_command_token: bool = True


@dataclass(frozen=True)
class CommandTable:
    """The command tokens of a tokenizer and the number of ids that text and command tokens take together."""

    tokens: tuple[CommandToken, ...]
    num_tokens: int
    num_text_tokens: int


class _Builder:
    """Collect command tokens, handing out ids from ``next_id`` on."""

    def __init__(self, next_id: int) -> None:
        self.tokens: list[CommandToken] = []
        self.next_id = next_id

    def at(self, name: str, text: str, token_id: int, *, lstrip: bool = False) -> None:
        self.tokens.append(CommandToken(name, text, token_id, lstrip))
        self.next_id = max(self.next_id, token_id + 1)

    def append(self, name: str, text: str, *, lstrip: bool = False) -> None:
        self.at(name, text, self.next_id, lstrip=lstrip)

    def extras(self, options: CommandOptions, *, lstrip: bool) -> None:
        """Add what the options ask for on top of the block symbols."""
        if options.block_symbols and options.task_mask:
            self.append("gMASK", "[gMASK]", lstrip=lstrip)
            self.append("sMASK", "[sMASK]", lstrip=lstrip)
        self.decoder_mask(options)

    def decoder_mask(self, options: CommandOptions) -> None:
        if options.block_symbols and options.decoder_mask:
            self.append("dBLOCK", "[dBLOCK]")

    def table(self, num_text_tokens: int) -> CommandTable:
        return CommandTable(tuple(self.tokens), self.next_id, num_text_tokens)


def bert_commands(size: int, options: CommandOptions, id_of: PieceLookup) -> CommandTable:
    """Commands of a BERT vocabulary: most are pieces of it, the rest follow it."""
    builder = _Builder(size)
    for name, text in (
        ("pad", "[PAD]"),
        ("ENC", "[CLS]"),
        ("MASK", "[MASK]"),
        ("unk", "[UNK]"),
        ("sep", "[SEP]"),
        ("eos", "[PAD]"),
    ):
        builder.at(name, text, id_of(text))
    if options.block_symbols:
        builder.append("sop", START_OF_PIECE)
        builder.append("eop", END_OF_PIECE)
        builder.extras(options, lstrip=False)
    for number in range(1, options.num_sentinels):
        builder.append(f"MASK{number}", f"[MASK{number}]")
        builder.append(f"sop{number}", f"<|startofpiece{number}|>")
    return builder.table(size - 5)


def gpt2_commands(size: int, options: CommandOptions, id_of: PieceLookup) -> CommandTable:
    """Commands of GPT-2's vocabulary, which has the end of a text."""
    builder = _Builder(size)
    builder.at("pad", END_OF_TEXT, id_of(END_OF_TEXT))
    builder.at("eos", END_OF_TEXT, id_of(END_OF_TEXT))
    _append_block_symbols(builder, options)
    return builder.table(size - 1)


def generic_commands(size: int, options: CommandOptions, id_of: PieceLookup) -> CommandTable:
    """Commands of any SentencePiece model: they follow its pieces, in the order of GPT-2's."""
    builder = _Builder(size)
    builder.at("pad", END_OF_TEXT, size)
    builder.at("eos", END_OF_TEXT, size)
    _append_block_symbols(builder, options)
    return builder.table(size)


def _append_block_symbols(builder: _Builder, options: CommandOptions) -> None:
    if not options.block_symbols:
        return
    builder.append("sop", START_OF_PIECE)
    builder.append("eop", END_OF_PIECE)
    builder.append("ENC", "[CLS]")
    builder.append("MASK", "[MASK]", lstrip=True)
    builder.append("sep", "[SEP]")
    builder.append("unk", "[UNK]")
    builder.extras(options, lstrip=True)


def roberta_commands(size: int, options: CommandOptions, id_of: PieceLookup) -> CommandTable:
    """Commands of RoBERTa's vocabulary, which has most of them under other texts."""
    builder = _Builder(size)
    builder.at("pad", END_OF_TEXT, id_of("</s>"))
    builder.at("eos", END_OF_TEXT, id_of("</s>"))
    builder.at("sep", "[SEP]", id_of("</s>"))
    builder.at("ENC", "[CLS]", id_of("<s>"))
    builder.at("MASK", "[MASK]", id_of("<mask>"), lstrip=True)
    builder.at("unk", "[UNK]", id_of("<unk>"))
    if options.block_symbols:
        builder.append("sop", START_OF_PIECE)
        builder.append("eop", END_OF_PIECE)
        builder.extras(options, lstrip=True)
    return builder.table(size - 3)


def chinese_commands(size: int, options: CommandOptions, id_of: PieceLookup) -> CommandTable:
    """Commands of the Chinese vocabulary; without the fix [gMASK] shares the id of the end of a piece."""
    builder = _Builder(size)
    builder.append("pad", END_OF_TEXT)
    builder.at("eos", END_OF_TEXT, size)
    builder.append("sep", "[SEP]")
    builder.append("ENC", "[CLS]")
    builder.append("MASK", "[MASK]", lstrip=True)
    builder.append("unk", "[UNK]")
    if options.block_symbols:
        builder.at("sop", START_OF_PIECE, size + 6)
        builder.at("eop", END_OF_PIECE, size + 7)
        if options.task_mask and options.fix_command_token:
            builder.at("sMASK", "[sMASK]", size + 8, lstrip=True)
            builder.at("gMASK", "[gMASK]", size + 9, lstrip=True)
        elif not options.fix_command_token:
            builder.next_id = size + 7  # the id that was left out is not counted: what follows takes eop's
            builder.extras(options, lstrip=True)
        if options.fix_command_token:
            builder.decoder_mask(options)
    return builder.table(size)


def multilingual_commands(size: int, options: CommandOptions, id_of: PieceLookup) -> CommandTable:
    """Commands of a multilingual vocabulary: those of the Chinese one with the fix, after the pieces of any file."""
    return chinese_commands(size, replace(options, fix_command_token=True), id_of)


def given_commands(ids: Mapping[str, int], num_tokens: int) -> CommandTable:
    """Commands by name (``MASK``, ``sop`` ...) with the ids given: for examples, tests and benchmarks."""
    texts = {"pad": END_OF_TEXT, "eos": END_OF_TEXT, "ENC": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}
    texts |= {"sop": START_OF_PIECE, "eop": END_OF_PIECE}

    def text_of(name: str) -> str:
        return texts.get(name) or (f"<|startofpiece{name[3:]}|>" if name.startswith("sop") else f"[{name}]")

    return CommandTable(tuple(CommandToken(name, text_of(name), ids[name]) for name in ids), num_tokens, num_tokens)


COMMAND_TABLES: dict[str, Callable[[int, CommandOptions, PieceLookup], CommandTable]] = {
    "bert": bert_commands,
    "gpt2": gpt2_commands,
    "roberta": roberta_commands,
    "chinese": chinese_commands,
    "multilingual": multilingual_commands,
    "sentencepiece": generic_commands,
}
