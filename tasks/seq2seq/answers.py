"""From predicted ids back to the words of a SQuAD context."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.seq2seq.detokenizers import clean_answer

if TYPE_CHECKING:
    import tokenizers

    from data_utils.tokenizers.tokenizer import Tokenizer

NO_ANSWER = "N/A"
Offsets = tuple[tuple[int, int], ...]


def is_no_answer(text: str) -> bool:
    """Tell whether a prediction says that there is no answer; case and blanks do not matter."""
    return "".join(text.split()).lower() == NO_ANSWER.lower()


class ContextOffsets:
    """Where the tokens of a context stand in it; known for BERT's vocabulary, the only one that loses the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._last: tuple[str, Offsets | None] | None = None
        self._warned = False

    def of(self, context: str, ids: Sequence[int]) -> Offsets | None:
        """Return start and end of each token of ``context``; None when there is nothing to map back to.

        Warns once when the fast tokenizer cuts a context otherwise (rare characters): answers are cleaned up then.
        """
        if self._tokenizer.family != "bert":
            return None
        if self._last is None or self._last[0] != context:
            encoding = self._fast.encode(context, add_special_tokens=False)
            agrees = list(ids) == encoding.ids
            if not agrees and not self._warned:
                self._warned = True
                warnings.warn(
                    f"no character offsets for a context with rare characters: {context[:60]!r}", stacklevel=2
                )
            self._last = (context, tuple(encoding.offsets) if agrees else None)
        return self._last[1]

    @cached_property
    def _fast(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        text = self._tokenizer.text_tokenizer
        vocabulary = {text.id_to_token(index): index for index in range(text.size)}
        fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
        lower_case = self._tokenizer.encode("A") == self._tokenizer.encode("a")
        fast.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return fast


def recover_answer(ids: Sequence[int], meta: Mapping[str, Any], *, tokenizer: Tokenizer) -> str:
    """Return the answer that predicted ``ids`` (without eop and padding) stand for.

    The words of the context as they are written there when the ids stand in it; else the decoded text, cleaned up.
    ``meta`` is the example's: ``context``, ``context_ids`` and ``context_offsets``. Only BERT's vocabulary loses the
    writing; with others the decoded text is the answer.
    """
    decoded = tokenizer.decode(ids)
    if tokenizer.family != "bert" or is_no_answer(decoded):
        return decoded
    wanted, context, offsets = tuple(ids), tuple(meta["context_ids"]), meta["context_offsets"]
    if offsets is not None and wanted:
        for start in range(len(context) - len(wanted) + 1):
            if context[start : start + len(wanted)] == wanted:
                return meta["context"][offsets[start][0] : offsets[start + len(wanted) - 1][1]]
    return clean_answer(decoded)
