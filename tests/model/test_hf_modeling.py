"""The Hugging Face classes give what our own model, heads and decoding give, and do what the library expects."""

from __future__ import annotations

import ast
import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is an extra")

import torch
import transformers
from packaging import version
from torch import Tensor
from transformers import AutoModelForMultipleChoice, AutoModelForSeq2SeqLM, AutoTokenizer, DynamicCache

from generation.infill import BlankFiller
from generation.sampling import DecodingSettings
from model import hf
from model.heads import SequenceClassification
from model.hf.inputs_glm import CACHE_NAME, CACHE_NAMES
from model.hf.modeling_glm import (
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForQuestionAnswering,
    GLMForSequenceClassification,
    GLMForTokenClassification,
    GLMModel,
)
from tests.helpers.hf_models import (
    NO_DROPOUT,
    block_inputs,
    fresh_model,
    own_copy,
    save_with_code,
    tiny_config,
    tiny_tokenizer,
    word_tokenizer,
    words,
)
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer

TIGHT = {"atol": 1e-5, "rtol": 1e-5}
ENDS = [TINY_COMMAND_IDS["eop"], TINY_COMMAND_IDS["eos"]]
PROMPTS = [
    "w1 w2 [MASK] w3",
    "w30 [MASK] w31 w32 w33 w34 w35",
    "[MASK] w7",
    "w11 w12 w13 w14 w15 w16 w17 [MASK] w9",
]
SEVERAL = ["w1 [MASK] w2 [sMASK] w3", "w5 w6 [gMASK]", "[MASK] [MASK] w8 w9 w10 [MASK]"]


