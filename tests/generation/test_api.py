"""generation/api.py: load a checkpoint by what lies beside it, fill, generate, score."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import generate_samples
from data_utils.tokenizers.tokenizer import build_tokenizer
from generation.api import GLM, load_model
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.released import RELEASED_MODELS
from tests.helpers.launching import run
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, random_model

POSITIONS = 64
NAME = "my-glm"  # of the checkpoint in docs/api.md


@pytest.fixture(scope="module")
def glm() -> GLM:
    return GLM(random_model(positions=POSITIONS), WordTokenizer(TINY_COMMAND_IDS, num_tokens=58))


def test_fill(glm: GLM):
    settings = DecodingSettings(max_length=4, top_k=1)
    first, second = glm.fill(["w1 [MASK] w2", "w3 [sMASK] w9 [MASK]"], settings=settings)
    assert (len(first.answers), len(second.answers)) == (1, 2)
    assert first.text == f"w1 {first.answers[0]} w2"
    assert [one.text for one in glm.fill([second.inputs.text], settings=settings)] == [second.text]


def test_generate(glm: GLM):
    settings = DecodingSettings(max_length=6, top_k=1)
    texts = glm.generate(["w1 w2", "w3 [MASK] w4"], settings=settings)
    assert texts[0] == glm.fill(["w1 w2 [gMASK]"], settings=settings)[0].answers[0]
    words = texts[0].split()
    assert len(words) > 2
    assert glm.generate(["w1 w2"], settings=settings, until=[words[2], ""]) == [texts[0][: texts[0].index(words[2])]]
    assert glm.generate([], settings=settings) == []


def test_a_long_prompt_keeps_its_end(glm: GLM):
    settings = DecodingSettings(max_length=5, top_k=1)
    words = [f"w{number % 50}" for number in range(100)]
    with pytest.warns(UserWarning, match="1 of 2 prompts are cut to fit into 65 tokens"):
        long, _ = glm.generate([" ".join(words), "w1"], settings=settings)
    assert long == glm.generate([" ".join(words[-63:])], settings=settings)[0]  # [ENC], 63 words, [gMASK]
    with pytest.raises(ValueError, match="prompt 0: no blank to fill"):
        glm.generate([f"[MASK] {' '.join(words)}"], settings=settings)


def test_score(glm: GLM):
    contexts = ["w1 [MASK] w2", "w3 w4"]
    shared = glm.score(contexts, ["w5", "w6 w7"])
    assert shared == glm.score(contexts, [["w5", "w6 w7"], ["w5", "w6 w7"]])
    assert shared[1] == pytest.approx(glm.score(["w3 w4 [MASK]"], ["w5", "w6 w7"])[0])
    penalized = glm.score(contexts, ["w5", "w6 w7"], length_penalty=1.0)
    assert penalized[0] == [shared[0][0], pytest.approx(shared[0][1] / 2)]
    single = [glm.score(["w1 [MASK] w2"], [f"w{number}"])[0][0] for number in range(5)]
    assert sum(math.exp(value) for value in single) < 1.0
    assert glm.score(contexts, ["w5"], unidirectional=True) != glm.score(contexts, ["w5"])


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_loglikelihood(glm: GLM, batch_size: int):
    contexts = ["w1 w2", "w3 [MASK] w4", "w1 w2", "w5"]
    continuations = ["w6", "w7 w8", "w9 w10 w11", "w12"]
    found = glm.loglikelihood(contexts, continuations, batch_size=batch_size)
    for context, continuation, score in zip(contexts, continuations, found):
        blank = context if "MASK" in context else f"{context} [gMASK]"
        assert score.log_probability == pytest.approx(glm.score([blank], [continuation])[0][0], abs=1e-4)
        assert score.num_tokens == len(continuation.split())
    [best] = glm.generate(["w1 w2 [MASK]"], settings=DecodingSettings(max_length=3, top_k=1))
    assert glm.loglikelihood(["w1 w2"], [best], mask="MASK")[0].greedy
    other = "w1" if best.split()[0] != "w1" else "w2"
    assert not glm.loglikelihood(["w1 w2"], [other], mask="MASK")[0].greedy


def test_rolling_loglikelihood(glm: GLM):
    texts = ["w1 w2 w3", "", " ".join(f"w{number % 50}" for number in range(150))]
    found = glm.rolling_loglikelihood(texts)
    assert [score.num_tokens for score in found] == [3, 0, 150]
    assert found[1].log_probability == 0.0
    [prefix] = glm.loglikelihood([""], ["w1 w2 w3"], mask="gMASK")
    assert found[0].log_probability != prefix.log_probability, "a window has no end token"
    skipped = glm.rolling_loglikelihood(texts, skip_first=True, unidirectional=True, overlap=7)
    assert [score.num_tokens for score in skipped] == [2, 0, 149]


def test_contexts_that_are_too_long_are_announced(glm: GLM):
    with pytest.warns(UserWarning, match="1 of 2 contexts are cut to fit into 64 tokens"):
        glm.score(["w1 " * 90, "w2"], ["w3"])


def test_one_text_is_one_text(glm: GLM):
    settings = DecodingSettings(max_length=6, top_k=1)
    assert glm.fill("w1 [MASK]", settings=settings) == glm.fill(["w1 [MASK]"], settings=settings)
    assert glm.filler.fill("w1 [MASK]", settings=settings) == glm.fill(["w1 [MASK]"], settings=settings)
    [text] = glm.generate("w1 w2", settings=settings)
    stop = text.split()[2]
    assert glm.generate("w1 w2", settings=settings, until=stop) == [text[: text.index(stop)]]
    assert glm.score("w1", "w2 w3") == [glm.score(["w1"], ["w2 w3"])[0]]
    assert glm.score(["w1", "w4"], "w2 w3") == glm.score(["w1", "w4"], [["w2 w3"], ["w2 w3"]])
    assert glm.loglikelihood("w1", "w2 w3") == glm.loglikelihood(["w1"], ["w2 w3"])
    assert glm.rolling_loglikelihood("w1 w2 w3") == glm.rolling_loglikelihood(["w1 w2 w3"])
    assert glm.score(np.array(["w1"]), (text for text in ("w2", "w3"))) == glm.score(["w1"], ["w2", "w3"])


@pytest.mark.parametrize("unidirectional", [False, True])
def test_a_blank_at_the_end_of_a_context_belongs_to_what_follows(unidirectional: bool, vocab_dir: Path):
    """As in lm-evaluation-harness; a byte-level vocabulary has tokens that begin with a blank."""
    tokenizer = build_tokenizer("GPT2BPETokenizer", task_mask=True, vocab_dir=vocab_dir)
    glm = GLM(random_model(vocab_size=tokenizer.padded_size(64), positions=32), tokenizer)
    options = {"unidirectional": unidirectional}
    right = glm.score("The sky is", [" blue", " grey"], **options)
    assert glm.score("The sky is ", ["blue", "grey"], **options) == right
    assert glm.score("The sky is\n ", "blue", **options) == glm.score("The sky is", "\n blue", **options)
    assert glm.score("The sky is", ["blue", "grey"], **options) != right
    [ours] = glm.loglikelihood("The sky is ", "blue", mask="MASK", **options)
    assert ours.num_tokens == 1 and ours.log_probability == pytest.approx(right[0][0], abs=1e-4)
    if not unidirectional:
        kept = glm.score("The sky is [MASK]. ", "blue")
        assert kept != glm.score("The sky is [MASK].", " blue"), "the blank is not where the choice goes"
    with pytest.raises(ValueError, match="context 0: choice 0, '', has no tokens"):
        glm.score("The sky is ", "", **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_of_nan_says_so(bad: float):
    glm = GLM(random_model(positions=POSITIONS), WordTokenizer(TINY_COMMAND_IDS, num_tokens=58))
    glm.model.word_embeddings.weight.data[3, 5] = bad
    ways = [{"top_k": 1}, {"top_k": 5}, {"top_p": 0.9}, {}, {"num_beams": 3}, {"num_beams": 2, "draw_candidates": True}]
    for way in ways:
        with pytest.raises(ValueError, match=r"^the model's logits are NaN or infinite: [^\n]*$"):
            glm.fill("w1 [MASK] w2", settings=DecodingSettings(max_length=4, **way))
    for call in (lambda: glm.score("w1", ["w2", "w3"]), lambda: glm.rolling_loglikelihood("w1 w3")):
        with pytest.raises(ValueError, match="logits are NaN or infinite"):
            call()


def test_what_only_looks_like_a_blank_is_named(glm: GLM):
    tokenizer = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58, task_mask=False, unknown_id=0)
    with pytest.warns(UserWarning, match=r"text 0: \[gMASK\] is text and no blank to this tokenizer"):
        GLM(glm.model, tokenizer).fill("w1 [MASK] [gMASK]", settings=DecodingSettings(max_length=2, top_k=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda glm: glm.fill(["w1 [MASK]", "w1"]), "text 1: no blank to fill"),
        (lambda glm: glm.fill(["w1 " * 80 + "[MASK]"], settings=DecodingSettings(max_length=4)), "text 0: the prompt"),
        (lambda glm: glm.score(["w1"], []), "context 0: no choices"),
        (lambda glm: glm.score(["w1", "w2"], [["w1"], []]), "context 1: no choices"),
        (lambda glm: glm.score(["w1", "w2"], [["w1"]]), "2 contexts and 1 lists of choices"),
        (lambda glm: glm.score(["w1"], ["w2", ["w3"]]), "one list of texts for all contexts"),
        (lambda glm: glm.loglikelihood(["w1"], []), "1 contexts and 0 continuations"),
        (lambda glm: glm.loglikelihood(["w1"], [""]), "context 0: choice 0, '', has no tokens"),
        (lambda glm: glm.fill(["w1 [MASK]", 3]), "texts: number 1 is 3; a text is needed"),
        (lambda glm: glm.fill({"w1 [MASK]": 1}), "texts: .*; a text or a list of texts is needed"),
        (lambda glm: glm.fill(b"w1 [MASK]"), "texts: b'w1 .*; a text or a list of texts is needed"),
        (lambda glm: glm.fill("w1 \udcff [MASK]"), "texts: number 0 has '.udcff' at character 3"),
        (lambda glm: glm.fill("w1 [MASK]", batch_size=0), "filling: batch_size is 0; at least 1 is needed"),
        (lambda glm: glm.fill("w1 [MASK]", seed=1.5), "filling: seed is 1.5; a whole number is needed"),
        (lambda glm: glm.generate(None), "prompts: None; a text or a list of texts is needed"),
        (lambda glm: glm.generate("w1", until=[None]), "until: number 0 is None"),
        (lambda glm: glm.score("w1", 5), "choices: 5; a text or a list of texts"),
        (lambda glm: glm.score(["w1", "w2"], [["w1"], [2]]), "choices of context 1: number 0 is 2"),
        (lambda glm: glm.score("w1", "w2", batch_size=0), "scoring: batch_size is 0"),
        (lambda glm: glm.score("w1", "w2", length_penalty=math.nan), "--length-penalty is nan"),
        (lambda glm: glm.loglikelihood(["w1", "w2"], "w3"), "2 contexts and 1 continuations"),
        (lambda glm: glm.rolling_loglikelihood("w1", overlap="3"), "scoring: overlap is '3'"),
        (lambda glm: GLM(glm.model, glm.tokenizer, max_length="9"), "max_length is 9"),
        (lambda glm: GLM(glm.model, glm.tokenizer, max_length=65), "max_length is 65"),
        (lambda glm: load_model("nowhere"), "nowhere does not exist"),
        (lambda glm: load_model("nowhere", released="GLM-9B"), "model 'GLM-9B' is unknown"),
        (lambda glm: load_model("nowhere", settings="nothing.json"), "nothing.json: no such file"),
    ],
)
def test_mistakes_are_one_line(glm: GLM, call, message: str):
    with pytest.raises(ValueError, match=message) as error:
        call(glm)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus: SmallCorpus) -> Path:
    """Return the working folder of a short run: checkpoints/NAME and runs/NAME/config.json."""
    words = [*corpus.words(), "--train-iters", "2", "--save", "checkpoints", "--auto-resume", "--experiment-name", NAME]
    run("pretrain_glm.py", *words, cwd=corpus.folder)
    return corpus.folder


def test_a_run_says_what_its_checkpoints_are(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    checkpoint, settings = trained / "checkpoints" / NAME, trained / "runs" / NAME / "config.json"
    glm = load_model(checkpoint)
    assert glm.model.config.num_layers == 2 and glm.tokenizer.has_command("gMASK")
    assert glm.report.missing == ()
    for other in (
        load_model(next(checkpoint.glob("*/mp_rank_00_model_states.pt"))),
        load_model(checkpoint, settings=settings),
    ):
        assert other.score(["time [MASK] people"], ["year", "way"]) == glm.score(
            ["time [MASK] people"], ["year", "way"]
        )
    # generate_samples.py, which is told everything on the command line, writes the same.
    words = corpus_flags(trained)
    prompt = "time [MASK] people"
    monkeypatch.chdir(trained)
    settings = ["--top-k", "1", "--out-seq-length", "8", "--load-pretrained", str(checkpoint), "--device", "cpu"]
    assert generate_samples.main([*words, *settings, "--prompt", prompt]) == 0
    [filled] = glm.fill([prompt], settings=DecodingSettings(max_length=8, top_k=1))
    assert f"Filled: {filled.text}" in capsys.readouterr().out


def test_the_documentation_runs(trained: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    text = (repository / "docs" / "api.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    assert NAME in code
    monkeypatch.chdir(trained)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/api.md", "exec"), names)
    assert len(names["scores"]) == 2 and names["best"][0] in (0, 1)
    assert names["sampled"][0].answers != () and len(names["beams"]) == 1
    assert names["whole"].num_tokens > names["result"].num_tokens > 0
    assert capsys.readouterr().out.strip()


def corpus_flags(folder: Path) -> list[str]:
    words = SmallCorpus(folder).words()
    return words[: words.index("--train-data")]


def test_other_layouts(tmp_path: Path, corpus: SmallCorpus):
    """A folder of the Hugging Face layout, and folders that nothing describes."""
    from safetensors.torch import save_file

    model = random_model(vocab_size=128, positions=POSITIONS)
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="nothing says what model this is"):
        load_model(folder)
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=corpus.folder / "tokenizer.model", task_mask=True)
    named = load_model(folder, config=model.config, tokenizer=tokenizer, prepack=False)
    fields = {
        "model_type": "glm", "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 128,
        "max_sequence_length": POSITIONS, "block_position_encoding": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match="hub holds no tokenizer; give tokenizer="):
        load_model(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GLMBertTokenizer"}', encoding="utf-8")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "time", "year"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    hub = load_model(folder)
    assert hub.model.config == GLMConfig(2, 32, 4, 128, max_position_embeddings=POSITIONS)
    assert len(hub.score(["time [MASK]"], ["year"])[0]) == 1
    torch.testing.assert_close(named.model.state_dict(), load_model(folder, prepack=False).model.state_dict())
    (folder / "config.json").write_text('{"hidden_size": 32}', encoding="utf-8")
    with pytest.raises(ValueError, match="lacks 'num_layers'"):
        load_model(folder)


def test_the_class_for_multiple_choice_gives_the_same_scores():
    """Checklist 31: ``outputs.logits`` are our scores."""
    pytest.importorskip("transformers", reason="transformers is an extra")
    from model.hf.modeling_glm import GLMForMultipleChoice
    from tests.helpers.hf_models import fresh_model, own_copy, tiny_tokenizer

    theirs, tokenizer = fresh_model(GLMForMultipleChoice), tiny_tokenizer()
    contexts, choices = ["w1 w2 [MASK] w3", "w4 [MASK]"], [["w5", "w6 w7 w8"], ["w9 w10", "w11"]]
    inputs = tokenizer(contexts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = theirs(**tokenizer.build_inputs_for_multiple_choice(inputs, choices)).logits
    ours = GLM(own_copy(theirs), WordTokenizer(TINY_COMMAND_IDS, num_tokens=58)).score(contexts, choices)
    assert logits.shape == (2, 2)
    torch.testing.assert_close(torch.tensor(ours), logits, atol=1e-4, rtol=1e-4)


def test_a_released_model_is_known_by_its_folder(tmp_path: Path, vocab_dir: Path, monkeypatch: pytest.MonkeyPatch):
    from model.hub.describe import describe_checkpoint

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "blocklm-large-generation-2021"
    folder.mkdir()
    torch.save({"module": {}}, folder / "mp_rank_00_model_states.pt")
    found = describe_checkpoint(folder)
    assert found is not None and found.source == "released model GLM-Doc"
    tokenizer = build_tokenizer(**{**found.tokenizer.arguments(), "vocab_dir": vocab_dir})
    assert found.config(tokenizer.padded_size(128)) == RELEASED_MODELS["GLM-Doc"].config
