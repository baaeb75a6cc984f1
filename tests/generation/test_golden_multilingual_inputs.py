"""inference_inputs.json: typed queries of the multilingual release; and blanks that are replaced by what fills them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from generation.infill import BlankFiller
from generation.inputs import complete_prompt, encode_prompt
from generation.prompts import PromptRecord, keep_texts, with_ids
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.masks import PrefixMask
from tests.helpers.golden_index import GoldenFolder


@pytest.fixture(scope="module")
def tokenizer(golden: GoldenFolder) -> Tokenizer:
    file = golden.path("multilingual/mglm_tiny.model")
    return build_tokenizer("ChineseSPTokenizer", model_type=str(file), task_mask=True)


@pytest.fixture(scope="module")
def filler(tokenizer: Tokenizer) -> BlankFiller:
    config = GLMConfig(2, 32, 2, tokenizer.padded_size(), max_position_embeddings=60, initializer_std=0.3)
    return BlankFiller(GLMModel(config, generator=torch.Generator().manual_seed(5)).eval(), tokenizer)


def test_queries(golden: GoldenFolder, tokenizer: Tokenizer):
    recorded = golden.json("multilingual/inference_inputs.json")
    assert set(recorded) == {"prompts", "layout", "end_tokens"}
    assert list(tokenizer.special.ends) == recorded["end_tokens"]
    for case in recorded["prompts"]:
        text = complete_prompt(case["raw"], tokenizer=tokenizer)
        assert text == case["text"]
        inputs = encode_prompt(text, tokenizer=tokenizer, fill="replace")
        assert list(inputs.input_ids) == case["ids"]
        assert inputs.blanks[0].index == case["first_mask"]


def test_the_layout(golden: GoldenFolder, tokenizer: Tokenizer):
    """Of a context and a piece: ids, positions, and who sees whom."""
    layout = golden.json("multilingual/inference_inputs.json")["layout"]
    length, total = layout["context_length"], len(layout["ids"])
    text = tokenizer.decode(layout["ids"][1:length])
    inputs = encode_prompt(text, tokenizer=tokenizer, fill="replace")
    assert [*inputs.input_ids, tokenizer.special.sop] == layout["ids"][: length + 1]
    assert inputs.blanks[0].index == layout["mask_position"]
    steps = [inputs.blanks[0].position_of(step) for step in range(total - length)]
    assert [*inputs.positions, *(position for position, _ in steps)] == layout["position_ids"][0]
    assert [0] * length + [block for _, block in steps] == layout["position_ids"][1]
    mask = PrefixMask.prefix(torch.tensor([length]))
    keys = mask.visible_keys(query_length=total, key_length=total, device="cpu")
    assert keys.visible[0, 0].long().tolist() == layout["attention_mask"]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_piece_stands_where_its_blank_was(filler: BlankFiller, tokenizer: Tokenizer, beams: int):
    """The next blank is filled as if the user had typed what fills the one before it."""
    settings = DecodingSettings(max_length=5, top_k=1, num_beams=beams, fill="replace", min_length=1)
    text = "one [MASK] two [sMASK] three"
    [both] = filler.fill([text], settings=settings)
    first_blank = both.inputs.blanks[0].index
    [first] = filler.fill_inputs(
        [filler.encode(text, settings=settings)], settings=settings, generators=[torch.Generator()]
    )
    assert first.pieces == both.pieces  # a prompt at a time, or in a batch
    ids = list(both.inputs.input_ids)
    ids[first_blank : first_blank + 1] = both.pieces[0]
    assert len(both.pieces) == 2 and list(both.output_ids) != ids
    second = ids.index(tokenizer.special.smask)
    ids[second : second + 1] = both.pieces[1]
    assert list(both.output_ids) == ids
    assert both.text == both.alternatives[0] and len(both.alternatives) == beams
    assert both.text.startswith("one ") and both.text.endswith(" three") and "MASK" not in both.text
    appended = filler.fill([text], settings=DecodingSettings(max_length=5, top_k=1, num_beams=beams, min_length=1))
    assert appended[0].pieces[0] == both.pieces[0]


def test_a_text_that_outgrows_the_positions_is_cut_with_a_warning(filler: BlankFiller, caplog):
    settings = DecodingSettings(max_length=40, min_length=40, top_k=1, fill="replace")
    with caplog.at_level("WARNING", logger="glm"):
        [filled] = filler.fill(["[MASK] and [MASK] of it"], settings=settings)
    assert len(filled.output_ids) <= 61
    assert "as long as the model's positions" in caplog.text


def test_files_of_texts(tmp_path: Path):
    path = keep_texts(tmp_path, "a/b [MASK] and a long rest", ["one", "two\nlines"])
    assert path.name.startswith("a_b [MASK] and a lon-") and path.read_text("utf-8") == "one\ntwo lines\n"
    assert keep_texts(tmp_path, "a/b [MASK] and a long rest", ["x"]) != path
    [record] = with_ids([PromptRecord("7\tthe [MASK]", "f, line 1")])
    assert (record.prompt, record.fields) == ("the [MASK]", {"id": "7"})
    with pytest.raises(ValueError, match=r"f, line 2: .* --with-id needs an id, a tab and the text"):
        with_ids([PromptRecord("the [MASK]", "f, line 2")])


def test_a_prefix_that_was_trained_alone_goes_over_the_model(tmp_path: Path, tokenizer: Tokenizer):
    from generation.api import load_model

    config = GLMConfig(1, 16, 2, tokenizer.padded_size(), max_position_embeddings=40, initializer_std=0.3)
    with_prefix = GLMModel(replace(config, prefix_prompt_length=3, prompt_function="none")).eval()
    state = with_prefix.state_dict()
    prefix = {name: state.pop(name) for name in list(state) if name.startswith("prefix_encoder.")}
    torch.save({"module": state}, tmp_path / "pretrained.pt")
    torch.save({"module": prefix}, tmp_path / "prompt.pt")
    options = {"config": with_prefix.config, "tokenizer": tokenizer, "prepack": False}
    glm = load_model(tmp_path / "pretrained.pt", prompt=tmp_path / "prompt.pt", **options)
    settings = DecodingSettings(max_length=6, top_k=1)
    expected = BlankFiller(with_prefix, tokenizer).fill(["a [MASK] b"], settings=settings)
    assert glm.fill(["a [MASK] b"], settings=settings)[0].pieces == expected[0].pieces
    plain = load_model(tmp_path / "pretrained.pt", config=config, tokenizer=tokenizer)
    ids = torch.arange(8).view(1, 8), torch.zeros(1, 2, 8, dtype=torch.long), torch.tensor([4])
    assert not torch.allclose(plain.model(*ids), glm.model(*ids), atol=1e-3)
    with pytest.raises(ValueError, match=r"lacks 1 parameters of the model \(prefix_encoder\.embedding\.weight"):
        load_model(tmp_path / "pretrained.pt", **options)


def test_a_downloaded_file_finds_its_vocabulary(golden: GoldenFolder, tmp_path: Path):
    """Beside it, under the names of the release; the sizes are those of the released model."""
    from generation.api import load_model
    from model.hub.describe import describe_checkpoint

    (tmp_path / "mglm250k").mkdir()
    pieces = tmp_path / "mglm250k" / "mglm250k-uni.model"
    pieces.write_bytes(golden.path("multilingual/mglm_tiny.model").read_bytes())
    torch.save({"word_embeddings.weight": torch.zeros(1024, 4)}, tmp_path / "pretrained.pt")
    description = describe_checkpoint(tmp_path / "pretrained.pt")
    assert description is not None and description.sizes["hidden_size"] == 1536
    assert description.tokenizer is not None and description.tokenizer.path == str(pieces)
    for options in ({}, {"released": "mglm-1b"}):
        with pytest.raises(ValueError, match=r"has a vocabulary of 1024|another architecture"):
            load_model(tmp_path / "pretrained.pt", **options)
