"""Type every command of README.md, README.zh-CN.md and docs/*.md in a fresh clone, and say which work.

    python -m tests.helpers.typed [--only PATTERN] [--output typed.txt]

The files that commands name (``/path/to/RTE``, ``prompts.txt``) are a few made-up lines. Commands of large models,
and of released vocabularies, are planned (DRY_RUN=1), long ones shortened, and some left out: the table ``CHANGES``
says which and why. Everything printed goes to the output file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from files.errors import run_main
from tests.helpers import REPOSITORY

BLOCK = re.compile(r"^```(?:shell|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LEFT_OUT, PLANNED = "left out", "DRY_RUN=1"
# What a command has in it -> what is done with it: the first that fits.
CHANGES: list[tuple[str, str]] = [
    (r"^docker |^pip install|^glm-|python -m build|collect_env", f"{LEFT_OUT}: for test_wheel.py"),
    (r" \.\.\.|CHECKPOINT NAME|DIR_OR_HUB_NAME|^export |\$MODEL|multilingual=texts", f"{LEFT_OUT}: an outline"),
    (r"^(torchrun|deepspeed|accelerate) |mt5|scisummnet|multilingual_texts", f"{LEFT_OUT}: needs other files"),
    (r"scripts/serve\.sh|^curl ", f"{LEFT_OUT}: a server, which tests/generation/web starts"),
    (r"scripts/test\.sh|scripts/check\.sh|tests\.fuzz|reproduce\.py|preparedata|cloze_benchmark", f"{LEFT_OUT}: long"),
    (r"^bash \w+\.sh|glm-large-blank\.tar", f"{LEFT_OUT}: as typed in a folder of the release"),
    (r"glm-10b|blocklm-large|pretrained\.pt|checkpoints/rte", f"{LEFT_OUT}: needs released weights"),
    (r"lm_eval_model", f"{LEFT_OUT}: needs lm-eval, an extra of its own"),
    (r"RUN/best|runs/EXPERIMENT", f"{LEFT_OUT}: an outline"),
    (r"generate_samples\.py .*bert-base-uncased", f"{LEFT_OUT}: needs a released vocabulary"),
    (r"bert-base-uncased", " --dry-run"),
    (r"generate_block\.sh config_tasks/model_blocklm_(?!tiny)", PLANNED),
    (r"config/ds_block_tiny", " --train-iters 4 --save-interval 4 --eval-iters 1"),
    (r"model_blocklm_(?!tiny)|config/ds_", PLANNED),
    (r"continue_pretrain\.sh", " --tokens 4e3 --eval-iters 2"),
    (r"quickstart\.sh", " --steps 20"),
    (r"dispatcher\.py.*", ' --grid {"seed":[1],"lr":[1e-4],"batch-size":[4],"epochs":[1]}'),
    (r"customization", " --tgt-seq-length 16 --min-tgt-length 2 --num-beams 1"),
    (r"zero_wikitext|zero_lm", " --limit 2"),
]  # fmt: skip
SENTENCES = [
    "The cat sat on the mat.",
    "A dog slept by the fire.",
    "It was a cold and dark night.",
    "Nobody heard the bell.",
]


class Command(NamedTuple):
    """A command and the page it stands on."""

    page: str
    text: str


def commands() -> list[Command]:
    """Return every command of the pages, in order, a command of several lines as one."""
    found: dict[str, Command] = {}
    for page in (*sorted(REPOSITORY.glob("README*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))):
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                text = re.sub(r"\s+#\s.*|^#.*", "", line).strip()
                if text:
                    found.setdefault(text, Command(page.name, text))
    return list(found.values())


def write(path: Path, *lines: str | dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


def make_files(given: Path, clone: Path) -> None:
    """Write what the commands name: files of tasks into ``given``, those named by relative paths into the clone."""
    for name, labels in (("RTE", ["entailment", "not_entailment"]), ("CB", ["entailment", "contradiction", "neutral"])):
        rows = [
            {"premise": SENTENCES[n % 4], "hypothesis": SENTENCES[n // 4], "label": labels[n % len(labels)], "idx": n}
            for n in range(16)
        ]
        for split in ("train", "val", "test"):
            write(given / name / f"{split}.jsonl", *rows)
    (clone / "data").mkdir(exist_ok=True)
    (clone / "data" / "CB").symlink_to(given / "CB")
    for split in ("train", "val", "test"):
        for folder in (given / "my_data", given / "pairs", clone / "mydata"):
            write(folder / f"{split}.source", *(f"{one} {two}" for one in SENTENCES for two in SENTENCES))
            write(folder / f"{split}.target", *(one for one in SENTENCES for _ in SENTENCES))
    news = [{"label": "102", "label_desc": "news_entertainment", "sentence": "电影今天上映", "keywords": ""},
            {"label": "103", "label_desc": "news_sports", "sentence": "球队赢了比赛", "keywords": ""}]  # fmt: skip
    for split in ("train", "dev", "test"):
        write(given / "tnews" / f"{split}.json", *news * 4)
    chinese = "今天天气很好，我们去公园散步。他在图书馆里读了一本很好的书。我们的学校在城市的中心，离家不远。"
    write(given / "zh.txt", *(f"{number}：{chinese}" for number in range(300)))
    write(given / "lambada_test.jsonl", *({"text": sentence.rstrip(".")} for sentence in SENTENCES))
    write(given / "wiki.test.tokens", *SENTENCES)
    write(given / "books_heldout.txt", *SENTENCES)
    write(
        given / "questions" / "q.jsonl", {"inputs_pretokenized": "It was [MASK] .", "choices_pretokenized": ["a", "b"]}
    )
    write(clone / "prompts.txt", "It was a [MASK] night.")
    write(clone / "my_text.jsonl", *({"text": f"{one} {two}"} for one in SENTENCES for two in SENTENCES))
    (clone / "checkpoints").mkdir()
    (clone / "checkpoints" / "my-glm").symlink_to("blocklm-tiny-en")
    for name in ("hosts", "hostfile"):
        write(clone / name, *(f"worker-{number} slots=8" for number in range(32)))


def make_environment(folder: Path) -> None:
    """Make a virtual environment that sees the packages of this one, so that nothing large is installed again."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    write(site / "packages.pth", sysconfig.get_path("purelib"))


