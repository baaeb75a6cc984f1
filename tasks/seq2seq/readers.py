"""Read the files of the sequence-to-sequence tasks. ``read_examples`` is the one way.

Lines are stripped. What is wrong with a file is said in one line with its name and line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from files.names import is_file_name
from files.reading import described, lines_of
from tasks.readers import Identities, check_offset, read_document, read_text, standardize
from tasks.seq2seq import detokenizers
from tasks.settings import SEQ2SEQ_TASKS, SQUAD_TASKS

if TYPE_CHECKING:
    import tokenizers

    from data_utils.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger("glm")

SPLITS = ("train", "dev", "test")
BLANK = "[MASK]"
XSUM_SPLITS_FILE = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
NO_ANSWER = "N/A"
FAKE_ANSWER = "FAKE_ANSWER"  # what a test split's questions are given instead of an answer
SQUAD_VERSIONS = {"squad": "v2.0", "squad_v1": "v1.1"}
Offsets = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Seq2SeqExample:
    """One example of a task, before any tokenizer's ids.

    Attributes:
        guid: ``<split>-<running index>``.
        source: the text to read; with ``[MASK]`` where blanks are to be filled.
        target: the text to write.
        reference: what a prediction is compared with, and the line of the ``.refs`` file.
        meta: what else the task needs: ``question``, ``answer``, ``answers``, ``idx`` (question id), ``context``,
            ``context_ids`` and ``context_offsets`` (SQuAD), ``blanks`` (the texts of the source's blanks in order; None
            when the files do not tell; absent while no blanks have been drawn).
        language: that its file is in, empty where tasks have one language.
        labelled: whether its file says what is to be written; metrics leave it out otherwise.
    """

    guid: str
    source: str
    target: str
    reference: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    language: str = ""
    labelled: bool = True


@dataclass(frozen=True, kw_only=True)
class Seq2SeqOptions:
    """How examples are read and become samples; most fields are options of the command line.

    Attributes:
        src_seq_length: S.
        tgt_seq_length: T.
        task_mask: the tokenizer has sMASK and gMASK, and the blank to fill is sMASK.
        mask_pad_token: padding of the source is hidden (customization only).
        block_positions: False: all block positions of the target are 1 (``--no-block-position``).
        blank_maskratio: share of the words that become blanks.
        seed: of the drawing of blanks.
        summary_prompt: ``content`` (the blank before the text) or ``tldr`` (after it, as multilingual models).
        localized_prompts: questions of MLQA are introduced in the language of their context.
        languages: those that are evaluated; empty for all that there are files of.
        legacy_qa_eval: questions of several languages are evaluated as in the original.
        squad_dir: folder of SQuAD's training file.
        compatible: do as the original where ours is better: windows without the answer are skipped in evaluation, too
            (squad_v1), the reference of a generated question is the answer, a mask in the user's text is taken for the
            appended one, and the shorter of two files decides (customization).
    """

    src_seq_length: int
    tgt_seq_length: int
    task_mask: bool = False
    mask_pad_token: bool = False
    block_positions: bool = True
    blank_maskratio: float = 0.1
    seed: int = 1234
    summary_prompt: str = "content"
    localized_prompts: bool = False
    languages: tuple[str, ...] = ()
    legacy_qa_eval: bool = False
    squad_dir: str | None = None
    compatible: bool = False


def read_examples(
    task: str, data_dir: str | Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of a split, in file order.

    Args:
        task: one of ``SEQ2SEQ_TASKS``.
        data_dir: the folder that holds the task's files.
        split: ``train``, ``dev`` or ``test``.
        tokenizer: references are what it makes of a text; it also cuts SQuAD's contexts into windows.
        options: of the run.

    Raises:
        ValueError: an unknown task or split; files that are missing, empty, malformed or do not fit together.
    """
    if task not in SEQ2SEQ_TASKS:
        raise ValueError(f"task {task!r} is no sequence-to-sequence task; choose one of {', '.join(SEQ2SEQ_TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = Path(data_dir)
    if task in SQUAD_TASKS:
        return read_squad(task, folder, split, tokenizer=tokenizer, options=options)
    if task in ("squad_generation", "cmrc"):
        return read_questions(task, folder, split, tokenizer=tokenizer, options=options)
    if task == "blank":
        return _read_blank(folder, split, options=options)
    if task == "extraction":
        return _read_extraction(folder, split)
    if task == "customization":
        return _read_customization(folder, split, options=options)
    pairs = _read_xsum(folder, split) if task == "xsum" else _read_summaries(task, folder, split)
    encoded = tokenizer.encode_batch([target for _, target in pairs])
    return [
        Seq2SeqExample(f"{split}-{index}", source, target, tokenizer.decode(ids))
        for index, ((source, target), ids) in enumerate(zip(pairs, encoded, strict=True))
    ]


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a file; they end with a line feed. Raise ValueError when there is no text."""
    lines = [line.strip() for line in lines_of(read_text(path))]
    if not any(lines):
        raise ValueError(f"{path}: the file is empty; one text a line is needed")
    return lines


def read_line_pairs(source: Path, target: Path, *, shorter_decides: bool = False) -> list[tuple[str, str]]:
    """Return the lines of two files, paired; say how many are empty.

    Raises ValueError when one has more lines than the other.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets) and not shorter_decides:
        first = min(len(sources), len(targets)) + 1
        raise ValueError(
            f"{source} has {len(sources)} lines, {target} has {len(targets)}: line {first} has no partner; the n-th "
            "line of one belongs to the n-th line of the other"
        )
    for path, lines in ((source, sources), (target, targets)):
        if empty := [number for number, line in enumerate(lines, start=1) if not line]:
            logger.warning(f"{path}: {len(empty):,} of {len(lines):,} lines are empty, the first is line {empty[0]}")
    return list(zip(sources, targets, strict=False))


