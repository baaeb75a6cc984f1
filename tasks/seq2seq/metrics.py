"""How good written texts are: ROUGE, BLEU, SQuAD's figures, filled blanks. ``score_predictions`` is the one way.

The original's metrics come first, under its names and on its scales; the figures the field uses stand beside them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from tasks.metrics import exact_match, grouped_span_score, token_f1
from tasks.seq2seq.detokenizers import clean_filled, fix_tokenization
from tasks.seq2seq.readers import Seq2SeqExample
from tasks.settings import BLANK_TASKS, MULTILINGUAL_TASKS, SEQ2SEQ_TASKS, SQUAD_TASKS

if TYPE_CHECKING:
    from rouge_score.scoring import Score as RougeScore
    from sacrebleu.metrics.bleu import BLEUScore

    from data_utils.tokenizers.tokenizer import Tokenizer

SENTENCE_BREAK = "[SEP]"
FEWEST_WORDS = 5  # shorter sentences of a prediction are dropped
MOST_SEEN = 0.7  # share of a sentence's words that may have been seen before
ROUGE_TYPES = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeLsum"}


def metric_names(task: str) -> tuple[str, ...]:
    """Return the names of the original's metrics for ``task``; the first selects the best checkpoint. May be empty."""
    assert task in (*SEQ2SEQ_TASKS, *MULTILINGUAL_TASKS), task
    if task in SQUAD_TASKS:
        return ("EM", "F1")
    return () if task in BLANK_TASKS else tuple(ROUGE_TYPES)


def score_predictions(
    task: str,
    predictions: Sequence[str],
    examples: Sequence[Seq2SeqExample],
    *,
    tokenizer_type: str,
    characters: bool = False,
    filled: Sequence[Sequence[str]] | None = None,
    rouge_unit: str = "word",
    tokenizer: Tokenizer | None = None,
) -> dict[str, float]:
    """Return the metrics of predictions by name, those of ``metric_names`` first.

    Args:
        task: one of ``SEQ2SEQ_TASKS``.
        predictions, examples: in the same order.
        tokenizer_type: family of the tokenizer (``Tokenizer.family``): bert, gpt2, roberta, chinese.
        characters: ROUGE of characters as well, which Chinese needs (``rouge-1-characters`` ...).
        filled: for blank and extraction, the text of each blank of each example.
        rouge_unit, tokenizer: see ``rouge_figures``; words need no tokenizer.

    Scales: ROUGE 0 to 1, everything else 0 to 100. Names: ``rouge-1-plain`` ... have the conventional order of
    arguments and no sentence left out; ``bleu`` is multi-bleu's figure, ``sacrebleu`` and ``chrf`` are that package's.
    """
    assert len(predictions) == len(examples), (len(predictions), len(examples))
    if task in SQUAD_TASKS:
        return squad_scores(predictions, examples)
    if task in BLANK_TASKS:
        return blank_scores(task, predictions, examples, filled=filled)
    references = [example.reference for example in examples]
    variant = {"family": tokenizer_type, "task": task}
    plain = rouge_texts(predictions, references, **variant, filtered=False)
    if rouge_unit == "word":
        scores = compatible_rouge(rouge_texts(predictions, references, **variant, filtered=True))
    else:
        assert tokenizer is not None
        scores = rouge_figures(predictions, references, unit=rouge_unit, tokenizer=tokenizer, task=task)
    scores |= {f"{name}-plain": score.fmeasure for name, score in rouge(plain).items()}
    if characters:
        scores |= {f"{name}-characters": score.fmeasure for name, score in rouge(plain, characters=True).items()}
    said, true = ([" ".join(text.split()) for text in texts] for texts in (predictions, references))
    scores["bleu"] = multi_bleu(said, [true]).score
    return scores | library_scores(said, true, chinese=tokenizer_type == "chinese")


def squad_scores(predictions: Sequence[str], examples: Sequence[Seq2SeqExample]) -> dict[str, float]:
    """Return exact match and F1 in percent of questions; a question has one prediction per window."""
    questions = [example.meta["idx"] for example in examples]
    answers = [example.meta["answers"] for example in examples]
    return {
        "EM": grouped_span_score(exact_match, predictions, questions, answers),
        "F1": grouped_span_score(token_f1, predictions, questions, answers),
    }


