"""Decoding and scoring: blanks that are filled, beams, choices, texts and windows of language modelling."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import baseline
from benchmarks.checkpoint import write_random_checkpoint
from benchmarks.harness import REPOSITORY, Limits, Row, compare, seconds_in_turn, summarize
from data_utils.batches import pad_batch
from data_utils.objective import Objective
from data_utils.tokenizers.tokenizer import Tokenizer, word_list_tokenizer
from generation.api import prepack_for_inference
from generation.beam_search import BeamSearch, Hypothesis
from generation.infill import BlankFiller, prompt_generator
from generation.inputs import Blank, PromptInputs
from generation.sampling import DecodingSettings
from generation.scoring import Continuation, Question, Score, score_questions
from model.config import GLMConfig
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.language_model.readers import Ending, TokenDocuments
from tasks.language_model.run import score_windows
from tasks.language_model.samples import LanguageModelSettings, WindowTable, document_windows, ending_windows
from tasks.seq2seq.decoding import TargetDecoder, decode_shared
from tasks.seq2seq.samples import Seq2SeqSample

VOCABULARY, NUM_TOKENS = 30592, 30524
COMMANDS = {"pad": 0, "eos": 0, "ENC": 101, "sep": 102, "MASK": 103, "sop": 30522, "eop": 30523}


def make_model(
    num_layers: int, hidden_size: int, num_heads: int, *, positions: int, seed: int, spread: float = 0.1
) -> GLMModel:
    """Return a model with random weights, large enough that choices are no near-ties."""
    config = GLMConfig(
        num_layers, hidden_size, num_heads, VOCABULARY, max_position_embeddings=positions, initializer_std=spread
    )
    return GLMModel(config, generator=torch.Generator().manual_seed(seed)).eval().requires_grad_(False)


# Filling a blank

CONTEXT, NEW, BEAM_TOKENS, BEAMS = 128, 256, 64, 4
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
GREEDY_GOALS = {(1, "fp32"): 4.0, (1, "bf16"): 6.0, (8, "fp32"): 10.0, (8, "bf16"): 14.0}
BEAM_GOAL = 6.0


def generate() -> list[Row]:
    """Filling a blank of 256 tokens after a context of 128: ours against the original's memory loop, the same tokens.

    12 layers, hidden 512, 8 heads; greedy with batches of 1 and 8, and 4 beams (64 tokens); weights in fp32, bf16 and
    of 8 bits, prepared as loading does. Only the fp32 rows have an equality: other roundings choose other tokens. The
    original's way is slow, so one measurement of it serves all rows of a batch size.
    """
    model = deep_model()
    plain = baseline.BaselineGLM(model.config, model.state_dict()).eval()
    return [*greedy_rows(1, plain, runs=3), *greedy_rows(8, plain, runs=1), beam_row(plain)]


def number_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are numbers: the benchmark starts from ids."""
    return word_list_tokenizer([str(index) for index in range(NUM_TOKENS)], COMMANDS)


def deep_model() -> GLMModel:
    """Return the model that fills blanks."""
    return make_model(12, 512, 8, positions=512, seed=3, spread=0.08)


