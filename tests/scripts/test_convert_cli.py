"""The two conversion programs as a user runs them: the original's call, whole folders, the way back, bad input."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_utils.tokenizers.tokenizer import build_tokenizer
from files.checksums import CHECKSUMS_FILE
from files.errors import run_main
from generation.api import load_model
from model.checkpoints.format import split_tensor
from model.checkpoints.reading import load_model_weights, shard_name
from model.checkpoints.safe_loading import read_checkpoint_file
from model.config import GLMConfig
from model.heads import SequenceClassification
from model.hub.describe import RELEASED_NAMES, describe_name
from model.modeling_glm import GLMModel
from tests.helpers import REPOSITORY, launching
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.launching import source
from tests.helpers.small_corpus import make_corpus

pytest.importorskip("safetensors", reason="safetensors is an extra")
pytest.importorskip("transformers", reason="transformers is an extra")
sys.path.insert(0, str(REPOSITORY / "scripts"))

import convert_glm_checkpoint_to_transformers as to_transformers
import convert_transformers_checkpoint_to_glm as to_glm

WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", ".", ",", "is", "it", "?", "yes", "no", "bei", "##jing", "good")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
CONFIG = GLMConfig(2, 16, 4, 128, max_position_embeddings=40, initializer_std=0.3)
SIZES = ["--num-attention-heads", "4"]


def make_model(seed: int = 0, config: GLMConfig = CONFIG) -> GLMModel:
    return GLMModel(config, generator=torch.Generator().manual_seed(seed)).eval()


def store(folder: Path, weights: dict[str, Tensor], *, size: int = 1) -> Path:
    """Write a checkpoint folder of ``size`` ranks."""
    folder.mkdir(parents=True)
    for rank in range(size):
        part = {name: split_tensor(name, tensor, size)[rank].clone() for name, tensor in weights.items()}
        torch.save({"module": part}, folder / shard_name(rank))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder but the checksums, which follow from them."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != CHECKSUMS_FILE}


@pytest.fixture
def vocabulary(tmp_path: Path) -> list[str]:
    """Return the flags of a small BERT vocabulary."""
    file = tmp_path / "vocabulary" / "vocab.txt"
    file.parent.mkdir()
    file.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return ["--tokenizer-type", "BertWordPieceTokenizer", "--tokenizer-path", str(file)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return store(tmp_path / "tiny", make_model().state_dict())


def error_of(main: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line that a program which refuses its input ends with."""
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_recorded_conversion(golden: GoldenFolder, tmp_path: Path):
    expected = torch.load(golden.path("model/hf/pytorch_model.bin"), weights_only=True)
    found = sorted(golden.path("model/ckpt/tiny").glob(f"*/{shard_name(0)}"))
    assert len(found) == 1
    file = Path(shutil.copy(found[0], tmp_path))
    printed = launching.run("scripts/convert_glm_checkpoint_to_transformers.py", str(file), "glm-large", cwd=tmp_path)
    assert printed == f"wrote {tmp_path / 'pytorch_model.bin'}\n"
    written = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert list(written) == list(expected)
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKSUMS_FILE, file.name, "pytorch_model.bin"]