def blank_scores(
    task: str,
    predictions: Sequence[str],
    examples: Sequence[Seq2SeqExample],
    *,
    filled: Sequence[Sequence[str]] | None,
) -> dict[str, float]:
    """Return how well blanks are filled, in percent; the original has no metric for it.

    ``bleu`` compares whole texts with blanks filled (blank only). With ``filled``: the share of blanks with exactly the
    right words (``blank-exact-match``), and the means over blanks of word F1 and BLEU (``blank-f1``, ``blank-bleu``).
    Case, accents and the blanks around punctuation do not matter for a blank; one that was not filled is wrong.
    """
    scores: dict[str, float] = {}
    if task == "blank":
        said, true = ([_plain(text) for text in texts] for texts in (predictions, [e.reference for e in examples]))
        scores["bleu"] = multi_bleu(said, [true]).score
    if filled is None:
        return scores
    pairs = [
        (_plain(texts[number]) if number < len(texts) else "", _plain(answer))
        for texts, example in zip(filled, examples, strict=True)
        for number, answer in enumerate(example.meta.get("blanks") or ())
    ]
    if not pairs:
        return scores
    count = len(pairs)
    right = sum("".join(a.split()) == "".join(b.split()) for a, b in pairs)
    scores["blank-exact-match"] = 100 * right / count
    scores["blank-f1"] = 100 * sum(word_f1(a, b) for a, b in pairs) / count
    scores["blank-bleu"] = sum(sentence_bleu(a, b) for a, b in pairs) / count
    return scores


