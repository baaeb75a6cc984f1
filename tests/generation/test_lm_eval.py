"""lm-evaluation-harness, the real package, on our model class and on local task files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generation.api import GLM
from generation.sampling import DecodingSettings
from model.heads import MultiTokenCloze
from tasks.language_model.readers import TokenDocuments, read_endings
from tasks.language_model.run import accuracy, score_windows
from tasks.language_model.samples import LanguageModelSettings, document_windows, ending_windows
from tasks.registry import TASKS
from tasks.superglue.objective import score_rows
from tasks.superglue.samples import EncodingOptions
from tests.helpers.engines import scoring_engine
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, made_up_texts, random_model

TASK_FILES = Path(__file__).parents[1] / "lm_eval_tasks"
POSITIONS = 64


@pytest.fixture(scope="module")
def glm() -> GLM:
    return GLM(random_model(positions=POSITIONS), WordTokenizer(TINY_COMMAND_IDS, num_tokens=58))


@pytest.fixture
def evaluate(glm: GLM) -> Callable[..., dict[str, Any]]:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install .[lm-eval]")
    from lm_eval.tasks import TaskManager

    from generation.lm_eval_model import GLMForEvaluation

    def run(task: str, **options: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=str(TASK_FILES), include_defaults=False)
        model = GLMForEvaluation(glm, **options)
        return lm_eval.simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)

    return run


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lambada_rows(glm: GLM) -> list[dict[str, Any]]:
    """Return texts, about half of which end with the word that the model expects."""
    contexts = [" ".join(f"w{(number * step) % 50}" for step in range(2, 9)) for number in range(1, 16)]
    words = [f"w{number}" for number in range(50)]
    scores = glm.score([f"{context} [gMASK]" for context in contexts], words)
    best = [words[row.index(max(row))] for row in scores]
    return [
        {"text": f"{context} {'w49' if number % 2 and word != 'w49' else word}"}
        for number, (context, word) in enumerate(zip(contexts, best))
    ]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_lambada_is_our_accuracy(glm: GLM, evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int):
    file = write(tmp_path / "lambada.jsonl", lambada_rows(glm))
    settings = LanguageModelSettings(seq_length=POSITIONS)
    windows = ending_windows(read_endings(file, tokenizer=glm.tokenizer), settings=settings, tokenizer=glm.tokenizer)
    ours = accuracy(score_windows(glm.model, windows, batch_size=4))["accuracy"]
    assert 0.0 < ours < 100.0
    monkeypatch.setenv("GLM_LAMBADA_FILE", str(file))
    found = evaluate("glm_lambada", batch_size=batch_size)["results"]["glm_lambada"]
    assert 100.0 * found["acc,none"] == pytest.approx(ours)


def test_multiple_choice_is_our_accuracy(glm: GLM, evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [(context, choices) for context, choices in made_up_texts(40, seed=3) if len(choices) > 1]
    rows = [
        {"inputs_pretokenized": context, "choices_pretokenized": choices, "label": number % len(choices)}
        for number, (context, choices) in enumerate(texts)
    ]
    file = write(tmp_path / "questions.jsonl", rows)
    task = TASKS["multichoice"]
    examples = task.examples(None, str(file))
    samples = task.build_samples(examples, glm.tokenizer, EncodingOptions(seq_length=POSITIONS)).samples
    chosen = [
        int(row.argmax())
        for row in score_rows(scoring_engine(MultiTokenCloze(glm.model)), samples, batch_size=4, pad_id=50)
    ]
    glm.model.eval()
    ours = task.evaluate(chosen, examples)["accuracy"]
    assert 0.0 < ours < 100.0
    monkeypatch.setenv("GLM_MULTICHOICE_FILE", str(file))
    for batch_size in (1, 16):
        found = evaluate("glm_multichoice", mask="MASK", batch_size=batch_size)["results"]["glm_multichoice"]
        assert 100.0 * found["acc,none"] == pytest.approx(ours)


def test_perplexity_and_continuation(glm: GLM, evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": " ".join(f"w{(number + step) % 50}" for step in range(90))} for number in range(4)]
    monkeypatch.setenv("GLM_LAMBADA_FILE", str(write(tmp_path / "texts.jsonl", rows)))
    found = evaluate("glm_perplexity")["results"]["glm_perplexity"]
    total = sum(score.log_probability for score in glm.rolling_loglikelihood([row["text"] for row in rows]))
    assert found["word_perplexity,none"] == pytest.approx(math.exp(-total / (4 * 90)), rel=1e-3)
    contexts = [row["text"].rsplit(" ", 1)[0] for row in rows]
    with pytest.warns(UserWarning, match="4 of 4 prompts are cut"):
        answers = glm.generate(contexts, settings=DecodingSettings(max_length=4, top_k=1), until=[" ", "\n"])
        result = evaluate("glm_continuation")
    right = sum(answer == row["text"].split()[-1] for answer, row in zip(answers, rows))
    assert result["results"]["glm_continuation"]["exact_match,none"] == pytest.approx(right / len(rows))
    assert [sample["resps"][0][0] for sample in result["samples"]["glm_continuation"]] == answers


@pytest.mark.parametrize("unidirectional", [False, True])
def test_rolling_scores_are_those_of_the_perplexity_task(glm: GLM, unidirectional: bool):
    texts = [" ".join(f"w{(number * step) % 50}" for step in range(length)) for number, length in ((3, 150), (7, 20))]
    settings = LanguageModelSettings(seq_length=POSITIONS, overlap=24, unidirectional=unidirectional)
    found = glm.rolling_loglikelihood(texts, overlap=24, unidirectional=unidirectional, skip_first=True)
    for text, score in zip(texts, found):
        documents = TokenDocuments((np.array(glm.tokenizer.encode(text)),), len(text.split()))
        windows = document_windows(documents, settings=settings, tokenizer=glm.tokenizer)
        assert windows.num_scored == score.num_tokens
        loss = -sum(score.log_probability for score in score_windows(glm.model, windows, batch_size=2))
        assert score.log_probability == pytest.approx(-loss, rel=1e-4)


def test_generation_options():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install .[lm-eval]")
    from generation.lm_eval_model import generation_request

    options = {"default_length": 256, "positions": 64}
    greedy = generation_request({"until": "\n", "do_sample": False, "temperature": 0.7}, **options)
    assert greedy.until == ("\n",)
    assert greedy.settings == DecodingSettings(max_length=64, top_k=1)
    sampled = generation_request({"do_sample": True, "top_p": 0.9, "max_gen_toks": 5}, **options)
    assert sampled.settings == DecodingSettings(max_length=5, top_p=0.9)
    assert generation_request({"temperature": 0.5}, **options).settings.temperature == 0.5
    assert generation_request({"temperature": 0.0, "do_sample": True}, **options).settings.top_k == 1
    with pytest.raises(ValueError, match="repetition_penalty: not known here"):
        generation_request({"repetition_penalty": 1.1}, **options)


def test_mistakes(glm: GLM, evaluate):
    with pytest.raises(ValueError, match="dtype 'int3' is unknown"):
        evaluate("glm_lambada", dtype="int3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the harness's device is used")
def test_the_device_that_the_harness_asks_for_by_itself_need_not_be_there(glm: GLM, tmp_path: Path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install .[lm-eval]")
    from generation.lm_eval_model import GLMForEvaluation

    torch.save({"module": glm.model.state_dict()}, tmp_path / "mp_rank_00_model_states.pt")
    known = {"config": glm.model.config, "tokenizer": glm.tokenizer}
    loaded = GLMForEvaluation(str(tmp_path / "mp_rank_00_model_states.pt"), device="cuda:0", **known).glm
    assert loaded.model.word_embeddings.weight.device.type == "cpu"
    assert loaded.score(["w1 [MASK]"], ["w2"]) == pytest.approx(np.array(glm.score(["w1 [MASK]"], ["w2"])))


def test_without_the_package_there_is_a_hint(repository: Path):
    hidden = "import runpy, sys; sys.modules['lm_eval'] = sys.modules['lm_eval.api'] = None; "
    for statement in (
        "import generation.lm_eval_model",
        "runpy.run_module('generation.lm_eval_model', None, '__main__')",
    ):
        run = subprocess.run([sys.executable, "-c", hidden + statement], cwd=repository, capture_output=True, text=True)
        assert run.stderr.splitlines()[-1].endswith("pip install lm-eval")
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_line_knows_glm(repository: Path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install .[lm-eval]")
    words = ["--model", "glm", "--model_args", "pretrained=nowhere", "--tasks", "glm_lambada"]
    command = [sys.executable, "-m", "generation.lm_eval_model", *words, "--include_path", str(TASK_FILES)]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 2
    assert "nowhere does not exist" in run.stderr.splitlines()[-1]
