"""What scripts/continue_pretrain.sh works out between its steps: the plan, the length and the report.

OUTPUT/plan.json                 what was asked for, and what was made of it
OUTPUT/flags                     the flags of pretrain_glm.py that all steps share, each followed by a zero byte
OUTPUT/updates                   length of the training
OUTPUT/before.jsonl, after.jsonl losses on the text that is held out, and on the general text
OUTPUT/merged                    of an adapter: the model with it
OUTPUT/checkpoints, OUTPUT/model the result, to go on training and in the Hugging Face layout
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quickstart_corpus import WORD, cpython_documents, deduplicate

from files.errors import run_main
from files.reading import read_json, read_text, value_of
from files.writing import write_whole
from model.hub.describe import ModelDescription, describe_beside, describe_checkpoint
from training.arguments import parse_settings
from training.logging import read_rows
from training.settings import PretrainingSettings, spelling

if TYPE_CHECKING:
    from data_utils.corpora.store import Documents
    from data_utils.tokenizers.tokenizer import Tokenizer

HELD_OUT_EVERY, MOST_HELD_OUT = 20, 500  # documents
# The peak of the learning rate is this over the hidden size, a fraction of what models of that size are trained with:
# 1e-4 at hidden size 1024, 2.4e-5 at 4096.
RATE_TIMES_HIDDEN_SIZE = 0.1
FEWEST_UPDATES = 100
LONGEST_SAMPLES = 512
GENERAL_DOCUMENTS = 60  # of the prose that CPython carries
# A tokenizer made for English takes some 0.2 to 0.4 tokens for a character of it.
MOST_TOKENS_PER_CHARACTER = 0.6
NUM_BLANKS = 3
LONGEST_PASSAGE = 64  # tokens around a blank
LONGEST_ANSWER = 8
# Where nothing says how a model was trained: as the releases with these masks were, or those without (config/).
WITH_TASK_MASKS = {"bert_prob": 0.5, "gap_sentence_prob": 0.3, "gpt_min_ratio": 0.25}
TOKENS_ALONE = {"bert_prob": 1.0}
TOKENS_AND_DOCUMENTS = {"bert_prob": 0.5}  # of the released models below
DOCUMENT_MODELS = ("glm-doc", "glm-410m", "glm-515m")
RUN = "checkpoints/continued"
# Flags of pretrain_glm.py that the steps set themselves.
DECIDED_HERE = (
    "--auto-resume", "--data-cache-dir", "--eval-interval", "--experiment-name", "--keep-checkpoints", "--load",
    "--load-pretrained", "--log-interval", "--metrics-file", "--save", "--save-interval", "--split", "--summary-dir",
    "--test-data", "--train-data", "--train-iters",
)  # fmt: skip
ADAPTER_FILE = "adapter_config.json"
EVALUATION, GENERAL = "evaluation", "test"  # kinds of rows
OBJECTIVES = {"": "all objectives", "bert_": "token", "sent_": "sentence", "gpt_": "document"}


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line of the plan: what is asked for, and the flags that go to pretrain_glm.py."""
    count = next((index for index, word in enumerate(argv) if word.startswith("--")), len(argv))
    if count < 2:
        raise ValueError(
            "name a checkpoint, then files of text: bash scripts/continue_pretrain.sh CHECKPOINT FILES... (given: "
            f"{shlex.join(argv[:count]) or 'none of them'})"
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--tokens", type=float)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--output", type=Path, default=Path("continued"))
    parser.add_argument("--general", nargs="+")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    try:
        values, rest = parser.parse_known_args(list(argv[count:]))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    values.checkpoint, values.files = Path(argv[0]), list(argv[1:count])
    for word in rest:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in DECIDED_HERE:
            raise ValueError(
                f"{flag} is decided here: CHECKPOINT and FILES come first, --tokens or --hours say how long, --output "
                "where to, --valid-data and --general what is measured; leave it out"
            )
    for name in ("tokens", "hours"):
        value = getattr(values, name)
        if value is not None and not 0 < value < 1e15:
            raise ValueError(f"--{name} is {value:g}; a number above 0 is needed")
    if values.tokens and values.hours:
        raise ValueError("--tokens and --hours both say how long to train; give one of them")
    return values, rest