def _read_summaries(task: str, folder: Path, split: str) -> list[tuple[str, str]]:
    name = "val" if split == "dev" else split
    pairs = [
        (standardize(source), standardize(target))
        for source, target in read_line_pairs(folder / f"{name}.source", folder / f"{name}.target")
    ]
    if task == "gigaword":
        return [(detokenizers.gigaword(source), detokenizers.gigaword(target)) for source, target in pairs]
    if task == "cnn_dm":
        return [
            (detokenizers.cnn_dm(source, is_target=False), detokenizers.cnn_dm(target, is_target=True))
            for source, target in pairs
        ]
    return pairs


def _read_xsum(folder: Path, split: str) -> list[tuple[str, str]]:
    path = folder / XSUM_SPLITS_FILE
    names = read_document(path).texts({"dev": "validation"}.get(split, split))
    if bad := [name for name in names if not is_file_name(name)]:
        raise ValueError(f"{path}: the id {described(bad[0])} is no name of a file")
    return [_read_summary_file(folder / f"{identity}.summary") for identity in names]


def _read_summary_file(path: Path) -> tuple[str, str]:
    """Return the body and the first sentence of an XSum file of sections opened by ``[SN]NAME[SN]``."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in read_lines(path):
        if len(line) > 8 and line.startswith("[SN]") and line.endswith("[SN]"):
            current = sections.setdefault(line[4:-4], [])
        elif line:
            current.append(line)
    missing = {"RESTBODY", "FIRST-SENTENCE"} - set(sections)
    if missing:
        raise ValueError(f"{path}: no section [SN]{min(missing)}[SN]; a summary file needs RESTBODY and FIRST-SENTENCE")
    return " ".join(sections["RESTBODY"]), " ".join(sections["FIRST-SENTENCE"])


def _read_blank(folder: Path, split: str, *, options: Seq2SeqOptions) -> list[Seq2SeqExample]:
    path = folder / f"{'valid' if split == 'dev' else split}.txt"
    if split != "test":
        texts = [detokenizers.blank_text(line) for line in read_lines(path)]
        for line, text in enumerate(texts, start=1):
            if BLANK in text:
                raise ValueError(f"{path}, line {line}: a blank in the text; blanks are drawn while training")
        return [Seq2SeqExample(f"{split}-{index}", text, text, text) for index, text in enumerate(texts)]
    blanks = folder / "blank" / f"test.maskratio{options.blank_maskratio:.1f}.blank"
    examples = []
    for index, pair in enumerate(read_line_pairs(blanks, path)):
        source, target = map(detokenizers.blank_text, pair)
        _require_blank(source, path=blanks, line=index + 1, written="<blank>")
        meta = {"blanks": find_answers(source, target)}
        examples.append(Seq2SeqExample(f"{split}-{index}", source, target, target, meta))
    return examples


def find_answers(source: str, target: str) -> tuple[str, ...] | None:
    """Return what stands in ``target`` at each ``[MASK]`` of ``source``, at least one word each.

    None when the texts do not agree outside of the blanks. Where several readings agree, earlier blanks are short.
    """
    pattern, words = source.split(), target.split()
    # agrees[i][j]: pattern[i:] can stand for words[j:]
    agrees = np.zeros((len(pattern) + 1, len(words) + 1), dtype=bool)
    agrees[len(pattern), len(words)] = True
    for i in range(len(pattern) - 1, -1, -1):
        for j in range(len(words) - 1, -1, -1):
            if pattern[i] == BLANK:
                agrees[i, j] = agrees[i + 1, j + 1] or agrees[i, j + 1]
            else:
                agrees[i, j] = pattern[i] == words[j] and agrees[i + 1, j + 1]
    if not agrees[0, 0]:
        return None
    answers: list[str] = []
    start = 0
    for i, word in enumerate(pattern):
        end = start + 1
        if word == BLANK:
            while not agrees[i + 1, end]:
                end += 1
            answers.append(" ".join(words[start:end]))
        start = end
    return tuple(answers)


def _read_extraction(folder: Path, split: str) -> list[Seq2SeqExample]:
    name = "valid" if split == "dev" else split
    path, targets = folder / f"{name}.source", folder / f"{name}.target"
    examples = []
    for index, (source, target) in enumerate(read_line_pairs(path, targets)):
        _require_blank(source, path=path, line=index + 1, written=BLANK)
        answers = tuple(target.split("|"))
        fit = len(answers) == source.count(BLANK)
        if not fit and split != "test":
            raise ValueError(
                f"{targets}, line {index + 1}: {len(answers)} answers (separated by |) for {source.count(BLANK)} "
                f"blanks in {path}"
            )
        blanks = {"blanks": answers if fit else None}
        examples.append(Seq2SeqExample(f"{split}-{index}", source, target, target, blanks))
    return examples


def _require_blank(source: str, *, path: Path, line: int, written: str) -> None:
    if BLANK not in source:
        raise ValueError(f"{path}, line {line}: no {written} to fill in {source[:60]!r}")


def _read_customization(folder: Path, split: str, *, options: Seq2SeqOptions) -> list[Seq2SeqExample]:
    name = "val" if split == "dev" else split
    pairs = read_line_pairs(folder / f"{name}.source", folder / f"{name}.target", shorter_decides=options.compatible)
    return [Seq2SeqExample(f"{split}-{index}", source, target, target) for index, (source, target) in enumerate(pairs)]


@dataclass(frozen=True)
class Question:
    """One question of a file.

    Attributes:
        where: file and place in it, for messages.
        identity: the question's id, or its place in the file.
        context, question: the texts.
        answers: all answer texts, in file order; None where the file has no answers to it.
    """

    where: str
    identity: str
    context: str
    question: str
    answers: tuple[str, ...] | None


def read_nested(path: Path, *, exact_offsets: bool = True) -> Iterator[Question]:
    """Yield the questions of a file. Questions whose ids are missing or repeated go by their place.

    Answers stand in their context at ``answer_start``, if they have that. Of those that stand nowhere in it, and
    without ``exact_offsets`` (CMRC's published files) of those elsewhere, the number is said. Raises ValueError with
    file and place for anything malformed.
    """
    identities, misplaced = Identities(), []
    for paragraph in (one for article in read_document(path).rows("data") for one in article.rows("paragraphs")):
        context = paragraph.text("context")
        for entry in paragraph.rows("qas"):
            answers = entry.rows("answers", default=[])
            for answer in answers:
                try:
                    if answer.get("answer_start") is not None:
                        check_offset(answer, context, "text", "answer_start")
                except ValueError as error:
                    if not isinstance(answer["answer_start"], int) or (
                        exact_offsets and answer.text("text") in context
                    ):
                        raise
                    misplaced.append(str(error))
            texts = tuple(answer.text("text") for answer in answers) if "answers" in entry.fields else None
            identity = entry.get("id")
            if isinstance(identity, int) and not isinstance(identity, bool):
                identity = str(identity)
            identity = identities.unique(identity, entry, name="id")
            yield Question(entry.place, identity, context, entry.text("question"), texts)
    identities.report()
    if misplaced:
        logger.warning(f"{misplaced[0]}; so it is with {len(misplaced):,} answers, whose texts count")


def read_questions(
    task: str, folder: Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of question generation or CMRC: one per distinct answer of a question.

    The target is the question, or the answer (CMRC). A test split's answers are not looked at.
    """
    path = folder / f"{split}.json"
    examples: list[Seq2SeqExample] = []
    generates_question = task == "squad_generation"
    for question in read_nested(path, exact_offsets=task != "cmrc"):
        unlabelled = question.answers is None or split == "test"
        if question.answers is None and split == "train":
            raise ValueError(f"{question.where}: no label to train on: no 'answers'")
        answers = (FAKE_ANSWER,) if unlabelled else tuple(dict.fromkeys(question.answers or ()))
        for answer in answers:
            target = question.question if generates_question else answer
            compared = answer if options.compatible else target
            meta = {"question": question.question, "answer": answer, "idx": question.identity}
            reference = tokenizer.decode(tokenizer.encode(compared))
            examples.append(
                Seq2SeqExample(
                    f"{split}-{len(examples)}", question.context, target, reference, meta,
                    labelled=generates_question or not unlabelled,
                )
            )  # fmt: skip
    return _not_empty(examples, path)


def read_squad(
    task: str, folder: Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of SQuAD."""
    path = folder / f"{'train' if split == 'train' else 'dev'}-{SQUAD_VERSIONS[task]}.json"
    needs_answer = task == "squad_v1" and (split == "train" or options.compatible)
    return squad_windows([(path, "")], split, needs_answer=needs_answer, tokenizer=tokenizer, options=options)


def squad_windows(
    files: Sequence[tuple[Path, str]],
    split: str,
    *,
    needs_answer: bool,
    tokenizer: Tokenizer,
    options: Seq2SeqOptions,
) -> list[Seq2SeqExample]:
    """Return a window of a context each, with the answer if the window holds it, of files and their languages.

    With ``needs_answer`` windows without the answer are left out. Raises ValueError when there is no question at all.
    """
    offsets = ContextOffsets(tokenizer)
    encoded: dict[str, tuple[int, ...]] = {}  # per context its ids; the questions of a context follow each other
    examples: list[Seq2SeqExample] = []
    for question, language in ((question, language) for path, language in files for question in read_nested(path)):
        if question.context not in encoded:
            encoded = {question.context: tuple(tokenizer.encode(question.context))}
        ids = encoded[question.context]
        if question.answers is None and split == "train":
            raise ValueError(f"{question.where}: no label to train on: no 'answers'")
        answers = question.answers or (NO_ANSWER,)
        expected = tokenizer.decode(tokenizer.encode(answers[0]))
        for text, is_last in _windows(question, ids, tokenizer=tokenizer, size=options.src_seq_length):
            present = bool(expected) and expected in text
            if needs_answer and not present:
                continue
            answer = answers[0] if present else NO_ANSWER
            meta = {
                "question": question.question,
                "answer": answer,
                "answers": answers,
                "idx": question.identity,
                "context": question.context,
                "context_ids": ids,
                "context_offsets": offsets.of(question.context, ids),
            }
            labelled = question.answers is not None
            examples.append(Seq2SeqExample(f"{split}-{len(examples)}", text, answer, answer, meta, language, labelled))
            if is_last:
                break
    return _not_empty(examples, files[0][0])


def _windows(
    question: Question, ids: tuple[int, ...], *, tokenizer: Tokenizer, size: int
) -> Iterator[tuple[str, bool]]:
    """Yield the windows of a context that fit beside the question, half of the source length apart: text, is last."""
    length = size - 3 - len(tokenizer.encode(f" {question.question}"))
    if length <= 0:
        raise ValueError(f"{question.where}: the question leaves no room in --src-seq-length {size}; raise it")
    for start in range(0, len(ids), size // 2):
        window = ids[start : start + length]
        yield tokenizer.decode(window), len(window) < length


def _not_empty(examples: list[Seq2SeqExample], path: Path) -> list[Seq2SeqExample]:
    if not examples:
        raise ValueError(f"{path}: no question to make an example of")
    return examples


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
                logger.warning(f"no character offsets for a context with rare characters: {described(context)}")
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
