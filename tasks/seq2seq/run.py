"""The run of a sequence-to-sequence task: texts are written, or blanks filled, and compared with references.

Examples stay texts; they become ids where a batch needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

from torch import nn

from data_utils.batches import Batch
from data_utils.tokenizers.tokenizer import Tokenizer
from generation.infill import prompt_generator
from model.modeling_glm import GLMModel, evaluating
from mpu.initialize import ParallelTopology
from mpu.mappings import of_first_rank
from tasks.readers import MissingFileError
from tasks.run import Score, TaskRun, training_batches
from tasks.seq2seq.decoding import TargetDecoder, decode_shared
from tasks.seq2seq.detokenizers import clean_filled
from tasks.seq2seq.metrics import metric_names, score_predictions, uncounted_scripts
from tasks.seq2seq.outputs import recover_answer, write_outputs
from tasks.seq2seq.readers import BLANK, NO_ANSWER, Seq2SeqExample, Seq2SeqOptions, read_examples
from tasks.seq2seq.samples import build_sample, collate, with_blanks
from tasks.seq2seq.store import stored_examples
from tasks.settings import BLANK_TASKS, SQUAD_TASKS, SUMMARY_TASKS, FinetuningSettings
from training.engine import BlankInfilling, Engine
from training.settings import ModelSettings

logger = logging.getLogger("glm")

WIDTH_MULTIPLE = 8  # batches are padded to a multiple of this many positions
BLANK_METRICS = {"blank": "bleu", "extraction": "blank-f1"}  # the original has none
# Flags of understanding tasks that a user may expect to do something here.
WITHOUT_EFFECT = (
    "multi_token", "fast_decode", "segment_length", "continuous_prompt", "adapet", "pattern_ensemble", "wsc_negative",
    "few_superglue", "block_lm_ratio", "unidirectional", "pad_to_max",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What the model wrote for an example: the text to compare, and that of each blank where there are blanks."""

    text: str
    blanks: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationSplit:
    """A split to write texts for; blanks are drawn."""

    name: str
    examples: Sequence[Seq2SeqExample]

    @cached_property
    def labelled(self) -> Sequence[Seq2SeqExample]:
        """Return the examples that metrics are about."""
        if all(example.labelled for example in self.examples):
            return self.examples
        return [example for example in self.examples if example.labelled]