def attention_masks(length: int) -> dict[str, Tensor]:
    """Return every form of mask for 3 rows; one row of the matrix sees nothing."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randint(2, (3, 1, length, length), generator=generator)
    matrix[0, 0, 4] = 0
    return {
        "scalar": torch.tensor(4),
        "rows": torch.tensor([3, 6, length]),
        "column": torch.tensor([[3], [0], [7]]),
        "matrix": matrix,
        "wide": torch.cat([torch.ones(3, 1, length, 4, dtype=torch.long), matrix], dim=3),
        "shared": torch.ones(1, 1, length, length).tril(),
    }


def blank_inputs(prompts: list[str], *, side: str = "right", max_gen_length: int = 12, **options: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    return tokenizer.build_inputs_for_generation(inputs, max_gen_length=max_gen_length, **options)


def pieces_of(sequences: Tensor, start: int) -> list[list[int]]:
    """Return the generated ids of each row up to its end token."""
    rows = []
    for row in sequences[:, start:].tolist():
        end = next((i for i, token in enumerate(row) if token in ENDS), len(row))
        rows.append(row[:end])
    return rows


def fill_with_own_code(model: GLMForConditionalGeneration, prompts: list[str], **settings: Any) -> list[Any]:
    filler = BlankFiller(own_copy(model), WordTokenizer(TINY_COMMAND_IDS, num_tokens=64))
    results = filler.fill(prompts, settings=DecodingSettings(**settings))
    return [[list(piece) for piece in result.pieces] for result in results]


def imports_of(file: Path) -> tuple[set[str], set[str]]:
    """Return the packages that a file imports, and the files beside it."""
    packages, files = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            (files if node.level else packages).add(node.module.split(".")[0])
    return packages, files


def test_the_files_stand_alone():
    folder = Path(hf.__file__).parent
    found = {file.stem: imports_of(file) for file in folder.glob("*_glm.py")}
    for name, (packages, files) in found.items():
        assert packages - sys.stdlib_module_names <= {"torch", "transformers", "tokenizers", "sentencepiece"}, name
        # Old versions of transformers copy the files that a loaded file imports itself, and no others.
        assert all(found[other][1] <= files for other in files), f"{name} has to import the imports of its imports"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("block_positions", [True, False])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_logits_equal_our_model(implementation: str, block_positions: bool, scale: float):
    model = fresh_model(
        GLMModel, attn_implementation=implementation, block_position_encoding=block_positions, attention_scale=scale
    )
    assert model.config._attn_implementation == implementation
    own = own_copy(model)
    ids, positions = block_inputs()
    positions = positions if block_positions else positions[:, 0]
    for name, mask in attention_masks(ids.size(1)).items():
        with torch.no_grad():
            actual = model(ids, positions, mask).logits
            torch.testing.assert_close(actual, own(ids, positions, mask), **TIGHT, msg=lambda m, n=name: f"{n}: {m}")


def test_attention_is_computed_by_what_is_registered_with_the_library():
    if not hasattr(transformers, "AttentionInterface"):
        pytest.skip("this version registers no attention")
    seen: list[Tensor | None] = []

    def attention(module, query, key, value, attention_mask, *, dropout, scaling, is_causal, **options):
        seen.append(attention_mask)
        assert not is_causal
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return context.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("attention_of_the_test", attention)
    ids, positions = block_inputs()
    masks = attention_masks(10)
    inputs = blank_inputs(PROMPTS)
    filled = fresh_model().generate(**inputs, pad_token_id=50)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # flex takes a minute to be compiled
        for name in ("attention_of_the_test", "flex_attention"):
            model = fresh_model(attn_implementation=name)
            for mask in masks.values():
                expected = fresh_model()(ids, positions, mask).logits
                torch.testing.assert_close(model(ids, positions, mask).logits, expected, **TIGHT)
            assert torch.equal(model.generate(**inputs, pad_token_id=50), filled)
            fixed = model.generate(**inputs, pad_token_id=50, cache_implementation="static")
            assert torch.equal(fixed, filled)
    assert seen[0].dtype == torch.bool and len(seen) > 2 * len(masks)
    with pytest.raises((ValueError, ImportError), match=r"^[^\n]*(support|seems to be not installed)[^\n]*$"):
        fresh_model(attn_implementation="flash_attention_2")


def test_defaults_are_positions_in_order_and_a_causal_mask():
    model = fresh_model(GLMModel)
    ids, _ = block_inputs()
    positions = torch.stack([torch.arange(10), torch.zeros(10, dtype=torch.long)])[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, own_copy(model)(ids, positions, torch.tensor(0)), **TIGHT)
        padded = torch.ones_like(ids).index_fill_(1, torch.tensor([8, 9]), 0)
        both = torch.tensor([8]), padded[:, None, None, :]
        torch.testing.assert_close(
            model(ids, positions, padded).logits[:, :8], model(ids, positions, both[1]).logits[:, :8]
        )


def test_positions_may_leave_the_second_row_out():
    model = fresh_model(GLMModel)
    ids, _ = block_inputs()
    shifted = torch.arange(10).expand(3, -1) + torch.tensor([[0], [2], [5]])
    both = torch.stack([shifted, torch.zeros_like(shifted)], dim=1)
    with torch.no_grad():
        expected = own_copy(model)(ids, both, torch.tensor(4))
        torch.testing.assert_close(model(ids, shifted, torch.tensor(4)).logits, expected, **TIGHT)
        one = model(ids, torch.arange(10)[None], torch.tensor(4)).logits
        torch.testing.assert_close(one, model(ids, None, torch.tensor(4)).logits)


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float16).min, -1e4])
def test_a_mask_that_is_added_to_scores_says_the_same(lowest: float):
    model = fresh_model(GLMModel)
    ids, positions = block_inputs()
    seen = torch.ones(3, 1, 10, 10).tril().bool() | (torch.arange(10) < 4)
    added = torch.zeros(seen.shape).masked_fill(~seen, lowest)
    with torch.no_grad():
        expected = model(ids, positions, seen).logits
        for mask in (added, seen.float(), seen.half(), seen.long()):
            assert torch.equal(model(ids, positions, mask).logits, expected)
        everything = model(ids, positions, torch.ones(3, 1, 10, 10)).logits
        assert torch.equal(model(ids, positions, torch.zeros(3, 1, 10, 10)).logits, everything)


def test_generation_takes_a_mask_that_is_added_to_scores():
    model, inputs = fresh_model(), blank_inputs(PROMPTS)
    expected = model.generate(**inputs, pad_token_id=50)
    seen = inputs["generation_attention_mask"] != 0
    inputs["generation_attention_mask"] = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
    assert torch.equal(model.generate(**inputs, pad_token_id=50), expected)


MASKS = {"lengths": torch.tensor([3, 6, 10]), "columns": torch.ones(3, 10), "matrix": torch.ones(3, 1, 10, 10).tril()}


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((GLMForConditionalGeneration, name) for name in MASKS), (GLMForSequenceClassification, "columns")],
)
def test_models_are_exported_and_compiled_as_one_graph(kind: type, name: str):
    mask = MASKS[name]
    model = fresh_model(kind, use_cache=False)
    ids, positions = block_inputs()
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    length = torch.export.Dim("length", min=4, max=60)
    in_mask = {dim: length for dim in range(1, mask.dim()) if mask.size(dim) == ids.size(1)}
    shapes = {"input_ids": {1: length}, "position_ids": {2: length}, "attention_mask": in_mask}
    with torch.no_grad():
        expected = model(**inputs).logits
        for options in ({"strict": False}, {"strict": True}, {"strict": False, "dynamic_shapes": shapes}):
            exported = torch.export.export(model, (), inputs, **options).module()
            torch.testing.assert_close(exported(**inputs).logits, expected, **TIGHT)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected, **TIGHT)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "name"), [(GLMForConditionalGeneration, "matrix"), (GLMForSequenceClassification, "columns")]
)
def test_onnxruntime_computes_the_same_for_any_length(kind: type, name: str):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"models are exported to ONNX with the package {package}")
    import onnxruntime

    model, mask = fresh_model(kind, use_cache=False), MASKS[name].long()
    ids, positions = block_inputs()
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    length = torch.export.Dim("length", min=4, max=60)
    lengths = {
        name: {dim: length for dim in range(1, one.dim()) if one.size(dim) == 10} for name, one in inputs.items()
    }
    program = torch.onnx.export(model, (), kwargs=inputs, dynamic_shapes=lengths, dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for cut in (10, 7):
        cuts = (ids[:, :cut], positions[..., :cut], mask[..., :cut, :cut] if name == "matrix" else mask[:, :cut])
        [found] = session.run(None, {name: one.numpy() for name, one in zip(inputs, cuts)})
        torch.testing.assert_close(torch.from_numpy(found), model(*cuts).logits.detach(), **TIGHT)


def test_logits_are_there_when_the_configuration_or_the_caller_wants_them():
    model = fresh_model(GLMModel, output_predict=False)
    ids, positions = block_inputs()
    assert model(ids, positions).logits is None
    logits = model(ids, positions, output_logits=True).logits
    torch.testing.assert_close(logits, model.project(model(ids, positions).last_hidden_state))
    task = GLMForConditionalGeneration(model.config)
    task.glm.load_state_dict(model.state_dict())
    torch.testing.assert_close(task.eval()(ids, positions).logits, logits)


def test_hidden_states_and_attentions():
    model = fresh_model(GLMModel)
    ids, positions = block_inputs()
    output = model(ids, positions, torch.tensor(4), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape == (3, 10, 32)
    assert len(output.attentions) == 2
    for probabilities in output.attentions:
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(3, 4, 10))
        assert not probabilities[:, :, 0, 4:].any()
    as_tuple = model(ids, positions, torch.tensor(4), return_dict=False)
    torch.testing.assert_close(as_tuple[0], output.last_hidden_state)


def test_the_loss_is_the_mean_over_labels():
    model = fresh_model()
    inputs = blank_inputs(PROMPTS[:2], targets=["w1 w2 w3", "w4"])
    output = model(**inputs)
    own = own_copy(model)
    mask = (inputs["labels"] >= 0).float()
    expected = own(
        inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"],
        labels=inputs["labels"].clamp(min=0), loss_mask=mask,
    ).mean  # fmt: skip
    torch.testing.assert_close(output.loss, expected, **TIGHT)
    halved = model(**inputs, num_items_in_batch=2 * int(mask.sum())).loss
    torch.testing.assert_close(halved, expected / 2, **TIGHT)
    nothing = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    assert model(**nothing).loss == 0


def test_greedy_filling_equals_our_decoding():
    model = fresh_model()
    inputs = blank_inputs(PROMPTS)
    found = model.generate(**inputs, eos_token_id=ENDS, pad_token_id=50)
    expected = fill_with_own_code(model, PROMPTS, max_length=12, top_k=1)
    assert [[piece] for piece in pieces_of(found, inputs["input_ids"].size(1))] == expected
    assert len({len(pieces[0]) for pieces in expected}) > 1, "the rows should end at different lengths"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_equals_ours(seed: int, use_cache: bool):
    model = fresh_model(seed=seed)
    inputs = blank_inputs(PROMPTS)
    found = model.generate(
        **inputs, num_beams=4, length_penalty=0.0, eos_token_id=ENDS, pad_token_id=50, use_cache=use_cache
    )
    expected = fill_with_own_code(model, PROMPTS, max_length=12, num_beams=4)
    assert [[piece] for piece in pieces_of(found, inputs["input_ids"].size(1))] == expected


@pytest.mark.parametrize("num_beams", [1, 4])
def test_several_blanks_are_filled_as_by_our_decoding(num_beams: int):
    model = fresh_model()
    inputs = tiny_tokenizer()(SEVERAL, return_tensors="pt", padding=True)
    # A text that ends with [gMASK] gets no end token in our program.
    own = WordTokenizer(TINY_COMMAND_IDS, num_tokens=64)
    ids = [[51, *own.encode(text), *([] if text.endswith("[gMASK]") else [50])] for text in SEVERAL]
    inputs["attention_mask"] = torch.tensor([[int(i < len(row)) for i in range(max(map(len, ids)))] for row in ids])
    found = model.fill_blanks(
        inputs["input_ids"],
        inputs["attention_mask"],
        mask_token_ids=[52, 53, 54],
        sop_token_id=55,
        eos_token_id=ENDS,
        max_gen_length=9,
        num_beams=num_beams,
        **({"length_penalty": 0.0} if num_beams > 1 else {}),
    )
    settings = {"max_length": 9, "num_beams": num_beams, "top_k": 1}
    assert found == fill_with_own_code(model, SEVERAL, **settings)
    assert [len(pieces) for pieces in found] == [2, 1, 3]


def test_sampling_follows_the_seed():
    model = fresh_model()
    inputs = blank_inputs(PROMPTS)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(model.generate(**inputs, do_sample=True, top_p=0.9, temperature=1.5, pad_token_id=50))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    several = model.generate(**inputs, do_sample=True, num_return_sequences=3, pad_token_id=50)
    assert len(several) == 3 * len(PROMPTS)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_the_cache_changes_nothing(name: str):
    model = fresh_model()
    ids, positions = block_inputs(length=12)
    mask = attention_masks(12)["matrix"].tril() | torch.eye(12, dtype=torch.long)
    with torch.no_grad():
        whole = model(ids, positions, mask, use_cache=False)
        assert getattr(whole, CACHE_NAME) is None
        cache, parts = None, []
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
            part = slice(start, end)
            given = {name: cache, "use_cache": True}
            output = model(ids[:, part], positions[:, :, part], mask[:, :, part, :end], **given)
            cache = getattr(output, CACHE_NAME)
            parts.append(output.logits)
    assert isinstance(cache, DynamicCache) and cache.get_seq_length() == 12
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.logits, **TIGHT)
    with pytest.raises(ValueError, match=r"past_key_values and cache are two names of the same argument"):
        model(ids, past_key_values=cache, cache=cache)


def lengths_fed(model: GLMForConditionalGeneration) -> list[int]:
    """Return a list that will have the number of positions of each call of the network."""
    lengths: list[int] = []
    model.glm.register_forward_pre_hook(lambda module, args: lengths.append(args[0].size(1)))
    return lengths


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}, {"use_cache": False}])
def test_generation_feeds_only_new_tokens(options: dict[str, Any]):
    model = fresh_model()
    lengths = lengths_fed(model)
    inputs = blank_inputs(PROMPTS[:2], max_gen_length=6)
    model.generate(**inputs, **options, pad_token_id=50)
    start = inputs["input_ids"].size(1)
    assert lengths == ([*range(start, start + 6)] if "use_cache" in options else [start, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_of_the_user_is_filled_and_goes_on(name: str):
    model = fresh_model()
    inputs = blank_inputs(PROMPTS[:1], max_gen_length=8)
    start = inputs["input_ids"].size(1)
    expected = model.generate(**inputs, pad_token_id=50)
    cache, lengths = DynamicCache(), lengths_fed(model)
    begun = model.generate(**inputs, **{name: cache}, max_new_tokens=3, pad_token_id=50)
    assert cache.get_seq_length() == start + 2 and torch.equal(begun, expected[:, : start + 3])
    inputs["input_ids"] = begun
    assert torch.equal(model.generate(**inputs, **{name: cache}, pad_token_id=50), expected)
    assert lengths == [start, *[1] * (expected.size(1) - start - 1)]


@pytest.mark.parametrize("assistant", ["the model", "another", "prompt lookup"])
def test_assisted_generation_gives_the_same(assistant: str):
    model = fresh_model()
    inputs = blank_inputs(["w1 w2 w3 [MASK] w1 w2"], max_gen_length=20)
    inputs["eos_token_id"] = 63  # 5.0 looks up prompts only where there is one
    expected = model.generate(**inputs, pad_token_id=50)
    if assistant == "prompt lookup":
        options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    else:
        options = {"assistant_model": fresh_model(seed=0 if assistant == "the model" else 1)}
    lengths = lengths_fed(model)
    assert torch.equal(model.generate(**inputs, **options, pad_token_id=50), expected)
    assert max(lengths[1:]) < inputs["input_ids"].size(1)
    assert assistant != "the model" or len(lengths) < expected.size(1) - inputs["input_ids"].size(1)


@pytest.mark.parametrize("num_tokens", [2, 5])
def test_tokens_looked_up_in_the_prompt_give_the_same(num_tokens: int):
    """What is proposed at the end goes beyond the positions that were built."""
    if version.parse(transformers.__version__) < version.parse("4.45"):
        pytest.skip("this version looks up nothing for models with a mask of their own")
    model = fresh_model()
    for prompt in PROMPTS:
        options = {**blank_inputs([prompt]), "pad_token_id": 50, "eos_token_id": 63, "do_sample": False}
        found = model.generate(**options, prompt_lookup_num_tokens=num_tokens)
        assert torch.equal(found, model.generate(**options))


@pytest.mark.parametrize("use_cache", [True, False])
def test_embeddings_are_taken_in_the_place_of_ids(use_cache: bool):
    model, inputs = fresh_model(), blank_inputs(PROMPTS)
    options = {"pad_token_id": 50, "do_sample": False, "use_cache": use_cache}
    expected = model.generate(**inputs, **options)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    start = inputs["input_ids"].size(1)
    assert torch.equal(model.generate(**inputs, inputs_embeds=embeds, **options), expected)
    del inputs["input_ids"]
    assert torch.equal(model.generate(**inputs, inputs_embeds=embeds, **options), expected[:, start:])


def test_the_output_projection_is_a_module():
    model = fresh_model()
    ids, positions = block_inputs()
    output = model(ids, positions, output_hidden_states=True)
    projection = model.get_output_embeddings()
    hidden = model.glm(ids, positions).last_hidden_state
    torch.testing.assert_close(projection(hidden), output.logits)
    assert projection.weight is model.get_input_embeddings().weight
    assert not [name for name in model.state_dict() if "project" in name or "lm_head" in name]
    with pytest.raises(ValueError, match="the output projection is that of the word embeddings"):
        model.set_output_embeddings(torch.nn.Linear(32, 64, bias=False))


def test_guidance_weighs_the_model_against_itself_without_the_text():
    model = fresh_model()
    inputs = blank_inputs(PROMPTS[:1], max_gen_length=5)
    ids, positions, mask = (inputs[name] for name in ("input_ids", "position_ids", "generation_attention_mask"))
    found = model.generate(**inputs, guidance_scale=1.5, pad_token_id=50)
    start = ids.size(1)
    with torch.no_grad():
        for length in range(start, start + 5):
            with_text = model(ids, positions[..., :length], mask[..., :length, :length]).logits[:, -1]
            without = model(ids[:, start - 1 :]).logits[:, -1]
            with_text, without = with_text.log_softmax(dim=-1), without.log_softmax(dim=-1)
            best = (1.5 * (with_text - without) + without).argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_cache_of_fixed_size_gives_the_same(num_beams: int):
    if version.parse(transformers.__version__) < version.parse("4.45"):
        pytest.skip("this version makes caches of fixed size inside of its own models only")
    model = fresh_model()
    options = {**blank_inputs(PROMPTS), "pad_token_id": 50, "num_beams": num_beams}
    assert torch.equal(model.generate(**options, cache_implementation="static"), model.generate(**options))


def test_steps_with_a_cache_of_fixed_size_are_compiled_as_one_graph():
    """What the library does by itself on a GPU, because of ``_can_compile_fullgraph``."""
    config = getattr(transformers, "CompileConfig", None)
    if not (fresh_model()._can_compile_fullgraph and hasattr(config, "_compile_all_devices")):
        pytest.skip("this version cannot compile steps, or on GPUs alone")
    options = {**blank_inputs(PROMPTS, max_gen_length=6), "pad_token_id": 50}
    settings = config(fullgraph=True, backend="eager", mode=None)
    settings._compile_all_devices = True
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    found = fresh_model().generate(**options, cache_implementation="static", compile_config=settings)
    assert graphs["unique_graphs"] > before
    assert torch.equal(found, fresh_model().generate(**options))
    torch._dynamo.reset()


@pytest.mark.parametrize("task_type", [None, "SEQ_2_SEQ_LM"])
def test_adapters_of_peft_train_and_generate(task_type: str | None):
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    model = fresh_model()
    inputs = blank_inputs(PROMPTS)
    expected = model.generate(**inputs, pad_token_id=50, num_beams=2)
    config = peft.LoraConfig(task_type=task_type, target_modules=["query_key_value"], init_lora_weights=True)
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(adapted.generate(**inputs, pad_token_id=50, num_beams=2), expected)
    adapted.train()
    adapted(**blank_inputs(PROMPTS, targets=["w1", "w2 w3", "w4", "w5"])).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name for name in trained)


def test_other_methods_of_peft_train_and_generate():
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    if version.parse(peft.__version__) < version.parse("0.15"):
        pytest.skip("this version lacks some of the methods")
    where = {"target_modules": ["query_key_value"]}
    norms = {"target_modules": ["input_layernorm", "post_attention_layernorm"]}
    scaled = {"target_modules": ["query_key_value", "dense_4h_to_h"], "feedforward_modules": ["dense_4h_to_h"]}
    for config in (
        peft.LoraConfig(use_dora=True, **where), peft.LoraConfig(use_rslora=True, **where),
        peft.AdaLoraConfig(total_step=10, **where), peft.VeraConfig(**where), peft.LoHaConfig(**where),
        peft.LoKrConfig(**where), peft.OFTConfig(r=0, oft_block_size=4, **where), peft.IA3Config(**scaled),
        peft.LNTuningConfig(**norms),
    ):  # fmt: skip
        adapted = peft.get_peft_model(fresh_model(), config).train()
        adapted(**blank_inputs(PROMPTS, targets=["w1", "w2 w3", "w4", "w5"])).loss.backward()
        trained = [p for p in adapted.parameters() if p.requires_grad]
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained), config
        assert len(adapted.eval().generate(**blank_inputs(PROMPTS), pad_token_id=50)) == len(PROMPTS)


@pytest.mark.parametrize("kind", ["lora", "tokens", "tokens beside lora"])
def test_adapters_of_the_word_embeddings_are_merged_without_a_change(kind: str):
    """They change both ends of the model, which are one table."""
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    if kind != "lora" and version.parse(peft.__version__) < version.parse("0.15"):
        pytest.skip("this version trains no single tokens")
    if kind == "lora":
        config = peft.LoraConfig(target_modules=["word_embeddings"], init_lora_weights=False)
    elif kind == "tokens":
        config = peft.TrainableTokensConfig(token_indices=[3, 4], target_modules=["word_embeddings"])
    else:
        config = peft.LoraConfig(target_modules=["query_key_value"], trainable_token_indices={"word_embeddings": [3]})
    inputs = blank_inputs(PROMPTS, targets=["w1", "w2 w3", "w4", "w5"])
    expected = fresh_model()(**inputs).logits
    adapted = peft.get_peft_model(fresh_model(), config).train()
    adapted(**inputs).loss.backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter -= 0.1 * parameter.grad
        logits = adapted.eval()(**inputs).logits
        assert (logits - expected).abs().max() > 1e-3
        torch.testing.assert_close(adapted.merge_and_unload()(**inputs).logits, logits, atol=1e-4, rtol=1e-4)


def test_a_head_that_peft_leaves_frozen_is_named(monkeypatch: pytest.MonkeyPatch):
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    lines: list[str] = []
    monkeypatch.setattr("model.hf.modeling_glm.logger.warning_once", lines.append, raising=False)
    ids, _ = block_inputs()
    for saved in (None, ["model.dense", "out_proj"]):
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query_key_value"], modules_to_save=saved)
        adapted = peft.get_peft_model(fresh_model(GLMForSequenceClassification), config).train()
        adapted(input_ids=ids, labels=torch.tensor([0, 1, 1])).loss.backward()
        trained = {name.split(".")[2] for name, one in adapted.named_parameters() if one.grad is not None}
        assert trained == ({"glm", "dense", "out_proj"} if saved else {"glm"})
    [line] = lines
    assert "modules_to_save=['model.dense', 'out_proj']" in line


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_padded_batch_equals_its_rows(side: str, num_beams: int):
    model = fresh_model()
    options = {"eos_token_id": ENDS, "pad_token_id": 50, "num_beams": num_beams}
    batch = blank_inputs(PROMPTS, side=side, skip_padding=True)
    found = pieces_of(model.generate(**batch, **options), batch["input_ids"].size(1))
    for text, piece in zip(PROMPTS, found):
        single = blank_inputs([text])
        assert [piece] == pieces_of(model.generate(**single, **options), single["input_ids"].size(1))


def test_a_text_alone_is_enough_when_the_configuration_knows_the_ids():
    model = fresh_model()
    model.config.mask_token_ids = [52, 53, 54]
    model.config.sop_token_id = 55
    model.generation_config.eos_token_id = ENDS
    model.generation_config.pad_token_id = 50
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    found = model.generate(**inputs, max_new_tokens=12)
    expected = fill_with_own_code(model, PROMPTS, max_length=12, top_k=1)
    assert [[piece] for piece in pieces_of(found, inputs["input_ids"].size(1) + 1)] == expected
    with pytest.raises(ValueError, match=r"text 1 of the batch has no blank"):
        model.generate(**tokenizer(["w1 [MASK]", "w1 w2"], return_tensors="pt", padding=True))


def test_a_text_is_continued_where_no_ids_are_known():
    model = fresh_model()
    ids, _ = block_inputs(batch_size=2, length=6)
    found = model.generate(ids, max_new_tokens=4, pad_token_id=50)
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(found, ids)


def test_generation_ends_where_inputs_or_positions_end():
    model = fresh_model()
    inputs = blank_inputs(PROMPTS, max_gen_length=5)
    start = inputs["input_ids"].size(1)
    assert model.generate(**inputs, pad_token_id=50).size(1) == start + 5
    assert model.generate(**inputs, max_new_tokens=9, pad_token_id=50).size(1) == start + 5
    assert model.generate(**inputs, max_length=start + 2, pad_token_id=50).size(1) == start + 2
    long = blank_inputs(PROMPTS[:1], max_gen_length=512)
    width = long["input_ids"].size(1)
    assert model.generate(**long, max_length=512, pad_token_id=50).size(1) == width + 64
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, the model has 65 positions"):
        model.generate(**blank_inputs([words(range(70)).replace("w5 ", "[MASK] ")]), pad_token_id=50)


def test_multiple_choice_sums_log_probabilities():
    model = fresh_model(GLMForMultipleChoice)
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(["w1 [MASK] w2", "w3 w4 w5 [MASK]"], return_tensors="pt", padding=True)
    choices = [["w6", "w7 w8"], ["w9 w10 w11", "w12"]]
    output = model(**tokenizer.build_inputs_for_multiple_choice(inputs, choices), labels=torch.tensor([1, 0]))
    assert output.logits.shape == (2, 2)
    own = own_copy(model)
    for row, text in enumerate(["w1 [MASK] w2", "w3 w4 w5 [MASK]"]):
        for column, choice in enumerate(choices[row]):
            single = tokenizer(text, return_tensors="pt")
            pair = tokenizer.build_inputs_for_generation(single, targets=[choice + " w63"])
            length = single["input_ids"].size(1)
            count = len(choice.split())
            logits = own(pair["input_ids"], pair["position_ids"], pair["attention_mask"])
            rows = logits[0, length : length + count].log_softmax(dim=-1)
            expected = rows.gather(1, pair["labels"][0, length : length + count, None]).sum()
            torch.testing.assert_close(output.logits[row, column], expected, **TIGHT)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 0])))
    uneven = tokenizer.build_inputs_for_multiple_choice(inputs, [["w1"], ["w2", "w3"]])
    with pytest.raises(ValueError, match=r"\[1, 2\] choices; give every row the same number"):
        model(**uneven)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_classification_equals_our_head(num_labels: int):
    model = fresh_model(GLMForSequenceClassification, num_labels=num_labels)
    weights = model.state_dict()
    own = SequenceClassification(own_copy_of_inner(model), num_labels, pool_token="cls")
    names = {"dense": "pool_layer", "out_proj": "multichoice_head"}
    own.load_state_dict({
        **{f"model.{n.removeprefix('glm.')}": t for n, t in weights.items() if n.startswith("glm.")},
        **{f"{names[n.split('.')[0]]}.{n.split('.')[1]}": t for n, t in weights.items() if not n.startswith("glm.")},
    })  # fmt: skip
    ids, positions = block_inputs()
    prefix_lengths = torch.tensor([4, 10, 7])
    labels = torch.tensor([0, 2, 1]) if num_labels > 1 else torch.tensor([0.5, 1.0, -1.0])
    output = model(ids, positions, prefix_lengths, labels=labels)
    torch.testing.assert_close(output.logits, own.eval()(ids, positions, prefix_lengths), **TIGHT)
    loss = torch.nn.functional.cross_entropy if num_labels > 1 else lambda x, y: (x.flatten() - y).square().mean()
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


def own_copy_of_inner(model: GLMForSequenceClassification) -> Any:
    return own_copy(model.glm)


def gradients(model: GLMForConditionalGeneration, inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", [GLMForSequenceClassification, GLMForTokenClassification, GLMForQuestionAnswering])
def test_classes_that_read_see_the_whole_text(kind: type):
    model = fresh_model(kind, num_labels=3)
    ids, _ = block_inputs()
    with torch.no_grad():
        plain, masked = model(ids).to_tuple(), model(ids, attention_mask=torch.ones_like(ids)).to_tuple()
        padded = model(
            torch.cat([ids, ids[:, :2]], dim=1), attention_mask=torch.tensor([[1] * 10 + [0] * 2] * 3)
        ).to_tuple()
    for one, two, three in zip(plain, masked, padded):
        torch.testing.assert_close(one, two, **TIGHT)
        torch.testing.assert_close(one, three[:, : one.size(1)], **TIGHT)


def test_tokens_are_classified():
    model = fresh_model(GLMForTokenClassification, num_labels=3)
    ids, _ = block_inputs()
    labels = torch.randint(3, ids.shape, generator=torch.Generator().manual_seed(1)).masked_fill(ids % 3 == 0, -100)
    output = model(ids, labels=labels)
    hidden = model.glm(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(output.logits, model.classifier(hidden), **TIGHT)
    counted = labels >= 0
    expected = torch.nn.functional.cross_entropy(output.logits[counted], labels[counted])
    torch.testing.assert_close(output.loss, expected)


def test_answers_are_found():
    model = fresh_model(GLMForQuestionAnswering)
    ids, _ = block_inputs()
    starts, ends = torch.tensor([1, 0, 12]), torch.tensor([3, 9, 12])  # the last one is cut off
    output = model(ids, start_positions=starts, end_positions=ends)
    both = [
        torch.nn.functional.cross_entropy(logits[:2], places[:2])
        for logits, places in ((output.start_logits, starts), (output.end_logits, ends))
    ]
    torch.testing.assert_close(output.loss, sum(both) / 2)


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool | None):
    inputs = blank_inputs(PROMPTS, targets=["w1 w2", "w3", "w4 w5 w6", "w7"])
    expected = gradients(fresh_model(**NO_DROPOUT), inputs)
    if reentrant is None:
        model = fresh_model(**NO_DROPOUT, checkpoint_activations=True)
    else:
        model = fresh_model(**NO_DROPOUT)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls: list[bool] = []
    model.glm.transformer.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    actual = gradients(model, inputs)
    assert len(calls) == 2, "the layer should have been computed again in the backward pass"
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, **TIGHT, msg=lambda m, n=name: f"{n}: {m}")


def test_fresh_weights_have_the_spread_of_training():
    config = tiny_config(hidden_size=256, num_layers=3, initializer_range=0.02)
    torch.manual_seed(0)
    model = GLMForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            narrow = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            expected = 0.02 / (6**0.5 if narrow else 1)
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


def test_saved_models_come_back_through_the_auto_classes(tmp_path: Path):
    model = fresh_model()
    tokenizer = tiny_tokenizer()
    model.config.mask_token_ids = tokenizer.mask_token_ids
    model.config.sop_token_id = tokenizer.sop_token_id
    folder = save_with_code(model, tmp_path / "model", tokenizer)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(loaded).__module__.startswith("transformers_modules")
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert again(PROMPTS)["input_ids"] == tokenizer(PROMPTS)["input_ids"]
    inputs = again.build_inputs_for_generation(again(PROMPTS, return_tensors="pt", padding=True), max_gen_length=8)
    assert torch.equal(loaded.generate(**inputs, pad_token_id=50), model.generate(**inputs, pad_token_id=50))
    text = again(PROMPTS, return_tensors="pt", padding=True)
    assert torch.equal(
        loaded.generate(**text, max_new_tokens=8, pad_token_id=50), loaded.generate(**inputs, pad_token_id=50)
    )
    loaded.save_pretrained(tmp_path / "again")
    third = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert third.state_dict().keys() == model.state_dict().keys()
    for name, tensor in third.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    choice = AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=True, **auto_map_of(tmp_path))
    assert torch.equal(choice.state_dict()["glm.word_embeddings.weight"], model.glm.word_embeddings.weight)


def auto_map_of(folder: Path) -> dict[str, Any]:
    """Return the configuration with all classes named, as an export writes it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / "model", trust_remote_code=True)
    config.auto_map = {
        **config.auto_map,
        "AutoModel": "modeling_glm.GLMModel",
        "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
    }
    return {"config": config}


