"""Every option of the command line, declared once: its name, type, default, choices and what it does.

A group is a frozen dataclass; a field ``num_layers`` is the flag ``--num-layers``, and its annotation the flag's type
(bool is a switch, a tuple takes several values). ``training/arguments.py`` makes the parser, ``--help``, the warnings
about flags without effect and the settings of a run from these declarations. Callees take the group that concerns them.
A value that cannot be is refused where its group is made, values that contradict each other where the settings of a
program are. Flags of the original keep name, type, default and choices; ours are declared by ``added``. Imports neither
torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from data_utils.corpora.named import split_weight
from files.names import is_file_name, undated
from files.reading import described, needed
from model.config import LORA_TARGETS, GLMConfig, LoraSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from typing_extensions import Self  # in typing from Python 3.11 on

R = TypeVar("R", bound="DataclassInstance")

# Bounds of options.
PROBABILITY: dict[str, Any] = {"at_least": 0, "at_most": 1}
LARGEST = {"at_most": 2**31 - 1}  # of whole numbers without a bound of their own

PRECISIONS = ("fp16", "bf16", "fp32")

PRETRAINING, FINETUNING, GENERATION = "pre-training", "fine-tuning", "generation"
FALLING_METRICS = ("loss", "perplexity")  # the lower the better


def option(
    default: Any,
    text: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    nargs: str | None = None,
    only: tuple[str, ...] | None = None,
    instead_of: tuple[str, ...] = (),
    original: bool = True,
    **bounds: float,
) -> Any:
    """Declare an option as a field of its group.

    Args:
        default: where the flag is not given.
        text: for ``--help``.
        flag: its spelling, where that is not the field's name with dashes.
        choices, nargs: as in argparse.
        only: the programs that it concerns (default: those of its group).
        instead_of: a switch turns the others of these off: the last one counts.
        original: whether the original has it.
        bounds: of numbers, as for ``files.reading.needed``; every number is finite, whole ones below 2**31.
    """
    metadata = {"help": text, "flag": flag, "choices": choices, "nargs": nargs, "bounds": bounds}
    return field(default=default, metadata=metadata | {"only": only, "instead_of": instead_of, "original": original})


def added(default: Any, text: str, **more: Any) -> Any:
    """Declare an option that the original does not have."""
    return option(default, text, original=False, **more)


def spelling(name: str) -> str:
    """Return how a field's flag is written in messages."""
    return f"--{name.replace('_', '-')}"


class Group:
    """Base of the groups. Its docstring's first line is the title in ``--help``."""

    only: ClassVar[tuple[str, ...]] = (PRETRAINING, FINETUNING, GENERATION)  # the programs that its flags concern

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its declared bounds."""
        for one in fields(self):  # type: ignore[arg-type]  # every group is a dataclass
            given = getattr(self, one.name)
            for value in given if isinstance(given, tuple) else (given,):
                if isinstance(value, int | float) and not isinstance(value, bool):
                    bounds = one.metadata.get("bounds", {})
                    whole = LARGEST if isinstance(value, int) and "at_most" not in bounds else {}
                    missing = needed(value, **bounds) or needed(value, **whole)
                    if missing:
                        raise ValueError(
                            f"{one.metadata.get('flag') or spelling(one.name)} is {described(value)}; {missing}"
                        )


def check_run_name(name: str) -> None:
    """Raise ValueError for a name of a run that is none of a folder below the folders of runs and checkpoints."""
    if not all(map(is_file_name, name.split("/"))):
        raise ValueError(
            f"--experiment-name is {described(name)}; a name such as rte-large or grid/rte-1 is needed: that of a "
            "folder below --save and --summary-dir"
        )


def refuse(*refusals: tuple[Any, str]) -> None:
    """Raise ValueError with the message of the first condition that holds."""
    for refused, message in refusals:
        if refused:
            raise ValueError(message)


@dataclass(frozen=True)
class ModelSettings(Group):
    """Model: sizes, positions and dropout; the vocabulary comes from the tokenizer"""

    num_layers: int = option(24, "number of transformer layers", at_least=1, at_most=10_000)
    hidden_size: int = option(1024, "width of the transformer", at_least=1, at_most=1_000_000)
    num_attention_heads: int = option(16, "attention heads per layer", at_least=1)
    max_position_embeddings: int = option(
        512,
        "maximum length; the position tables have this many rows plus one; also the number of sentinel tokens",
        at_least=1,
        at_most=100_000_000,
    )
    hidden_dropout: float = option(
        0.1,
        "dropout on embeddings and on every sublayer output",
        at_least=0,
        below=1,
    )
    attention_dropout: float = option(0.1, "dropout probability on attention weights", at_least=0, below=1)
    exact_dropout: bool = added(
        False, "draw dropout masks one float per element instead of one random byte (slower on a CPU)"
    )
    attention_scale: float = option(
        1.0,
        "values above 1 divide the attention scores before the product and multiply them back after max subtraction, "
        "for half precision range",
        above=0,
    )
    checkpoint_activations: bool | str = option(
        False,
        "recompute activations in the backward pass: on (the flag alone means that), off, or auto: where the plan of a "
        "pre-training run (--dry-run) needs more memory than its GPU has without",
        nargs="?",
    )
    checkpoint_num_layers: int = option(1, "layers per recomputation chunk", at_least=1)
    block_lm: bool = option(False, "use autoregressive blank infilling (this is what makes it GLM)")
    masked_lm: bool = option(False, "predict masked tokens in place (BERT style ablation) instead of autoregressively")
    transformer_xl: bool = option(
        False,
        "a plain causal language model with relative positions and segment recurrence (memory), which no program "
        "trains or uses at present",
    )
    encoder_decoder: bool = option(False, "separate source and target sequences; never finished in the original")
    initialization: str = added(
        "released",
        "random weights of pre-training: as of the released models, or so that heads of the first layers look at the "
        "tokens beside their own (for small models)",
        choices=("released", "neighbours"),
        only=(PRETRAINING,),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_decoder:
            raise ValueError("--encoder-decoder was never finished in the original and is not supported; leave it out")

    @property
    def block_position_encoding(self) -> bool:
        """Tell whether the model has two rows of positions."""
        return self.block_lm and not self.masked_lm

    def config(self, *, vocab_size: int) -> GLMConfig:
        """Return the model's configuration for a padded vocabulary of ``vocab_size``."""
        shared = {one.name for one in fields(GLMConfig)} & {one.name for one in fields(self)}
        return GLMConfig(
            **{name: getattr(self, name) for name in shared - {"checkpoint_activations"}},
            vocab_size=vocab_size,
            checkpoint_activations=self.checkpoint_activations is True,
            block_position_encoding=self.block_position_encoding,
            relative_encoding=self.transformer_xl,
            embedding_dropout=self.hidden_dropout,
            output_dropout=self.hidden_dropout,
            fast_dropout=not self.exact_dropout,
        )