def make_contexts(batch: int) -> list[PromptInputs]:
    """Draw contexts that end in a mask."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(1000, 30000, (batch, CONTEXT), generator=generator)
    rows[:, 0], rows[:, -1] = COMMANDS["ENC"], COMMANDS["MASK"]
    blank = Blank(index=CONTEXT - 1, start=CONTEXT - 1)
    return [PromptInputs("[MASK]", tuple(row), tuple(range(CONTEXT)), (blank,)) for row in rows.tolist()]


def filling(model: GLMModel, batch: int, settings: DecodingSettings) -> Callable[[], list[tuple[int, ...]]]:
    """Return a function that fills the blank of every context."""
    filler, inputs = BlankFiller(model, number_tokenizer()), make_contexts(batch)

    def fill() -> list[tuple[int, ...]]:
        generators = [prompt_generator(1, number) for number in range(batch)]
        return [row.pieces[0] for row in filler.fill_inputs(inputs, settings=settings, generators=generators)]

    return fill


def prepared(precision: str) -> GLMModel:
    """Return the model as ``generation.api.load_model`` leaves it."""
    model = deep_model().to(PRECISIONS[precision]).requires_grad_(False)
    prepack_for_inference(model, int8=precision == "int8")
    return model


def greedy_rows(batch: int, plain: baseline.BaselineGLM, *, runs: int) -> list[Row]:
    """Measure greedy decoding in all precisions against ``runs`` of the original's way, which is slow."""
    context = torch.tensor([row.input_ids for row in make_contexts(batch)])
    banned = [COMMANDS["eos"], COMMANDS["eop"], *range(NUM_TOKENS, VOCABULARY)]
    settings = DecodingSettings(max_length=NEW, min_length=NEW, top_k=1)
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        expected = baseline.generate(
            plain, context, start_id=COMMANDS["sop"], position=CONTEXT - 1, num_tokens=NEW, banned_ids=banned
        )
        seconds.append(time.perf_counter() - start)
    weights = sum(parameter.numel() for parameter in plain.parameters())
    rows = []
    for precision, dtype in PRECISIONS.items():
        fill = filling(prepared(precision), batch, settings)
        filled = [list(row) for row in fill()]
        [times] = seconds_in_turn([fill], repeats=3, warm=True)
        rows.append(
            summarize(
                f"generate, batch {batch}, {precision}",
                times,
                [statistics.median(seconds)] * len(times),
                amount=batch * NEW,
                unit="tokens/s",
                equal=filled == expected if precision == "fp32" else None,
                goal=GREEDY_GOALS.get((batch, precision)),
                limit=NEW
                * Limits.measure().seconds(
                    operations=2 * batch * weights,
                    dtype=dtype,
                    num_bytes=WEIGHT_BYTES[precision] * weights,
                ),
            )
        )
    return rows


def beam_row(plain: baseline.BaselineGLM) -> Row:
    """Measure beam search on one context."""
    settings = DecodingSettings(max_length=BEAM_TOKENS, num_beams=BEAMS)
    ends = (COMMANDS["eop"], COMMANDS["eos"])
    context = torch.tensor([row.input_ids for row in make_contexts(1)])
    fill = filling(prepared("fp32"), 1, settings)

    def original() -> list[tuple[int, ...]]:
        search = BeamSearch(1, settings=settings, end_ids=ends, pad_id=COMMANDS["pad"], start_length=1)
        return baseline.beam_search(plain, context, start_id=COMMANDS["sop"], position=CONTEXT - 1, search=search)

    return compare(
        f"beam search, {BEAMS} beams, fp32",
        fill,
        original,
        repeats=2,
        amount=BEAM_TOKENS,
        unit="tokens/s",
        equal=fill() == original(),
        goal=BEAM_GOAL,
        warm=True,
    )


# Memory of the program

LARGE = GLMConfig(24, 1792, 28, 30592, max_position_embeddings=512)
MEMORY_GOAL = 1.15
FREE_DISK = 3 << 30
NEW_TOKENS = 8
FLAGS = (
    "--block-lm --bf16 --tokenizer-type BertWordPieceTokenizer --tokenizer-model-type bert-base-uncased "
    f"--num-layers {LARGE.num_layers} --hidden-size {LARGE.hidden_size} "
    f"--num-attention-heads {LARGE.num_attention_heads} "
    f"--max-position-embeddings {LARGE.max_position_embeddings} --top-k 1 --out-seq-length {8 + NEW_TOKENS}"
).split()
# Runs generate_samples.py and prints the growth of its resident memory in bytes, and its seconds.
CHILD = """
import sys, time
from pathlib import Path
import generate_samples
import generation.api, generation.interactive, training.build, training.data
import training.distributed, training.engine
from benchmarks.harness import status
empty = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing
start = time.perf_counter()
assert generate_samples.main(sys.argv[1:]) == 0
print("measured", status("VmHWM") - empty, time.perf_counter() - start)
"""


def generate_memory() -> list[Row]:
    """Resident memory of generate_samples.py with a 2 GB bf16 checkpoint, as a multiple of its weights.

    24 layers, hidden 1792, 28 heads, random weights. The program runs in a fresh process and fills one blank; its peak
    (VmHWM: mapped pages of the file count) is taken above what the imports alone take. The time is that of loading and
    filling. 3 GB of disk and GLM_VOCAB_DIR are needed.
    """
    if not os.environ.get("GLM_VOCAB_DIR"):
        raise ValueError("GLM_VOCAB_DIR is not set: name the folder of the vocabularies")
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < FREE_DISK:
            print(f"skipped: {folder} has less than 3 GB free; name another folder with TMPDIR", file=sys.stderr)
            return []
        weights = write_random_checkpoint(Path(folder), LARGE)
        grown, seconds = fill_one_blank(Path(folder))
    name = f"generate_samples.py, {weights / 1e9:.1f} GB of weights in bf16: memory above the imports"
    return [Row(name, seconds, 0.0, memory_ratio=grown / weights, memory_goal=MEMORY_GOAL)]


