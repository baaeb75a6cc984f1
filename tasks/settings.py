"""The options of a fine-tuning run, and what contradicts each other in one. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from training.settings import FINETUNING, Settings, refuse

if TYPE_CHECKING:
    from generation.sampling import DecodingSettings

_SUMMARIES = ("gigaword", "cnn_dm", "cnn_dm_original", "xsum")
_SQUAD = ("squad", "squad_v1")
BLANK_TASKS = ("blank", "extraction")
SEQ2SEQ_TASKS = (*_SUMMARIES, "squad_generation", *_SQUAD, "cmrc", *BLANK_TASKS, "customization")
# Questions and summaries in several languages (tasks/multilingual).
QUESTION_TASKS = ("xquad", "xquad_v2", "mlqa", "tydiqa")
MULTILINGUAL_SUMMARIES = (
    "ncls", "ncls_multitask", "zhsum", "ensum", "lcsts", "xlsum", "xwikis", "wikilingua", "scitldr", "mtg_crosssum",
)  # fmt: skip
MULTILINGUAL_TASKS = (*QUESTION_TASKS, *MULTILINGUAL_SUMMARIES)
SUMMARY_TASKS = (*_SUMMARIES, *MULTILINGUAL_SUMMARIES)
SQUAD_TASKS = (*_SQUAD, *QUESTION_TASKS)
CLOZE_BENCHMARK = "cloze_test"
LANGUAGE_MODEL_TASKS = ("lambda", "lambada", "wikitext", "language_model")


@dataclass(frozen=True)
class FinetuningSettings(Settings):
    """The options of a fine-tuning run."""

    program: ClassVar[str] = FINETUNING
    used_most: ClassVar[tuple[str, ...]] = (
        "task", "data", "tuning", "checkpoint", "run", "batch", "optimizer", "schedule", "precision", "model",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task.task is None:
            raise ValueError("no --task: name one, for example rte; tasks/registry.py lists them")
        batch, task, prompt = self.batch, self.task, self.prompt
        refuse(
            (batch.seq_length < 8, f"--seq-length is {batch.seq_length}; at least 8 is needed for tasks"),
            (
                self.tuning.epochs is None and self.family != "language_model",
                "no --epochs: give the number of passes over the training examples, or 0 to evaluate only",
            ),
            (
                prompt.continuous_prompt and task.fast_decode,
                "--fast-decode does not know --continuous-prompt; leave one of them out",
            ),
            (
                task.block_lm_ratio > 0 and (prompt.continuous_prompt or task.fast_decode or not task.cloze_eval),
                "--block-lm-ratio goes with --cloze-eval, without --continuous-prompt and --fast-decode",
            ),
            (
                task.pattern_ensemble is not None and not task.cloze_eval,
                "--pattern-ensemble needs --cloze-eval: a classification head has no patterns",
            ),
            (
                prompt.prompt_init and not (prompt.continuous_prompt and self.checkpoint.load_pretrained),
                "--prompt-init needs --continuous-prompt and the words of --load-pretrained",
            ),
            (
                prompt.freeze_transformer
                and task.cloze_eval
                and not prompt.continuous_prompt
                and not prompt.key_value_prefix
                and not prompt.tune_prefix_layers,
                "--freeze-transformer leaves nothing to train here; add --prefix-prompt, --continuous-prompt or "
                "--tune-prefix-layers",
            ),
            (
                batch.pack_samples and (batch.pad_to_max or task.fast_decode or prompt.continuous_prompt),
                "--pack-samples does not go with --pad-to-max, --fast-decode and --continuous-prompt; leave it out",
            ),
        )
        self._check_adapters()
        if self.family == "cloze_benchmark":
            self._check_cloze_benchmark()
        elif self.family == "understanding" and not self.blank.sentinel_token:
            refuse(self.too_long())
        elif self.family in ("seq2seq", "multilingual"):
            self._check_seq2seq()
        elif self.family == "language_model":
            self._check_language_model()

    @property
    def family(self) -> str:
        """Return ``understanding``, ``seq2seq``, ``multilingual`` (texts to write, in several languages),
        ``language_model`` or ``cloze_benchmark``; tasks without a family are of the first.

        ``squad`` is a sequence-to-sequence task when its sources have a length.
        """
        name = self.task.name.lower()
        if name == CLOZE_BENCHMARK:
            return "cloze_benchmark"
        if name in LANGUAGE_MODEL_TASKS:
            return "language_model"
        if name in MULTILINGUAL_TASKS:
            return "multilingual"
        if name in SEQ2SEQ_TASKS and not (name == "squad" and self.seq2seq.src_seq_length is None):
            return "seq2seq"
        return "understanding"

    @property
    def decoding(self) -> DecodingSettings:
        """Return how the targets of a sequence-to-sequence task are searched.

        Candidates are drawn only where the original is asked for: with ``--compatible`` and without ``--select-topk``.
        """
        from generation.sampling import DecodingSettings

        return self.select(
            DecodingSettings,
            max_length=self.seq2seq.tgt_seq_length,
            min_length=self.generation.min_tgt_length,
            temperature=1.0,  # candidates are drawn without
            draw_candidates=self.task.compatible and not self.generation.select_topk,
        )

    def _check_adapters(self) -> None:
        flag, prompt = self.adapters.flag, self.prompt
        if flag is None:
            return
        refuse(
            (
                self.checkpoint.load_pretrained is None,
                f"{flag} needs --load-pretrained, the model that is adapted: its weights are not in the run",
            ),
            (prompt.continuous_prompt, f"{flag} does not go with --continuous-prompt; leave one of them out"),
            (prompt.key_value_prefix is not None, f"{flag} does not go with --prefix-prompt; leave one of them out"),
            (prompt.freeze_transformer, f"{flag} does not go with --freeze-transformer; leave one of them out"),
        )

    def _check_seq2seq(self) -> None:
        name, source, target = self.task.name, self.seq2seq.src_seq_length, self.seq2seq.tgt_seq_length
        for flag, length in (("--src-seq-length", source), ("--tgt-seq-length", target)):
            if length is None:
                raise ValueError(f"no {flag}: {name} needs the longest source and target in tokens")
        assert source is not None and target is not None
        shortest, positions = self.generation.min_tgt_length, max(self.model.max_position_embeddings, source)
        refuse(
            (not self.model.block_lm, f"{name} needs --block-lm: targets are generated as blanks"),
            (
                shortest > target,
                f"--min-tgt-length {shortest} is above --tgt-seq-length {target}; change one of them",
            ),
            (
                target > positions and not self.blank.no_block_position,
                f"--tgt-seq-length {target} is above the model's {positions} block positions; lower it, or raise "
                "--max-position-embeddings",
            ),
        )
        assert self.decoding  # refuses values that make no sense

    def _check_cloze_benchmark(self) -> None:
        task, prompt = self.task, self.prompt
        other_rows = {
            "--continuous-prompt": prompt.continuous_prompt, "--fast-decode": task.fast_decode,
            "--segment-length": task.segment_length, "--block-lm-ratio": task.block_lm_ratio,
            "--pattern-ensemble": task.pattern_ensemble is not None, "--masked-lm": self.model.masked_lm,
            "--sentinel-token": self.blank.sentinel_token, "--no-block-position": self.blank.no_block_position,
        }  # fmt: skip
        refuse(
            (not self.data.data_dir, "no --data-dir: give the folder that scripts/cloze_benchmark/preparedata.sh made"),
            *((given, f"{flag} does not go with the files of {task.name}") for flag, given in other_rows.items()),
        )

    def _check_language_model(self) -> None:
        name, files = self.task.name, self.data.valid_data or ()
        refuse(
            (
                self.batch.pack_samples,
                f"--pack-samples has nothing to do for {name}, whose rows are full; leave it out",
            ),
            (self.tuning.epochs, f"--epochs {self.tuning.epochs}: {name} only evaluates; leave --epochs out"),
            (
                len(files) != 1,
                f"{name} evaluates one file: give --valid-data FILE (given: {' '.join(files) or 'none'})",
            ),
            (
                self.model.block_lm and self.model.masked_lm,
                f"{name} needs two rows of positions: leave --masked-lm out",
            ),
            self.too_long(),
        )