@dataclass(frozen=True)
class TokenizerSettings(Group):
    """Tokenizer"""

    DEFAULT_PATH: ClassVar[str] = "tokenizer.model"

    tokenizer_type: str = option(
        "BertWordPieceTokenizer",
        "tokenizer class",
        choices=(
            "CharacterLevelTokenizer",
            "SentencePieceTokenizer",
            "BertWordPieceTokenizer",
            "GPT2BPETokenizer",
            "ChineseSPTokenizer",
        ),
    )
    tokenizer_model_type: str | None = option(
        None,
        "vocabulary name (bert-base-uncased, bert-large-uncased, gpt2, roberta, ...); of ChineseSPTokenizer glm-large "
        "or glm-10b (the Chinese file), or the path of a multilingual model's .model file",
    )
    tokenizer_path: str = option(DEFAULT_PATH, "file of a SentencePiece model for the generic tokenizer")
    fix_command_token: bool = option(
        False, "corrected ids of the Chinese command tokens (used by the large Chinese model)"
    )
    make_vocab_size_divisible_by: int = option(
        128,
        "the embedding table is padded up to a multiple of this",
        at_least=1,
        at_most=100_000_000,
    )
    vocab_dir: str | None = added(None, "folder of vocabularies (default: $GLM_VOCAB_DIR)")
    cache_dir: str | None = option(None, "cache folder for BERT downloads")

    @property
    def vocabulary_path(self) -> str | None:
        """Return the vocabulary file that was named; the default of the flag concerns SentencePiece models only."""
        named = self.tokenizer_type == "SentencePieceTokenizer" or self.tokenizer_path != self.DEFAULT_PATH
        return self.tokenizer_path if named else None