@pytest.mark.parametrize("prefix", ["", "glm."])
@pytest.mark.parametrize("kind", [GLMModel, GLMForConditionalGeneration, GLMForMultipleChoice])
def test_weights_load_with_and_without_prefix(tmp_path: Path, prefix: str, kind: type):
    inner = fresh_model(GLMModel)
    inner.config.save_pretrained(tmp_path)
    torch.save({prefix + name: t for name, t in inner.state_dict().items()}, tmp_path / "pytorch_model.bin")
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    weights = loaded.state_dict()
    for name, tensor in inner.state_dict().items():
        assert torch.equal(weights.get(name, weights.get(f"glm.{name}")), tensor), name


def test_half_precision_and_a_larger_vocabulary():
    model = fresh_model().to(torch.bfloat16)
    inputs = blank_inputs(PROMPTS)
    assert model(inputs["input_ids"], attention_mask=torch.tensor(4)).logits.isfinite().all()
    assert model.generate(**inputs, pad_token_id=50).size(0) == len(PROMPTS)
    wide = fresh_model()
    before = wide(inputs["input_ids"]).logits
    wide.resize_token_embeddings(70)
    after = wide(inputs["input_ids"]).logits
    assert after.size(-1) == 70
    torch.testing.assert_close(after[..., :64], before)
    wide.generate(**inputs, pad_token_id=50, num_beams=2)