def whole_model(values: argparse.Namespace) -> Path:
    """Return the checkpoint to start from: the one that was named or, of an adapter, the model with it."""
    named: Path = values.checkpoint
    folder = next((place for place in (named, named / "adapter") if (place / ADAPTER_FILE).is_file()), None)
    if folder is None:
        if values.base is not None:
            raise ValueError(f"--base is for adapters, and {named} has no {ADAPTER_FILE}; leave it out")
        return named
    base = values.base
    if base is None:
        file = folder / ADAPTER_FILE
        base = value_of(read_json(file), "base_model_name_or_path", str, place=str(file), default=None)
        if base is None or not Path(base).exists():
            raise ValueError(f"{file}: its model {base} is not there; name the model it was trained on with --base")
    from model.hub.adapters import merge_into_checkpoint, read_adapter

    merged: Path = values.output / "merged"
    values.output.mkdir(parents=True, exist_ok=True)
    merge_into_checkpoint(Path(base), read_adapter(folder), merged)
    print(f"adapter: {folder} is merged into {base}, and all weights are trained: {merged}")
    return merged


def describe(checkpoint: Path) -> ModelDescription:
    """Return what model and tokenizer ``checkpoint`` is. Raises ValueError where nothing says it."""
    from model.checkpoints.reading import resolve_checkpoint

    description = describe_checkpoint(resolve_checkpoint(checkpoint).path)
    if description is None or description.tokenizer is None:
        missing = "what model this is" if description is None else "which tokenizer it has"
        raise ValueError(
            f"{checkpoint}: nothing says {missing}; give a folder that a run or an export has written, or a released "
            "one under its own name (python -m model.released lists them)"
        )
    if not description.sizes.get("block_position_encoding", True):
        raise ValueError(f"{checkpoint} predicts in place (--masked-lm); pre-training fills blanks: give another model")
    return description


def objectives(description: ModelDescription) -> tuple[dict[str, Any], str]:
    """Return the options of samples and objectives to go on with, and where they are from."""
    if "bert_prob" in description.pretraining:
        return dict(description.pretraining), f"as {description.source} says"
    sizes, dropout = description.sizes, {}
    if description.hub_fields is not None:
        dropout = {"hidden_dropout": sizes["output_dropout"], "attention_dropout": sizes["attention_dropout"]}
    if description.name in DOCUMENT_MODELS:
        return {**TOKENS_AND_DOCUMENTS, **dropout}, "of this released model"
    assert description.tokenizer is not None
    if description.tokenizer.task_mask:
        return {**WITH_TASK_MASKS, **dropout}, "of the released models with [gMASK] and [sMASK]"
    return {**TOKENS_ALONE, **dropout}, "of the released models with [MASK] alone"


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Return options of pretrain_glm.py by name as they are typed."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [spelling(name)] if value is True else [spelling(name), str(value)]
    return words


def read_text_of_run(flags: Sequence[str]) -> tuple[PretrainingSettings, Tokenizer, Documents]:
    """Tokenize the training text that ``flags`` name, once; return it with settings and tokenizer."""
    from data_utils.corpora.named import split_weight
    from mpu.initialize import ParallelTopology
    from training.data import PretrainingDocuments, build_run_tokenizer

    settings = parse_settings(PretrainingSettings, flags, environment={})
    tokenizer = build_run_tokenizer(settings)
    reader = PretrainingDocuments(settings, tokenizer=tokenizer, topology=ParallelTopology.single())
    sources = [split_weight(source)[0] for source in settings.corpus.train_data or ()]
    return settings, tokenizer, reader.read(sources)


