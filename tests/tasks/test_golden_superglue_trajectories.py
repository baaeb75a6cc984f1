"""Whole fine-tuning runs as recorded: every batch, loss, rate and gradient norm, every prediction, every file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune_glm
from model.checkpoints.format import canonical_name
from model.checkpoints.reading import resolve_checkpoint
from tasks import finetuning
from tasks.registry import find_task
from tasks.superglue import run as understanding
from tests.helpers.golden_index import GoldenFolder
from training.arguments import get_parser
from training.engine import TorchEngine

RELATIVE = 1e-4  # losses and gradient norms
ENTRY_KEYS = {
    "name", "arguments", "parameter_names_in_checkpoint_form", "steps", "evaluations", "validation", "test",
    "best_checkpointed_iteration", "files",
}  # fmt: skip


def entries(golden: GoldenFolder) -> list[dict[str, Any]]:
    return golden.json("superglue/trajectories.json")


def initial_value(name: str, number: int, shape: torch.Size) -> torch.Tensor:
    """Return the recorded run's weights of parameter ``number`` of the sorted list."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    values = 0.2 * torch.sin(0.37 * index + 1.3 * number) * torch.cos(0.0113 * index * (number + 1))
    if "layernorm" in name and name.endswith("weight"):
        values += 1.0
    return values.float().view(shape)


class Recorder:
    """Gives the network of a run its recorded weights and notes what the run does."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.steps: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.validation: list[dict[str, float]] = []

    def build_network(self, run: Any) -> torch.nn.Module:
        network = self.real_build_network(run)
        names = self.entry["parameter_names_in_checkpoint_form"]
        own = {canonical_name(name): parameter for name, parameter in network.named_parameters()}
        expected = [canonical_name(name) for name in names]
        assert sorted(own) == sorted(expected)
        with torch.no_grad():
            for number, name in enumerate(names):
                parameter = own[canonical_name(name)]
                parameter.copy_(initial_value(name, number, parameter.shape))
        return network

    def install(self, patch: pytest.MonkeyPatch) -> None:
        self.real_build_network = understanding.UnderstandingRun.build_network
        patch.setattr(understanding.UnderstandingRun, "build_network", lambda run: self.build_network(run))
        recorder, real_step, real_score = self, TorchEngine.train_step, finetuning.FineTuner.score

        def train_step(engine: Any, batches: Any) -> Any:
            result = real_step(engine, batches)
            recorder.steps.append(
                {
                    "uids": [uid for batch in batches for uid in batch.uids],
                    "loss": result.loss.item(),
                    "lr_used": result.learning_rate,
                    "grad_norm_before_clip": result.grad_norm.item(),
                }
            )
            return result

        def score(tuner: Any, sets: Any, **options: Any) -> Any:
            result = real_score(tuner, sets, **options)
            if not options.get("write"):
                recorder.validation.append(result.metrics)
            return result

        patch.setattr(TorchEngine, "train_step", train_step)
        patch.setattr(finetuning.FineTuner, "score", score)
        real_scores = understanding.score_rows

        def score_rows(engine: Any, samples: Any, **options: Any) -> Any:
            scores = real_scores(engine, samples, **options)
            rows = [int(row.argmax()) for row in scores]
            recorder.evaluations.append({"kind": samples[0].kind, "uids": [s.uid for s in samples], "rows": rows})
            return scores

        patch.setattr(understanding, "score_rows", score_rows)


def test_fine_tuning_runs(
    golden: GoldenFolder, vocab_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder patches our own entry points only to see and to seed; every computation is the real one."""
    raw = golden.path("superglue/raw").resolve()
    monkeypatch.setenv("GLM_VOCAB_DIR", str(vocab_dir))
    for entry in entries(golden):
        assert set(entry) <= ENTRY_KEYS, set(entry) - ENTRY_KEYS
        check_run(entry, raw, tmp_path / entry["name"])


def check_run(entry: dict[str, Any], raw: Path, folder: Path) -> None:
    folder.mkdir()
    name, arguments = entry["name"], list(entry["arguments"])
    place = arguments.index("--data-dir") + 1
    arguments[place] = str(raw / arguments[place])
    arguments += ["--save", "c", "--experiment-name", "run", "--eval-batch-size", "2", "--device", "cpu"]
    task = find_task(get_parser().parse_args(arguments).task)
    recorder = Recorder(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recorder.install(patch)
        assert finetune_glm.main(arguments) == 0
    assert len(recorder.steps) == len(entry["steps"]), name
    for number, (step, expected) in enumerate(zip(recorder.steps, entry["steps"], strict=True)):
        assert step["uids"] == expected["uids"], (name, number)
        assert step["lr_used"] == pytest.approx(expected["lr_used"], rel=1e-9), (name, number)
        for key in ("loss", "grad_norm_before_clip"):
            assert step[key] == pytest.approx(expected[key], rel=RELATIVE), (name, number, key)
    assert len(recorder.evaluations) == len(entry["evaluations"]), name
    for found, expected in zip(recorder.evaluations, entry["evaluations"], strict=True):
        assert [str(uid) for uid in found["uids"]] == [str(uid) for uid in expected["guids"]], name
        chosen = [task.predicted_class(found["kind"], row) for row in found["rows"]]
        assert chosen == expected["predictions"], (name, expected["dataset"])
    for found, expected in zip(recorder.validation, entry["validation"], strict=True):
        assert found == pytest.approx(expected), name
    summary, best = folder / "runs" / "run", folder / "c" / "run"
    tracker = (best / "best_checkpointed_iteration.txt").read_text(encoding="utf-8")
    assert tracker == entry["best_checkpointed_iteration"], name
    assert resolve_checkpoint(best).tag in ("best", str(len(entry["steps"])))
    labelled = all(split.get("labelled", True) for split in entry["evaluations"])
    for file, text in entry["files"].items():
        found = (summary / file).read_text(encoding="utf-8")
        if file == "test_results.json":
            # Metrics of a split without labels mean nothing: ours are left out.
            ours, recorded = json.loads(found), json.loads(text)
            assert ours == recorded or ours == {"type": "test"}, (name, file)
        else:
            assert found == text, (name, file)
    assert labelled
