"""Evaluate a checkpoint on what was published of GLM, and print measured beside published.

    python scripts/reproduce.py copa --checkpoint checkpoints/finetuned/GLM-10B-copa_11-29-05-12
    python scripts/reproduce.py lambada wikitext --checkpoint checkpoints/glm-10b-1024
    LIMIT=8 python scripts/reproduce.py --all --tiny build/reproduction      that every row runs, with small models
    python scripts/reproduce.py --table                                      the tables of docs/reproduction.md

Each row runs the script that evaluates its task, without training, and reads the results file of that run
(runs/reproduce-ROW). Data lie below --data-root as docs/reproduction.md says, or where --data names them. Flags after
-- and the variables of the scripts (LIMIT, N_GPU, MP_SIZE ...) go to every row. The exit code is 1 where a row fails,
or a figure that can be compared is further off than its tolerance.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dispatcher import last_error

from files.errors import run_main
from files.reading import read_json, value_of

REPOSITORY = Path(__file__).resolve().parent.parent
ENGLISH, MULTILINGUAL = "config_tasks/model_blocklm_10B.sh", "config_tasks/model_blocklm_multilingual_large.sh"
LARGE, SMALL_ENGLISH = "config_tasks/model_blocklm_large.sh", "config_tasks/model_blocklm_tiny.sh"
TRAINING_FLAGS = """--block-lm --task-mask --num-layers 2 --hidden-size 32 --num-attention-heads 2 --batch-size 2
    --max-position-embeddings 1024 --seq-length 64 --train-iters 1"""


@dataclass(frozen=True)
class Figure:
    """A published number.

    Attributes:
        metric: its name in our results files.
        published: percent, or a perplexity.
        tolerance: how far a measured one may be off; docs/reproduction.md says where it comes from.
        scale: what ours is multiplied with: 100 for shares of 1.
    """

    metric: str
    published: float
    tolerance: float
    scale: float = 1.0


def share(metric: str, published: float, count: int, *, scale: float = 1.0) -> Figure:
    """Return a figure in percent over ``count`` examples: two standard errors are tolerated."""
    part = published / 100
    return Figure(metric, published, round(200 * sqrt(part * (1 - part) / count), 2), scale)


def rouge(*published: float, ending: str = "") -> tuple[Figure, ...]:
    """Return ROUGE-1, -2 and -L in percent; ``ending`` chooses among the ways of counting that results files have."""
    names = (f"rouge-{kind}{ending}" for kind in "12l")
    return tuple(Figure(name, value, 0.5, 100.0) for name, value in zip(names, published, strict=True))


@dataclass(frozen=True)
class Row:
    """One published result: what was measured, and the script that measures it.

    Attributes:
        script, task: of ``scripts/`` and ``config_tasks/``; evaluates, with the epochs set to 0.
        training: the script that fine-tunes; None for what is evaluated without.
        data: below ``--data-root``.
        figures: in the order of the publication.
        others: what other models had, in the order of ``figures``.
        model: the file of the published model in ``config_tasks/``.
        flags: what the evaluation is given besides.
    """

    script: str
    task: str
    training: str | None
    data: str
    figures: tuple[Figure, ...]
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    model: str = ENGLISH
    flags: tuple[str, ...] = ()


def superglue(task: str, folder: str, *figures: Figure, deberta: tuple[float, ...] = ()) -> Row:
    others = {"DeBERTa-XXLarge-v2": deberta}
    scripts = "finetune_superglue.sh", f"task_{task}.sh", "ds_finetune_superglue.sh"
    return Row(*scripts, f"superglue/{folder}", figures, others, flags=("--eval-valid",))


def summaries(
    task: str,
    data: str,
    figures: tuple[Figure, ...],
    others: Mapping[str, tuple[float, ...]],
    *,
    training: str = "ds_finetune_seq2seq.sh",
    model: str = ENGLISH,
) -> Row:
    return Row("finetune_seq2seq.sh", task, training, data, figures, others, model)


def language_model(task: str, data: str, figure: Figure, others: Mapping[str, tuple[float, ...]], *flags: str) -> Row:
    return Row("evaluate_lm.sh", task, None, data, (figure,), others, flags=flags)


def multilingual(script: str, task: str, data: str, *figures: Figure, mt5: tuple[float, ...], flags: str = "") -> Row:
    place, others = f"multilingual/{data}", {"mT5-Large": mt5}
    return Row(script, task, f"ds_{script}", place, figures, others, MULTILINGUAL, tuple(flags.split()))


LAMBADA_OTHERS = {"GPT-2": (52.66,), "Megatron-LM (8.3B)": (66.51,), "Turing-NLG": (67.98,)}
WIKITEXT_OTHERS = {"GPT-2": (17.48,), "Megatron-LM (8.3B)": (10.81,), "Turing-NLG": (10.21,)}
LAMBADA, WIKITEXT = "lm/lambada_test.jsonl", "lm/wikitext-103/wiki.test.tokens"
PERPLEXITY = "adjusted ppl"  # per word
AS_PUBLISHED = "--legacy-qa-eval --qa-normalization mglm"
SECTIONS: dict[str, dict[str, Row]] = {
    "SuperGLUE, development set: GLM-10B, one model per task": {
        "copa": superglue("copa", "COPA", share("accuracy", 98.0, 100), deberta=(97.0,)),
        "wsc": superglue("wsc", "WSC", share("accuracy", 95.2, 104)),
        "rte": superglue("rte", "RTE", share("accuracy", 93.1, 277), deberta=(93.5,)),
        "wic": superglue("wic", "WiC", share("accuracy", 75.7, 638)),
        "cb": superglue("cb", "CB", share("f1-macro", 98.7, 56, scale=100), share("accuracy", 98.2, 56)),
        "multirc": superglue("multirc", "MultiRC", share("f1a", 88.1, 4848, scale=100),
                             share("em", 63.3, 953, scale=100), deberta=(87.8, 63.6)),
        "boolq": superglue("boolq", "BoolQ", share("accuracy", 88.7, 3270), deberta=(88.3,)),
        "record": superglue("record", "ReCoRD", share("F1", 94.4, 10000), share("EM", 94.0, 10000),
                            deberta=(94.1, 93.7)),
    },
    "Summaries, test set: GLM-10B, no additional data": {
        "cnndm": summaries("seq_cnndm_org.sh", "seq2seq/cnn_dm_original", rouge(44.7, 21.4, 41.4, ending="-plain"),
                           {"T5-11B": (43.5, 21.6, 40.7), "PEGASUS-Large": (44.2, 21.5, 41.4),
                            "BART-Large": (44.2, 21.3, 40.9)}),
        "xsum": summaries("seq_xsum.sh", "seq2seq/xsum", rouge(48.9, 25.7, 40.4, ending="-plain"),
                          {"PEGASUS-Large": (47.2, 24.6, 39.3), "BART-Large": (45.1, 22.3, 37.3)}),
    },
    "Language modelling, test set, without training: GLM-10B": {
        "lambada": language_model("zero_lambada.sh", LAMBADA, Figure("accuracy", 72.35, 0.2), LAMBADA_OTHERS),
        "lambada-uni": language_model("zero_lambada_uni.sh", LAMBADA, Figure("accuracy", 67.18, 0.2), LAMBADA_OTHERS),
        "wikitext": language_model("zero_wikitext.sh", WIKITEXT, Figure(PERPLEXITY, 11.33, 0.05), WIKITEXT_OTHERS),
        "wikitext-uni": language_model("zero_wikitext.sh", WIKITEXT, Figure(PERPLEXITY, 12.22, 0.05), WIKITEXT_OTHERS,
                                       "--unidirectional"),
    },
    "Many languages, test set: mGLM-1B": {
        "xnli": multilingual("finetune_superglue.sh", "task_xnli.sh", "xnli", share("accuracy", 75.6, 5010),
                             mt5=(81.1,)),
        "pawsx": multilingual("finetune_superglue.sh", "task_pawsx.sh", "pawsx", share("accuracy", 85.2, 2000),
                              mt5=(88.9,)),
        "xquad": multilingual("finetune_seq2seq.sh", "seq_squad_v1.sh", "", share("F1", 83.6, 1190),
                              share("EM", 71.9, 1190), mt5=(77.8, 61.5), flags=AS_PUBLISHED),
        "mlqa": multilingual("finetune_seq2seq.sh", "seq_mlqa.sh", "mlqa", share("F1", 67.52, 4918),
                             share("EM", 54.34, 4918), mt5=(71.2, 51.7), flags=AS_PUBLISHED),
        "tydiqa": multilingual("finetune_seq2seq.sh", "seq_tydiqa.sh", "tydiqa", share("F1", 69.6, 440),
                               share("EM", 55.6, 440), mt5=(69.9, 52.2), flags=AS_PUBLISHED),
        "ncls": summaries("seq_ncls.sh", "multilingual/ncls", rouge(50.27, 30.94, 38.44),
                          {"mT5-Large": (42.31, 22.40, 31.33)}, training="ds_finetune_summary.sh", model=MULTILINGUAL),
    },
    "Cloze test on ReCoRD, eight BI-V100, batch size 8: GLM-Large": {
        "cloze": Row("finetune_superglue.sh", "task_cloze_test.sh", "cloze_benchmark/run.sh", "cloze",
                     (share("accuracy", 81.0, 10000, scale=100),), model=LARGE, flags=("--eval-valid",)),
    },
}  # fmt: skip
ROWS = {name: row for section in SECTIONS.values() for name, row in section.items()}


def as_published(values: Sequence[float]) -> str:
    """Return the numbers of a cell with one decimal each, or with two where one of them has two."""
    decimals = 1 if all(value == round(value, 1) for value in values) else 2
    return "/".join(f"{value:.{decimals}f}" for value in values)


def tables() -> str:
    """Return all rows as the tables of docs/reproduction.md."""
    parts = []
    for title, rows in SECTIONS.items():
        others = list(dict.fromkeys(name for row in rows.values() for name in row.others))
        lines = [["row", "metrics", "published", "tolerance", *others, "fine-tuned with", "data"]]
        for name, row in rows.items():
            figures = row.figures
            published = as_published([figure.published for figure in figures])
            tolerance = "/".join(f"{figure.tolerance:g}" for figure in figures)
            theirs = [as_published(row.others.get(other, ())) or "-" for other in others]
            training = f"`{row.training} {row.task}`" if row.training else "-"
            metrics = "/".join(f"`{figure.metric}`" for figure in figures)
            lines.append([f"`{name}`", metrics, published, tolerance, *theirs, training, f"`{row.data}`"])
        lines.insert(1, ["---"] * len(lines[0]))
        parts.append("\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join(parts)


def run(command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command with its output in a file; raise ValueError with its last error when it fails."""
    print("+", shlex.join(command), f"> {log}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        said = last_error(log.read_text(encoding="utf-8", errors="replace")).removeprefix("error: ")
        raise ValueError(f"{command[1]} ended with {code}: {said} (all of it: {log})")


@dataclass(frozen=True)
class Model:
    """What a row is evaluated with: a file of ``config_tasks/`` (None: that of the row), its variables, weights."""

    file: str | None
    checkpoint: Path
    variables: Mapping[str, str] = field(default_factory=dict)


def small_model(file: str, folder: Path, *, data: Path) -> Model:
    """Make the small model of ``--tiny`` that stands in for the rows' model ``file``, or find it in ``folder``."""
    texts, vocabulary = folder / "texts", folder / "multilingual.model"
    if file != MULTILINGUAL:
        prefix, stand_in, corpus = "TINY", SMALL_ENGLISH, str(data / LAMBADA)
        tokenizer = ["--tokenizer-type", "BertWordPieceTokenizer", "--tokenizer-model-type", "bert-base-uncased"]
    else:
        prefix, stand_in, corpus = "MGLM", file, f"multilingual={texts}"
        tokenizer = ["--tokenizer-type", "ChineseSPTokenizer", "--tokenizer-model-type", str(vocabulary)]
        if not vocabulary.exists():
            for words in (
                ["scripts/multilingual_texts.py", str(data / "multilingual"), str(texts)],
                ["-m", "data_utils.train_tokenizer", corpus, "--vocab-size", "8000", "--output", str(vocabulary),
                 "--words", "Maybe", "True", "False", "Yes", "No"],
            ):  # fmt: skip
                run([sys.executable, *words], log=folder / "logs" / "vocabulary.txt")
    name = Path(stand_in).stem
    if not list(folder.glob(f"{name}*/latest")):
        words = [*TRAINING_FLAGS.split(), "--train-data", corpus, *tokenizer, "--experiment-name", name,
                 "--save", str(folder), "--summary-dir", str(folder)]  # fmt: skip
        run([sys.executable, "pretrain_glm.py", *words], log=folder / "logs" / f"{name}.txt")
    sizes = {f"{prefix}_LAYERS": "2", f"{prefix}_HIDDEN_SIZE": "32", f"{prefix}_HEADS": "2"}
    variables = {"MGLM_TOKENIZER": str(vocabulary)} if file == MULTILINGUAL else {"TOKENIZER_ARGS": " ".join(tokenizer)}
    return Model(stand_in, next(folder.glob(f"{name}*/latest")).parent, sizes | variables)


def measure(name: str, model: Model, *, data: Path, output: Path, flags: Sequence[str]) -> list[float]:
    """Evaluate one row; return the figures in their order. Raises ValueError when the run fails."""
    row, experiment = ROWS[name], f"reproduce-{name}"
    command = ["bash", f"scripts/{row.script}", model.file or row.model, f"config_tasks/{row.task}", *row.flags,
               "--load-pretrained", str(model.checkpoint), "--experiment-name", experiment,
               "--summary-dir", str(output), *flags]  # fmt: skip
    variables = {"DATA_PATH": str(data), "EPOCHS": "0", "LOG_NAME": experiment, "PYTHON": sys.executable}
    file = output / "runs" / experiment / "test_results.json"
    file.unlink(missing_ok=True)
    run(command, log=output / "logs" / f"{name}.txt", environment={**model.variables, **variables})
    results: dict[str, Any] = read_json(file)
    return [value_of(results, figure.metric, float, place=str(file)) * figure.scale for figure in row.figures]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--checkpoint", type=Path, help="the weights: a run's folder, a released one, a file")
    parser.add_argument("--model", type=Path, help="file of config_tasks/ (default: that of the published model)")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="small models instead, which are made in FOLDER")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DATA_ROOT") or "data"),
                        help="folder with superglue, seq2seq, lm, multilingual (DATA_ROOT, else data)")  # fmt: skip
    parser.add_argument("--data", action="append", default=[], metavar="ROW=PATH", help="data of one row elsewhere")
    parser.add_argument("--output", type=Path, default=Path("."), help="where runs/ and logs/ are made (.)")
    parser.add_argument("--table", action="store_true", help="print what was published, and evaluate nothing")
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--") if "--" in words else len(words)
    values = parser.parse_args(words[:place])
    values.flags = words[place + 1 :]
    elsewhere = dict(text.partition("=")[::2] for text in values.data)
    unknown = [name for name in (*values.rows, *elsewhere) if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; known are {', '.join(ROWS)}")
    if not values.table and not (values.all or values.rows):
        parser.error("name rows, or give --all")
    if not values.table and (values.checkpoint is None) == (values.tiny is None):
        parser.error("give --checkpoint, or --tiny")
    values.data = {
        name: Path(elsewhere.get(name) or values.data_root / row.data).resolve() for name, row in ROWS.items()
    }
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the rows, and print a line for each."""
    values = parse_arguments(argv)
    if values.table:
        print(tables())
        return 0
    names = list(ROWS) if values.all else values.rows
    missing = [f"{name}: {values.data[name]}" for name in names if not values.data[name].exists()]
    if missing:
        raise ValueError(f"no data for {', '.join(missing)}; see --data-root and --data")
    output = values.output.resolve()
    used = dict.fromkeys(ROWS[name].model for name in names)
    if values.tiny is not None:
        models = {file: small_model(file, values.tiny.resolve(), data=values.data_root.resolve()) for file in used}
    else:
        file = None if values.model is None else str(values.model.resolve())
        models = dict.fromkeys(used, Model(file, values.checkpoint.resolve()))
    limit = os.environ.get("LIMIT")
    reasons = [*(["a small model"] if values.tiny else []), *([f"LIMIT={limit}"] if limit else [])]
    lines, code = [("row", "metrics", "measured", "published", "tolerance", "")], 0
    for name in names:
        figures, chosen = ROWS[name].figures, models[ROWS[name].model]
        try:
            found = measure(name, chosen, data=values.data[name], output=output, flags=values.flags)
            far = any(abs(value - figure.published) > figure.tolerance for value, figure in zip(found, figures))
            measured, verdict = "/".join(f"{value:.2f}" for value in found), "NOT reproduced" if far else "reproduced"
            if reasons:
                far, verdict = False, f"not to be compared: {', '.join(reasons)}"
        except (ValueError, OSError) as error:
            far, measured, verdict = True, "-", f"failed: {error}"
        code = 1 if far else code
        metrics = "/".join(figure.metric for figure in figures)
        published = as_published([figure.published for figure in figures])
        tolerance = "/".join(f"{figure.tolerance:g}" for figure in figures)
        lines.append((name, metrics, measured, published, tolerance, verdict))
    widths = [max(map(len, column)) + 2 for column in zip(*lines)]
    for line in lines:
        print("".join(f"{text:<{width}}" for text, width in zip(line, widths)).rstrip())
    return code


if __name__ == "__main__":
    run_main(main)