def fill_one_blank(checkpoint: Path) -> tuple[int, float]:
    """Return the bytes by which generate_samples.py grows at most, and the seconds that it takes."""
    prompt = ["--prompt", "The capital of France is [MASK].", "--load-pretrained", str(checkpoint)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *FLAGS, *prompt], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise ValueError(f"generate_samples.py failed: {child.stderr.strip().splitlines()[-1]}")
    _, num_bytes, seconds = child.stdout.splitlines()[-1].split()
    return int(num_bytes), float(seconds)


# Choices

QUESTIONS, QUESTION_BATCH, CHOICES = 8, 4, 4
CHOICE_CASES = ((64, 1), (64, 12), (256, 1), (256, 12))  # tokens of a context, of a choice


def choices() -> list[Row]:
    """Scoring 4 choices per question: the context run once for all of them, against a row per choice.

    4 layers, hidden 512, 8 heads, fp32; 8 questions of one length in batches of 4. Contexts of 64 and 256 tokens
    (questions of MMLU have about 60, passages of RACE 300), choices of 1 token (a letter) and 12 (a sentence). Our side
    is prepared as ``generation.api.load_model`` leaves it.
    """
    prepared, plain = (make_model(4, 512, 8, positions=512, seed=1) for _ in range(2))
    prepack_for_inference(prepared)
    rows = []
    for context_length, choice_length in CHOICE_CASES:
        questions = make_questions(context_length, choice_length)
        difference = np.abs(together(prepared, questions) - row_by_row(plain, questions)).max()
        rows.append(
            compare(
                f"{CHOICES} choices of {choice_length} after {context_length} tokens",
                partial(together, prepared, questions),
                partial(row_by_row, plain, questions),
                repeats=3,
                warm=True,
                amount=QUESTIONS,
                unit="questions/s",
                equal=bool(difference < 1e-3),
                goal=4.0,
            )
        )
    return rows


def make_questions(context_length: int, choice_length: int) -> list[Question]:
    """Return questions whose blank is the last token of the context."""
    generator = np.random.default_rng(2)
    where = context_length - 2
    positions = np.array([[*range(context_length), where], [*[0] * context_length, 1]])
    blocks = np.stack([np.full(choice_length - 1, where), np.arange(2, choice_length + 1)])
    questions = []
    for _ in range(QUESTIONS):
        context = generator.integers(1000, 30000, context_length)
        context[where] = COMMANDS["MASK"]
        choices = generator.integers(1000, 30000, (CHOICES, choice_length))
        continuations = tuple(Continuation(ids[:-1], blocks, ids) for ids in choices)
        questions.append(Question(np.append(context, COMMANDS["sop"]), positions, context_length, continuations))
    return questions


def together(model: GLMModel, questions: Sequence[Question]) -> np.ndarray:
    """Return the scores [questions, choices] with the context run once."""
    scores = score_questions(model, questions, batch_size=QUESTION_BATCH)
    return np.array([[one.log_probability for one in question] for question in scores])


def row_by_row(model: GLMModel, questions: Sequence[Question]) -> np.ndarray:
    """Return the scores with a row per choice, as fine-tuning runs them."""
    head, scores = MultiTokenCloze(model), []
    for start in range(0, len(questions), QUESTION_BATCH):
        rows = [_rows(question) for question in questions[start : start + QUESTION_BATCH]]
        ids, positions, targets, mask = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows))  # [b,c,...]
        prefix_lengths = torch.tensor([[q.prefix_length] * CHOICES for q in questions[start : start + QUESTION_BATCH]])
        with torch.inference_mode():
            scores.append(head(ids, positions, prefix_lengths, targets, mask).numpy())
    return np.concatenate(scores)


