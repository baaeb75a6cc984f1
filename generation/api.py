"""A GLM in a Python program: fill blanks, continue texts, score what may stand in a blank.

    from generation.api import load_model

    glm = load_model()                                                   # the demo model, or load_model("CHECKPOINT")
    [filled] = glm.fill("She opened the [MASK] and went out.")
    print(filled.text, filled.answers)
    [text] = glm.generate("Once upon a time")
    [scores] = glm.score(["Ice is [MASK]."], ["cold", "hot"])            # log-probabilities
    [result] = glm.loglikelihood(["The sky is"], [" blue"])              # .log_probability, .num_tokens, .greedy

docs/api.md explains it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from files.reading import value_of
from generation.infill import BlankFiller, FilledPrompt
from generation.inputs import (
    Blank,
    PromptInputs,
    QuestionEncoder,
    check_prompt_fits,
    complete_prompt,
    encode_prompt,
    masks_taken_as_text,
    require_blank,
    texts_of,
)
from generation.sampling import DecodingSettings, check_finite
from generation.scoring import Question, Score, score_questions
from model.checkpoints.reading import LoadReport, load_model_weights, read_shards, resolve_checkpoint
from model.checkpoints.reading import load_weights as load_shards
from model.checkpoints.safe_loading import release_pages
from model.config import GLMConfig
from model.hub.describe import (
    ModelDescription,
    check_layers,
    describe_checkpoint,
    describe_name,
    of_run,
    with_files_beside,
)
from model.modeling_glm import GLMModel
from model.released import demo_model
from mpu.initialize import ParallelTopology
from mpu.kernels.int8 import Int8Linear
from mpu.kernels.prepacked import PrepackedLinear, can_prepack, replace_weights

GREEDY = DecodingSettings(max_length=64, top_k=1)


class GLM:
    """A model with its tokenizer.

    Where a method takes a list of texts, one text alone is a list of one; results are lists in any case.

    Attributes:
        model: in evaluation mode.
        tokenizer: of the model.
        filler: fills blanks; what ``generate_samples.py`` uses.
        max_length: contexts to be scored, their command tokens and continuations are cut to that many tokens.
        topology: its data ranks share the questions that are scored; every rank calls then.
        report: what was loaded; None when the model was not read from a file.
    """

    def __init__(
        self,
        model: GLMModel,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        block_positions: bool = True,
        report: LoadReport | None = None,
        static: bool | None = None,
    ) -> None:
        """Take a model and its tokenizer.

        ``max_length`` None is the model's number of positions; ``block_positions`` False is the ablation
        ``--no-block-position``; ``static``: see ``BlankFiller``. Raises ValueError when the two do not belong together.
        """
        positions = model.config.max_position_embeddings
        max_length = positions if max_length is None else max_length
        if not (isinstance(max_length, int) and 3 <= max_length <= positions):
            raise ValueError(f"max_length is {max_length}; with {positions} positions it has to lie between 3 and that")
        self.filler = BlankFiller(model, tokenizer, block_positions=block_positions, static=static)
        self.model, self.tokenizer, self.topology = model, tokenizer, model.topology
        self.max_length, self.block_positions = max_length, block_positions
        self.report = report

    def fill(
        self,
        texts: str | Sequence[str],
        *,
        settings: DecodingSettings = GREEDY,
        seed: int = 1234,
        batch_size: int = 8,
    ) -> list[FilledPrompt]:
        """Fill the blanks ([MASK], [sMASK], [gMASK]) of every text, from left to right.

        Returns for each its ``answers``, one a blank, and the ``text`` with them in place. Raises ValueError, with the
        number of the text, for one without a blank or too long for the model. A warning names what only looks like a
        blank.
        """
        inputs = []
        for number, text in enumerate(texts_of(texts, "texts")):
            if names := masks_taken_as_text(text, self.tokenizer):
                warnings.warn(
                    f"text {number}: {' and '.join(names)} is text and no blank to this tokenizer", stacklevel=2
                )
            try:
                inputs.append(self.filler.encode(text, settings=settings))
                require_blank(inputs[-1], tokenizer=self.tokenizer)
            except ValueError as error:
                raise ValueError(f"text {number}: {error}") from None
        return self.filler.fill_all(inputs, settings=settings, seed=seed, batch_size=batch_size)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        settings: DecodingSettings = GREEDY,
        until: str | Sequence[str] = (),
        seed: int = 1234,
        batch_size: int = 8,
    ) -> list[str]:
        """Return what the model writes after every prompt, cut before the first of the texts ``until``.

        Prompts that are too long lose their beginning.
        """
        prompts, until = texts_of(prompts, "prompts"), texts_of(until, "until")
        inputs = [self._prompt(prompt, number, settings=settings) for number, prompt in enumerate(prompts)]
        shortened = sum(len(one) < length for one, length in inputs)
        _warn_shortened(shortened, len(prompts), "prompts", self.model.config.position_rows)
        filled = self.filler.fill_all([one for one, _ in inputs], settings=settings, seed=seed, batch_size=batch_size)
        return [_cut(one.answers[-1], until) for one in filled]

    def score(
        self,
        contexts: str | Sequence[str],
        choices: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        length_penalty: float = 0.0,
        unidirectional: bool = False,
        batch_size: int = 16,
    ) -> list[list[float]]:
        """Return the log-probability of every choice in the (last) blank of every context.

        A context without a blank gets [MASK] at its end, and what blanks stand there go to the choices. ``choices`` are
        the same for all contexts, or a list for each. The figures, divided by length ** penalty, are those of the task
        ``multichoice``. Raises ValueError, with the number of the context, for a list of choices that is missing or
        empty, and for an empty choice.
        """
        power = max(0.0, DecodingSettings(length_penalty=length_penalty).length_penalty)
        contexts = texts_of(contexts, "contexts")
        lists = _lists(contexts, choices)
        encoder = self._encoder()
        questions = [
            encoder.question(context, texts, unidirectional=unidirectional, place=f"context {number}")
            for number, (context, texts) in enumerate(zip(contexts, lists))
        ]
        scored = self._score(questions, encoder, what="contexts", batch_size=batch_size)
        return [[one.log_probability / one.num_tokens**power for one in scores] for scores in scored]

    def loglikelihood(
        self,
        contexts: str | Sequence[str],
        continuations: str | Sequence[str],
        *,
        mask: str | None = None,
        unidirectional: bool = False,
        batch_size: int = 16,
    ) -> list[Score]:
        """Return the score of the continuation of every context.

        A context without a blank gets ``mask`` at its end: None is [gMASK] where the tokenizer has it, else [MASK];
        what blanks stand there go to the continuation, as in lm-evaluation-harness. Equal contexts are run once. Raises
        ValueError when the two lists have different lengths, or for an empty continuation.
        """
        contexts, continuations = texts_of(contexts, "contexts"), texts_of(continuations, "continuations")
        if len(contexts) != len(continuations):
            raise ValueError(f"{len(contexts)} contexts and {len(continuations)} continuations; give one for each")
        groups: dict[str, list[int]] = {}
        for number, context in enumerate(contexts):
            groups.setdefault(context, []).append(number)
        encoder = self._encoder()
        questions = [
            encoder.question(
                context,
                [continuations[number] for number in numbers],
                mask=mask,
                unidirectional=unidirectional,
                place=f"context {numbers[0]}",
            )
            for context, numbers in groups.items()
        ]
        scores = self._score(questions, encoder, what="contexts", batch_size=batch_size)
        by_number = {n: one for numbers, group in zip(groups.values(), scores) for n, one in zip(numbers, group)}
        return [by_number[number] for number in range(len(contexts))]

    def rolling_loglikelihood(
        self,
        texts: str | Sequence[str],
        *,
        overlap: int | None = None,
        unidirectional: bool = False,
        skip_first: bool = False,
        batch_size: int = 16,
    ) -> list[Score]:
        """Return the score of every text as a whole, its tokens predicted in windows of ``max_length`` - 1.

        Every token counts once (without the first with ``skip_first``, as in the perplexity tasks); a window starts
        ``overlap`` tokens after the one before it (default: half a window). A text without tokens scores 0.
        """
        encoder = self._encoder()
        if overlap is None:
            overlap = max(1, (self.max_length - 1) // 2)
        value_of({"overlap": overlap}, "overlap", int, place="scoring")
        windows = [
            encoder.windows(text, overlap=overlap, unidirectional=unidirectional, skip_first=skip_first)
            for text in texts_of(texts, "texts")
        ]
        questions = [question for text_windows in windows for question in text_windows]
        scores = iter(self._score(questions, encoder, what="windows", batch_size=batch_size))
        return [_sum([next(scores)[0] for _ in text_windows]) for text_windows in windows]

    def _encoder(self) -> QuestionEncoder:
        return QuestionEncoder(self.tokenizer, self.max_length, block_positions=self.block_positions)

    def _score(
        self, questions: Sequence[Question], encoder: QuestionEncoder, *, what: str, batch_size: int
    ) -> list[list[Score]]:
        value_of({"batch_size": batch_size}, "batch_size", int, place="scoring", at_least=1)
        _warn_shortened(encoder.num_shortened, len(questions), what, self.max_length)
        scores = score_questions(self.model, questions, batch_size=batch_size, topology=self.topology)
        check_finite(torch.tensor([-one.log_probability for row in scores for one in row]))
        return scores

    def _prompt(self, prompt: str, number: int, *, settings: DecodingSettings) -> tuple[PromptInputs, int]:
        """Return the inputs of a prompt, shortened where it is too long, and how many tokens it had."""
        config = self.model.config
        max_length, block_positions = settings.max_length, self.block_positions
        text = complete_prompt(prompt, tokenizer=self.tokenizer)
        whole = encode_prompt(text, tokenizer=self.tokenizer, max_length=max_length, block_positions=block_positions)
        inputs = _last_tokens(whole, config.position_rows) if self.block_positions else whole
        try:
            check_prompt_fits(
                inputs,
                max_position_embeddings=config.max_position_embeddings,
                max_length=max_length,
                block_positions=block_positions,
            )
            require_blank(inputs, tokenizer=self.tokenizer)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        return inputs, len(whole)


def _last_tokens(inputs: PromptInputs, room: int) -> PromptInputs:
    """Return the first token and the last ones of a prompt, as many as there is room for, with the blanks in them."""
    dropped = len(inputs) - room
    if dropped <= 0:
        return inputs
    ids = (inputs.input_ids[0], *inputs.input_ids[dropped + 1 :])
    blanks = tuple(Blank(b.index - dropped, b.index - dropped) for b in inputs.blanks if b.index > dropped)
    return PromptInputs("[MASK]" * len(blanks), ids, tuple(range(room)), blanks)


def _cut(text: str, until: Sequence[str]) -> str:
    """Return what stands before the first of the texts ``until``."""
    stops = [text.index(stop) for stop in until if stop and stop in text]
    return text[: min(stops)] if stops else text


def _lists(contexts: Sequence[str], choices: Any) -> Sequence[Sequence[str]]:
    """Return a list of choices per context."""
    if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Iterable):
        return [texts_of(choices, "choices")] * len(contexts)
    rows = list(choices)
    if all(isinstance(row, str) for row in rows):
        return [texts_of(rows, "choices")] * len(contexts)
    if any(isinstance(row, str) for row in rows) or len(rows) != len(contexts):
        raise ValueError(
            f"{len(contexts)} contexts and {len(rows)} lists of choices; give one list of texts for all contexts or "
            "one for each"
        )
    return [texts_of(row, f"choices of context {number}") for number, row in enumerate(rows)]


def _sum(scores: Sequence[Score]) -> Score:
    return Score(
        sum(one.log_probability for one in scores),
        sum(one.num_tokens for one in scores),
        all(one.greedy for one in scores),
    )


def _warn_shortened(count: int, total: int, what: str, room: int) -> None:
    if count:
        warnings.warn(f"{count} of {total} {what} are cut to fit into {room} tokens", stacklevel=4)


def load_model(
    path: str | Path | None = None,
    *,
    config: GLMConfig | None = None,
    tokenizer: Tokenizer | None = None,
    settings: str | Path | None = None,
    released: str | None = None,
    vocab_dir: str | Path | None = None,
    max_length: int | None = None,
    block_positions: bool | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    topology: ParallelTopology | None = None,
    prepack: bool = True,
    int8: bool = False,
    static: bool | None = None,
    prompt: str | Path | None = None,
) -> GLM:
    """Load a checkpoint, of the layout of training or of Hugging Face's, with its tokenizer.

    Args:
        path: a run's folder of checkpoints, one checkpoint, or a file of weights; None is the demo model that comes
            with the code.
        config, tokenizer: sizes and tokenizer, where both are known already.
        settings: ``config.json`` of the run; without it, it is looked for beside the checkpoint and in ``runs/``.
        released: the name of a released model (``python -m model.released`` lists them) instead.
        vocab_dir: folder of the released vocabularies (default: GLM_VOCAB_DIR).
        max_length: see ``GLM``; None is the model's number of positions.
        block_positions: False for a model trained with ``--no-block-position``; None is as the settings say.
        dtype: of the weights; None is fp32.
        device: where the model goes.
        topology: for several ranks; None is one process.
        prepack: on the CPU, bring the weights into the form that is read fastest. Such a model is for inference only:
            it has no state dict and no gradients.
        int8: weights of 8 bits, everything else in bf16: half the memory and faster, not exactly the same; for the CPU.
        static: decode by steps of fixed shapes (CUDA graphs); None is where the model is on a GPU.
        prompt: the checkpoint of a prefix prompt that was trained alone, for a ``config`` with one.

    Raises:
        ValueError: no checkpoint, nothing that says what model it is, or files that do not belong together.
    """
    path = demo_model() if path is None else path
    if config is None or tokenizer is None:
        description = _describe(path, settings=settings, released=released)
        tokenizer = tokenizer or _tokenizer(description, vocab_dir=vocab_dir)
        divisor = description.tokenizer.vocab_divisor if description.tokenizer is not None else 1
        config = config or description.config(tokenizer.padded_size(divisor))
        block_positions = description.block_positions if block_positions is None else block_positions
    model, report = load_weights(
        config, path, dtype=dtype, device=device, topology=topology, prepack=prepack, int8=int8, prompt=prompt
    )
    block_positions = block_positions is not False
    return GLM(model, tokenizer, max_length=max_length, block_positions=block_positions, report=report, static=static)


def _describe(path: str | Path, *, settings: str | Path | None, released: str | None) -> ModelDescription:
    """Return what model and tokenizer a checkpoint is made for: as named, or as what lies beside it says."""
    if released is not None:
        named = describe_name(released)
        location = resolve_checkpoint(path)
        return with_files_beside(named, [location.path, location.folder])
    if settings is not None:
        return of_run(Path(settings))
    description = describe_checkpoint(resolve_checkpoint(path).path)
    if description is None:
        raise ValueError(
            f"{path}: nothing says what model this is; give settings= (config.json of the run, in runs/NAME), "
            "released= (python -m model.released lists the names), or config= and tokenizer="
        )
    return description


def _tokenizer(description: ModelDescription, *, vocab_dir: str | Path | None) -> Tokenizer:
    """Build the described tokenizer. Raises ValueError when its files are missing."""
    if description.tokenizer is None:
        raise ValueError(f"{description.source} holds no tokenizer; give tokenizer=")
    arguments = description.tokenizer.arguments()
    if vocab_dir is not None:
        arguments["vocab_dir"] = vocab_dir
    try:
        return build_tokenizer(**arguments)
    except TypeError as error:
        raise ValueError(f"{description.source}: {error}") from error


def load_weights(
    config: GLMConfig,
    checkpoint: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    topology: ParallelTopology | None = None,
    prepack: bool = True,
    int8: bool = False,
    prompt: str | Path | None = None,
) -> tuple[GLMModel, LoadReport]:
    """Return the model of ``checkpoint`` in evaluation mode, and what was loaded.

    The model is built without memory of its own: the tensors of the file, mapped into memory, become its weights,
    converted only where ``dtype`` (None: fp32) differs. Shards of a model-parallel checkpoint are merged, or with a
    ``topology`` of several model-parallel ranks cut for them. On the CPU they are brought into the form that is read
    fastest (``prepack_for_inference``), unless ``prepack`` is False. ``int8`` is half as large as bf16: weights of 8
    bits, everything else in bf16, on the CPU. ``prompt`` is the checkpoint of a prefix prompt alone, which goes over
    the model's.

    Raises:
        ValueError: no checkpoint, or one of another architecture or vocabulary, or one without all parameters; weights
            of 8 bits elsewhere than on the CPU or with another type.
    """
    on_cpu = torch.device(device).type == "cpu"
    if int8 and not (on_cpu and dtype in (None, torch.bfloat16)):
        raise ValueError(
            f"weights of 8 bits are for the CPU, with bf16 for everything else, not for {dtype or torch.float32} on "
            f"{device}; leave --int8 (int8=True) out there"
        )
    dtype = torch.bfloat16 if int8 else dtype
    topology = topology or ParallelTopology.single()
    shards = read_shards(resolve_checkpoint(checkpoint), topology=topology)
    check_layers(config, shards.parameter_names(), file=shards.location.path)
    model = GLMModel(config, topology=topology, device="meta", dtype=dtype)
    report = load_shards(model, shards, topology=topology, grow_positions=False)
    missing = list(report.missing)
    if prompt is not None:
        loaded = load_model_weights(model, prompt, topology=topology, grow_positions=False).loaded
        missing = [name for name in missing if name not in loaded]
    if missing:
        raise ValueError(
            f"{report.file} lacks {len(missing)} parameters of the model ({missing[0]}, ...): it cannot "
            "generate alone; give the checkpoint of a whole model"
        )
    model = model.to(device).eval().requires_grad_(False)
    if on_cpu and (prepack or int8):
        prepack_for_inference(model, int8=int8)
    return model, report


def prepack_for_inference(model: GLMModel, *, int8: bool = False) -> None:
    """Reorder the weights of a model on the CPU; it computes the same, but has no state dict and no gradients anymore.

    The word table, which is also looked up, keeps its own form beside the reordered one; where it is mapped from a file
    only the rows that are used stay in memory. Weights of a type that cannot be reordered stay as they are. With
    ``int8`` the weights are rounded to 8 bits instead, and it computes nearly the same.
    """
    table = model.word_embeddings.weight
    if not int8 and not can_prepack(table.dtype):
        return
    make = Int8Linear if int8 else PrepackedLinear
    replace_weights(model, make, release=lambda weight: release_pages([weight]))
    model.inference_head = make(table, None)
    release_pages([table.detach()])
    model.register_state_dict_pre_hook(_refuse_state_dict)


def _refuse_state_dict(*_: Any) -> None:
    raise ValueError(
        "this model's weights are reordered for inference; load it with prepack=False, and without int8, to save or "
        "train it"
    )