def _plain(text: str) -> str:
    """Return a text in lower case without accents, as WordPiece's blanks are cleaned up."""
    letters = (c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return clean_filled(" ".join("".join(letters).split()))


def word_f1(first: str, second: str) -> float:
    """Return the F1 of the words of two texts, case ignored, 0 to 1; two texts without words agree."""
    said, true = first.lower().split(), second.lower().split()
    shared = (Counter(said) & Counter(true)).total()
    if not (said or true):
        return 1.0
    return 2 * shared / (len(said) + len(true))


@dataclass(frozen=True)
class RougeTexts:
    """A prediction and its reference as ROUGE compares them: one sentence a line."""

    prediction: str
    reference: str


def drop_repeated(sentences: Sequence[str], most_seen: float) -> list[str]:
    """Return the sentences of whose distinct words at most a share of ``most_seen`` occurs in any earlier sentence."""
    kept: list[str] = []
    seen: set[str] = set()
    for sentence in sentences:
        words = set(sentence.lower().split())
        if not words or len(words & seen) / len(words) <= most_seen:
            kept.append(sentence)
        seen |= words
    return kept


def rouge_texts(
    predictions: Sequence[str], references: Sequence[str], *, family: str, task: str, filtered: bool
) -> list[RougeTexts]:
    """Return the texts that are compared.

    Args:
        predictions, references: texts, their sentences separated by ``[SEP]``.
        family, task: of the tokenizer and the data; see ``fix_tokenization``.
        filtered: as the original, without the predictions' sentences of at most four words and their repetitions.
    """
    texts = []
    for prediction, reference in zip(predictions, references, strict=True):
        said, true = (
            [fix_tokenization(part, family=family, task=task) for part in text.split(SENTENCE_BREAK)]
            for text in (prediction, reference)
        )
        if filtered:
            said = drop_repeated([part for part in said if len(part.split()) >= FEWEST_WORDS], MOST_SEEN)
        texts.append(RougeTexts("\n".join(said), "\n".join(true)))
    return texts


def rouge_figures(
    predictions: Sequence[str], references: Sequence[str], *, unit: str, tokenizer: Tokenizer, task: str
) -> dict[str, float]:
    """Return mean F-measures by name, 0 to 1; an empty prediction or reference has 0.

    ``unit`` says what is counted: ``word`` as the original does it for English, ``char`` (``CharacterTokenizer``), or
    ``mglm``: ids of ``tokenizer``, of predictions without the sentences most of whose words were said before, as the
    multilingual release does it.
    """
    if unit == "word":
        return compatible_rouge(rouge_texts(predictions, references, family=tokenizer.family, task=task, filtered=True))
    if unit == "char":
        texts = rouge_texts(predictions, references, family=tokenizer.family, task=task, filtered=False)
        return {name: score.fmeasure for name, score in rouge(texts, characters=True).items()}
    said = ["\n".join(drop_repeated(text.split(SENTENCE_BREAK), MOST_SEEN)) for text in predictions]
    true = ["\n".join(text.split(SENTENCE_BREAK)) for text in references]
    written = [[" ".join(map(str, ids)) for ids in tokenizer.text_tokenizer.encode_batch(t)] for t in (said, true)]
    return {name: score.fmeasure for name, score in rouge(list(map(RougeTexts, *written))).items()}


def compatible_rouge(texts: Sequence[RougeTexts]) -> dict[str, float]:
    """Return the original's F-measures: it hands the prediction over as the truth, which changes ``rouge-l``."""
    swapped = [RougeTexts(text.reference, text.prediction) for text in texts]
    return {name: score.fmeasure for name, score in rouge(swapped).items()}


def rouge(texts: Sequence[RougeTexts], *, characters: bool = False) -> dict[str, RougeScore]:
    """Return the mean ROUGE scores by name, 0 to 1.

    ``characters`` compares characters beside Latin words and numbers; without it text in scripts such as Chinese
    scores 0. Raises ValueError when rouge-score is missing.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.scoring import Score
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise ValueError("ROUGE needs rouge-score: pip install rouge-score") from error
    # Without a tokenizer the library takes its own, and a message about that turns on the root logger.
    tokenizer = CharacterTokenizer() if characters else DefaultTokenizer(use_stemmer=True)
    scorer = RougeScorer(list(ROUGE_TYPES.values()), use_stemmer=True, tokenizer=tokenizer)
    scores: list[dict[str, RougeScore]] = [scorer.score(text.reference, text.prediction) for text in texts]
    return {
        name: Score(*(sum(figures) / len(scores) for figures in zip(*(score[kind] for score in scores))))
        for name, kind in ROUGE_TYPES.items()
    }


def uncounted_scripts(references: Sequence[str]) -> str | None:
    """Return a note on texts whose words ROUGE does not count, because they are not of Latin letters; None for none."""
    uncounted = 0
    for text in references:
        letters = [character for character in text.lower() if character.isalnum()]
        uncounted += sum(not character.isascii() for character in letters) > len(letters) / 2
    if not uncounted:
        return None
    return (
        f"ROUGE counts words of Latin letters and digits, which {uncounted:,} of {len(references):,} references hardly "
        "have"
    )


class CharacterTokenizer:
    """Cuts a text into Latin words, numbers and the single characters of everything else, without punctuation."""

    _UNITS = re.compile(r"[a-z0-9]+|[^\W_]")

    def tokenize(self, text: str) -> list[str]:
        """Return the units of ``text`` in lower case."""
        return self._UNITS.findall(text.lower())


def multi_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, lowercase: bool = False) -> BLEUScore:
    """Return BLEU as ``multi-bleu.perl`` computes it: of the words as they are, not smoothed.

    ``references`` holds one list of as many texts per set of references. Raises ValueError when the numbers of texts
    differ, or when sacrebleu is missing.
    """
    for texts in references:
        if len(texts) != len(hypotheses):
            raise ValueError(f"{len(hypotheses)} hypotheses and {len(texts)} references: BLEU needs one for each")
    return _library().corpus_bleu(
        hypotheses, references, smooth_method="none", force=True, lowercase=lowercase, tokenize="none"
    )


def bleu_line(bleu: BLEUScore) -> str:
    """Return the line that ``multi-bleu.perl`` prints."""
    precisions = "/".join(f"{precision:.1f}" for precision in bleu.precisions)
    return (
        f"BLEU = {bleu.score:.2f}, {precisions} (BP={bleu.bp:.3f}, ratio={bleu.ratio:.3f}, "
        f"hyp_len={bleu.sys_len}, ref_len={bleu.ref_len})"
    )


def library_scores(hypotheses: Sequence[str], references: Sequence[str], *, chinese: bool = False) -> dict[str, float]:
    """Return BLEU and chrF of the sacrebleu package, 0 to 100; ``chinese`` cuts Chinese into characters.

    Raises ValueError when the package is missing.
    """
    sacrebleu = _library()
    bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh" if chinese else "13a", force=True)
    chrf = sacrebleu.corpus_chrf(hypotheses, [references])
    return {"sacrebleu": float(bleu.score), "chrf": float(chrf.score)}


def bleu_signature(*, chinese: bool = False) -> str:
    """Return sacrebleu's signature of the figure ``sacrebleu`` of ``library_scores``: its version and settings."""
    metric = _library().BLEU(tokenize="zh" if chinese else "13a", force=True)
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """Return sacrebleu's smoothed BLEU of one text, 0 to 100; a text of few words is judged by its short n-grams."""
    return float(_library().sentence_bleu(hypothesis, [reference], use_effective_order=True).score)


def _library() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise ValueError("BLEU and chrF need sacrebleu: pip install sacrebleu") from error
    return sacrebleu
