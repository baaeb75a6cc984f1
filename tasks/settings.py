"""The options of a fine-tuning run, and what contradicts each other in one. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tasks.language_model.settings import LanguageModelSettings
from tasks.seq2seq.settings import SEQ2SEQ_TASKS, BeamSettings
from training.settings import FINETUNING, Settings, refuse

LANGUAGE_MODEL_TASKS = ("lambda", "lambada", "wikitext", "language_model")


@dataclass(frozen=True)
class FinetuningSettings(Settings):
    """The options of a fine-tuning run."""

    program: ClassVar[str] = FINETUNING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task.task is None:
            raise ValueError("no --task: name one, for example rte; tasks/registry.py lists them")
        batch, task, prompt = self.batch, self.task, self.prompt
        batch.require(8, "seq_length")
        refuse(
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
                and not prompt.tune_prefix_layers,
                "--freeze-transformer leaves nothing to train here; add --continuous-prompt or --tune-prefix-layers",
            ),
            (
                batch.pack_samples and (batch.pad_to_max or task.fast_decode or prompt.continuous_prompt),
                "--pack-samples does not go with --pad-to-max, --fast-decode and --continuous-prompt; leave it out",
            ),
        )
        self._check_adapters()
        if self.family == "understanding" and not self.blank.sentinel_token:
            refuse(self.too_long())
        elif self.family == "seq2seq":
            self._check_seq2seq()
        elif self.family == "language_model":
            self._check_language_model()

    @property
    def family(self) -> str:
        """Return ``understanding``, ``seq2seq`` or ``language_model``; tasks without a family are of the first.

        ``squad`` is a sequence-to-sequence task when its sources have a length.
        """
        name = self.task.name.lower()
        if name in LANGUAGE_MODEL_TASKS:
            return "language_model"
        if name in SEQ2SEQ_TASKS and not (name == "squad" and self.seq2seq.src_seq_length is None):
            return "seq2seq"
        return "understanding"

    @property
    def beams(self) -> BeamSettings:
        """Return how the targets of a sequence-to-sequence task are searched.

        Candidates are drawn only where the original is asked for: with ``--compatible`` and without ``--select-topk``.
        """
        options, length = self.generation, self.seq2seq.tgt_seq_length
        assert length is not None
        return BeamSettings(
            max_length=length,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            min_length=options.min_tgt_length,
            top_k=options.top_k,
            top_p=options.top_p,
            draw_candidates=self.task.compatible and not options.select_topk,
            block_positions=not self.blank.no_block_position,
        )

    @property
    def windows(self) -> LanguageModelSettings:
        """Return how the texts of a language-model evaluation are cut."""
        return LanguageModelSettings(
            seq_length=self.batch.seq_length,
            overlap=max(1, self.task.overlapping_eval),
            unidirectional=self.task.unidirectional,
            block=self.model.block_lm,
            block_positions=not self.blank.no_block_position,
            compatible=self.task.compatible,
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
            (prompt.freeze_transformer, f"{flag} does not go with --freeze-transformer; leave one of them out"),
        )

    def _check_seq2seq(self) -> None:
        name, lengths = self.task.name, self.seq2seq
        for flag, length in (
            ("--src-seq-length", lengths.src_seq_length),
            ("--tgt-seq-length", lengths.tgt_seq_length),
        ):
            if length is None:
                raise ValueError(f"no {flag}: {name} needs the longest source and target in tokens")
        if not self.model.block_lm:
            raise ValueError(f"{name} needs --block-lm: targets are generated as blanks")
        assert self.beams  # refuses values that make no sense

    def _check_language_model(self) -> None:
        name, files = self.task.name, self.data.valid_data or ()
        refuse(
            (self.tuning.epochs, f"--epochs {self.tuning.epochs}: {name} only evaluates; leave --epochs out"),
            (
                len(files) != 1,
                f"{name} evaluates one file: give --valid-data FILE (given: {' '.join(files) or 'none'})",
            ),
            (
                self.model.block_lm and self.model.masked_lm,
                f"{name} needs two rows of positions: leave --masked-lm out",
            ),
            (
                self.batch.pack_samples,
                f"--pack-samples has nothing to do for {name}, whose rows are full; leave it out",
            ),
            self.too_long(),
        )
