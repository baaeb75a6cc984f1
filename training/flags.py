"""The table of command line flags: the original's, group by group, then our own.

Pure data, so that ``--help`` needs neither torch nor numpy. ``training/arguments.py`` turns the table into a parser and
the parsed values into the frozen settings of ``training/configurations.py``. The original's flags keep their name,
type, default, choices and number of values exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """One command line flag; ``type`` is None for a switch (off by default).

    A switch turns the switch ``instead_of`` off: of the two the later one counts.
    """

    name: str
    type: type | None
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    instead_of: str | None = None

    @property
    def dest(self) -> str:
        """Return the attribute that holds the parsed value."""
        return self.name.removeprefix("--").replace("-", "_")


def switch(name: str, help_text: str, **options: Any) -> Flag:
    """Describe a flag that takes no value."""
    return Flag(name, None, False, help_text, **options)


def value(name: str, type_: type, default: Any, help_text: str, **options: Any) -> Flag:
    """Describe a flag that takes one value, or several with ``nargs``."""
    return Flag(name, type_, default, help_text, **options)


# fmt: off
MODEL_FLAGS: tuple[Flag, ...] = (
    switch("--transformer-xl",
          "train a plain causal language model with relative positions and segment recurrence (memory) on the "
          "sequential XL dataset"),
    switch("--pretrained-bert",
          "fine-tune a stock BERT checkpoint instead of a GLM (the name comes from --tokenizer-model-type)"),
    switch("--encoder-decoder",
          "ask the collator for separate source and target sequences; the path is unfinished and fails in the "
          "release"),
    value("--attention-dropout", float, 0.1, "dropout probability on attention weights"),
    value("--num-attention-heads", int, 16, "attention heads per layer"),
    value("--hidden-size", int, 1024, "width of the transformer"),
    value("--intermediate-size", int, None,
          "feed-forward width; documented as 4 x hidden size when unset, but never read"),
    value("--num-layers", int, 24,
          "number of transformer layers; also the activation checkpoint count handed to DeepSpeed"),
    value("--layernorm-epsilon", float, 1e-05, "layer norm epsilon, only for the BERT baseline (GLM uses 1e-5)"),
    value("--hidden-dropout", float, 0.1, "dropout on embeddings and on every sublayer output"),
    value("--output-dropout", float, 0.1, "dropout on the pooled vector of classification heads"),
    value("--max-position-embeddings", int, 512,
          "maximum length; the position tables have this many rows plus one; also the number of sentinel tokens"),
    value("--vocab-size", int, 30522,
          "vocabulary size for a sentencepiece tokenizer to be trained; overwritten by the padded tokenizer size"),
    switch("--deep-init", "scaled initialisation for the BERT baseline only"),
    value("--make-vocab-size-divisible-by", int, 128, "the embedding table is padded up to a multiple of this"),
    switch("--cpu-optimizer", "keep optimizer state and the update on the CPU"),
    switch("--cpu_torch_adam", "with --cpu-optimizer use the framework AdamW instead of the DeepSpeed CPU Adam"),
)
FP16_FLAGS: tuple[Flag, ...] = (
    switch("--fp16", "half precision training or inference; a later --bf16 takes its place", instead_of="bf16"),
    switch("--fp32-embedding", "keep embeddings in single precision (BERT baseline only); forced off without --fp16"),
    switch("--fp32-layernorm", "keep layer norms in single precision (BERT baseline only); forced off without --fp16"),
    switch("--fp32-tokentypes", "never read; forced off without --fp16"),
    switch("--fp32-allreduce", "reduce gradients in single precision (only the local data-parallel wrapper)"),
    value("--hysteresis", int, 2,
          "dynamic loss scaling: overflows tolerated before the scale drops (non-DeepSpeed path)"),
    value("--loss-scale", float, None, "fixed loss scale; unset means dynamic scaling (non-DeepSpeed path)"),
    value("--loss-scale-window", float, 1000,
          "dynamic loss scaling: clean steps before the scale is raised (non-DeepSpeed path)"),
    value("--min-scale", float, 1, "dynamic loss scaling: lower bound (non-DeepSpeed path)"),
    value("--attention-scale", float, 1.0,
          "values above 1 divide the attention scores before the product and multiply them back after max "
          "subtraction, for half precision range"),
)
TRAIN_FLAGS: tuple[Flag, ...] = (
    value("--experiment-name", str, "glm", "run name; a date suffix MM-DD-hh-mm is added unless resuming"),
    value("--batch-size", int, 4, "micro batch per data-parallel rank; overridden by the DeepSpeed file"),
    value("--gradient-accumulation-steps", int, 1, "micro batches per update; overridden by the DeepSpeed file"),
    value("--weight-decay", float, 0.01, "decoupled weight decay; overridden by the DeepSpeed file"),
    switch("--checkpoint-activations", "recompute activations in the backward pass"),
    value("--checkpoint-num-layers", int, 1, "layers per recomputation chunk"),
    switch("--deepspeed-activation-checkpointing",
          "let DeepSpeed handle activation recomputation and the model-parallel random state"),
    value("--epochs", int, None, "fine-tuning epochs; zero means evaluate only"),
    value("--clip-grad", float, 1.0, "gradient norm limit (non-DeepSpeed path; the DeepSpeed file has its own)"),
    value("--train-iters", int, 0, "total number of updates over all runs; zero skips training"),
    value("--label-smoothing", float, 0.0, "label smoothing of the sequence-to-sequence loss"),
    value("--log-interval", int, 100, "updates between log lines"),
    value("--summary-dir", str, "", "folder under which runs/<experiment> event files and config are written"),
    value("--seed", int, 1234,
          "random seed for python, numpy, the framework and model-parallel state; zero or negative leaves them "
          "unseeded"),
    switch("--reset-position-ids", "restart positions after each end-of-document token (plain causal LM only)"),
    switch("--reset-attention-mask", "forbid attention across end-of-document tokens (plain causal LM only)"),
    value("--lr-decay-iters", int, None, "length of the learning rate schedule in updates; unset means --train-iters"),
    value("--lr-decay-style", str, "linear",
          "shape of the decay", choices=("constant", "linear", "cosine", "exponential")),
    value("--lr-decay-ratio", float, 0.1, "final learning rate as a fraction of the peak"),
    value("--lr", float, 0.0001, "peak learning rate; overridden by the DeepSpeed file"),
    value("--warmup", float, 0.01, "fraction of the schedule spent on linear warmup"),
    switch("--switch-linear",
          "at start (after loading) continue with linear decay from the current rate to the end of training"),
    value("--save", str, None, "checkpoint folder; the experiment name is appended"),
    switch("--new-save-directory", "when loading, still start a fresh dated experiment folder"),
    value("--save-epoch", int, 1, "fine-tuning: epochs between checkpoints"),
    value("--save-interval", int, 5000, "pretraining: updates between checkpoints; zero disables"),
    switch("--no-save-optim", "leave the optimizer and scheduler out of checkpoints (non-DeepSpeed path)"),
    switch("--no-save-rng", "leave random states out of checkpoints"),
    value("--load", str, None, "checkpoint folder to resume from"),
    switch("--no-load-optim", "do not restore the optimizer"),
    switch("--no-load-rng", "do not restore random states"),
    switch("--no-load-lr-scheduler", "do not restore the learning rate schedule (DeepSpeed path)"),
    switch("--no-deepspeed-load", "read a checkpoint as a plain file even when DeepSpeed is on"),
    switch("--finetune",
          "restart at iteration zero without optimizer and random states; also divides the schedule length by "
          "the accumulation steps"),
    switch("--resume-dataloader", "skip the batches already consumed when resuming"),
    value("--distributed-backend", str, "nccl", "communication backend", choices=("nccl", "gloo")),
    value("--DDP-impl", str, "torch",
          "data-parallel wrapper when DeepSpeed is off", choices=("local", "torch", "none")),
    value("--local_rank", int, None, "device index given by the launcher"),
    switch("--block-lm", "use autoregressive blank infilling (this is what makes it GLM)"),
    switch("--masked-lm", "predict masked tokens in place (BERT style ablation) instead of autoregressively"),
    value("--bert-prob", float, 0.5, "probability that a batch uses the short-span objective"),
    value("--gpt-infill-prob", float, 0.5,
          "in document mode, probability that a single-document sample keeps its prefix and generates the "
          "suffix; otherwise one long span in the middle is masked"),
    value("--gpt-min-ratio", float, 0.5,
          "document mode: lower bound of the generated length as a fraction of the shortest sample"),
    value("--gap-sentence-prob", float, 0.0,
          "probability that a batch uses the sentence objective; the rest after --bert-prob goes to the "
          "document objective"),
    value("--gap-sentence-ratio", float, 0.15, "fraction of tokens to mask with whole sentences"),
    value("--avg-block-length", int, 3, "mean of the Poisson span length"),
    value("--short-seq-prob", float, 0.0, "probability that a batch is cut into shorter sequences"),
    value("--single-span-prob", float, 0.0, "probability that a batch gets exactly one span per sample"),
    switch("--task-mask", "use [gMASK] and [sMASK] for document and sentence objectives (adds those tokens)"),
    switch("--no-shuffle-block", "generate the spans in text order"),
    switch("--no-block-position", "second position row is constant 1 for generated tokens"),
    switch("--sentinel-token", "numbered mask and start tokens instead of two-dimensional positions"),
    value("--block-mask-prob", float, 0.0,
          "short-span mode: probability that an input token of a span is replaced by [dBLOCK] (adds that token)"),
    value("--context-mask-ratio", float, 0.0,
          "short-span mode: fraction of the sample length of context tokens near spans replaced by [dBLOCK] "
          "(adds that token)"),
    switch("--random-position", "shift all positions by a random offset that still fits"),
)
VALIDATION_FLAGS: tuple[Flag, ...] = (
    value("--eval-batch-size", int, None, "batch per rank for evaluation; unset means --batch-size"),
    value("--eval-iters", int, 100, "batches per evaluation"),
    value("--eval-interval", int, 1000, "updates between evaluations; zero disables"),
    value("--eval-epoch", int, 1, "fine-tuning: epochs between evaluations"),
    value("--eval-seq-length", int, None,
          "sequence length of separately given evaluation data (packing only; the collator still uses --seq-length)"),
    value("--eval-max-preds-per-seq", int, None, "no effect in the release"),
    value("--overlapping-eval", int, 32, "stride of the sliding window in language model evaluation"),
)
GENERATION_FLAGS: tuple[Flag, ...] = (
    value("--temperature", float, 1.0, "sampling temperature"),
    value("--top-p", float, 0.0, "nucleus sampling threshold"),
    value("--top-k", int, 0, "top-k sampling size"),
    value("--out-seq-length", int, 256, "maximum number of generated tokens"),
    value("--num-beams", int, 1, "beam count"),
    value("--length-penalty", float, 0.0,
          "exponent of the length normalisation of beams and of multi-token cloze scores"),
    value("--no-repeat-ngram-size", int, 0, "forbid repeated n-grams of this size"),
    value("--min-tgt-length", int, 0, "minimum generated length"),
    switch("--select-topk", "take the best candidates of beam search instead of sampling them"),
    value("--blank-maskratio", float, 0.1, "mask ratio of the text infilling task"),
)
DATA_FLAGS: tuple[Flag, ...] = (
    value("--model-parallel-size", int, 1, "tensor parallel group size, capped at the world size"),
    switch("--shuffle", "draw sample numbers at random with replacement instead of counting up"),
    switch("--filter-english", "reject sampled documents that a language detector does not call English"),
    value("--train-data", str, None, "corpus keywords", nargs="+"),
    value("--valid-data", str, None, "separate validation corpora (path for evaluation tasks)", nargs="*"),
    value("--test-data", str, None, "separate test corpora", nargs="*"),
    value("--data-dir", str, None, "folder of task data"),
    value("--input-data-sizes-file", str, "sizes.txt", "never read"),
    value("--delim", str, ",", "no effect in the release"),
    value("--text-key", str, "sentence", "no effect in the release"),
    value("--eval-text-key", str, None, "no effect in the release"),
    value("--split", str, "1000,1,1", "train, validation and test proportions, separated by commas or slashes"),
    switch("--no-lazy-loader", "read the token arrays into memory instead of mapping the files"),
    switch("--half-lazy-loader", "use only the first two thirds of the documents"),
    value("--loader-scatter", int, None,
          "split each corpus into this many shards, one shard per rank modulo this number"),
    switch("--loose-json", "no effect in the release"),
    switch("--presplit-sentences", "no effect in the release (only an unreachable BERT dataset reads it)"),
    value("--num-workers", int, 2, "data loader worker processes"),
    value("--tokenizer-model-type", str, None,
          "vocabulary name (bert-base-uncased, bert-large-uncased, gpt2, roberta, ...)"),
    value("--tokenizer-path", str, "tokenizer.model", "file of a sentencepiece model for the generic tokenizer"),
    value("--tokenizer-type", str, "BertWordPieceTokenizer",
          "tokenizer class",
          choices=("CharacterLevelTokenizer", "SentencePieceTokenizer", "BertWordPieceTokenizer", "GPT2BPETokenizer",
                   "ChineseSPTokenizer")),
    switch("--fix-command-token", "corrected ids of the Chinese command tokens (used by the large Chinese model)"),
    switch("--no-pre-tokenize", "cache raw text and tokenize when sampling"),
    value("--cache-dir", str, None, "cache folder for BERT downloads"),
    switch("--use-tfrecords", "unusable: its reader is missing in the release"),
    value("--seq-length", int, 512, "maximum sample length before blanks are inserted"),
    value("--mem-length", int, 0,
          "cached positions of segment recurrence (forced to zero without --transformer-xl in pretraining)"),
    value("--max-preds-per-seq", int, None, "no effect in the release"),
    value("--non-sentence-start", float, 0.0, "probability that a cut does not have to start at a sentence start"),
    switch("--sample-one-document", "never pack several documents into a sample"),
    value("--load-splits", str, None, "array file with the shuffled document order to use"),
    value("--save-splits", str, None, "array file to write the shuffled document order to"),
    value("--save-test-data", str, None, "text file to write the decoded test documents to"),
    value("--multi-task-data", str, None, "downstream tasks mixed into pretraining", nargs="*"),
    value("--multi-task-ratio", float, 0.0, "probability that an update uses a downstream batch"),
    value("--multi-seq-length", int, None, "sequence length of downstream samples"),
    value("--multi-batch-size", int, None, "batch per rank of downstream samples"),
)
FINETUNE_FLAGS: tuple[Flag, ...] = (
    value("--task", str, None, "downstream task name"),
    value("--load-pretrained", str, None, "pretrained checkpoint to start fine-tuning from"),
    value("--pool-token", str, "cls", "which position feeds a classification head", choices=("start", "pad", "cls")),
    switch("--cloze-eval", "turn the task into a cloze question"),
    switch("--multi-token", "score answers of several tokens"),
    value("--segment-length", int, 0, "split long choices into segments of this length when positive"),
    value("--loss-func", str, "cross_entropy",
          "loss of cloze fine-tuning", choices=("cross_entropy", "hinge", "generative", "mix")),
    value("--block-lm-ratio", float, 0.0, "weight of extra blank infilling batches during fine-tuning"),
    switch("--adapet", "decoupled label loss"),
    value("--pattern-id", int, 0, "prompt pattern number"),
    switch("--fast-decode", "reuse the context when scoring several choices"),
    switch("--few-superglue", "use the few-shot data files"),
    switch("--eval-valid", "evaluate the validation set when a test set is expected"),
    value("--validation-metric", str, None, "metric that selects the best epoch (first reported one when unset)"),
    switch("--unidirectional", "left to right scoring"),
    value("--src-seq-length", int, None, "maximum source length"),
    value("--tgt-seq-length", int, None, "maximum target length"),
    value("--adam-beta1", float, 0.9, "first Adam coefficient (non-DeepSpeed path)"),
    value("--adam-beta2", float, 0.999, "second Adam coefficient (non-DeepSpeed path)"),
    value("--adam-eps", float, 1e-08, "Adam epsilon (non-DeepSpeed path)"),
    value("--optimizer", str, "adam", "optimizer (non-DeepSpeed path)", choices=("adam", "adafactor")),
    switch("--wsc-negative", "use the negative candidate data for WSC"),
    switch("--overwrite", "allow a result folder that already has test results"),
    switch("--no-validation", "skip validation"),
    switch("--continuous-prompt", "trainable prompt vectors"),
    value("--num-prompt-tokens", int, 0, "number of prompt vectors per slot"),
    value("--prompt-func", str, "lstm", "encoder of the prompt vectors", choices=("lstm", "mlp", "none")),
    switch("--freeze-transformer", "train only the prompt"),
    value("--tune-prefix-layers", int, None, "with a frozen transformer, number of first layers still trained"),
    value("--prefix-prompt", int, 0, "number of prompt vectors in front"),
    switch("--prompt-init", "start the prompt vectors from word embeddings"),
    switch("--mask-pad-token", "hide padding of the source from attention"),
)
DEEPSPEED_FLAGS: tuple[Flag, ...] = (
    switch("--deepspeed", "use DeepSpeed (added by its helper)"),
    value("--deepspeed_config", str, None, "DeepSpeed JSON file (added by its helper)"),
    switch("--deepscale", "deprecated alias (added by its helper)"),
    value("--deepscale_config", str, None, "deprecated alias (added by its helper)"),
)
OWN_FLAGS: tuple[Flag, ...] = (
    switch("--bf16", "bfloat16 autocast with fp32 parameters (no loss scaling); a later --fp16 takes its place",
           instead_of="fp16"),
    value("--device", str, "auto", "where to compute; auto takes a GPU when there is one",
          choices=("auto", "cpu", "cuda")),
    switch("--compile",
           "compile the transformer layers when training starts (torch.compile); for GPUs: on a CPU it gains nothing"),
    value("--attention", str, "auto",
          "sdpa: torch's fused attention; flex: FlexAttention, which skips empty blocks, wherever attention dropout is "
          "off (GPU); auto: flex for --pack-samples on a GPU, else sdpa",
          choices=("auto", "sdpa", "flex")),
    switch("--exact-dropout", "draw dropout masks one float per element instead of one random byte (slower on a CPU)"),
    value("--text-field", str, "text", "field that holds the text in rows of files given by path"),
    value("--text-unit", str, "line", "what of a text file is one document", choices=("line", "paragraph", "file")),
    value("--data-cache-dir", str, None, "folder of the tokenized stores (default: .glm_cache beside each corpus)"),
    switch("--skip-malformed", "count and skip malformed rows instead of stopping at the first one"),
    value("--vocab-dir", str, None, "folder of vocabularies (default: $GLM_VOCAB_DIR)"),
    switch("--auto-resume",
           "use <save>/<experiment-name> without a date and continue from it when it has a checkpoint"),
    switch("--pack-samples", "short samples share rows and see themselves only; the loss is the same"),
    value("--limit", int, None, "fine-tuning: read this many examples of every split; the results say so"),
    value("--patience", int, None, "fine-tuning: stop after this many evaluations without a better result"),
    value("--pattern-ensemble", int, None,
          "fine-tuning: train on several patterns and average their probabilities; all patterns when none are named",
          nargs="*"),
    value("--index-key", str, "idx", "fine-tuning: what prediction files call the index of an example (CLUE: id)"),
    switch("--compatible", "fine-tuning: do as the original where this implementation does better"),
    switch("--pad-to-max", "fine-tuning: pad every sample to --seq-length, as the original"),
    value("--lora-rank", int, None,
          "fine-tuning: train low-rank adapters (LoRA) of this rank alone; they are written in PEFT's format"),
    value("--lora-alpha", float, None, "adapters are multiplied by alpha / rank (default: twice the rank)"),
    value("--lora-dropout", float, None, "dropout on the input of the adapters (default: 0)"),
    value("--lora-target", str, None, "layers that get adapters (default: query_key_value)", nargs="*",
          choices=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    value("--lora-adapter", str, None,
          "fine-tuning: folder of an adapter to evaluate or train further, of a run with --lora-rank or of PEFT"),
    switch("--universal-checkpoint",
           "with --load and ZeRO: carry the optimizer over to another number of ranks, or another ZeRO stage"),
    value("--keep-checkpoints", int, None, "delete older checkpoints of this run, keep this many"),
    value("--exit-after", int, None, "save and leave after this many updates of this process"),
    switch("--eval-at-start", "evaluate once before the first update, too"),
    switch("--dry-run", "print the plan of a pre-training run (sizes, layout, memory) and leave; starts nothing"),
    value("--metrics-file", str, None,
          "JSON lines file of metrics (default: <summary-dir>/runs/<experiment>/metrics.jsonl)"),
    switch("--wandb", "log to Weights & Biases as well"),
    switch("--no-progress", "no progress bar"),
)
# fmt: on

GROUPS: tuple[tuple[str, tuple[Flag, ...]], ...] = (
    ("model", MODEL_FLAGS),
    ("fp16", FP16_FLAGS),
    ("train", TRAIN_FLAGS),
    ("validation", VALIDATION_FLAGS),
    ("Text generation", GENERATION_FLAGS),
    ("data", DATA_FLAGS),
    ("finetune", FINETUNE_FLAGS),
    ("DeepSpeed", DEEPSPEED_FLAGS),
    ("new in this implementation", OWN_FLAGS),
)
ORIGINAL_NAMES = frozenset(flag.name for title, flags in GROUPS[:-1] for flag in flags)

# Accepted and ignored; not listed by --help. `--lazy-loader` is what a released configuration passes although the
# original's own parser rejects it; `--local-rank` is how newer launchers spell `--local_rank`.
HIDDEN_SWITCHES = ("--lazy-loader",)
HIDDEN_ALIASES = {"--local-rank": "local_rank"}

# Flags without effect, with the reason. The first table holds for every program.
WITHOUT_EFFECT: dict[str, str] = {
    **dict.fromkeys(
        ("intermediate_size", "layernorm_epsilon", "deep_init", "fp32_embedding", "fp32_layernorm", "fp32_tokentypes"),
        "GLM is always 4 x hidden wide, epsilon 1e-5, scaled initialisation, fp32 parameters",
    ),
    **dict.fromkeys(
        ("input_data_sizes_file", "delim", "text_key", "eval_text_key", "loose_json", "presplit_sentences",
         "max_preds_per_seq", "eval_max_preds_per_seq", "use_tfrecords", "deepscale", "deepscale_config"),
        "had none in the original either",
    ),
    "lazy_loader": "token stores are memory-mapped unless --no-lazy-loader is given",
    "fp32_allreduce": "gradients are fp32 already",
    "deepspeed_activation_checkpointing": "--checkpoint-activations recomputes with the right random state by itself",
    "DDP_impl": "torch's DistributedDataParallel is used",
    "resume_dataloader": "a resumed run always continues at its data position",
}  # fmt: skip

# Fine-tuning counts epochs and reads its tasks' own files.
_OF_PRETRAINING = (
    "train_iters", "train_data", "save_interval", "lr_decay_iters", "split", "load_splits", "save_splits",
    "save_test_data", "filter_english", "half_lazy_loader", "loader_scatter", "no_lazy_loader", "no_pre_tokenize",
    "text_field", "text_unit", "skip_malformed", "data_cache_dir", "switch_linear", "multi_task_data",
    "multi_task_ratio", "transformer_xl", "sample_one_document", "non_sentence_start",
)  # fmt: skip
_USED_BY_PRETRAINING = {"load_pretrained", "optimizer", "adam_beta1", "adam_beta2", "adam_eps"}
_OF_OTHER_PROGRAMS = (
    *(flag.dest for flag in (*FINETUNE_FLAGS, *GENERATION_FLAGS) if flag.dest not in _USED_BY_PRETRAINING),
    "pretrained_bert", "output_dropout", "epochs", "label_smoothing", "save_epoch", "eval_epoch", "overlapping_eval",
    "limit", "patience", "pad_to_max", "lora_rank", "lora_alpha", "lora_dropout", "lora_target",
    "lora_adapter", "pattern_ensemble", "index_key", "compatible",
)  # fmt: skip
PRETRAINING_WITHOUT_EFFECT: dict[str, str] = {
    **WITHOUT_EFFECT,
    **dict.fromkeys(_OF_OTHER_PROGRAMS, "concerns fine-tuning, evaluation or generation"),
    **dict.fromkeys(("reset_position_ids", "reset_attention_mask", "mem_length"), "concerns causal models"),
    **dict.fromkeys(("cpu_optimizer", "cpu_torch_adam"), "the optimizer lives where the model does"),
    "vocab_size": "the tokenizer says how large the vocabulary is",
}
FINETUNING_WITHOUT_EFFECT: dict[str, str] = {
    **WITHOUT_EFFECT,
    **dict.fromkeys(_OF_PRETRAINING, "concerns pre-training"),
    **dict.fromkeys(("reset_position_ids", "reset_attention_mask", "mem_length"), "concerns causal models"),
    **dict.fromkeys(("cpu_optimizer", "cpu_torch_adam"), "the optimizer lives where the model does"),
    "vocab_size": "the tokenizer says how large the vocabulary is",
}
