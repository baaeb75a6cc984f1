"""Filling a blank of 256 tokens after a context of 128: ours against the original's memory loop, the same tokens.

    python -m benchmarks.generate [--json]

12 layers, hidden 512, 8 heads; greedy with batches of 1 and 8, and 4 beams (64 tokens); weights in fp32, bf16 and of 8
bits, prepared as loading does. Only the fp32 rows have an equality: other roundings choose other tokens. The original's
way is slow, so one measurement of it serves all rows of a batch size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import baseline
from benchmarks.measuring import Row, compare, report, seconds_in_turn, summarize
from data_utils.errors import run_main
from data_utils.tokenizers.tokenizer import Tokenizer, word_list_tokenizer
from generation.api import prepack_for_inference
from generation.beam_search import BeamOptions
from generation.infill import BlankFiller, prompt_generator
from generation.inputs import Blank, PromptInputs
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.modeling_glm import GLMModel

VOCABULARY, NUM_TOKENS, CONTEXT, NEW, BEAM_TOKENS, BEAMS = 30592, 30524, 128, 256, 64, 4
COMMANDS = {"pad": 0, "eos": 0, "ENC": 101, "sep": 102, "MASK": 103, "sop": 30522, "eop": 30523}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
GREEDY_GOALS = {(1, "fp32"): 4.0, (1, "bf16"): 6.0, (8, "fp32"): 10.0, (8, "bf16"): 14.0}
BEAM_GOAL = 6.0


def number_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are numbers: the benchmark starts from ids."""
    return word_list_tokenizer([str(index) for index in range(NUM_TOKENS)], COMMANDS)


def make_model() -> GLMModel:
    """Return the model; weights large enough that choices are no near-ties."""
    config = GLMConfig(12, 512, 8, VOCABULARY, max_position_embeddings=512, initializer_std=0.08)
    return GLMModel(config, generator=torch.Generator().manual_seed(3)).eval()


def make_contexts(batch: int) -> list[PromptInputs]:
    """Draw contexts that end in a mask."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(1000, 30000, (batch, CONTEXT), generator=generator)
    rows[:, 0], rows[:, -1] = COMMANDS["ENC"], COMMANDS["MASK"]
    blank = Blank(index=CONTEXT - 1, start=CONTEXT - 1)
    return [PromptInputs("", tuple(row), tuple(range(CONTEXT)), (blank,)) for row in rows.tolist()]


def ours(model: GLMModel, batch: int, settings: DecodingSettings) -> Callable[[], list[tuple[int, ...]]]:
    """Return a function that fills the blank of every context."""
    filler, inputs = BlankFiller(model, number_tokenizer()), make_contexts(batch)

    def fill() -> list[tuple[int, ...]]:
        generators = [prompt_generator(1, number) for number in range(batch)]
        return [row.pieces[0] for row in filler.fill_inputs(inputs, settings=settings, generators=generators)]

    return fill


def prepared(precision: str) -> GLMModel:
    """Return the model as ``generation.api.load_model`` leaves it."""
    model = make_model().to(PRECISIONS[precision]).requires_grad_(False)
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
    rows = []
    for precision in PRECISIONS:
        fill = ours(prepared(precision), batch, settings)
        found = [list(row) for row in fill()]
        [own] = seconds_in_turn([fill], repeats=3, warm=True)
        rows.append(
            summarize(
                f"generate, batch {batch}, {precision}",
                own,
                [statistics.median(seconds)] * len(own),
                amount=batch * NEW,
                unit="tokens/s",
                equal=found == expected if precision == "fp32" else None,
                goal=GREEDY_GOALS.get((batch, precision)),
            )
        )
    return rows


def beam_row(plain: baseline.BaselineGLM) -> Row:
    """Measure beam search on one context."""
    settings = DecodingSettings(max_length=BEAM_TOKENS, num_beams=BEAMS)
    ends = (COMMANDS["eop"], COMMANDS["eos"])
    options = BeamOptions(
        num_beams=BEAMS, end_ids=ends, pad_id=COMMANDS["pad"], max_steps=BEAM_TOKENS, length_penalty=0.0, start_length=1
    )
    context = torch.tensor([row.input_ids for row in make_contexts(1)])
    fill = ours(prepared("fp32"), 1, settings)

    def original() -> list[tuple[int, ...]]:
        return baseline.beam_search(plain, context, start_id=COMMANDS["sop"], position=CONTEXT - 1, options=options)

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


def measure() -> Sequence[Row]:
    """Return a row per batch size and precision, and one for beams."""
    model = make_model()
    plain = baseline.BaselineGLM(model.config, model.state_dict()).eval()
    return [*greedy_rows(1, plain, runs=3), *greedy_rows(8, plain, runs=1), beam_row(plain)]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