@dataclass(frozen=True)
class CorpusSettings(Group):
    """Corpus of pre-training: which documents are read, where they are cached, how they are split"""

    only: ClassVar[tuple[str, ...]] = (PRETRAINING,)

    train_data: tuple[str, ...] | None = option(
        None,
        "corpora: names of data_utils/corpora/named.py, files, globs or hf:NAME[:SPLIT] (a data set of the library "
        "datasets); each may have a weight, corpus.jsonl@0.3",
        nargs="+",
    )
    split: str = option("1000,1,1", "train, validation and test proportions, separated by commas or slashes")
    load_splits: str | None = option(None, "array file with the shuffled document order to use")
    save_splits: str | None = option(None, "array file to write the shuffled document order to")
    save_test_data: str | None = option(None, "text file to write the decoded test documents to")
    text_field: str = added("text", "field that holds the text in rows of files given by path")
    text_unit: str = added("line", "what of a text file is one document", choices=("line", "paragraph", "file"))
    commands_in_text: bool = added(
        False, "[MASK], <|endofpiece|> ... in files given by path are commands; otherwise plain text"
    )
    data_cache_dir: str | None = added(None, "folder of the tokenized stores (default: .glm_cache beside each corpus)")
    skip_malformed: bool = added(False, "count and skip malformed rows instead of stopping at the first one")
    drop_duplicates: bool = added(False, "keep only the first of documents with the same text, over all --train-data")
    no_pre_tokenize: bool = option(False, "cache raw text and tokenize when sampling")
    no_lazy_loader: bool = option(False, "read the token arrays into memory instead of mapping the files")
    filter_english: bool = option(False, "reject sampled documents that a language detector does not call English")
    half_lazy_loader: bool = option(False, "use only the first two thirds of the documents")
    loader_fraction: float = added(
        1.0,
        "of all documents this share, more of small corpora (--dataset-temperature) than of large ones",
        **PROBABILITY,
    )
    dataset_temperature: float = added(
        1.0,
        "below 1 a corpus of length l counts as l to that power: small languages come more often",
        **PROBABILITY,
    )
    loader_scatter: int | None = option(
        None,
        "split each corpus into this many shards, one shard per rank modulo this number",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(
            (self.loader_fraction == 0, "--loader-fraction is 0; give the share of all documents, above 0 and up to 1"),
            (
                self.balances and any((self.load_splits, self.save_splits, self.save_test_data)),
                "--load-splits, --save-splits and --save-test-data do not go with --loader-fraction, "
                "--dataset-temperature and weights of --train-data, which split every corpus by itself; leave them out",
            ),
            (
                bool(self.weights) and (self.loader_fraction < 1 or self.dataset_temperature < 1),
                "--train-data has weights (corpus.jsonl@0.3): --loader-fraction and --dataset-temperature would set "
                "other shares; leave them out",
            ),
            (
                0 < len(self.weights) < len(self.train_data or ()),
                f"--train-data: {len(self.weights)} of {len(self.train_data or ())} sources have a weight "
                "(corpus.jsonl@0.3): give every source one, or none",
            ),
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the weights of the sources that have one."""
        pairs = map(split_weight, self.train_data or ())
        return tuple(weight for _, weight in pairs if weight is not None)

    @property
    def balances(self) -> bool:
        """Tell whether corpora are taken in other shares than their own."""
        return self.loader_fraction < 1 or self.dataset_temperature < 1 or bool(self.weights)


@dataclass(frozen=True)
class DataSettings(Group):
    """Data of evaluations and tasks"""

    valid_data: tuple[str, ...] | None = option(
        None, "separate validation corpora; for tasks a file, or splits", nargs="*"
    )
    test_data: tuple[str, ...] | None = option(None, "separate test corpora; for tasks splits", nargs="*")
    data_dir: str | None = option(None, "folder of task data")


@dataclass(frozen=True)
class BatchSettings(Group):
    """Batches: how texts become micro batches"""

    seq_length: int = option(512, "maximum sample length before blanks are inserted", at_least=1)
    eval_seq_length: int | None = option(
        None,
        "sequence length of separately given evaluation data (packing only; the collator still uses --seq-length)",
        at_least=1,
    )
    batch_size: int = option(
        4,
        "micro batch per data-parallel rank; overridden by the DeepSpeed file",
        at_least=1,
    )
    eval_batch_size: int | None = option(
        None,
        "batch per rank for evaluation; unset means --batch-size",
        at_least=1,
    )
    gradient_accumulation_steps: int = option(
        1,
        "micro batches per update; overridden by the DeepSpeed file",
        at_least=1,
    )
    shuffle: bool = option(False, "draw sample numbers at random with replacement instead of counting up")
    num_workers: int = option(2, "data loader worker processes", at_least=0, at_most=10_000)
    pack_samples: bool = added(False, "short samples share rows and see themselves only; the loss is the same")
    sample_one_document: bool = option(False, "never pack several documents into a sample", only=(PRETRAINING,))
    non_sentence_start: float = option(
        0.0,
        "probability that a cut does not have to start at a sentence start",
        only=(PRETRAINING,),
        **PROBABILITY,
    )
    pad_to_max: bool = added(
        False, "fine-tuning: pad every sample to --seq-length, as the original", only=(FINETUNING,)
    )

    @property
    def evaluation_batch_size(self) -> int:
        """Return the rows of an evaluation batch."""
        return self.eval_batch_size or self.batch_size


@dataclass(frozen=True)
class BlankSettings(Group):
    """Blanks: what is removed from a text, and in which order it is written again"""

    bert_prob: float = option(
        0.5,
        "probability that a batch uses the short-span objective",
        **PROBABILITY,
    )
    gap_sentence_prob: float = option(
        0.0,
        "probability that a batch uses the sentence objective; the rest after --bert-prob goes to the document "
        "objective",
        **PROBABILITY,
    )
    bert_ratio: float = added(0.15, "fraction of tokens to mask with short spans", above=0, at_most=0.5)
    gap_sentence_ratio: float = option(0.15, "fraction of tokens to mask with whole sentences", above=0, at_most=1)
    gpt_infill_prob: float = option(
        0.5,
        "in document mode, probability that a single-document sample keeps its prefix and generates the suffix; "
        "otherwise one long span in the middle is masked",
        **PROBABILITY,
    )
    gpt_min_ratio: float = option(
        0.5,
        "document mode: lower bound of the generated length as a fraction of the shortest sample",
        **PROBABILITY,
    )
    avg_block_length: int = option(3, "mean of the Poisson span length", at_least=1)
    one_token_prob: float = added(
        0.0, "probability that a short span is one token, whatever --avg-block-length says", **PROBABILITY
    )
    short_seq_prob: float = option(
        0.0,
        "probability that a batch is cut into shorter sequences",
        **PROBABILITY,
    )
    single_span_prob: float = option(
        0.0,
        "probability that a batch gets exactly one span per sample",
        **PROBABILITY,
    )
    block_mask_prob: float = option(
        0.0,
        "short-span mode: probability that an input token of a span is replaced by [dBLOCK] (adds that token)",
        **PROBABILITY,
    )
    context_mask_ratio: float = option(
        0.0,
        "short-span mode: fraction of the sample length of context tokens near spans replaced by [dBLOCK] (adds that "
        "token)",
        **PROBABILITY,
    )
    task_mask: bool = option(False, "use [gMASK] and [sMASK] for document and sentence objectives (adds those tokens)")
    no_shuffle_block: bool = option(False, "generate the spans in text order")
    no_block_position: bool = option(False, "second position row is constant 1 for generated tokens")
    sentinel_token: bool = option(False, "numbered mask and start tokens instead of two-dimensional positions")
    random_position: bool = option(False, "shift all positions by a random offset that still fits")


@dataclass(frozen=True)
class OptimizerSettings(Group):
    """Optimizer"""

    optimizer: str = option("adam", "optimizer (non-DeepSpeed path)", choices=("adam", "adafactor"))
    lr: float = option(
        0.0001,
        "peak learning rate; overridden by the DeepSpeed file",
        above=0,
    )
    weight_decay: float = option(
        0.01,
        "decoupled weight decay; overridden by the DeepSpeed file",
        at_least=0,
    )
    adam_beta1: float = option(0.9, "first Adam coefficient (non-DeepSpeed path)", at_least=0, below=1)
    adam_beta2: float = option(0.999, "second Adam coefficient (non-DeepSpeed path)", at_least=0, below=1)
    adam_eps: float = option(1e-08, "Adam epsilon (non-DeepSpeed path)", at_least=0)
    clip_grad: float = option(
        1.0,
        "gradient norm limit, 0 for none (non-DeepSpeed path; the DeepSpeed file has its own)",
        at_least=0,
    )


@dataclass(frozen=True)
class ScheduleSettings(Group):
    """Learning rate schedule"""

    lr_decay_style: str = option(
        "linear", "shape of the decay", choices=("constant", "linear", "cosine", "exponential")
    )
    lr_decay_iters: int | None = option(
        None,
        "length of the learning rate schedule in updates; unset means --train-iters, or all --epochs",
        only=(PRETRAINING, FINETUNING),
        at_least=1,
    )
    lr_decay_ratio: float = option(0.1, "final learning rate as a fraction of the peak", **PROBABILITY)
    warmup: float = option(0.01, "fraction of the schedule spent on linear warmup", at_least=0, at_most=0.5)
    switch_linear: bool = option(
        False,
        "at start (after loading) continue with linear decay from the current rate to the end of training",
        only=(PRETRAINING,),
    )


@dataclass(frozen=True)
class PrecisionSettings(Group):
    """Precision of forward and backward; the loss scale concerns fp16"""

    fp16: bool = option(
        False,
        "half precision training or inference; of --fp16, --bf16 and --fp32 the last counts",
        instead_of=PRECISIONS,
    )
    bf16: bool = added(
        False,
        "bfloat16 autocast with fp32 parameters (no loss scaling); training on a CPU without instructions for it is in "
        "fp32",
        instead_of=PRECISIONS,
    )
    fp32: bool = added(False, "single precision, whatever a script or the DeepSpeed file says", instead_of=PRECISIONS)
    bf16_params: bool = added(
        False,
        "bf16 for parameters, gradients and activations, with fp32 masters that are updated and saved: less memory "
        "than --bf16, which it implies (torch engine)",
    )
    tf32: bool = added(False, "TF32 in the products of fp32 on a GPU: faster, with 10 bits after the point")
    loss_scale: float | None = option(
        None,
        "fixed loss scale; unset means dynamic scaling (non-DeepSpeed path)",
        above=0,
    )
    loss_scale_window: float = option(
        1000,
        "dynamic loss scaling: clean steps before the scale is raised (non-DeepSpeed path)",
        at_least=1,
    )
    hysteresis: int = option(
        2,
        "dynamic loss scaling: overflows tolerated before the scale drops (non-DeepSpeed path)",
        at_least=1,
    )
    min_scale: float = option(
        1,
        "dynamic loss scaling: lower bound (non-DeepSpeed path)",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum((self.fp16, self.bf16, self.fp32)) > 1:
            raise ValueError(
                "--fp16, --bf16 and --fp32 exclude each other: the DeepSpeed file sets one, the command line another; "
                "keep one"
            )
        if self.bf16_params and (self.fp16 or self.fp32):
            raise ValueError(
                f"--bf16-params does not go with --{self.kind}: its parameters are bf16; leave one of them out"
            )

    @property
    def kind(self) -> str:
        """Return ``fp32``, ``bf16`` or ``fp16``."""
        return "fp16" if self.fp16 else "fp32" if self.fp32 or not (self.bf16 or self.bf16_params) else "bf16"


@dataclass(frozen=True)
class KernelSettings(Group):
    """Kernels: how layers are computed; the result is the same"""

    attention: str = added(
        "auto",
        "sdpa: torch's fused attention; flex: FlexAttention, which skips empty blocks, wherever attention dropout is "
        "off (GPU); auto: FlashAttention where it runs (GPU, 16 bits), else flex for --pack-samples on a GPU, else "
        "sdpa",
        choices=("auto", "sdpa", "flex"),
    )
    compile: bool = added(
        False,
        "compile the transformer layers when training starts (torch.compile); for GPUs: on a CPU it gains nothing",
    )


@dataclass(frozen=True)
class DeepSpeedSettings(Group):
    """DeepSpeed"""

    deepspeed: bool = option(False, "use DeepSpeed")
    deepspeed_config: str | None = option(None, "DeepSpeed JSON file", flag="--deepspeed_config")


@dataclass(frozen=True)
class CheckpointSettings(Group):
    """Checkpoints: what is saved and loaded, when and where"""

    save: Path | None = option(None, "checkpoint folder; the experiment name is appended")
    save_interval: int = option(
        5000,
        "pretraining: updates between checkpoints; zero disables",
        only=(PRETRAINING,),
        at_least=0,
    )
    new_save_directory: bool = option(False, "when loading, still start a fresh dated experiment folder")
    keep_checkpoints: int | None = added(
        None,
        "delete older checkpoints of this run, keep this many (default: in pre-training all, in fine-tuning two beside "
        "the best)",
        at_least=1,
    )
    async_save: bool = added(
        False,
        "write checkpoints beside training, from a copy in the host's memory; without ZeRO",
        only=(PRETRAINING, FINETUNING),
    )
    no_save_optim: bool = option(False, "leave the optimizer and scheduler out of checkpoints (non-DeepSpeed path)")
    no_save_rng: bool = option(False, "leave random states out of checkpoints")
    load: Path | None = option(None, "checkpoint folder to resume from")
    load_pretrained: Path | None = option(None, "pretrained checkpoint to start from")
    auto_resume: bool = added(
        False, "use <save>/<experiment-name> without a date and continue from it when it has a checkpoint"
    )
    finetune: bool = option(
        False,
        "restart at iteration zero without optimizer and random states; also divides the schedule length by the "
        "accumulation steps",
    )
    no_load_optim: bool = option(False, "do not restore the optimizer")
    no_load_rng: bool = option(False, "do not restore random states")
    accept_new_data: bool = added(
        False, "continue although the data or what is made of them are not those that the run was started with"
    )
    no_load_lr_scheduler: bool = option(False, "do not restore the learning rate schedule (DeepSpeed path)")
    no_deepspeed_load: bool = option(False, "read a checkpoint as a plain file even when DeepSpeed is on")
    universal_checkpoint: bool = added(
        False, "with --load and ZeRO: carry the optimizer over to another number of ranks, or another ZeRO stage"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auto_resume and (self.load or not self.save):
            raise ValueError(
                "--auto-resume continues from <save>/<experiment-name>: it needs --save and excludes --load"
            )


@dataclass(frozen=True)
class RunSettings(Group):
    """Run: its length and how it is watched"""

    experiment_name: str = option(
        "glm", "run name; pre-training adds the time of its start, -MM-DD-hh-mm, unless it resumes a run"
    )
    train_iters: int = option(
        0,
        "total number of updates over all runs; zero skips training",
        only=(PRETRAINING,),
        at_least=0,
    )
    exit_after: int | None = added(
        None,
        "save and leave after this many updates of this process",
        at_least=1,
    )
    seed: int = option(
        1234,
        "random seed for python, numpy, the framework and model-parallel state; zero or negative leaves them unseeded",
        at_least=-(2**32) + 1,
        at_most=2**32 - 1,
    )
    log_interval: int = option(100, "updates between log lines", at_least=1)
    eval_interval: int = option(1000, "updates between evaluations; zero disables", at_least=0)
    eval_iters: int = option(100, "batches per evaluation", at_least=0)
    eval_at_start: bool = added(False, "evaluate once before the first update, too")
    probe_context: bool = added(
        False,
        "evaluations also say how well the first tokens of some 500 blanks are predicted with their true neighbours, "
        "with those of other blanks, and with far context only (docs/objective.md)",
        only=(PRETRAINING,),
    )
    summary_dir: str = option("", "folder under which runs/<experiment> event files and config are written")
    metrics_file: Path | None = added(
        None, "JSON lines file of metrics (default: <summary-dir>/runs/<experiment>/metrics.jsonl)"
    )
    wandb: bool = added(False, "log to Weights & Biases as well")
    stop_at: str | None = added(
        None,
        "end the run when an evaluation reaches this: accuracy=81, or loss=2 and perplexity=7 when they fall to it",
    )
    report: bool = added(
        False,
        "end with a table of GPUs, batch size, FPS (samples a second, evaluations included) and the metric that "
        "selects the best weights, and with samples and rows a second, with evaluations and without",
    )
    record_order: bool = added(
        False,
        "keep in <summary-dir>/runs/<experiment>/order which tokens of which documents every update is made from; "
        "python -m data_utils.show --step N prints the samples of an update",
        only=(PRETRAINING,),
    )
    perf_log: str | None = added(
        None,
        "print the events of the run as [PerfLog] lines; steps: those of epochs and of every --log-interval as well",
        choices=("run", "steps"),
    )
    no_progress: bool = added(False, "no progress bar")
    dry_run: bool = added(
        False, "print the plan of a pre-training run (sizes, layout, memory) and leave; starts nothing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_run_name(self.experiment_name)
        _ = self.target  # is refused here where it has another form

    @property
    def target(self) -> tuple[str, float] | None:
        """Return the metric and the value of ``--stop-at``. Raise ValueError for another form."""
        if self.stop_at is None:
            return None
        name, _, text = self.stop_at.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise ValueError(f"--stop-at is {described(self.stop_at)}; a metric and its value are needed: accuracy=81")
        return name, value

    def reaches_target(self, metrics: Mapping[str, float]) -> bool:
        """Tell whether ``metrics`` are what ``--stop-at`` asks for."""
        if self.target is None or self.target[0] not in metrics:
            return False
        name, value = self.target
        return metrics[name] <= value if name in FALLING_METRICS else metrics[name] >= value

    @property
    def summary_folder(self) -> Path:
        """Return the folder of the run's event files, configuration and results."""
        return Path(self.summary_dir) / "runs" / self.experiment_name

    @property
    def order_folder(self) -> Path:
        """Return the folder of the record of the data's order."""
        return self.summary_folder / "order"

    @property
    def metrics_path(self) -> Path:
        """Return the JSON lines file of metrics."""
        return self.metrics_file or self.summary_folder / "metrics.jsonl"


@dataclass(frozen=True)
class DeviceSettings(Group):
    """Processes and devices; rank and world size come from the launcher"""

    device: str = added("auto", "where to compute; auto takes a GPU when there is one", choices=("auto", "cpu", "cuda"))
    local_rank: int | None = option(
        None,
        "device index given by the launcher",
        flag="--local_rank",
        at_least=-1,
    )
    distributed_backend: str = option("nccl", "communication backend", choices=("nccl", "gloo"))
    distributed_timeout_minutes: float | None = added(
        None,
        "how long ranks wait for each other in a step (default: torch's, 30 minutes with gloo, 10 with nccl)",
        above=0,
        at_most=525_600,
    )
    model_parallel_size: int = option(
        1,
        "tensor parallel group size, capped at the world size",
        at_least=1,
    )
    fsdp: bool = added(
        False,
        "data ranks share parameters, gradients and optimizer, layer by layer (FSDP2); the torch engine, Adam",
        only=(PRETRAINING,),
    )
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class MixtureSettings(Group):
    """Downstream tasks mixed into pre-training"""

    only: ClassVar[tuple[str, ...]] = (PRETRAINING,)

    multi_task_data: tuple[str, ...] | None = option(None, "downstream tasks mixed into pretraining", nargs="*")
    multi_task_ratio: float = option(
        0.0,
        "probability that an update uses a downstream batch",
        at_least=0,
        below=1,
    )
    multi_seq_length: int | None = option(None, "sequence length of downstream samples", at_least=1)
    multi_batch_size: int | None = option(None, "batch per rank of downstream samples", at_least=1)


@dataclass(frozen=True)
class TuningSettings(Group):
    """Fine-tuning: length of the run, and when it evaluates and saves"""

    only: ClassVar[tuple[str, ...]] = (FINETUNING,)

    epochs: int | None = option(None, "fine-tuning epochs; zero means evaluate only", at_least=0)
    save_epoch: int = option(1, "epochs between checkpoints", at_least=1)
    eval_epoch: int = option(1, "epochs between evaluations", at_least=1)
    eval_samples: int | None = added(
        None,
        "evaluate, and save, every so many training samples and at the end, instead of after epochs",
        at_least=1,
    )
    no_validation: bool = option(False, "skip validation")
    validation_metric: str | None = option(None, "metric that selects the best epoch (first reported one when unset)")
    patience: int | None = added(
        None,
        "stop after this many evaluations without a better result",
        at_least=1,
    )
    overwrite: bool = option(False, "allow a result folder that already has test results")

    @property
    def num_epochs(self) -> int:
        """Return the passes over the training examples; language models are evaluated only."""
        return self.epochs or 0


@dataclass(frozen=True)
class TaskSettings(Group):
    """Task: how its examples become samples, losses and prediction files"""

    only: ClassVar[tuple[str, ...]] = (FINETUNING,)

    task: str | None = option(None, "downstream task name")
    cloze_eval: bool = option(False, "turn the task into a cloze question")
    multi_token: bool = option(False, "score answers of several tokens")
    segment_length: int = option(
        0,
        "split long choices into segments of this length when positive",
        at_least=0,
    )
    fast_decode: bool = option(False, "reuse the context when scoring several choices")
    unidirectional: bool = option(False, "left to right scoring")
    pattern_id: int = option(0, "prompt pattern number", at_least=0)
    pattern_ensemble: tuple[int, ...] | None = added(
        None,
        "train on several patterns and average their probabilities; all patterns when none are named",
        nargs="*",
        at_least=0,
    )
    pool_token: str = option("cls", "which position feeds a classification head", choices=("start", "pad", "cls"))
    output_dropout: float = option(
        0.1,
        "dropout on the pooled vector of classification heads",
        at_least=0,
        below=1,
    )
    loss_func: str = option(
        "cross_entropy", "loss of cloze fine-tuning", choices=("cross_entropy", "hinge", "generative", "mix")
    )
    adapet: bool = option(False, "decoupled label loss")
    block_lm_ratio: float = option(
        0.0,
        "weight of extra blank infilling batches during fine-tuning",
        at_least=0,
    )
    few_superglue: bool = option(False, "use the few-shot data files")
    wsc_negative: bool = option(False, "use the negative candidate data for WSC")
    eval_valid: bool = option(False, "evaluate the validation set when a test set is expected")
    limit: int | None = added(
        None,
        "read this many examples of every split (and language); the results say so",
        at_least=1,
    )
    languages: tuple[str, ...] | None = added(
        None, "languages that a multilingual task is evaluated in (default: all that there are files of)", nargs="+"
    )
    dev_fraction: float = added(
        1.0,
        "share of the development words of panx that is evaluated; the original takes every hundredth (0.01)",
        above=0,
        at_most=1,
    )
    metrics: tuple[str, ...] | None = added(
        None, "further metrics of an understanding task, such as entity-f1 of panx", nargs="+"
    )
    index_key: str = added("idx", "what prediction files call the index of an example (CLUE: id)")
    overlapping_eval: int = option(
        32,
        "stride of the sliding window in language model evaluation",
        at_least=1,
    )
    compatible: bool = added(False, "do as the original where this implementation does better")

    @property
    def name(self) -> str:
        """Return the task's name as it was given."""
        assert self.task is not None
        return self.task


@dataclass(frozen=True)
class PromptSettings(Group):
    """Continuous prompts, and prefix prompts (alone, --prefix-prompt puts vectors before the keys of every layer)"""

    only: ClassVar[tuple[str, ...]] = (FINETUNING,)

    continuous_prompt: bool = option(False, "trainable prompt vectors")
    num_prompt_tokens: int = option(0, "number of prompt vectors per slot", at_least=0)
    prefix_prompt: int = option(
        0,
        "number of prompt vectors in front: of the keys and values of every layer, or with --continuous-prompt of the "
        "text",
        at_least=0,
        only=(PRETRAINING, FINETUNING, GENERATION),
    )
    prompt_func: str = option(
        "lstm",
        "encoder of the prompt vectors",
        choices=("lstm", "mlp", "none"),
        only=(PRETRAINING, FINETUNING, GENERATION),
    )
    prompt_init: bool = option(False, "start the prompt vectors from word embeddings")
    freeze_transformer: bool = option(False, "train only the prompt", only=(PRETRAINING, FINETUNING))
    tune_prefix_layers: int | None = option(
        None, "with a frozen transformer, number of first layers still trained", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(
            (
                self.continuous_prompt and not self.num_prompt_tokens + self.prefix_prompt,
                "--continuous-prompt needs --num-prompt-tokens or --prefix-prompt",
            ),
        )

    @property
    def key_value_prefix(self) -> int | None:
        """Return how many vectors stand before the keys and values of every layer; None without."""
        return self.prefix_prompt if self.prefix_prompt and not self.continuous_prompt else None


@dataclass(frozen=True)
class AdapterSettings(Group):
    """Low-rank adapters (LoRA)"""

    only: ClassVar[tuple[str, ...]] = (FINETUNING,)

    lora_rank: int | None = added(
        None,
        "train low-rank adapters of this rank alone; they are written in PEFT's format",
        at_least=1,
    )
    lora_alpha: float | None = added(
        None,
        "adapters are multiplied by alpha / rank (default: twice the rank)",
        above=0,
    )
    lora_dropout: float | None = added(
        None,
        "dropout on the input of the adapters (default: 0)",
        at_least=0,
        below=1,
    )
    lora_target: tuple[str, ...] | None = added(
        None, "layers that get adapters (default: query_key_value)", nargs="*", choices=tuple(LORA_TARGETS)
    )
    lora_adapter: Path | None = added(
        None, "folder of an adapter to evaluate or train further, of a run with --lora-rank or of PEFT"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        details = ("lora_alpha", "lora_dropout", "lora_target")
        given = [spelling(name) for name in details if getattr(self, name) is not None]
        if given and not self.flag:
            raise ValueError(f"{given[0]} is for adapters: give --lora-rank as well")
        if self.lora_adapter is not None and (self.lora_rank is not None or given):
            raise ValueError(f"--lora-adapter has its own settings; leave {(given or ['--lora-rank'])[0]} out")
        self.new_adapters()  # refuses values that cannot be

    @property
    def flag(self) -> str | None:
        """Return the flag that asks for adapters, if one does."""
        return "--lora-rank" if self.lora_rank is not None else "--lora-adapter" if self.lora_adapter else None

    def new_adapters(self) -> LoraSettings | None:
        """Return the adapters to add; None without ``--lora-rank``."""
        if self.lora_rank is None:
            return None
        targets = {} if self.lora_target is None else {"targets": tuple(dict.fromkeys(self.lora_target))}
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return LoraSettings(rank=self.lora_rank, alpha=alpha, dropout=self.lora_dropout or 0.0, **targets)


@dataclass(frozen=True)
class Seq2SeqSettings(Group):
    """Sequence-to-sequence tasks"""

    only: ClassVar[tuple[str, ...]] = (FINETUNING,)

    src_seq_length: int | None = option(None, "maximum source length", at_least=8)
    tgt_seq_length: int | None = option(None, "maximum target length", at_least=1)
    label_smoothing: float = option(0.0, "label smoothing of the sequence-to-sequence loss", at_least=0, below=1)
    blank_maskratio: float = option(0.1, "mask ratio of the text infilling task", above=0, below=1)
    summary_prompt: str = added(
        "content",
        "where the blank of a summary is: before the text, or after it (multilingual models)",
        choices=("content", "tldr"),
    )
    localized_prompts: bool = added(False, "questions of mlqa are introduced in the language of their context")
    qa_normalization: str | None = added(
        None,
        "how answers to questions of several languages are compared (default: mlqa's rule for mlqa, else squad's)",
        choices=("squad", "mlqa", "mlqa-fixed", "mglm"),
    )
    rouge_unit: str | None = added(
        None,
        "what ROUGE counts: ids of the tokenizer (mglm), characters, words (default: mglm for summaries of "
        "several languages, else words)",
        choices=("mglm", "char", "word"),
    )
    legacy_qa_eval: bool = added(
        False,
        "evaluate questions of several languages as the original: windows without the answer are left out and "
        "languages share their questions' ids",
    )
    squad_dir: str | None = added(
        None, "folder of SQuAD's training file for xquad and mlqa (default: squad, in or beside --data-dir)"
    )
    mask_pad_token: bool = option(False, "hide padding of the source from attention")
    lazy_seq2seq_loader: bool = added(
        False,
        "read the examples once into a store beside the data, which the processes of this run and of later ones map "
        "into memory",
    )


@dataclass(frozen=True)
class GenerationSettings(Group):
    """Text generation: how tokens are chosen"""

    only: ClassVar[tuple[str, ...]] = (FINETUNING, GENERATION)

    out_seq_length: int = option(256, "maximum number of generated tokens", at_least=1)
    temperature: float = option(1.0, "sampling temperature", above=0)
    top_k: int = option(0, "top-k sampling size", at_least=0)
    top_p: float = option(0.0, "nucleus sampling threshold", **PROBABILITY)
    num_beams: int = option(1, "beam count", at_least=1)
    length_penalty: float = option(0.0, "exponent of the length normalisation of beams and of multi-token cloze scores")
    no_repeat_ngram_size: int = option(0, "forbid repeated n-grams of this size", at_least=0)
    min_tgt_length: int = option(0, "minimum generated length", at_least=0)
    select_topk: bool = option(False, "take the best candidates of beam search instead of sampling them")
    renormalize_bans: bool = added(
        False, "beams: probabilities among what minimum length and n-grams do not forbid (as the multilingual release)"
    )
    fill: str = added(
        "append",
        "what the next blank sees of one that is filled: its mask and the piece behind the context (append), or the "
        "piece in the mask's place (replace: the multilingual release)",
        choices=("append", "replace"),
        only=(GENERATION,),
    )


# Flags of the original that are accepted and change nothing: flag, type (None: a switch), default, reason.
_FIXED = "GLM is always 4 x hidden wide, epsilon 1e-5, scaled initialisation, fp32 parameters"
_NEVER = "had none in the original either"
_CAUSAL = "concerns causal models"
_OPTIMIZER = "the optimizer lives where the model does"
WITHOUT_EFFECT: tuple[tuple[str, type | None, Any, str], ...] = (
    ("--intermediate-size", int, None, _FIXED),
    ("--layernorm-epsilon", float, 1e-05, _FIXED),
    ("--deep-init", None, False, _FIXED),
    ("--sandwich-ln", None, False, "no GLM, released or trained here, has layer norms after its sublayers"),
    ("--fp32-embedding", None, False, _FIXED),
    ("--fp32-layernorm", None, False, _FIXED),
    ("--fp32-tokentypes", None, False, _FIXED),
    ("--fp32-allreduce", None, False, "gradients are fp32 already"),
    ("--pretrained-bert", None, False, "the model is a GLM; there is no stock BERT here"),
    ("--no-load-iteration", None, False, "--finetune starts at the first update"),
    ("--vocab-size", int, 30522, "the tokenizer says how large the vocabulary is"),
    ("--cpu-optimizer", None, False, _OPTIMIZER),
    ("--cpu_torch_adam", None, False, _OPTIMIZER),
    ("--deepspeed-activation-checkpointing", None, False,
     "--checkpoint-activations recomputes with the right random state by itself"),
    ("--reset-position-ids", None, False, _CAUSAL),
    ("--reset-attention-mask", None, False, _CAUSAL),
    ("--mem-length", int, 0, _CAUSAL),
    ("--resume-dataloader", None, False, "a resumed run always continues at its data position"),
    ("--DDP-impl", str, "torch", "torch's DistributedDataParallel is used"),
    ("--input-data-sizes-file", str, "sizes.txt", _NEVER),
    ("--delim", str, ",", _NEVER),
    ("--text-key", str, "sentence", _NEVER),
    ("--eval-text-key", str, None, _NEVER),
    ("--loose-json", None, False, _NEVER),
    ("--presplit-sentences", None, False, _NEVER),
    ("--max-preds-per-seq", int, None, _NEVER),
    ("--eval-max-preds-per-seq", int, None, _NEVER),
    ("--use-tfrecords", None, False, _NEVER),
    ("--deepscale", None, False, _NEVER),
    ("--deepscale_config", str, None, _NEVER),
    # A released configuration passes it although the original's own parser rejects it.
    ("--lazy-loader", None, False, "token stores are memory-mapped unless --no-lazy-loader is given"),
    ("--mode", str, "pretrain", "every program does what it is for"),
    ("--old-checkpoint", None, False, "both layouts of checkpoints are told apart by the names in them"),
)  # fmt: skip
# What asks for what is done anyway, or stands in the original's files for all programs alike: not worth a line.
UNREMARKED = frozenset((
    "--deepspeed-activation-checkpointing", "--resume-dataloader", "--lazy-loader", "--lazy-seq2seq-loader",
    "--fp32-allreduce", "--no-load-iteration", "--old-checkpoint", "--DDP-impl", "--save-interval",
))  # fmt: skip
CHOICES_WITHOUT_EFFECT = {"--mode": ("pretrain", "finetune", "inference"), "--DDP-impl": ("local", "torch", "none")}


@dataclass(frozen=True)
class Settings:
    """All options of a command line, and what belongs to them. The programs have subclasses with their own refusals.

    Attributes:
        deepspeed_content: content of the DeepSpeed file, empty when none is named; None without ``--deepspeed``.
        values: the whole command line by flag, for ``config.json``; ``changed``: what of it is not the default;
            ``given``: the flags that were typed, also those with their default.
        notices: lines to print once: what has no effect, what the DeepSpeed file and the checkpoint to load set.
        tokenizer_fingerprint: that of the checkpoint to load, where it is known.
    """

    program: ClassVar[str] = ""
    takes_demo: ClassVar[bool] = False  # the demo model, where neither a checkpoint nor a flag of a model is typed
    used_most: ClassVar[tuple[str, ...]] = ()  # the groups that come first in --help

    model: ModelSettings = field(default_factory=ModelSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    data: DataSettings = field(default_factory=DataSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    blank: BlankSettings = field(default_factory=BlankSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    kernels: KernelSettings = field(default_factory=KernelSettings)
    deepspeed: DeepSpeedSettings = field(default_factory=DeepSpeedSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    run: RunSettings = field(default_factory=RunSettings)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    seq2seq: Seq2SeqSettings = field(default_factory=Seq2SeqSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    deepspeed_content: Mapping[str, Any] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()
    tokenizer_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no program can do; subclasses refuse what theirs cannot."""
        if self.precision.bf16_params and self.deepspeed_content is not None:
            raise ValueError(
                "--bf16-params is for the torch engine, and ZeRO has bf16 parameters with fp32 masters by itself: give "
                "--bf16 with --deepspeed, or leave --deepspeed out"
            )
        if self.program == FINETUNING and isinstance(self.model.checkpoint_activations, str):
            raise ValueError(
                "--checkpoint-activations auto follows the plan of a pre-training run, and tasks have none: give on or "
                "off"
            )
        if self.program in (FINETUNING, GENERATION) and self.model.transformer_xl:
            raise ValueError(
                f"--transformer-xl is for pre-training of causal models only; leave it out of {self.program}"
            )
        if self.program != PRETRAINING and self.device.fsdp:
            raise ValueError(
                f"--fsdp is for pre-training only; leave it out of {self.program} (ZeRO shares there, too)"
            )

    @classmethod
    def run_name(cls, values: Mapping[str, Any], *, date: str) -> str:
        """Return the name of a run of these values that starts at ``date``."""
        return values["experiment_name"]

    def named(self, name: str) -> Self:
        """Return the settings with the run's name ``name``, that of its first rank: names have the time in them."""
        checkpoint, save = self.checkpoint, self.checkpoint.save
        if save is not None:
            above = save.parents[len(Path(self.run.experiment_name).parts) - 1]  # a name may be grid/rte-1
            checkpoint = replace(checkpoint, save=above / name)
        return replace(self, run=replace(self.run, experiment_name=name), checkpoint=checkpoint)

    @property
    def begins(self) -> bool:
        """Tell whether this is a new run, whose name has the time of its start: its folders have to be new, too."""
        goes_on = self.checkpoint.load and not self.checkpoint.new_save_directory
        return bool(undated(self.run.experiment_name)) and not (
            goes_on or self.checkpoint.auto_resume or self.tuning.overwrite
        )

    def select(self, record: type[R], **others: Any) -> R:
        """Return a ``record`` of the options that its fields are named after; ``others`` are the rest of them."""
        groups = [group for group in vars(self).values() if isinstance(group, Group)]
        options = {name: value for group in groups for name, value in vars(group).items()}
        shared = {one.name for one in fields(record)} & set(options)
        return record(**{name: options[name] for name in shared} | others)

    def network(self, *, vocab_size: int, model: ModelSettings | None = None) -> GLMConfig:
        """Return the configuration of the network for a padded vocabulary: of ``model`` (default: the run's) with its
        prefix prompt.
        """
        config = (model or self.model).config(vocab_size=vocab_size)
        length, function = self.prompt.key_value_prefix, self.prompt.prompt_func
        return config if length is None else replace(config, prefix_prompt_length=length, prompt_function=function)

    @property
    def zero_stage(self) -> int:
        """Return the ZeRO stage that the DeepSpeed file asks for, 0 without one."""
        zero = (self.deepspeed_content or {}).get("zero_optimization")
        stage = zero.get("stage") if isinstance(zero, Mapping) else None
        return stage if isinstance(stage, int) else 0

    def too_long(self) -> tuple[bool, str]:
        """Return the refusal of samples that are longer than the model has positions."""
        length, positions = self.batch.seq_length, self.model.max_position_embeddings
        return (
            length > positions,
            f"--seq-length {length} does not fit --max-position-embeddings {positions}: shorten the samples or add "
            "positions",
        )


@dataclass(frozen=True)
class PretrainingSettings(Settings):
    """The options of a pre-training run."""

    program: ClassVar[str] = PRETRAINING
    used_most: ClassVar[tuple[str, ...]] = (
        "corpus", "run", "batch", "model", "blank", "checkpoint", "optimizer", "schedule", "precision", "data",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        mixture, checkpoint = self.mixture, self.checkpoint
        refuse(
            (
                self.run.target is not None and self.run.target[0] not in FALLING_METRICS,
                f"--stop-at {self.run.stop_at}: pre-training has the metrics {', '.join(FALLING_METRICS)}",
            ),
            (
                not self.corpus.train_data,
                "no --train-data: name corpora of NAMED_CORPORA (data_utils/corpora/named.py), files or globs",
            ),
            (
                mixture.multi_task_ratio > 0 and not (mixture.multi_task_data and self.data.data_dir),
                "--multi-task-ratio needs --multi-task-data (names of tasks) and --data-dir (the folder of their "
                "folders)",
            ),
            (
                not self.model.block_lm or self.model.transformer_xl,
                "pre-training is blank infilling: give --block-lm and leave --transformer-xl out (plain causal and "
                "Transformer-XL pre-training are not supported by this version)",
            ),
            (
                self.model.masked_lm,
                "pre-training fills blanks: leave --masked-lm out (tasks take models that were trained with it)",
            ),
            (
                self.run.probe_context and self.run.eval_iters == 0,
                "--probe-context is part of evaluations, and --eval-iters 0 leaves them out; give some, or leave it "
                "out",
            ),
            self.too_long(),
            (
                self.device.fsdp and self.precision.bf16_params,
                "--bf16-params does not go with --fsdp, which shares fp32 parameters: give --bf16, or leave --fsdp out",
            ),
            (
                self.device.fsdp and self.deepspeed_content is not None,
                "--fsdp does not go with --deepspeed: ZeRO stages 1 to 3 are its way to share; leave one of them out",
            ),
            (
                self.device.fsdp and self.optimizer.optimizer != "adam",
                f"--fsdp does not go with --optimizer {self.optimizer.optimizer}, whose moments are of whole matrices; "
                "use adam",
            ),
            (
                checkpoint.load and checkpoint.load_pretrained,
                "--load continues a run, --load-pretrained starts one from its weights; give one of them",
            ),
            (
                self.model.initialization != "released" and checkpoint.load_pretrained,
                f"--initialization {self.model.initialization} draws random weights, --load-pretrained has trained "
                "ones; give one of them",
            ),
        )

    @classmethod
    def run_name(cls, values: Mapping[str, Any], *, date: str) -> str:
        """Return the run's name: that of the loaded folder, or the given one with the date."""
        if values["load"] and not values["new_save_directory"]:
            return Path(values["load"]).resolve().name
        return values["experiment_name"] if values["auto_resume"] else f"{values['experiment_name']}-{date}"

    @property
    def schedule_length(self) -> int:
        """Return the updates of the learning rate schedule."""
        num_updates = self.schedule.lr_decay_iters or self.run.train_iters
        if self.checkpoint.finetune:
            num_updates //= self.batch.gradient_accumulation_steps
        return max(1, num_updates)