@pytest.mark.parametrize("name", [*RELEASED_NAMES, "GLM-10B-Chinese"])
def test_the_original_call_knows_every_name(name: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    call = [str(checkpoint / shard_name(0)), name]
    if name.lower() == "glm-10b-chinese":  # the row it copies is not in this vocabulary
        assert "row 50009" in error_of(lambda: to_transformers.main(call), capsys)
        return
    assert to_transformers.main(call) == 0
    written = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    assert all(torch.equal(written[name], tensor) for name, tensor in make_model().state_dict().items())


def test_the_row_of_the_chinese_model(tmp_path: Path):
    config = GLMConfig(1, 4, 1, 50048, max_position_embeddings=4)
    folder = store(tmp_path / "chinese", make_model(config=config).state_dict())
    to_transformers.main([str(folder), "glm-10b-chinese"])
    table = torch.load(folder / "pytorch_model.bin", weights_only=True)["word_embeddings.weight"]
    expected = make_model(config=config).word_embeddings.weight.detach().clone()
    expected[50009] = expected[50007]
    assert torch.equal(table, expected)


@pytest.mark.parametrize("size", [1, 2])
def test_there_and_back(size: int, vocabulary: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    native = store(tmp_path / "native", make_model().state_dict(), size=2)
    first, back, second = (tmp_path / name for name in ("first", "back", "second"))
    to_transformers.main([str(native), "--output", str(first), *SIZES, *vocabulary, "--verify"])
    to_glm.main([str(first), str(back), "--model-parallel-size", str(size), "--verify"])
    assert capsys.readouterr().out.count("(fp32)") == 2
    to_transformers.main([str(back), "--output", str(second)])
    one, two = contents(first), contents(second)
    assert set(one) == set(two)
    assert one == two | {"README.md": one["README.md"]}  # the title is the folder's name
    described = source(back / "model.sh", ["MODEL_ARGS"])["MODEL_ARGS"].split()
    for flag in ("--num-layers 2", "--hidden-size 16", "--num-attention-heads 4", "--max-position-embeddings 40"):
        assert flag in " ".join(described)
    assert described[described.index("--load-pretrained") + 1] == str(back)


def test_no_name_of_a_folder_runs_through_the_file_of_a_model(
    vocabulary: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = """-m$(touch ran)`touch ran`'"; touch ran #"""
    to_transformers.main([str(checkpoint), "--output", str(tmp_path / name), *SIZES, *vocabulary])
    to_glm.main([str(tmp_path / name), str(tmp_path / "$(touch${IFS}ran)")])
    monkeypatch.setenv("CDPATH", "/")
    file = tmp_path / "$(touch${IFS}ran)" / "model.sh"
    described = source(file, ["MODEL_TYPE", "MODEL_ARGS"])
    assert described["MODEL_TYPE"] == name
    assert described["MODEL_ARGS"].split()[-2:] == ["--load-pretrained", str(file.parent)]
    file.parent.rename(tmp_path / "two  words")
    moved = tmp_path / "two  words" / "model.sh"
    assert source(moved, ["MODEL_ARGS"])["MODEL_ARGS"].endswith(f"--load-pretrained {moved.parent}")
    assert describe_name(str(moved)).sizes["num_attention_heads"] == 4
    assert not list(tmp_path.rglob("ran")) and not (REPOSITORY / "ran").exists()


def test_verify_finds_other_weights(checkpoint: Path, tmp_path: Path):
    from model.hub.verify import verify

    hub = tmp_path / "hub"
    to_transformers.main([str(checkpoint), "--output", str(hub), *SIZES, "--no-tokenizer"])
    weights = make_model().state_dict()
    weights["transformer.final_layernorm.bias"][3] += 1e-3
    other = store(tmp_path / "other", weights)
    assert "differ by" in verify(checkpoint, hub, config=CONFIG)
    with pytest.raises(ValueError, match="do not hold the same model"):
        verify(other, hub, config=CONFIG)


@pytest.mark.slow
def test_everything_that_takes_a_checkpoint_takes_a_folder(vocabulary: list[str], checkpoint: Path, tmp_path: Path):
    hub = tmp_path / "hub"
    to_transformers.main([str(checkpoint), "--output", str(hub), *SIZES, *vocabulary, "--max-shard-size", "5000"])
    model = make_model(5)
    report = load_model_weights(model, hub)
    assert not report.missing
    sizes = ["--num-layers", "2", "--hidden-size", "16", *SIZES, "--max-position-embeddings", "40", "--block-lm"]
    options = ["--top-k", "1", "--out-seq-length", "12", "--prompt", "the cat [MASK] on the mat .", "--device", "cpu"]
    flags = [*sizes, *vocabulary, *options]
    native, exported = (
        launching.run("generate_samples.py", *flags, "--load-pretrained", str(folder), cwd=tmp_path).partition(
            "Prompt:"
        )[2]
        for folder in (checkpoint, hub)
    )
    assert native == exported
    assert "Filled" in native
    launching.run("change_mp.py", str(hub), "2", cwd=tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / "hub_MP2" / shard_name(rank), weights_only=True)["module"]
        for name, tensor in make_model().state_dict().items():
            assert torch.equal(found[name], split_tensor(name, tensor, 2)[rank]), name


@pytest.mark.slow
def test_the_file_of_an_imported_model_generates(vocabulary: list[str], checkpoint: Path, tmp_path: Path):
    hub, back = tmp_path / "hub", tmp_path / "back"
    to_transformers.main([str(checkpoint), "--output", str(hub), *SIZES, *vocabulary])
    to_glm.main([str(hub), str(back)])
    words = source(back / "model.sh", ["MODEL_ARGS"])["MODEL_ARGS"].split()
    options = ["--top-k", "1", "--out-seq-length", "12", "--prompt", "the cat [MASK] .", "--device", "cpu"]
    assert "Filled" in launching.run("generate_samples.py", *words, *options, cwd=tmp_path)


def test_a_classifier(vocabulary: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    native = store(tmp_path / "native", SequenceClassification(make_model(), 3).state_dict())
    hub, back = tmp_path / "hub", tmp_path / "back"
    to_transformers.main([str(native), "--output", str(hub), *SIZES, *vocabulary, "--verify"])
    to_glm.main([str(hub), str(back), "--verify"])
    assert capsys.readouterr().out.count("(fp32)") == 2
    found = torch.load(back / shard_name(0), weights_only=True)["module"]
    expected = torch.load(native / shard_name(0), weights_only=True)["module"]
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_files_of_config_tasks_describe_a_model(checkpoint: Path, vocabulary: list[str], tmp_path: Path):
    file = tmp_path / "model_mine.sh"
    words = ["--block-lm", "--num-layers", "2", "--hidden-size", "16", *SIZES, *vocabulary]
    file.write_text(f'MODEL_TYPE="mine"\nMODEL_ARGS="{" ".join(words)}"\n', encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    to_transformers.main([str(checkpoint), str(file), "--output", str(one)])
    to_transformers.main([str(checkpoint), "--output", str(two), *SIZES, *vocabulary])
    assert contents(one) == contents(two) | {"README.md": contents(one)["README.md"]}
    assert "# mine" in (one / "README.md").read_text(encoding="utf-8")


def test_the_settings_of_a_run_describe_a_model(
    checkpoint: Path, vocabulary: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = {
        "num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 40,
        "attention_scale": 1.0, "tokenizer_type": vocabulary[1],
        "tokenizer_model_type": None, "tokenizer_path": vocabulary[3], "task_mask": False, "fix_command_token": False,
        "make_vocab_size_divisible_by": 128,
    }  # fmt: skip
    file = tmp_path / "mine" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(run), encoding="utf-8")
    one, two, three, four = (tmp_path / name for name in ("one", "two", "three", "four"))
    to_transformers.main([str(checkpoint), str(file), "--output", str(one)])
    shutil.copy(file, checkpoint)
    to_transformers.main([str(checkpoint), "--output", str(two)])
    (checkpoint / "config.json").unlink()
    to_transformers.main([str(checkpoint), "--output", str(three), *SIZES, *vocabulary])
    settings = tmp_path / "runs" / checkpoint.name / "config.json"  # where the run left them
    settings.parent.mkdir(parents=True)
    shutil.copy(file, settings)
    monkeypatch.chdir(tmp_path)
    to_transformers.main([str(checkpoint), "--output", str(four)])
    card = {"README.md": contents(three)["README.md"]}
    assert contents(one) | card == contents(two) | card == contents(three) == contents(four) | card


def test_every_recorded_checkpoint(golden: GoldenFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Half precision, further keys, several ranks, relative positions; a prompt alone is refused."""
    expected = torch.load(golden.path("model/hf/pytorch_model.bin"), weights_only=True)
    folders = [folder for folder in sorted(golden.path("model/ckpt").iterdir()) if folder.is_dir()]
    assert folders
    for folder in folders:
        copy = Path(shutil.copytree(folder, tmp_path / folder.name))
        if "prompt_only" in folder.name:
            line = error_of(lambda copy=copy: to_transformers.main([str(copy), "glm-large"]), capsys)
            assert "a continuous prompt alone" in line
            continue
        to_transformers.main([str(copy), "glm-large"])
        written = torch.load(next(copy.rglob("pytorch_model.bin")), weights_only=True)
        if re.fullmatch(r"tiny(_MP\d+|_full)?", folder.name):
            assert list(written) == list(expected)
            assert all(torch.equal(written[name], tensor) for name, tensor in expected.items()), folder
            continue
        whole = folder.with_name(re.sub(r"_MP\d+", "", folder.name))
        module = read_checkpoint_file(next(whole.rglob(shard_name(0))))["module"]
        assert list(written) == list(module), folder
        assert all(torch.equal(written[name], tensor) for name, tensor in module.items()), folder
        assert all(written[name].dtype == tensor.dtype for name, tensor in module.items()), folder


@pytest.mark.slow
def test_a_model_of_the_hub(checkpoint: Path, vocabulary: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Offline, the hub is its cache on the disk."""
    cache = tmp_path / "home" / "hub" / "models--somebody--glm-tiny"
    to_transformers.main([str(checkpoint), "--output", str(cache / "snapshots" / ("0" * 40)), *SIZES, *vocabulary])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    program = "scripts/convert_transformers_checkpoint_to_glm.py"
    launching.run(program, "somebody/glm-tiny", "back", "--verify", cwd=tmp_path)
    found = torch.load(tmp_path / "back" / shard_name(0), weights_only=True)["module"]
    assert all(torch.equal(found[name], tensor) for name, tensor in make_model().state_dict().items())
    printed = launching.run(program, "somebody/glm-other", "other", cwd=tmp_path, code=2)
    assert len(printed.splitlines()) == 1, printed
    assert "somebody/glm-other is not a folder here and cannot be downloaded from the hub" in printed
    assert not (tmp_path / "other").exists()


def test_the_library_does_not_take_an_export_for_a_glm_of_its_own(
    checkpoint: Path, vocabulary: list[str], tmp_path: Path
):
    """transformers has another family of the type "glm", which published folders have; those are read all the same."""
    from transformers import AutoConfig

    out = tmp_path / "out"
    to_transformers.main([str(checkpoint), "--output", str(out), *SIZES, *vocabulary])
    for trust in (None, False):
        with pytest.raises(ValueError, match="contains custom code which must be executed"):
            AutoConfig.from_pretrained(out, trust_remote_code=trust)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**config, "model_type": "glm"}), encoding="utf-8")
    (out / "SHA256SUMS").unlink()
    to_glm.main([str(out), str(tmp_path / "back")])
    assert (tmp_path / "back" / shard_name(0)).is_file()


def test_masks_that_the_class_lacks_are_said(
    checkpoint: Path, vocabulary: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for number, flags in enumerate(([], ["--task-mask"])):
        to_transformers.main([str(checkpoint), "--output", str(tmp_path / f"{number}"), *SIZES, *vocabulary, *flags])
        assert ("note: GLMBertTokenizer has [MASK] alone" in capsys.readouterr().out) == bool(flags)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["cloze", "classifier"])
def test_an_exported_model_is_evaluated_and_fine_tuned(head: str, vocabulary: list[str], tmp_path: Path):
    pairs = [("a cat", "entailment"), ("a dog", "not_entailment")] * 2
    rows = [
        {"premise": "the cat sat", "hypothesis": text, "label": label, "idx": number}
        for number, (text, label) in enumerate(pairs)
    ]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    model = make_model() if head == "cloze" else SequenceClassification(make_model(), 2)
    native = store(tmp_path / "native", model.state_dict())
    to_transformers.main([str(native), "--output", str(tmp_path / "hub"), *SIZES, *vocabulary])
    sizes = ["--num-layers", "2", "--hidden-size", "16", *SIZES, "--max-position-embeddings", "40", "--block-lm"]
    task = ["--task", "rte", "--data-dir", ".", "--seq-length", "40", "--batch-size", "2", "--no-progress"]
    flags = [*sizes, *vocabulary, *task, "--device", "cpu", *(["--cloze-eval", "--multi-token"] * (head == "cloze"))]
    results = []
    for folder in ("native", "hub"):
        experiment = ["--experiment-name", folder, "--eval-valid"]
        printed = launching.run("finetune_glm.py", *flags, *experiment, "--epochs", "0", "--load", folder, cwd=tmp_path)
        assert "0 missing, 0 unexpected" in printed
        results.append(json.loads((tmp_path / "runs" / folder / "test_results.json").read_text(encoding="utf-8")))
    assert results[0] == results[1]
    tuning = ["--epochs", "1", "--lr", "1e-3", "--experiment-name", "tuned"]
    printed = launching.run("finetune_glm.py", *flags, *tuning, "--load-pretrained", "hub", cwd=tmp_path)
    assert "0 missing, 0 unexpected" in printed


def spoil_index(folder: Path) -> None:
    (folder / CHECKSUMS_FILE).unlink()
    (folder / "model.safetensors").write_bytes(b"none")


def other_type(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"glm-blank-infilling"', '"bert"'), encoding="utf-8")


def other_vocabulary(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"vocab_size": 128', '"vocab_size": 256'), "utf-8")


def other_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / CHECKSUMS_FILE).unlink()
    save_file({"bert.pooler.weight": torch.ones(2, 2)}, folder / "model.safetensors")


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "damaged configuration": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    "unrelated model": (other_type, "another kind of model (it has model_type 'bert')"),
    "unrelated weights": (other_weights, "a GLM has no parameter 'bert.pooler.weight'"),
    "wrong vocabulary size": (other_vocabulary, "word_embeddings.weight has shape (128, 16)"),
    "changed weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"none"), "SHA-256 is not the one"),
    "damaged weights": (spoil_index, "cannot be read as safetensors"),
    "missing tokenizer file": (lambda folder: (folder / "vocab.txt").unlink(), "lacks the tokenizer's vocab.txt"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_end_in_one_line(
    case: str, vocabulary: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub, back = tmp_path / "hub", tmp_path / "back"
    to_transformers.main([str(checkpoint), "--output", str(hub), *SIZES, *vocabulary])
    capsys.readouterr()
    spoil, words = BAD_FOLDERS[case]
    spoil(hub)
    line = error_of(lambda: to_glm.main([str(hub), str(back)]), capsys)
    assert words in line, line
    assert str(hub) in line
    assert not back.exists()


BAD_CALLS: dict[str, tuple[list[str], str]] = {
    "no such checkpoint": (["nowhere", "glm-large"], "nowhere does not exist"),
    "unknown name": (["tiny", "glm-3b"], "model 'glm-3b' is unknown; name one of glm-base"),
    "no such model file": (["tiny", "model_x.sh", "--output", "hub"], "model_x.sh: no such model file"),
    "another model's name": (["tiny", "glm-large", "--output", "hub"], "has hidden size 16, glm-large 1024"),
    "nothing described": (["tiny", "--output", "hub"], "does not say its number of heads"),
    "no tokenizer": (["tiny", "--output", "hub", *SIZES], "no tokenizer is described"),
    "no number of heads": (["tiny", "--output", "hub", "VOCABULARY"], "give --num-attention-heads"),
    "wrong vocabulary size": (
        ["tiny", "--output", "hub", *SIZES, "VOCABULARY", "--make-vocab-size-divisible-by", "256"],
        "has a vocabulary of 128, the tokenizer GLMBertTokenizer one of 256",
    ),
    "missing vocabulary": (
        ["tiny", "--output", "hub", *SIZES, "--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", "tiny"],
        "no such vocabulary file",
    ),
    "a tokenizer without a class": (
        ["tiny", "--output", "hub", *SIZES, "--tokenizer-type", "CharacterLevelTokenizer"],
        "has no class in the Hugging Face layout",
    ),
    "prompt alone": (["prompt", "glm-large"], "holds no whole GLM but a continuous prompt alone"),
    "prompt alone, a folder": (["prompt", "--output", "hub", *SIZES, "--no-tokenizer"], "a continuous prompt alone"),
    "heads that do not fit": (
        ["tiny", "--output", "hub", "--num-attention-heads", "3", "--no-tokenizer"],
        "is not a multiple of num_attention_heads 3",
    ),
    "a size that is none": (["tiny", "glm-large", "--max-shard-size", "big"], "--max-shard-size is 'big'"),
    "an existing folder": (["tiny", "--output", "tiny", *SIZES], "exists and is not empty"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_end_in_one_line(
    case: str,
    vocabulary: list[str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    config = GLMConfig(2, 16, 4, 128, max_position_embeddings=40, prompt_length=3)
    prompt = {name: t for name, t in make_model(config=config).state_dict().items() if "prompt" in name}
    store(tmp_path / "prompt", prompt)
    monkeypatch.chdir(tmp_path)
    words, expected = BAD_CALLS[case]
    given = [part for word in words for part in (vocabulary if word == "VOCABULARY" else [word])]
    line = error_of(lambda: to_transformers.main(given), capsys)
    assert re.search(re.escape(expected), line), line
    assert not (tmp_path / "hub").exists()


def test_heavy_imports_come_late(repository: Path):
    for name in ("convert_glm_checkpoint_to_transformers", "convert_transformers_checkpoint_to_glm"):
        check = f"import sys, {name}; sys.exit(bool({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
        launching.subprocess.run([sys.executable, "-c", check], cwd=repository / "scripts", check=True)


FAMILIES = {
    "bert": ["--tokenizer-type", "BertWordPieceTokenizer", "--tokenizer-model-type", "bert-base-uncased"],
    "gpt2": ["--tokenizer-type", "GPT2BPETokenizer", "--task-mask"],
    "roberta": ["--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-model-type", "roberta"],
    "chinese": ["--tokenizer-type", "ChineseSPTokenizer", "--task-mask", "--fix-command-token"],
}
ROWS = {"bert": 30592, "gpt2": 50304, "roberta": 50304, "chinese": 50048}
TEXTS = (
    "Ng is an adjunct professor at [MASK] .",
    "凯旋门位于[MASK]，1807年建成。",
    "naïve café — “quoted” 12,345 [MASK] x",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_released_vocabularies(family: str, vocab_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("GLM_VOCAB_DIR", str(vocab_dir))
    config = GLMConfig(1, 4, 1, ROWS[family], max_position_embeddings=8)
    native = store(tmp_path / "native", make_model(config=config).state_dict())
    first, back, second = (tmp_path / name for name in ("hub", "back", "again"))
    to_transformers.main([str(native), "--output", str(first), "--num-attention-heads", "1", *FAMILIES[family]])
    assert len({file.stat().st_mode for file in first.iterdir()}) == 1
    theirs = AutoTokenizer.from_pretrained(first, trust_remote_code=True)
    values = to_transformers.parse_arguments([str(native), "--output", "x", *FAMILIES[family]])
    choice = to_transformers.describe(values).tokenizer
    ours = build_tokenizer(
        choice.tokenizer_type, model_type=choice.model_type, task_mask=choice.task_mask,
        fix_command_token=choice.fix_command_token,
    )  # fmt: skip
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
    assert (theirs.sop_token_id, theirs.eop_token_id) == (ours.command_id("sop"), ours.command_id("eop"))
    with pytest.raises(ValueError, match="no blank to fill") as caught:
        theirs.build_inputs_for_generation(theirs("a text without one", return_tensors="pt"))
    assert "\n" not in str(caught.value)
    generation = json.loads((first / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == theirs.eop_token_id
    assert generation["pad_token_id"] == theirs.pad_token_id
    to_glm.main([str(first), str(back)])
    to_transformers.main([str(back), "--output", str(second)])
    assert contents(first) == contents(second) | {"README.md": contents(first)["README.md"]}
    arguments = source(back / "model.sh", ["MODEL_ARGS"])["MODEL_ARGS"].split()
    again = build_tokenizer(
        choice.tokenizer_type,
        model_type=choice.model_type,
        path=arguments[arguments.index("--tokenizer-path") + 1],
        task_mask=choice.task_mask,
        fix_command_token=choice.fix_command_token,
    )
    assert again.fingerprint == ours.fingerprint


def test_a_sentencepiece_model_of_ones_own(tmp_path: Path):
    """Its ids, texts, and those of all commands are ours on the other side, and after the way back."""
    from transformers import AutoTokenizer

    corpus = make_corpus(tmp_path)
    kind, file = "SentencePieceTokenizer", corpus.folder / "tokenizer.model"
    flags = ["--tokenizer-type", kind, "--tokenizer-path", str(file), "--task-mask", *SIZES]
    native = store(tmp_path / "native", make_model().state_dict())
    to_transformers.main([str(native), "--output", str(tmp_path / "hub"), *flags])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hub", trust_remote_code=True)
    ours = build_tokenizer(kind, path=file, task_mask=True)
    for text in ("The school [MASK] people .", "Time.[gMASK] and [sMASK]", "unknown Ω words"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text), text
        assert theirs.decode(ids) == ours.decode(ids), text
    commands = {"sop": theirs.sop_token_id, "eop": theirs.eop_token_id, "ENC": theirs.cls_token_id,
                "sep": theirs.sep_token_id, "gMASK": theirs.gmask_token_id, "eos": theirs.eos_token_id}  # fmt: skip
    assert commands == {name: ours.command_id(name) for name in commands}
    glm = load_model(tmp_path / "hub")
    assert glm.tokenizer.fingerprint == ours.fingerprint
    to_glm.main([str(tmp_path / "hub"), str(tmp_path / "back")])
    to_transformers.main([str(tmp_path / "back"), "--output", str(tmp_path / "again")])
    first, second = contents(tmp_path / "hub"), contents(tmp_path / "again")
    assert first == second | {"README.md": first["README.md"]}
