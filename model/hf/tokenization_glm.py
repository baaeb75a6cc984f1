"""Tokenizers of GLM for Hugging Face transformers: BERT's, GPT-2's, RoBERTa's, the Chinese one, SentencePiece."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AddedToken,
    BatchEncoding,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from .inputs_glm import generation_inputs, multiple_choice_inputs

END_OF_TEXT = "<|endoftext|>"
START_OF_PIECE = "<|startofpiece|>"
END_OF_PIECE = "<|endofpiece|>"
CLS, SEP, UNK, PAD = "[CLS]", "[SEP]", "[UNK]", "[PAD]"
MASK, GENERATION_MASK, SENTENCE_MASK = BLANKS = "[MASK]", "[gMASK]", "[sMASK]"
NO_CHARACTER = "\ufdd0"  # of Unicode's, left alone by every normalisation


class ModelInputs(BatchEncoding):
    """Inputs of a model; ``to`` moves tensors and leaves lists alone, which older versions of the library do not."""

    def to(self, device: Any, **kwargs: Any) -> ModelInputs:
        """Move the tensors to ``device`` and return self."""
        for name, value in self.items():
            if isinstance(value, Tensor):
                self[name] = value.to(device, **kwargs)
        return self


class GLMTokenizerMixin(PreTrainedTokenizerBase):
    """What the tokenizers of all families share."""

    model_input_names = ["input_ids", "position_ids", "attention_mask"]  # noqa: RUF012  # the library's convention
    truncation_side = "left"
    has_task_masks = True
    # What is put around a text and around two.
    single_form = f"{CLS} $A {END_OF_TEXT}"
    pair_form = f"{CLS} $A {SEP} $B:1 {END_OF_TEXT}:1"

    sop_token = START_OF_PIECE
    eop_token = END_OF_PIECE

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Before the library's own handling of errors, which hides ours where protobuf is not installed.
        cls.require_files({**resolved_vocab_files, **kwargs})
        return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)

    @classmethod
    def require_files(cls, files: Mapping[str, Any]) -> None:
        """Raise ValueError when neither tokenizer.json nor the vocabulary is among ``files``, paths by argument."""
        names = dict(cls.vocab_files_names)
        whole = names.pop("tokenizer_file", None)
        if whole is not None and Path(files.get("tokenizer_file") or "").is_file():
            return
        missing = [name for key, name in names.items() if not Path(files.get(key) or "").is_file()]
        if missing:
            alternative = f" (or {whole})" if whole else ""
            raise ValueError(
                f"{cls.__name__} lacks {' and '.join(missing)}{alternative}; copy it into the model's folder"
            )

    @property
    def sop_token_id(self) -> int:
        """Return the id of the token that starts a filling."""
        return self.convert_tokens_to_ids(self.sop_token)

    @property
    def eop_token_id(self) -> int:
        """Return the id of the token that ends a filling."""
        return self.convert_tokens_to_ids(self.eop_token)

    @property
    def gmask_token_id(self) -> int:
        """Return the id of [gMASK], a blank for a long text at the end; ValueError where the family has none."""
        return self._task_mask_id(GENERATION_MASK)

    @property
    def smask_token_id(self) -> int:
        """Return the id of [sMASK], a blank for a sentence; ValueError where the family has none."""
        return self._task_mask_id(SENTENCE_MASK)

    @property
    def mask_token_ids(self) -> list[int]:
        """Return the ids of all blanks."""
        if not self.has_task_masks:
            return [self.mask_token_id]
        return [self.mask_token_id, self.smask_token_id, self.gmask_token_id]

    def _task_mask_id(self, text: str) -> int:
        if not self.has_task_masks:
            raise ValueError(f"{type(self).__name__} has no {text}; use {MASK}")
        return self.convert_tokens_to_ids(text)

    def _wrapped(self, first: list[int], second: list[int] | None) -> list[tuple[int, int, int]]:
        """Return each id of one text or two in its form, with its type and 1 for the tokens of the form."""
        texts = {"$A": first, "$B": second}
        result: list[tuple[int, int, int]] = []
        for part in (self.single_form if second is None else self.pair_form).split():
            name, kind = part.removesuffix(":1"), int(part.endswith(":1"))
            ids = texts.get(name)
            if ids is None:
                result.append((self.convert_tokens_to_ids(name), kind, 1))
            else:
                result += [(one, kind, 0) for one in ids]
        return result

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return the ids of one text or two with the special tokens around them."""
        return [one for one, _, _ in self._wrapped(token_ids_0, token_ids_1)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for the first text and the tokens around it, 1 for the second and the tokens after it."""
        return [kind for _, kind, _ in self._wrapped(token_ids_0, token_ids_1)]

    def build_inputs_for_generation(
        self,
        model_input: BatchEncoding,
        max_gen_length: int = 512,
        targets: str | Sequence[str] | None = None,
        padding: bool = False,
        *,
        skip_padding: bool = False,
    ) -> BatchEncoding:
        """Return the inputs of ``GLMForConditionalGeneration`` for tokenized texts; see ``generation_inputs``.

        ``targets`` are the texts to learn, one per row (or the one of a single row). ``skip_padding`` gives padded
        texts the positions they have alone; it matters for texts padded on the left.
        """
        target_ids = None
        if targets is not None:
            target_ids = self._plain_ids([targets] if isinstance(targets, str) else list(targets))
        input_ids, attention_mask = _tensors(model_input)
        inputs = generation_inputs(
            input_ids,
            attention_mask,
            mask_token_ids=self.mask_token_ids,
            sop_token_id=self.sop_token_id,
            eop_token_id=self.eop_token_id,
            pad_token_id=self.pad_token_id,
            max_gen_length=max_gen_length,
            targets=target_ids,
            padding=padding,
            skip_padding=skip_padding,
        )
        return ModelInputs(inputs)

    def build_inputs_for_multiple_choice(
        self,
        model_input: BatchEncoding,
        choices: Sequence[Sequence[str]],
        max_length: int | None = None,
        *,
        skip_padding: bool = False,
    ) -> BatchEncoding:
        """Return the inputs of ``GLMForMultipleChoice`` for tokenized texts; see ``multiple_choice_inputs``.

        ``choices`` are the texts for the [MASK] of each row. ``max_length`` has no effect.
        """
        if isinstance(choices, str) or any(isinstance(row, str) for row in choices):
            raise ValueError("choices has to be a list of texts for each row of the batch, such as [['yes', 'no']]")
        input_ids, attention_mask = _tensors(model_input)
        inputs = multiple_choice_inputs(
            input_ids,
            attention_mask,
            mask_token_id=self.mask_token_id,
            sop_token_id=self.sop_token_id,
            choices=[self._plain_ids(list(row)) for row in choices],
            skip_padding=skip_padding,
        )
        return ModelInputs(inputs)

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts without the tokens that wrap a context."""
        return self(texts, add_special_tokens=False)["input_ids"] if texts else []


def _tensors(model_input: BatchEncoding) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask [b,s]; raise ValueError when they are no such tensors."""
    ids = model_input["input_ids"]
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError('the texts have to be tokenized into tensors [batch, length]: give return_tensors="pt"')
    mask = model_input.get("attention_mask")
    return ids, torch.ones_like(ids) if mask is None else mask


def _special(text: str, *, lstrip: bool = False) -> AddedToken:
    return AddedToken(text, lstrip=lstrip, rstrip=False, normalized=False, special=True)


def _with_extra_tokens(settings: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return constructor settings that name ``texts`` as special tokens, unless a saved file names others.

    The name of the setting changed in version 5 of the library, which still understands the old one.
    """
    settings = dict(settings)
    saved = settings.pop("extra_special_tokens", None)
    settings["additional_special_tokens"] = settings.get("additional_special_tokens") or saved or list(texts)
    settings.setdefault("clean_up_tokenization_spaces", False)
    return settings


class GLMFastTokenizer(GLMTokenizerMixin, PreTrainedTokenizerFast):
    """A tokenizer of the library ``tokenizers``, read from tokenizer.json or made from a vocabulary."""

    slow_tokenizer_class = None
    extra_tokens: tuple[str, ...] = (START_OF_PIECE, END_OF_PIECE)

    def __init__(
        self,
        vocab_file: str | None = None,
        merges_file: str | None = None,
        tokenizer_file: str | None = None,
        tokenizer_object: Tokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Take files, or a ready tokenizer. Raises ValueError when a file is missing."""
        if tokenizer_object is None:
            if tokenizer_file is not None and Path(tokenizer_file).is_file():
                tokenizer_object = Tokenizer.from_file(str(tokenizer_file))
            else:
                self.require_files({"vocab_file": vocab_file, "merges_file": merges_file})
                assert vocab_file is not None
                tokenizer_object = self.build(vocab_file, merges_file, **kwargs)
            # Also over that of a file: exports before 0.2 had no form for pairs.
            texts = {part.removesuffix(":1") for part in self.pair_form.split() if not part.startswith("$")}
            special = [(text, tokenizer_object.token_to_id(text)) for text in sorted(texts)]
            tokenizer_object.post_processor = processors.TemplateProcessing(
                single=self.single_form, pair=self.pair_form, special_tokens=special
            )
        super().__init__(tokenizer_object=tokenizer_object, **_with_extra_tokens(kwargs, self.extra_tokens))
        self.vocab_file = vocab_file

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Return the pieces of a text, each by its name in the vocabulary, also where it took a blank with it."""
        ids = self(text, pair, add_special_tokens=add_special_tokens, **kwargs)["input_ids"]
        return self.convert_ids_to_tokens(ids)

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Return the constructor's arguments as they are: it reads the files itself."""
        return kwargs

    def build(self, vocab_file: str, merges_file: str | None, **kwargs: Any) -> Tokenizer:
        """Return the tokenizer of a vocabulary."""
        raise TypeError(
            f"{type(self).__name__} does not know how to build a tokenizer; use one of {', '.join(TOKENIZERS)}"
        )

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary's files where they are missing, and return their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        names = [name for key, name in self.vocab_files_names.items() if key != "tokenizer_file"]
        paths = [Path(save_directory, f"{prefix}{name}") for name in names]
        if not all(path.is_file() for path in paths):
            self.backend_tokenizer.model.save(str(save_directory), filename_prefix)
        return tuple(map(str, paths))

    def _save_pretrained(self, save_directory: str | os.PathLike, file_names: tuple, **kwargs: Any) -> tuple[str, ...]:
        written = super()._save_pretrained(save_directory=save_directory, file_names=file_names, **kwargs)
        prefix = kwargs.get("filename_prefix")
        return (*written, *self.save_vocabulary(str(save_directory), filename_prefix=prefix))


class GLMBertTokenizer(GLMFastTokenizer):
    """BERT's WordPiece."""

    vocab_files_names = {"vocab_file": "vocab.txt", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    has_task_masks = False
    single_form = f"{CLS} $A {SEP}"
    pair_form = f"{CLS} $A {SEP} $B:1 {SEP}:1"

    def __init__(self, vocab_file: str | None = None, *args: Any, do_lower_case: bool = True, **kwargs: Any) -> None:
        defaults = {"pad_token": PAD, "eos_token": PAD, "cls_token": CLS, "sep_token": SEP, "unk_token": UNK}
        settings = {**defaults, "mask_token": MASK, **kwargs}
        super().__init__(vocab_file, *args, do_lower_case=do_lower_case, **settings)
        self.do_lower_case = do_lower_case

    def build(
        self, vocab_file: str, merges_file: str | None, *, do_lower_case: bool = True, **kwargs: Any
    ) -> Tokenizer:
        """Return the tokenizer of a vocab.txt; raise ValueError when it is of another kind."""
        pieces = Path(vocab_file).read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        vocabulary = {piece.removesuffix("\r"): index for index, piece in enumerate(pieces)}
        missing = [text for text in (PAD, CLS, SEP, UNK, MASK) if text not in vocabulary]
        if missing:
            raise ValueError(f"{vocab_file} has no {missing[0]}; is it a BERT vocab.txt?")
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=do_lower_case)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        texts = (PAD, CLS, MASK, UNK, SEP, START_OF_PIECE, END_OF_PIECE)
        tokenizer.add_special_tokens([_special(text) for text in texts])
        return tokenizer


class GLMGPT2Tokenizer(GLMFastTokenizer):
    """GPT-2's byte-level BPE."""

    vocab_files_names = {  # noqa: RUF012
        "vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json",
    }  # fmt: skip
    extra_tokens: tuple[str, ...] = (START_OF_PIECE, END_OF_PIECE, GENERATION_MASK, SENTENCE_MASK)
    # What some pieces of the vocabulary are called here.
    new_names: dict[str, str] = {}  # noqa: RUF012
    special_texts: tuple[str, ...] = (
        END_OF_TEXT, START_OF_PIECE, END_OF_PIECE, CLS, MASK, SEP, UNK, GENERATION_MASK, SENTENCE_MASK,
    )  # fmt: skip

    def __init__(
        self, vocab_file: str | None = None, merges_file: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        defaults = {"pad_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "cls_token": CLS, "sep_token": SEP}
        settings = {**defaults, "unk_token": UNK, "mask_token": _special(MASK, lstrip=True), **kwargs}
        super().__init__(vocab_file, merges_file, *args, **settings)

    def build(self, vocab_file: str, merges_file: str | None, **kwargs: Any) -> Tokenizer:
        """Return the tokenizer of a vocab.json and merges.txt; raise ValueError when they are of another kind."""
        assert merges_file is not None, "it is required beside the vocabulary"
        try:
            vocabulary = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
            lines = Path(merges_file).read_text(encoding="utf-8").split("\n")
            pairs = (line.split(" ") for line in lines if line and not line.startswith("#version"))
            merges = [(first, second) for first, second in pairs]
            model = models.BPE(_swap_names(vocabulary, self.new_names), merges)
        except Exception as error:  # the library raises nothing more specific
            reason = str(error).splitlines()[0][:100]
            raise ValueError(f"{vocab_file}, merges.txt: not a BPE vocabulary and its merges ({reason})") from error
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([_special(text, lstrip=text in BLANKS) for text in self.special_texts])
        return tokenizer


class GLMRobertaTokenizer(GLMGPT2Tokenizer):
    """RoBERTa's byte-level BPE; its special pieces have the names of the other families here."""

    has_task_masks = False
    pair_form = f"{CLS} $A {END_OF_TEXT} {END_OF_TEXT} $B {END_OF_TEXT}"
    extra_tokens = (START_OF_PIECE, END_OF_PIECE)
    new_names = {"<s>": CLS, "</s>": END_OF_TEXT, "<unk>": UNK, "<mask>": MASK}  # noqa: RUF012
    special_texts = (END_OF_TEXT, CLS, MASK, UNK, START_OF_PIECE, END_OF_PIECE)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take files; special tokens may be given under RoBERTa's own names."""
        named = {name: self.new_names[str(text)] for name, text in kwargs.items()
                 if name.endswith("_token") and str(text) in self.new_names}  # fmt: skip
        if named.get("mask_token") == MASK:
            named["mask_token"] = _special(MASK, lstrip=True)
        super().__init__(*args, **{"sep_token": END_OF_TEXT, **kwargs, **named})

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary's files where they are missing, under RoBERTa's own names, and return their paths."""
        paths = super().save_vocabulary(save_directory, filename_prefix)
        file = Path(paths[0])
        vocabulary = json.loads(file.read_text(encoding="utf-8"))
        if CLS in vocabulary:
            original = _swap_names(vocabulary, self.new_names)
            file.write_text(json.dumps(original, ensure_ascii=False), encoding="utf-8")
        return paths


def _swap_names(vocabulary: dict[str, int], names: dict[str, str]) -> dict[str, int]:
    """Return the vocabulary with each piece of ``names`` called by its other name, and the other way round."""
    both = {**names, **{new: old for old, new in names.items()}}
    return {both.get(piece, piece): index for piece, index in vocabulary.items()}


class GLMChineseTokenizer(GLMGPT2Tokenizer):
    """The Chinese SentencePiece model; the special tokens follow its pieces at fixed distances."""

    vocab_files_names = {"vocab_file": "cog-pretrain.model", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    offsets = {  # noqa: RUF012
        END_OF_TEXT: 0, SEP: 1, CLS: 2, MASK: 3, UNK: 4, "<|unused5|>": 5, START_OF_PIECE: 6, END_OF_PIECE: 7,
        SENTENCE_MASK: 8, GENERATION_MASK: 9,
    }  # fmt: skip

    def build(self, vocab_file: str, merges_file: str | None, **kwargs: Any) -> Tokenizer:
        """Return the tokenizer of a SentencePiece model; raise ValueError when it is not the Chinese model's kind."""
        try:
            content = import_protobuf().ModelProto()
        except ImportError as error:
            raise ValueError(
                f"{type(self).__name__} needs the packages sentencepiece and protobuf where there is no "
                "tokenizer.json: pip install sentencepiece protobuf"
            ) from error
        try:
            content.ParseFromString(Path(vocab_file).read_bytes())
        except Exception as error:  # of protobuf, whose classes differ between versions
            raise ValueError(f"{vocab_file} is not a SentencePiece model; copy it again") from error
        kind = (content.trainer_spec.model_type, content.normalizer_spec.name, content.trainer_spec.byte_fallback)
        if kind != (2, "nmt_nfkc", False) or not content.pieces:
            raise ValueError(f"{vocab_file} is not a SentencePiece model of BPE and nmt_nfkc; copy it again")
        names = [piece.piece for piece in content.pieces]
        unknown, whole = ([p.piece for p in content.pieces if p.type == kind] for kind in (2, 4))
        ranks = {piece.piece: (-piece.score, index) for index, piece in enumerate(content.pieces) if piece.type == 1}
        halves = (
            (rank, name[:cut], name[cut:])
            for name, rank in ranks.items()
            for cut in range(1, len(name))
            if name[:cut] in ranks and name[cut:] in ranks
        )
        vocabulary = {name: index for index, name in enumerate(names)}
        vocabulary |= {text: len(names) + offset for text, offset in self.offsets.items()}
        merges = [(left, right) for _, left, right in sorted(halves)]
        model = models.BPE(vocabulary, merges, unk_token=unknown[0], fuse_unk=True, ignore_merges=bool(whole))
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([
            # What nmt_nfkc does, but for an accent after a character that stands for several (㎏). The library's
            # reading of the table in the file (``Precompiled``) loses such accents, and knows no long sequences.
            normalizers.Replace("～", NO_CHARACTER),
            normalizers.NFKC(),
            normalizers.Replace(NO_CHARACTER, "～"),
            normalizers.Replace(Regex("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"), ""),
            normalizers.Replace(Regex("[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029▁\ufeff\ufffd]"), " "),
            # What SentencePiece does with blanks.
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ])  # fmt: skip
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        if whole:  # pieces that are never part of another; what follows is no word of its own if it looks like a token
            pattern = "|".join(map(re.escape, whole))
            parts = Regex(rf"{pattern}|(?<={pattern})[<\[](?=[/|a-zA-Z])")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [tokenizer.pre_tokenizer, pre_tokenizers.Split(parts, "isolated")]
            )
        tokenizer.decoder = decoders.Sequence([
            decoders.Replace(unknown[0], " ⁇ "), decoders.Replace(Regex("^</?s>$"), ""), decoders.Fuse(),
            decoders.Strip("▁", 1, 0), decoders.Replace("▁", " "),
        ])  # fmt: skip
        tokenizer.add_special_tokens([_special(text, lstrip=text in BLANKS) for text in self.special_texts])
        return tokenizer

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """Return the text of ids; what is between added tokens is decoded by itself, as SentencePiece does."""
        added = self.added_tokens_decoder
        parts = []
        for is_added, run in groupby([token_ids] if isinstance(token_ids, int) else token_ids, added.__contains__):
            if not is_added:
                parts.append(super()._decode(list(run), skip_special_tokens, **kwargs))
            else:
                parts += [str(added[one]) for one in run if not (skip_special_tokens and added[one].special)]
        return "".join(parts)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the SentencePiece model, where there is one, into a folder and return its path."""
        return _copy_model(self, save_directory, filename_prefix)


class GLMSentencePieceTokenizer(GLMTokenizerMixin, PreTrainedTokenizer):
    """A SentencePiece model of one's own, of any kind; the special tokens follow its pieces in the order of GPT-2's."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    offsets = {  # noqa: RUF012
        END_OF_TEXT: 0, START_OF_PIECE: 1, END_OF_PIECE: 2, CLS: 3, MASK: 4, SEP: 5, UNK: 6, GENERATION_MASK: 7,
        SENTENCE_MASK: 8,
    }  # fmt: skip

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        """Read the model. Raises ValueError when it is missing or of another kind."""
        try:
            import sentencepiece
        except ImportError as error:
            name = type(self).__name__
            raise ValueError(f"{name} needs the package sentencepiece: pip install sentencepiece") from error
        self.require_files({"vocab_file": vocab_file})
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{vocab_file} is not a SentencePiece model; copy it again") from error
        self.vocab_file = str(vocab_file)
        size = self.pieces.get_piece_size()
        special = {text: _special(text, lstrip=text in BLANKS) for text in self.offsets}
        self._added_tokens_decoder = {size + offset: special[text] for text, offset in self.offsets.items()}
        defaults = {"pad_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "cls_token": CLS, "sep_token": SEP}
        settings = {**defaults, "unk_token": UNK, "mask_token": MASK, **kwargs}
        names = {**{name: special.get(str(text), text) for name, text in settings.items() if name.endswith("_token")}}
        extra = (START_OF_PIECE, END_OF_PIECE, GENERATION_MASK, SENTENCE_MASK)
        super().__init__(**_with_extra_tokens({**settings, **names}, extra))

    @property
    def vocab_size(self) -> int:
        """Return the number of pieces, without the special tokens."""
        return self.pieces.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all pieces and special tokens."""
        return {self.pieces.id_to_piece(index): index for index in range(self.vocab_size)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.pieces.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index) if 0 <= index < self.vocab_size else UNK

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of pieces and special tokens; what is between special tokens is decoded by itself."""
        parts: list[str] = []
        run: list[int] = []
        for token in [*tokens, None]:
            if token is None or token in self.added_tokens_encoder:
                parts += [self.pieces.decode(run), token or ""]
                run = []
            else:
                run.append(self.pieces.piece_to_id(token))
        return "".join(parts)

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        kwargs.setdefault("spaces_between_special_tokens", False)
        return super()._decode(*args, **kwargs)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for the special tokens around texts and 0 for their own, or for all those in ids that have them."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        return [special for _, _, special in self._wrapped(token_ids_0, token_ids_1)]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the SentencePiece model into a folder and return its path."""
        return _copy_model(self, save_directory, filename_prefix)


def _copy_model(tokenizer: Any, folder: str, prefix: str | None) -> tuple[str, ...]:
    """Copy the file that ``tokenizer`` was read from into ``folder`` under its usual name, and return its new path."""
    if tokenizer.vocab_file is None or not Path(tokenizer.vocab_file).is_file():
        return ()
    name = tokenizer.vocab_files_names["vocab_file"]
    path = Path(folder, f"{prefix}-{name}" if prefix else name)
    if Path(tokenizer.vocab_file).resolve() != path.resolve():
        copyfile(tokenizer.vocab_file, path)
    return (str(path),)


_CLASSES = (
    GLMGPT2Tokenizer, GLMChineseTokenizer, GLMBertTokenizer, GLMRobertaTokenizer, GLMSentencePieceTokenizer,
)  # fmt: skip
TOKENIZERS = {kind.__name__: kind for kind in _CLASSES}


class GLMTokenizer:
    """Load the tokenizer of a model, of whichever family."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *inputs: Any, **kwargs: Any) -> Any:
        """Return the tokenizer that ``tokenizer_class`` of tokenizer_config.json names; ValueError when it is none."""
        name = get_tokenizer_config(str(name_or_path), **kwargs).get("tokenizer_class")
        if name not in TOKENIZERS:
            raise ValueError(
                f"{name_or_path}: tokenizer_class of tokenizer_config.json is {name!r}; it has to be one of "
                f"{', '.join(TOKENIZERS)}"
            )
        return TOKENIZERS[name].from_pretrained(name_or_path, *inputs, **kwargs)


for _tokenizer in TOKENIZERS.values():
    _tokenizer.register_for_auto_class("AutoTokenizer")
