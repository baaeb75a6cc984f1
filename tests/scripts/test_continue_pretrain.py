"""scripts/continue_pretrain.sh: what it refuses, adapters merged first, and a whole run that is typed again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from model.checkpoints.reading import read_whole_weights
from model.hub.adapters import save_adapter
from model.hub.describe import describe_checkpoint
from mpu.initialize import ParallelTopology
from tests.helpers import REPOSITORY, launching, lora_models
from tests.helpers.small_corpus import SmallCorpus, make_corpus

sys.path.insert(0, str(REPOSITORY / "scripts"))
import continue_pretrain


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run with a mix of objectives of its own."""
    folder = tmp_path_factory.mktemp("run")
    words = [*corpus.words(), "--train-iters", "2", "--save", "c", "--experiment-name", "s", "--auto-resume"]
    launching.run("pretrain_glm.py", *words, "--avg-block-length", "2", cwd=folder)
    return folder / "c" / "s"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{checkpoint}"], "name a checkpoint, then files of text"),
        (["{checkpoint}", "{train}", "--tokens", "5", "--hours", "1"], "--tokens and --hours both"),
        (["{checkpoint}", "{train}", "--tokens", "-5"], "--tokens is -5; a number above 0"),
        (["{checkpoint}", "{train}", "--hours", "two"], "--hours: invalid float value: 'two'"),
        (["{checkpoint}", "nowhere.jsonl"], "nowhere.jsonl"),
        (["{checkpoint}", "{train}", "--lrr", "1"], "unrecognized arguments: --lrr"),
        (["{checkpoint}", "{train}", "--base", "x"], "--base is for adapters"),
        (["{checkpoint}", "{train}", "--train_iters=5"], "--train-iters is decided here"),
        (["{checkpoint}", "{one}@0.3"], "the text is 1 document, and one is held out"),
        (["{checkpoint}", "{one}"], "the text is 1 document, and one is held out"),
        (["nowhere", "{train}"], "nowhere does not exist"),
        (["{adapter}", "{train}"], "its model None is not there; name the model it was trained on with --base"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, corpus: SmallCorpus, checkpoint: Path, tmp_path: Path):
    (tmp_path / "one.jsonl").write_text('{"text": "One document."}\n', encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    places = {"checkpoint": checkpoint, "train": corpus.folder / "train.jsonl", "one": tmp_path / "one.jsonl",
              "adapter": tmp_path / "adapter"}  # fmt: skip
    given = [word.format(**places) for word in words]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        continue_pretrain.plan([*given, "--output", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "plan.json").exists()


def test_an_adapter_is_merged_into_its_model(tmp_path: Path):
    model = lora_models.build()
    (tmp_path / "base").mkdir()
    torch.save({"module": model.state_dict()}, tmp_path / "base" / "mp_rank_00_model_states.pt")
    adapted = lora_models.adapt(lora_models.build(), filled=True)
    topology = ParallelTopology.single()
    save_adapter(tmp_path / "run" / "adapter", adapted, topology=topology, base_model=str(tmp_path / "base"))
    values = Namespace(checkpoint=tmp_path / "run", base=None, output=tmp_path / "out")
    with pytest.raises(ValueError, match=r"nothing says (which tokenizer|what model)"):
        continue_pretrain.plan([str(tmp_path / "run"), "nowhere.jsonl", "--output", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir()), "nothing says of which adapter this would be"
    merged = read_whole_weights(continue_pretrain.whole_model(values))
    lora_models.merge_adapters(adapted)
    name = "transformer.layers.0.attention.query_key_value.weight"
    assert torch.allclose(merged.read(name), adapted.state_dict()[name], atol=1e-6)
    assert not torch.equal(merged.read(name), model.state_dict()[name])


@pytest.mark.slow
def test_it_trains_compares_exports_and_is_typed_again(corpus: SmallCorpus, checkpoint: Path, tmp_path: Path):
    text, general = corpus.folder / "train.jsonl", corpus.folder / "valid.jsonl"
    words = [str(checkpoint), str(text), "--tokens", "8000", "--general", str(general), "--lr", "0.01"]

    def typed(*more: str, code: int = 0) -> str:
        environment = {**launching.environment(), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
        script = str(REPOSITORY / "scripts" / "continue_pretrain.sh")
        run = subprocess.run(["bash", script, *words, *more], cwd=tmp_path, env={**os.environ, **environment},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        assert run.returncode == code, run.stdout
        return run.stdout

    output = typed("--output=continued")
    assert "objectives:   40% token, 30% sentence, 30% document, as " in output
    assert "length:       21 updates of 384 tokens, learning rate up to 0.01" in output
    assert "held out: one document in 20" in output
    rows = re.findall(r"^  (new|general) text, all objectives +([\d.]+) +([\d.]+)  \(-", output, re.MULTILINE)
    assert [row[0] for row in rows] == ["new", "general"], output
    assert output.count("there was: ") == output.count("before: ") == output.count("after: ") == 3
    assert re.search(r"bash \S+/generate_block.sh continued/model --top-k 1 --prompt ", output)
    described = describe_checkpoint(tmp_path / "continued" / "model")
    assert described is not None and described.pretraining["avg_block_length"] == 2
    assert described.pretraining["gap_sentence_prob"] == 0.3 and described.pretraining["seq_length"] == 48
    weights = (tmp_path / "continued" / "model" / "model.safetensors").read_bytes()
    again = typed()
    assert "goes on with what is in continued" in again and "validation loss" not in again
    assert again[again.index("== 5/5") :] == output[output.index("== 5/5") :]
    assert (tmp_path / "continued" / "model" / "model.safetensors").read_bytes() == weights
    assert "continued belongs to another command, with flags" in typed("--batch-size", "4", code=2)
    plan = json.loads((tmp_path / "continued" / "plan.json").read_text(encoding="utf-8"))
    assert plan["asked"]["tokens"] == "8000.0"