class Seq2SeqRun(TaskRun):
    """One run of a task of ``tasks/seq2seq/readers.py``."""

    def __init__(
        self,
        configuration: FinetuningSettings,
        *,
        tokenizer: Tokenizer,
        topology: ParallelTopology,
    ) -> None:
        super().__init__(configuration, tokenizer=tokenizer, topology=topology)
        task, tuning, settings = configuration.task, configuration.tuning, configuration.seq2seq
        self.name, self.settings = task.name.lower(), settings
        if configuration.data.data_dir is None:
            raise ValueError("no --data-dir: give the folder of the task's files")
        if configuration.zero_stage == 3:
            raise ValueError(f"{self.name} writes texts, for which ZeRO stage 3 lacks whole weights: use stage 2 or 1")
        self.visible_padding = task.compatible and not settings.mask_pad_token
        self.options = configuration.select(
            Seq2SeqOptions,
            block_positions=not configuration.blank.no_block_position,
            languages=task.languages or (),
        )
        self.model_settings = self._model_settings()
        for flag in WITHOUT_EFFECT:
            if configuration.values.get(flag):
                logger.info(f"note: --{flag.replace('_', '-')} has no effect on {self.name}")
        self.training = self._read("train") if tuning.epochs else ()
        dev = self._evaluation_split("dev") if not tuning.no_validation or task.eval_valid else None
        self.validation = [dev] if dev and not tuning.no_validation else []
        self.loss_samples = dev.labelled if dev and tuning.epochs else ()
        if self.validation and tuning.epochs and not self.loss_samples:
            raise ValueError(f"{self.name} dev has no answers, so no epoch is the best: give --no-validation")
        test = None if task.eval_valid else self._evaluation_split("test")
        self.test = [split for split in (test or dev,) if split]
        first = BLANK_METRICS.get(self.name)
        self.metrics = (first,) if first else metric_names(self.name)
        self._check_metric()
        self._baselines: dict[str, dict[str, float]] = {}

    def build_network(self) -> nn.Module:
        """Build the GLM with the weights of ``--load-pretrained``."""
        return self.build_glm(self.model_settings)

    def criterion(self) -> BlankInfilling:
        """Return the loss of target ids."""
        return BlankInfilling(label_smoothing=self.settings.label_smoothing)

    def collate(self, samples: Sequence[Seq2SeqExample], *, epoch: int = 0) -> Batch:
        """Turn examples into a batch; the blanks of the blank task are others in every epoch."""
        build = partial(build_sample, self.name, tokenizer=self.tokenizer, options=self.options, epoch=epoch)
        return collate(
            [build(example, for_training=True) for example in samples],
            pad_id=self.tokenizer.special.pad,
            visible_padding=self.visible_padding,
            multiple_of=WIDTH_MULTIPLE,
            share_rows=self.configuration.batch.pack_samples,
        )

    def batches(self, first_batch: int) -> Iterator[Batch]:
        """Yield the micro batches of the run, which know their epoch, from number ``first_batch`` on."""
        tuning, each = self.configuration.tuning, self.batches_per_epoch
        for epoch in range(first_batch // each, tuning.num_epochs):
            yield from training_batches(
                self.training,
                epochs=epoch + 1,
                batch_size=self.configuration.batch.batch_size,
                seed=self.configuration.run.seed,
                topology=self.topology,
                first_batch=max(first_batch, epoch * each),
                collate_samples=partial(self.collate, epoch=epoch),
            )

    def evaluate(self, engine: Engine, split: EvaluationSplit, *, folder: Path | None) -> Score:
        """Write a text for every example and compare; the data ranks share the examples."""
        written = self._write(engine, split.examples)
        scores: list[dict[str, float]] = [{}, {}]
        if self.topology.rank == 0:
            if folder is not None:
                write_outputs(self.name, [one.text for one in written], split.examples, folder=folder, split=split.name)
            if split.labelled and split.name not in self._baselines:
                self._baselines[split.name] = self.baseline(split.labelled)
            if split.labelled:
                counted = [one for one, example in zip(written, split.examples) if example.labelled]
                scores = [self.scores(split.labelled, counted), self._baselines[split.name]]
        metrics, baseline = of_first_rank(scores, topology=self.topology)
        return Score(f"{self.name}-{split.name}", len(split.labelled), metrics or None, baseline)

    def _write(self, engine: Engine, examples: Sequence[Seq2SeqExample]) -> list[Written]:
        """Return what the model writes for every example, on every rank."""
        network = engine.network
        assert isinstance(network, GLMModel)
        settings = self.configuration.decoding
        decoder = TargetDecoder(
            network,
            self.tokenizer,
            settings=settings,
            block_positions=self.options.block_positions,
            visible_padding=self.visible_padding,
        )

        def decode(numbers: Sequence[int]) -> list[Written]:
            asked = [examples[number] for number in numbers]
            samples = [
                build_sample(self.name, example, tokenizer=self.tokenizer, options=self.options, for_training=False)
                for example in asked
            ]
            if self.name in BLANK_TASKS:
                return [self._filled(text.ids, text.pieces) for text in decoder.fill_blanks(samples)]
            seed = self.configuration.run.seed
            generators = [prompt_generator(seed, number) for number in numbers] if settings.draw_candidates else []
            hypotheses = decoder.search(samples, generators=generators)
            return [self._answer(rows[0].tokens if rows else (), example) for rows, example in zip(hypotheses, asked)]

        with evaluating(engine.model), engine.autocast():
            return decode_shared(
                [len(example.source) for example in examples],
                decode,
                batch_size=self.configuration.batch.evaluation_batch_size,
                topology=self.topology,
            )

    def _answer(self, ids: Sequence[int], example: Seq2SeqExample) -> Written:
        special = self.tokenizer.special
        ids = [token for token in ids if token not in (special.eop, special.pad)]
        if self.name in SQUAD_TASKS:
            return Written(recover_answer(ids, example.meta, tokenizer=self.tokenizer))
        return Written(self.tokenizer.decode(ids))

    def _filled(self, ids: Sequence[int], pieces: Sequence[Sequence[int]]) -> Written:
        decode = self.tokenizer.decode
        return Written(clean_filled(decode(ids)), tuple(clean_filled(decode(piece)) for piece in pieces))

    @property
    def rouge_unit(self) -> str:
        """Return what ROUGE counts."""
        return self.settings.rouge_unit or "word"

    @property
    def rules(self) -> dict[str, str]:
        has_rouge = self.name not in (*SQUAD_TASKS, *BLANK_TASKS)
        return {"rouge-unit": self.rouge_unit} if has_rouge else {}

    def scores(self, examples: Sequence[Seq2SeqExample], written: Sequence[Written]) -> dict[str, float]:
        """Return the metrics of texts."""
        return score_predictions(
            self.name,
            [one.text for one in written],
            examples,
            tokenizer_type=self.tokenizer.family,
            characters=self.tokenizer.family == "chinese",
            filled=[one.blanks for one in written] if self.name in BLANK_TASKS else None,
            rouge_unit=self.rouge_unit,
            tokenizer=self.tokenizer,
        )

    def baseline(self, examples: Sequence[Seq2SeqExample]) -> dict[str, float]:
        """Return the metrics of the simplest guess: the source's first words, no answer, or blanks left empty."""
        if self.name in SQUAD_TASKS:
            return self.scores(examples, [Written(NO_ANSWER)] * len(examples))
        if self.name in BLANK_TASKS:
            left = (" ".join(example.source.replace(BLANK, " ").split()) for example in examples)
            return self.scores(examples, [Written(clean_filled(text)) for text in left])
        if self.name not in (*SUMMARY_TASKS, "customization"):
            return {}
        chinese = self.tokenizer.family == "chinese"

        def units(text: str) -> Sequence[str]:
            return text if chinese else text.split()

        length = round(fmean(len(units(example.reference)) for example in examples))
        joiner = "" if chinese else " "
        return self.scores(examples, [Written(joiner.join(units(example.source)[:length])) for example in examples])

    def read(self, split: str) -> list[Seq2SeqExample]:
        """Return the examples of a split, with ``--limit`` the first ones."""
        folder, limit = self.configuration.data.data_dir, self.configuration.task.limit
        assert folder is not None
        return read_examples(self.name, folder, split, tokenizer=self.tokenizer, options=self.options)[:limit]

    def _read(self, split: str) -> Sequence[Seq2SeqExample]:
        """Read a split, or find it in a store; drawn blanks count as the dev and test splits' own."""

        def read() -> Sequence[Seq2SeqExample]:
            examples = self.read(split)
            if self.name in BLANK_TASKS and split != "train":
                return [with_blanks(example, options=self.options) for example in examples]
            return examples

        folder = self.configuration.data.data_dir
        stored = self.settings.lazy_seq2seq_loader and folder is not None and Path(folder).is_dir()
        examples = self._stored(split, read) if stored else read()
        logger.info(f"{self.name} {split}: {len(examples):,} examples")
        return examples

    def _stored(self, split: str, read: Callable[[], Sequence[Seq2SeqExample]]) -> Sequence[Seq2SeqExample]:
        folder, squad = self.configuration.data.data_dir, self.options.squad_dir
        assert folder is not None
        # ncls_multitask looks for a folder beside its own, xquad and mlqa for that of SQuAD
        beside = [place for place in (Path(folder).parent / name for name in ("both", "squad")) if place.is_dir()]
        return stored_examples(
            read,
            name=f"{self.name}-{split}",
            folders=[Path(folder), *([Path(squad)] if squad else []), *beside],
            key={
                "limit": self.configuration.task.limit,
                "options": asdict(self.options),
                "tokenizer": self.tokenizer.fingerprint,
            },
        )

    def _evaluation_split(self, name: str) -> EvaluationSplit | None:
        """Return a split; None where its files are not there."""
        try:
            split = EvaluationSplit(name, self._read(name))
        except MissingFileError as error:
            logger.info(f"note: {error}")
            return None
        words = self.rules.get("rouge-unit") == "word" and self.tokenizer.family != "chinese"
        if words and (note := uncounted_scripts([example.reference for example in split.labelled])):
            logger.warning(f"{self.name} {name}: {note}; --rouge-unit char compares characters")
        if unlabelled := len(split.examples) - len(split.labelled):
            logger.info(f"note: {unlabelled:,} examples of {self.name} {name} have no answers; metrics leave them out")
        return split

    def _model_settings(self) -> ModelSettings:
        """Return the sizes of the model; its positions are enough for a source."""
        model, length = self.configuration.model, self.options.src_seq_length
        if not model.block_position_encoding:
            raise ValueError(f"{self.name} needs two rows of positions: leave --masked-lm out")
        if length > model.max_position_embeddings:
            logger.info(f"note: --max-position-embeddings {model.max_position_embeddings} is raised to {length}")
            model = replace(model, max_position_embeddings=length)
        return model

    def _check_metric(self) -> None:
        """Score one reference, so that an unknown ``--validation-metric`` or a missing package is said at once."""
        first = next((example for split in (*self.validation, *self.test) for example in split.labelled), None)
        if first is None:
            return
        known = self.scores([first], [Written(first.reference)])
        metric = self.configuration.tuning.validation_metric
        if self.validation and metric is not None and metric not in known:
            raise ValueError(f"--validation-metric {metric}: {self.name} has {', '.join(known)}")