@pytest.mark.parametrize("place", ["auto", "disk"])
def test_weights_are_placed_by_a_device_map(tmp_path: Path, place: str):
    pytest.importorskip("accelerate", reason="device maps need the package accelerate")
    model = fresh_model()
    folder = save_with_code(model, tmp_path / "model")
    mapping: Any = "auto"
    if place == "disk":
        layers = {f"glm.transformer.layers.{i}": "disk" if i else "cpu" for i in range(2)}
        rest = ("position_embeddings", "block_position_embeddings", "embedding_dropout", "final_layernorm")
        mapping = {**layers, **{f"glm.transformer.{name}": "cpu" for name in rest}, "glm.word_embeddings": "disk"}
    placed = AutoModelForSeq2SeqLM.from_pretrained(
        folder, trust_remote_code=True, device_map=mapping, offload_folder=str(tmp_path / "offload")
    ).eval()
    assert set(CACHE_NAMES) <= set(placed._skip_keys_device_placement)
    inputs = blank_inputs(PROMPTS)
    expected = model.generate(**inputs, pad_token_id=50, num_beams=2)
    assert torch.equal(placed.generate(**inputs, pad_token_id=50, num_beams=2), expected)


def test_the_trainer_lowers_the_loss(tmp_path: Path):
    pytest.importorskip("accelerate", reason="the trainer needs the package accelerate")
    from transformers import Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            row = blank_inputs([f"w{index % 8} [MASK] w{index % 5}"], targets=[f"w{index % 8 + 20}"])
            return {name: tensor[0] for name, tensor in row.items()}

    torch.manual_seed(0)
    model = GLMForConditionalGeneration(tiny_config(**NO_DROPOUT))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, gradient_checkpointing=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 10
    assert losses[0] == pytest.approx(torch.tensor(64.0).log().item(), rel=0.1)  # not summed over the two parts
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_trainer_predicts_with_generate(tmp_path: Path, side: str):
    pytest.importorskip("accelerate", reason="the Trainer needs the package accelerate")
    model, tokenizer = fresh_model(), tiny_tokenizer()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ENDS, 50
    targets = ["w4 w5", "w6", "w7 w8 w9", "w1"]

    def collate(rows: list[int]) -> dict[str, Tensor]:
        made = [targets[row] for row in rows]
        return dict(blank_inputs([PROMPTS[row] for row in rows], side=side, targets=made, skip_padding=True))

    arguments = transformers.Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, per_device_eval_batch_size=2, generation_max_length=9,
        report_to=[], remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    name = "processing_class" if version.parse(transformers.__version__) >= version.parse("4.46") else "tokenizer"
    trainer = transformers.Seq2SeqTrainer(model=model, args=arguments, data_collator=collate, **{name: tokenizer})
    output = trainer.predict(list(range(4)))
    expected = fill_with_own_code(model, PROMPTS, max_length=8, top_k=1)
    for row, [piece] in zip(output.predictions.tolist(), expected):
        rest = row[1 + len(piece) :]
        assert row[1 : 1 + len(piece)] == piece and (len(piece) == 8 or rest[0] in ENDS)
    assert set(output.predictions[:, 0]) == {55}
    assert math.isfinite(output.metrics["test_loss"])