def _rows(question: Question) -> tuple[np.ndarray, ...]:
    """Return ids, positions, targets and their mask, one row per choice."""
    given = len(question.input_ids) - 1
    ids, positions, targets = [], [], []
    for one in question.continuations:
        ids.append(np.concatenate([question.input_ids, one.input_ids]))
        positions.append(np.concatenate([question.position_ids, one.position_ids], axis=1))
        targets.append(np.concatenate([np.zeros(given, dtype=np.int64), one.target_ids]))
    mask = np.zeros_like(np.stack(targets))
    mask[:, given:] = 1
    return np.stack(ids), np.stack(positions), np.stack(targets), mask


# Sequence to sequence

SOURCE_SHORTEST, SOURCE_LONGEST, TARGET, SOURCE_BEAMS, SOURCES = 40, 128, 24, 5, 8
SOURCE_SETTINGS = DecodingSettings(
    max_length=TARGET, num_beams=SOURCE_BEAMS, length_penalty=0.7, no_repeat_ngram_size=3, min_length=TARGET // 2
)
TOKENIZER = number_tokenizer()
SPECIAL = TOKENIZER.special


def evaluate() -> list[Row]:
    """Evaluating a sequence-to-sequence task: batches with a cache against one text at a time without, the same texts.

    4 layers, hidden 256; 8 sources of 40 to 128 tokens, 5 beams, targets of at most 24 tokens, fp32. The baseline runs
    the whole row of every beam anew for every token, as an evaluation without a cache does. Equal means the same
    tokens, and scores within rounding.
    """
    model, samples = make_model(4, 256, 4, positions=SOURCE_LONGEST, seed=3), make_sources()
    batched, expected = search_together(model, samples), search_one_by_one(model, samples)
    equal = all(a.tokens == b.tokens and abs(a.score - b.score) < 1e-3 for a, b in zip(batched, expected, strict=True))
    return [
        compare(
            f"beam search, {SOURCES} sources, {SOURCE_BEAMS} beams",
            lambda: search_together(model, samples),
            lambda: search_one_by_one(model, samples),
            repeats=3,
            warm=True,
            amount=SOURCES,
            unit="texts/s",
            equal=equal,
        )
    ]


def make_sources() -> list[Seq2SeqSample]:
    """Draw sources whose second token is the mask, as a summary's."""
    generator = np.random.default_rng(4)
    samples = []
    for number in range(SOURCES):
        length = int(generator.integers(SOURCE_SHORTEST, SOURCE_LONGEST + 1))
        ids = np.full(SOURCE_LONGEST + 1, SPECIAL.pad)
        ids[:length] = generator.integers(1000, 30000, length)
        ids[1], ids[-1] = SPECIAL.mask, SPECIAL.sop
        positions = np.stack([np.arange(SOURCE_LONGEST + 1), np.zeros(SOURCE_LONGEST + 1, dtype=np.int64)])
        positions[:, -1] = 1
        samples.append(Seq2SeqSample(ids, positions, SOURCE_LONGEST, length, None, None, (1,), str(number)))
    return samples


def search_together(model: GLMModel, samples: list[Seq2SeqSample]) -> list[Hypothesis]:
    """Return the best hypothesis of every source, all in one batch."""
    decoder = TargetDecoder(model, TOKENIZER, settings=SOURCE_SETTINGS)
    return decode_shared(
        [sample.context_length for sample in samples],
        lambda numbers: [rows[0] for rows in decoder.search([samples[number] for number in numbers])],
        batch_size=SOURCES,
        topology=ParallelTopology.single(),
    )


def search_one_by_one(model: GLMModel, samples: list[Seq2SeqSample]) -> list[Hypothesis]:
    """Return the best hypothesis of every source: no batches of sources, no cache."""
    with torch.inference_mode():
        return [_search(model, sample) for sample in samples]


def _search(model: GLMModel, sample: Seq2SeqSample) -> Hypothesis:
    search = BeamSearch(1, settings=SOURCE_SETTINGS, end_ids=(SPECIAL.eop,), pad_id=SPECIAL.pad)
    length, mask = sample.context_length, int(sample.position_ids[0, SOURCE_LONGEST])
    source = sample.input_ids[:length].tolist()
    pieces = [[SPECIAL.sop] for _ in range(SOURCE_BEAMS)]
    while not search.finished:
        steps = len(pieces[0])
        input_ids = torch.tensor([source + piece for piece in pieces])  # [n,s]
        positions = torch.tensor([[[*range(length), *[mask] * steps], [*[0] * length, *range(1, steps + 1)]]])
        logits = model(input_ids, positions, torch.tensor([length]), output="last_logits").float()
        logits[:, TOKENIZER.num_tokens :] = -torch.inf
        tokens, parents = search.step(logits)
        pieces = [[*pieces[parent], token] for parent, token in zip(parents, tokens, strict=True)]
    return search.results()[0][0]