def next_commands(output: str) -> list[Command]:
    """Return the commands that the quickstart prints at its end, but for those that train on or stay open."""
    lines = output.rpartition("\nNext:\n")[2].replace("\\\n", " ").splitlines()
    comment = re.compile(r"\s{4,}(train on from|fill your own|see training).*")
    texts = [comment.sub("", line.strip()) for line in lines if line.startswith("  ")]
    return [
        Command("quickstart.sh", text) for text in texts if not re.search(r"quickstart\.sh|serve\.sh|tensorboard", text)
    ]


def changed(text: str, given: Path) -> tuple[str, str]:
    """Return the command to type and what is changed in it."""
    change = next((change for pattern, change in CHANGES if re.search(pattern, text)), "")
    text = re.sub(r"/path/to/(checkpoints|superglue|cnn_dm|yahoo|data)\b", str(given), text)
    text = text.replace("/path/to", str(given)).replace("DATA_PATH=$PWD/ncls", f"DATA_PATH={given}")
    if change == PLANNED:
        return f"DRY_RUN=1 DATA_ROOT={given} {'' if 'DATA_PATH' in text else f'DATA_PATH={given} '}{text}", change
    if change.startswith(" --grid"):
        return re.sub(r"--grid '.*'", f"--grid '{change.removeprefix(' --grid ')}'", text), change
    return text + ("" if change.startswith(LEFT_OUT) else change), change


def main() -> int:
    """Type them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="commands that match this regular expression, and what they begin with"
    )
    parser.add_argument("--output", type=Path, default=Path("typed.txt"))
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder, open(arguments.output, "w", encoding="utf-8") as output:
        clone, given = Path(folder) / "glm", Path(folder) / "given"
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        make_files(given, clone)
        make_environment(clone / ".venv")
        ours = ("GLM_", "DATA_", "CHECKPOINT_", "VIRTUAL_ENV", "PYTHON")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {"PATH": f"{clone}/.venv/bin:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        environment |= {
            "STEPS": "4",
            "LIMIT": "4",
            "EPOCHS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        typed = [one for one in commands() if re.search(f"{arguments.only}|pretrain_tiny.* en", one.text)]
        typed.sort(key=lambda one: "pretrain_tiny" not in one.text)  # what others begin with
        for command in typed:
            text, change = changed(command.text, given)
            if change.startswith(LEFT_OUT):
                results.append((change, command))
                continue
            print(f"$ {text}", flush=True)
            print(f"\n$ {text}", file=output, flush=True)
            began = time.monotonic()
            run = subprocess.run(
                ["bash", "-c", text], cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            results.append(("works" if run.returncode == 0 else f"FAILS, code {run.returncode}", command))
            print(f"  {results[-1][0]}, {time.monotonic() - began:.0f} s", flush=True)
            if "quickstart.sh" in text:  # what it prints is there to be copied, too
                typed += next_commands(arguments.output.read_text(encoding="utf-8"))
        table = [f"{command.page:<24}{result:<32}{command.text}" for result, command in results]
        print(*table, sep="\n", file=output)
    print(*(line for line in table if "FAILS" in line), sep="\n")
    counts = {kind: sum(result.startswith(kind) for result, _ in results) for kind in ("works", "FAILS", LEFT_OUT)}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), f"(all of it: {arguments.output})")
    return 1 if counts["FAILS"] else 0


if __name__ == "__main__":
    run_main(main)