def test_the_pipeline_fills_blanks():
    from transformers import pipeline

    model = fresh_model()
    tokenizer = tiny_tokenizer()
    model.config.mask_token_ids = tokenizer.mask_token_ids
    model.config.sop_token_id = tokenizer.sop_token_id
    model.generation_config.eos_token_id = ENDS
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    found = pipe(PROMPTS, max_new_tokens=12, do_sample=False, return_tensors=True, add_special_tokens=True)
    expected = fill_with_own_code(model, PROMPTS, max_length=12, top_k=1)
    for text, [result], [piece] in zip(PROMPTS, found, expected):
        start = len(tokenizer(text)["input_ids"]) + 1
        assert pieces_of(torch.tensor([result["generated_token_ids"]]), start) == [piece]


@pytest.mark.parametrize("options", [{"relative_encoding": True}, {"spell_length": 3}])
def test_models_this_code_is_not_for_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*; this code is for models without it"):
        GLMForConditionalGeneration(tiny_config(**options))


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"hidden_size 30 is not a multiple of num_attention_heads 4"):
        tiny_config(hidden_size=30)
    with pytest.raises(ValueError, match=r"pool_token is 'last' .*one of start, pad, cls"):
        tiny_config(pool_token="last")
    model = fresh_model()
    ids, positions = block_inputs()
    with pytest.raises(ValueError, match=r"attention_mask has shape \[3, 9\]"):
        model(ids, positions, torch.ones(3, 9))
    biases = torch.randn(3, 1, 10, 10)
    for mask in (biases, biases.abs(), -biases.abs(), torch.tensor([1.0, -1e4]).repeat(5).expand(3, 1, 10, 10)):
        with pytest.raises(ValueError, match=r"a floating attention_mask holds either 0 and 1, or what is added"):
            model(ids, positions, mask)
    for wrong in (positions[:, :, :9], positions[:2], positions[:, :1], positions[0], positions[0, 0]):
        with pytest.raises(ValueError, match=r"position_ids has shape .*; give \[3,2,10\] or \[3,10\]"):
            model(ids, wrong)
    with pytest.raises(ValueError, match=r"generate takes labels with what else"):
        model.generate(ids, labels=ids)
    with pytest.raises(ValueError, match=r"prefill_chunk_size is 2; a text around a blank is seen in both directions"):
        model.generate(**blank_inputs(PROMPTS), pad_token_id=50, prefill_chunk_size=2)
    with pytest.raises(ValueError, match=r"generate takes position_ids with generation_attention_mask alone"):
        model.generate(ids, position_ids=positions[:, 0])
    with pytest.raises(ValueError, match=r"attention_mask has shape \[3, 1, 10, 10\], the ids have \[3, 10\]"):
        model.generate(ids, attention_mask=torch.ones(3, 1, 10, 10))
    with pytest.raises(ValueError, match=r"position_ids go up to 65, the model has positions up to 64"):
        model(ids, positions + 65 - positions.max())
    with pytest.raises(ValueError, match=r"give either input_ids or inputs_embeds"):
        model()
    with pytest.raises(TypeError, match=r"takes no token_type_ids"):
        model(ids, positions, token_type_ids=ids)
    with pytest.raises(TypeError, match=r"GLMModel takes no labels; the loss is that of a class with a task"):
        model.glm(ids, positions, labels=ids)
    with pytest.raises(ValueError, match=r"choice_ids or choice_indices are missing"):
        fresh_model(GLMForMultipleChoice)(ids, positions)
    with pytest.raises(ValueError, match=r"fill_blanks does not know mask_token_ids"):
        model.fill_blanks(ids)
    with pytest.raises(ValueError, match=r"text 0 of the batch has no blank"):
        model.fill_blanks(ids % 50, mask_token_ids=[52], sop_token_id=55, eos_token_id=56)
    assert word_tokenizer({"<|endoftext|>": 0, "[MASK]": 1, "[UNK]": 2}, num_tokens=4).mask_token_id == 1