def general_text(values: argparse.Namespace, tokenizer: Tokenizer) -> list[str]:
    """Return the files of the text that should not be forgotten; none where there is none in the tokenizer's language.

    Without ``--general`` it is written: every twentieth of the documents of English prose that CPython carries.
    """
    if values.general is not None:
        return values.general
    texts = [text for text in deduplicate(cpython_documents()) if len(text) >= 200][::HELD_OUT_EVERY]
    texts = texts[:GENERAL_DOCUMENTS]
    rate = sum(map(len, tokenizer.encode_batch(texts))) / sum(map(len, texts))
    if rate > MOST_TOKENS_PER_CHARACTER:
        print(
            f"general text: none; the tokenizer cuts English into {rate:.2f} tokens a character, so it was made for "
            "another language, of which CPython carries no prose: --general FILE names some"
        )
        return []
    file = values.output / "general.jsonl"
    write_whole(file, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [str(file)]


def model_flags(checkpoint: Path, description: ModelDescription) -> tuple[list[str], str]:
    """Return the flags that go on with ``checkpoint``, at a rate for its size, and where its objectives are from."""
    own, source = objectives(description)
    sizes = description.sizes
    own.setdefault("seq_length", min(LONGEST_SAMPLES, sizes["max_position_embeddings"]))
    flags = ["--load-pretrained", str(checkpoint), "--block-lm"]
    if describe_beside(checkpoint) is None:  # a released one: pretrain_glm.py reads what lies beside weights by itself
        flags += as_flags(description.options() | {"block_lm": False})
    rate = RATE_TIMES_HIDDEN_SIZE / sizes["hidden_size"]
    flags += as_flags({**own, "no_block_position": not description.block_positions})
    flags += ["--batch-size", "8", "--lr", f"{rate:.2g}", "--warmup", "0.1", "--lr-decay-style", "cosine", "--bf16"]
    return flags, source


def is_planned(output: Path, asked: Mapping[str, Any]) -> bool:
    """Tell whether ``output`` has a plan. Raises ValueError for one of another command than ``asked``."""
    file = output / "plan.json"
    if not file.is_file():
        return False
    before = value_of(read_json(file), "asked", dict, place=str(file))
    if changed := [name for name, value in asked.items() if before.get(name) != value]:
        raise ValueError(
            f"{output} belongs to another command, with {changed[0]} {before.get(changed[0])} in place of "
            f"{asked[changed[0]]}: repeat that one to go on, or name another --output"
        )
    return True


def plan(argv: Sequence[str]) -> None:
    """Decide on everything, print it, and leave it in the output folder; a plan that is there stays as it is."""
    values, typed = parse_arguments(argv)
    output: Path = values.output
    named = ("tokens", "hours", "general", "base", "processes")
    asked = {"checkpoint": str(values.checkpoint), "files": values.files, "flags": typed}
    asked |= {name: getattr(values, name) and str(getattr(values, name)) for name in named}
    if is_planned(output, asked):
        print(f"goes on with what is in {output}")
        return
    checkpoint = whole_model(values)
    try:
        decide(values, typed, checkpoint=checkpoint, asked=asked)
    except BaseException:
        if checkpoint != values.checkpoint:
            shutil.rmtree(checkpoint)  # what nothing says the origin of
        raise


def decide(values: argparse.Namespace, typed: Sequence[str], *, checkpoint: Path, asked: Mapping[str, object]) -> None:
    """Make the plan for a whole model."""
    output: Path = values.output
    description = describe(checkpoint)
    flags, source = model_flags(checkpoint, description)
    flags += ["--train-data", *values.files, "--data-cache-dir", str(output / "cache")]
    flags += ["--eval-iters", "40", "--summary-dir", str(output)]
    settings, tokenizer, documents = read_text_of_run([*flags, *typed])
    held_out = min(max(1, len(documents) // HELD_OUT_EVERY), MOST_HELD_OUT)
    held_out_text = "--valid-data"
    if not settings.data.valid_data:
        if len(documents) < 2:
            raise ValueError(
                f"the text is {len(documents)} document, and one is held out to measure the loss: give more, name such "
                "text with --valid-data, or let --text-unit paragraph make a document of each paragraph of a .txt file"
            )
        flags += ["--split", f"{len(documents) - held_out},{held_out},0"]
        held_out_text = f"one document in {len(documents) // held_out}"
    output.mkdir(parents=True, exist_ok=True)
    general = general_text(values, tokenizer)
    flags += ["--test-data", *general] if general else []
    batch, blank = settings.batch, settings.blank
    ranks = values.processes // min(settings.device.model_parallel_size, values.processes)
    per_update = batch.batch_size * batch.gradient_accumulation_steps * batch.seq_length * ranks
    tokens = int(documents.lengths.sum())
    length = f"{values.hours} hours"
    if not values.hours:
        updates = math.ceil((values.tokens or max(tokens, FEWEST_UPDATES * per_update)) / per_update)
        write_whole(output / "updates", f"{updates}\n")
        length = f"{updates:,} updates of {per_update:,} tokens"
    document = max(0.0, 1 - blank.bert_prob - blank.gap_sentence_prob)
    shares = f"{blank.bert_prob:.0%} token, {blank.gap_sentence_prob:.0%} sentence, {document:.0%} document"
    for name, text in (
        ("model", f"{checkpoint}, {description.sizes['num_layers']} layers, hidden {description.sizes['hidden_size']}"),
        ("objectives", f"{shares}, {source}"),
        ("text", f"{len(documents):,} documents, {tokens:,} tokens; held out: {held_out_text}"),
        ("general text", " ".join(map(str, general)) or "none"),
        ("length", f"{length}, learning rate up to {settings.optimizer.lr:g}"),
    ):
        print(f"{name + ':':<14}{text}")
    write_whole(output / "result", f"{result(description)}\n")
    write_whole(output / "flags", "".join(f"{word}\0" for word in [*flags, *typed]))
    write_whole(output / "plan.json", json.dumps({"asked": asked, "checkpoint": str(checkpoint)}, indent=2) + "\n")


def result(description: ModelDescription) -> str:
    """Return the folder of the result: the export or, where the layout has no class of the tokenizer, the run."""
    assert description.tokenizer is not None
    try:
        description.tokenizer.hub_class()
    except ValueError as error:
        print(f"export:       none, {error}")
        return RUN
    return "model"


def set_updates(output: Path) -> None:
    """Work the length out of ``--hours`` and the speed of the first updates."""
    asked = value_of(read_json(output / "plan.json"), "asked", dict, place=str(output / "plan.json"))
    row = [row for row in read_rows(output / "speed.jsonl") if row["kind"] == "train"][-1]
    updates = max(1, int(float(asked["hours"]) * 3_600_000 / row["elapsed_ms"]))
    print(f"{row['elapsed_ms']:.0f} ms an update: {updates:,} updates in {asked['hours']} hours")
    write_whole(output / "updates", f"{updates}\n")


def loss_table(output: Path) -> list[str]:
    """Return the lines of losses before and after: of the new text that is held out, and of the general text."""
    before, after = read_rows(output / "before.jsonl"), read_rows(output / "after.jsonl")
    lines = [f"{'loss in nats a token, on text held out':<42}{'before':>8}{'after':>9}"]
    for kind, name in ((EVALUATION, "new text"), (GENERAL, "general text")):
        first, last = ([row for row in rows if row["kind"] == kind][-1:] for rows in (before, after))
        for key, objective in OBJECTIVES.items() if first and last else ():
            old, new = (rows[0].get(f"{key}loss") for rows in (first, last))
            if old and new:
                lines.append(f"  {name + ', ' + objective:<40}{old:8.3f}{new:9.3f}  ({new - old:+.3f})")
    return lines


def blanks_of(flags: Sequence[str]) -> list[tuple[str, str]]:
    """Return passages of the held-out text with [MASK] in place of a word, or of a character where words are joined.

    A passage is the beginning of a document, its blank in the middle third, and takes half the model's positions.
    """
    from mpu.initialize import ParallelTopology
    from training.data import PretrainingDocuments, build_run_tokenizer

    settings = parse_settings(PretrainingSettings, flags, environment={})
    tokenizer = build_run_tokenizer(settings)
    reader = PretrainingDocuments(settings, tokenizer=tokenizer, topology=ParallelTopology.single())
    held_out = reader.parts()[1]
    assert held_out is not None
    room = min(LONGEST_PASSAGE, settings.model.max_position_embeddings // 2)
    generator = random.Random(settings.run.seed)
    blanks: list[tuple[str, str]] = []
    for number in generator.sample(range(len(held_out)), len(held_out)):
        text = tokenizer.decode(held_out[number].tokens[:room].tolist())
        words = [match for match in WORD.finditer(text) if len(text) < 3 * match.start() < 2 * len(text)]
        if words and "MASK]" not in text and len(blanks) < NUM_BLANKS:
            word = generator.choice(words)
            blanks.append((f"{text[: word.start()]}[MASK]{text[word.end() :]}", word[0]))
    return blanks


def report(output: Path) -> None:
    """Print losses and blanks before and after, and what to type next."""
    from generation.api import load_model
    from generation.sampling import DecodingSettings

    file = output / "plan.json"
    checkpoint = value_of(read_json(file), "checkpoint", str, place=str(file))
    flags = read_text(output / "flags").split("\0")[:-1]
    print("\n".join(loss_table(output)))
    blanks = blanks_of(flags)
    prompts = [prompt for prompt, _ in blanks]
    model = output / read_text(output / "result").strip()
    greedy = DecodingSettings(max_length=LONGEST_ANSWER, top_k=1)
    filled = [load_model(path).fill(prompts, settings=greedy) for path in (checkpoint, model)] if prompts else [[], []]
    for (prompt, truth), old, new in zip(blanks, *filled, strict=True):
        print(f"\n  {' '.join(prompt.split())} ...\n    there was: {truth}")
        for name, answer in (("before:", old.answers[0]), ("after:", new.answers[0])):
            print(f"    {name:<11}{answer.strip() or '(nothing but white space)'}")
    top = Path(__file__).resolve().parent.parent
    script = "scripts/generate_block.sh" if top.samefile(Path.cwd()) else str(top / "scripts" / "generate_block.sh")
    print(f"\nDone: {model} is the model, {output / RUN} the run. Fill blanks with it, and blanks of your own:")
    for words in [*(["--prompt", " ".join(prompt.split())] for prompt in prompts[:1]), []]:
        print(f"  {shlex.join(['bash', script, str(model), '--top-k', '1', *words])}")


def main() -> int:
    """Do the step that is named."""
    step, argv = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    steps = {"updates": set_updates, "report": report}
    if step == "plan":
        plan(argv)
    elif step in steps and len(argv) == 1:
        steps[step](Path(argv[0]))
    else:
        raise ValueError("this is a part of scripts/continue_pretrain.sh; type that")
    return 0


if __name__ == "__main__":
    run_main(main)