# Language modelling

WINDOW_LENGTH, OVERLAP, WINDOW_BATCH = 256, 64, 16
PASSAGES, PASSAGE_SHORTEST, PASSAGE_LONGEST, TOKENS = 32, 60, 110, 1000


def evaluate_lm() -> list[Row]:
    """Evaluating a language model: batched, trimmed rows with logits at targets only, against whole rows one by one.

    4 layers, hidden 256, fp32, one thread. LAMBADA: 32 passages of 60 to 110 tokens and a last word of one or two, rows
    of --seq-length 256. Perplexity: a text of 1,000 tokens, --seq-length 256, --overlapping-eval 64, in both
    directions. The baseline runs each row alone, padded to its full length, with the logits of every position.
    """
    torch.set_num_threads(1)
    model = make_model(4, 256, 4, positions=WINDOW_LENGTH, seed=1)
    tables = {
        "LAMBADA": make_passages(),
        "perplexity": make_windows(unidirectional=False),
        "perplexity, unidirectional": make_windows(unidirectional=True),
    }
    return [
        compare(
            name,
            partial(score_batched, model, table),
            partial(score_one_by_one, model, table),
            repeats=3,
            warm=True,
            amount=len(table),
            unit="windows/s",
            equal=same_scores(score_batched(model, table), score_one_by_one(model, table)),
        )
        for name, table in tables.items()
    ]


def make_passages() -> WindowTable:
    """Draw passages and their last words."""
    generator = np.random.default_rng(2)

    def draw(least: int, most: int) -> list[int]:
        return generator.integers(1000, 30000, int(generator.integers(least, most + 1))).tolist()

    endings = [Ending(str(number), draw(PASSAGE_SHORTEST, PASSAGE_LONGEST), draw(1, 2)) for number in range(PASSAGES)]
    return ending_windows(
        endings, settings=LanguageModelSettings(seq_length=WINDOW_LENGTH), tokenizer=number_tokenizer()
    )


def make_windows(*, unidirectional: bool) -> WindowTable:
    """Draw a text and cut it into windows."""
    ids = np.random.default_rng(3).integers(1000, 30000, TOKENS).astype(np.int32)
    settings = LanguageModelSettings(seq_length=WINDOW_LENGTH, overlap=OVERLAP, unidirectional=unidirectional)
    return document_windows(TokenDocuments((ids,), TOKENS), settings=settings, tokenizer=number_tokenizer())


def score_batched(model: GLMModel, table: WindowTable) -> list[Score]:
    """Return the scores as an evaluation finds them."""
    return score_windows(model, table, batch_size=WINDOW_BATCH)


@torch.inference_mode()
def score_one_by_one(model: GLMModel, table: WindowTable) -> list[Score]:
    """Return the scores of whole rows with all their logits, one row at a time."""
    scores = []
    for number in range(len(table)):
        batch = pad_batch([table.row(number)], Objective.DOCUMENT, multiple_of=WINDOW_LENGTH + 1).tensors()
        logits = model(batch.input_ids, batch.position_ids, batch.attention_mask).float()  # [1,s,v]
        values = torch.nn.functional.cross_entropy(logits[0], batch.target_ids[0], reduction="none")
        loss = float((values * batch.loss_mask[0]).sum(dtype=torch.float64))
        greedy = bool(((logits.argmax(dim=-1) == batch.target_ids) | (batch.loss_mask == 0)).all())
        scores.append(Score(-loss, int(batch.loss_mask.sum()), greedy))
    return scores


def same_scores(first: list[Score], second: list[Score]) -> bool:
    """Tell whether scores agree, but for rounding."""
    return all(
        math.isclose(one.log_probability, other.log_probability, rel_tol=1e-4) and one[1:] == other[1:]
        for one, other in zip(first, second, strict=True)
    )
