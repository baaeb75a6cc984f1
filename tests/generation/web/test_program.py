"""bash scripts/serve.sh: from a checkpoint to a filled text, and the end by a signal."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch

from generation.web.__main__ import DEFAULT_CHECKPOINT, get_parser, main
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from tests.helpers.launching import environment
from tests.helpers.small_corpus import make_corpus

pytest.importorskip("starlette", reason="the extra web is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a file of weights in a folder with a blank in its name, and the file that says what it is."""
    folder = tmp_path_factory.mktemp("my models")
    make_corpus(folder)
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    described = {**sizes, "tokenizer_type": "SentencePieceTokenizer", "tokenizer_path": str(folder / "tokenizer.model"),
                 "block_lm": True, "task_mask": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    model = GLMModel(GLMConfig(2, 32, 4, 128, max_position_embeddings=64, initializer_std=0.4))
    torch.save({"module": model.state_dict()}, folder / "weights.pt")
    return folder / "weights.pt", folder / "config.json"


def test_the_program(repository: Path, checkpoint: tuple[Path, Path]):
    weights, settings = checkpoint
    words = ["bash", str(repository / "scripts/serve.sh"), weights.name, "--settings", str(settings), "--port", "0"]
    process = subprocess.Popen(
        words, cwd=weights.parent, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if line.startswith("the page is at http://127.0.0.1:"))
        connection = HTTPConnection("127.0.0.1", int(address.split(":")[2].split("/")[0]), timeout=60)
        body = json.dumps({"text": "The time [MASK] people.", "out_seq_length": 4, "num_beams": 2})
        connection.request("POST", "/api/fill", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert answer["text"].startswith("The time") and len(answer["blanks"][0]["candidates"]) == 2
        assert answer["command"].startswith("python generate_samples.py --load-pretrained weights.pt --prompt ")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{weights}", "--port", "70000"], "--port is 70000; at least 0 and at most 65535"),
        (["{weights}", "--max-queue", "-1"], "--max-queue is -1; at least 0"),
        (["{weights}", "--port", "{taken}"], "cannot listen at 127.0.0.1, port {taken}: .*; choose another"),
        (["{weights}", "--host", "no such host"], "cannot listen at no such host"),
        (["{folder}/nothing"], "nothing does not exist"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: tuple[Path, Path], words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"weights": checkpoint[0], "folder": tmp_path, "taken": taken.getsockname()[1]}
        with pytest.raises(ValueError, match=message.format(**names)):
            main([word.format(**names) for word in words])


def test_without_a_checkpoint_it_is_that_of_the_quickstart_or_the_demo_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["--port", str(taken.getsockname()[1])]
        with pytest.raises(ValueError, match="cannot listen"):
            main(words)
        assert capsys.readouterr().out.startswith("no checkpoint is named: this is the demo model, ")
        (tmp_path / DEFAULT_CHECKPOINT).mkdir(parents=True)
        with pytest.raises(ValueError, match="cannot listen"):
            main(words)
        assert capsys.readouterr().out == ""


def test_a_model_file_names_its_checkpoint(repository: Path):
    """Its flags for filling are taken over, and it stands in the command lines that the page shows."""
    file = "config_tasks/model_blocklm_multilingual_large.sh"
    run = subprocess.run(
        ["bash", "scripts/serve.sh", file, "--port", "0"],
        cwd=repository, env={**environment(), "DRY_RUN": "1", "CHECKPOINT_PATH": "/x/My Drive"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = shlex.split(run.stderr)
    values = get_parser().parse_args(words[words.index("generation.web") + 1 :])
    assert (values.checkpoint, values.model_file) == ("/x/My Drive/pretrained.pt", file)
    assert (values.fill, values.port) == ("replace", 0)
