"""Raw files become examples (examples), pieces (parts) and words (verbalizers); low-level builders (units)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from data_utils.rows import Row, answer_row, context_ids, context_row, infilling_row, unidirectional_row
from data_utils.tokenizers.command_tokens import SpecialTokens
from tasks.registry import TASKS
from tasks.superglue.patterns import MASK, SLOT, Mask, Parts, PromptTokens, Shortenable
from tasks.superglue.readers import DataOptions, InputExample
from tasks.superglue.samples import ClozeEncoder, EncodingOptions, Piece, truncate
from tests.helpers.golden_tokenizers import recorded_tokenizer

CASE_KEYS = {"task", "split", "dir", "few_superglue", "cloze_eval", "for_train", "wsc_negative"}


def read(golden, case: dict[str, Any]) -> list[InputExample]:
    assert set(case) <= CASE_KEYS, case
    options = DataOptions(
        few_superglue=case.get("few_superglue", False),
        cloze_eval=case.get("cloze_eval", True),
        for_training=case.get("for_train", False),
        wsc_negative=case.get("wsc_negative", False),
    )
    processor = TASKS[case["task"]].processor(case["task"], options)
    return processor.examples(golden.path("superglue/raw") / case["dir"], case["split"])


def as_json(example: InputExample) -> dict[str, Any]:
    fields = dataclasses.asdict(example)
    del fields["source"], fields["group"], fields["language"]  # ours
    return json.loads(json.dumps(fields))


def without_order(example: dict[str, Any]) -> str:
    """Return an example of ReCoRD so that the order of its answers does not show."""
    meta = {**example["meta"], "answers": sorted(example["meta"]["answers"])}
    first, *others = meta["candidates"]
    meta["candidates"] = [first, *sorted(others)]
    idx = example["idx"][:2] if isinstance(example["idx"], list) else example["idx"]
    guid = example["guid"].rsplit("-a", 1)[0]
    return json.dumps({**example, "meta": meta, "idx": idx, "guid": guid}, sort_keys=True)


def with_our_label(recorded: dict[str, Any], found: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded example; where its file has no label, and the original takes one for it, without that."""
    guesses = case["task"] in ("wic", "copa", "record") and case["split"] in ("test", "unlabeled")
    return {**recorded, "label": None} if guesses and found["label"] is None else recorded


def test_examples(golden):
    for entry in golden.json("superglue/examples.json.gz"):
        assert set(entry) <= {"case", "labels", "variable_num_choices", "examples", "order_free", "error"}
        case = entry["case"]
        if "error" in entry:
            try:
                assert read(golden, case)
            except ValueError as error:
                assert "\n" not in str(error)
            continue
        found = [as_json(example) for example in read(golden, case)]
        task = TASKS[case["task"]]
        assert list(task.labels) == entry["labels"]
        candidates = task.name == "wsc" and case["wsc_negative"]
        assert (task.varying_choices or candidates) == entry["variable_num_choices"], case
        if entry.get("order_free"):
            assert sorted(map(without_order, found)) == sorted(map(without_order, entry["examples"])), case
        else:
            assert found == [with_our_label(*pair, case) for pair in zip(entry["examples"], found, strict=True)], case


def piece_as_json(piece) -> list:
    if isinstance(piece, Shortenable):
        return [piece.text, True]
    if isinstance(piece, Mask):
        return [{"mask": 1}, False]
    if isinstance(piece, PromptTokens):
        return [{"prompt": piece.count}, False]
    assert isinstance(piece, str)
    return [piece, False]


def test_parts(golden):
    for entry in golden.json("superglue/parts.json.gz"):
        known = {
            "task",
            "dir",
            "split",
            "pattern_id",
            "continuous_prompt",
            "num_prompt_tokens",
            "spell_length",
            "parts",
        }
        assert set(entry) == known
        assert entry["spell_length"] == entry["num_prompt_tokens"]
        pvp = TASKS[entry["task"]].patterns
        examples = {e.guid: e for e in read(golden, {k: entry[k] for k in ("task", "split", "dir")})}
        for recorded in entry["parts"]:
            example, pattern_id = examples[recorded["guid"]], entry["pattern_id"]
            soft = entry["continuous_prompt"]
            if "error" in recorded and not soft:  # the pattern has an encoding of its own
                assert pvp.joined_choices(example, pattern_id) is not None
                continue
            if "error" in recorded:
                with pytest.raises(ValueError, match="prompt"):
                    pvp.rendered(example, pattern_id, continuous_prompt=soft, num_prompt_tokens=1)
                continue
            assert set(recorded) <= {"guid", "a", "b", "answers"}
            parts = pvp.rendered(
                example, pattern_id, continuous_prompt=soft, num_prompt_tokens=entry["num_prompt_tokens"]
            )
            assert [piece_as_json(piece) for piece in parts.a] == recorded["a"], (entry["task"], pattern_id)
            assert [piece_as_json(piece) for piece in parts.b] == recorded["b"], (entry["task"], pattern_id)
            assert pvp.free_answers == ("answers" in recorded)
            if "answers" in recorded:
                assert pvp.answers(example, pattern_id) == recorded["answers"]


def test_verbalizers(golden, vocab_dir):
    for entry in golden.json("superglue/verbalizers.json.gz"):
        pvp = TASKS[entry["task"]].patterns
        words = pvp.verbalizers(entry["pattern_id"])
        assert [[label, [word]] for label, word in words.items()] == entry["words"]
        for key, expected in entry.items():
            if key in ("task", "pattern_id", "words"):
                continue
            tokenizer = recorded_tokenizer(key.removesuffix("_multi"), vocab_dir)
            if key.endswith("_multi"):
                assert [tokenizer.encode(word) for word in words.values()] == expected
            elif isinstance(expected, dict):
                assert set(expected) == {"error"}
                with pytest.raises(ValueError, match="one token"):
                    ClozeEncoder(pvp, tokenizer, EncodingOptions(pattern_id=entry["pattern_id"])).label_ids()
            else:
                encoder = ClozeEncoder(pvp, tokenizer, EncodingOptions(pattern_id=entry["pattern_id"]))
                assert list(encoder.label_ids()) == expected


def padded(values: list[int], length: int, fill: int) -> list[int]:
    return values + [fill] * (length - len(values))


def check_row(row: Row, out: dict[str, Any], *, length: int, pad: int):
    ids, targets, loss_mask, *positions = row.values.tolist()
    positions = [padded(line, length, 0) for line in positions]
    assert padded(ids, length, pad) == out["ids"]
    assert (positions if len(positions) == 2 else positions[0]) == out["position_ids"]
    assert row.prefix_length == out["sep"]
    assert padded(targets, length, 0) == out["target_ids"]
    assert padded(loss_mask, length, 0) == out["loss_masks"]
    if out["types"] is not None:
        assert padded([1] * len(row), length, 0) == out["paddings"]


def special_tokens(units: dict[str, Any]) -> SpecialTokens:
    """Return the ids of a golden file."""
    names = {"pad": "pad", "eos": "pad", "cls": "ENC", "mask": "MASK", "sep": "sep", "sop": "sop", "eop": "eop"}
    return SpecialTokens(**{field: units["special_ids"][name] for field, name in names.items()})


def test_units(golden):
    units = golden.json("superglue/units.json.gz")
    sections = {"build_input_from_ids", "build_uni_input_from_ids", "build_decoder_input", "truncate"}
    sections |= {"replace_prompt_tokens", "num_special_tokens", "special_ids", "max_position_embeddings"}
    assert set(units) == sections
    special = special_tokens(units)
    for case in units["build_input_from_ids"]:
        check_built(case, special, units["max_position_embeddings"])
    for case in units["build_uni_input_from_ids"]:
        assert set(case) == {"text_a", "answer", "max_seq_length", "mask_id", "out"}
        row = unidirectional_row(case["text_a"], case["answer"], special=special, mask_id=case["mask_id"])
        check_row(row, case["out"], length=case["max_seq_length"], pad=special.pad)
    for case in units["build_decoder_input"]:
        assert set(case) == {"enc_ids", "answer", "max_dec_seq_length", "out"}
        length, out = case["max_dec_seq_length"], case["out"]
        where = case["enc_ids"].index(special.mask)
        row = answer_row(case["answer"][:length], special=special, position=where, prefix_length=0)
        ids, targets, loss_mask, *positions = row.values.tolist()
        assert padded(ids, length, special.pad) == out["ids"]
        assert [padded(line, length, 0) for line in positions] == out["position_ids"]
        assert (padded(targets, length, 0), padded(loss_mask, length, 0)) == (out["target_ids"], out["loss_masks"])
    for text_a, text_b, answer, cls, sep, piece, eos, expected in units["num_special_tokens"]:
        context = context_ids(
            [*text_a, special.mask], text_b or None, special=special, max_length=100, cls=cls, sep=sep, end=eos
        )
        row = infilling_row(context, answer or None, special=special) if piece or answer else context_row(context)
        found = len(row) - 1 - len(text_a) - len(text_b or ()) - len(answer or ())
        assert found == expected, (text_a, text_b, answer, cls, sep, piece, eos)


def check_built(case: dict[str, Any], special: SpecialTokens, max_position_embeddings: int):
    known = {"text_a", "text_b", "answer", "max_seq_length", "add_cls", "add_sep", "add_piece", "add_eos"}
    assert set(case) - {"out", "error"} == known | {"no_block_position", "masked_lm", "sentinel_token"}
    flags = {ours: bool(case[name]) for ours, name in (("cls", "add_cls"), ("sep", "add_sep"), ("end", "add_eos"))}
    length, masked_lm = case["max_seq_length"], bool(case["masked_lm"])
    context = context_ids(case["text_a"], case["text_b"], special=special, max_length=length, **flags)
    if not case["add_piece"] and case["answer"] is None:
        check_row(context_row(context, masked_lm=masked_lm), case["out"], length=length, pad=special.pad)
        return
    options = {"block_positions": not case["no_block_position"], "masked_lm": masked_lm}
    options["answer_position"] = max_position_embeddings if case["sentinel_token"] else None
    if "error" in case:
        with pytest.raises(ValueError, match="mask"):
            infilling_row(context, case["answer"], special=special, **options)
        return
    row = infilling_row(context, case["answer"], special=special, **options)
    check_row(row, case["out"], length=length, pad=special.pad)


def test_truncation(golden):
    for case in golden.json("superglue/units.json.gz")["truncate"]:
        a, b = ([Piece(tuple(i), s) for i, s in side or ()] for side in (case["parts_a"], case["parts_b"]))
        try:
            a, b, removed = truncate(a, b, answer=case["answer"], max_length=case["max_length"])
        except ValueError:
            assert "error" in case
            continue
        if "error" in case:  # the original fails where the other side could be shortened
            assert removed > 0
            continue
        assert [[list(piece.ids), piece.shortenable] for piece in a] == case["out_a"]
        assert [[list(piece.ids), piece.shortenable] for piece in b] == (case["out_b"] or [])
        assert (removed > 0) == case["truncated"]


def test_distribution_of_prompt_tokens(golden):
    for case in golden.json("superglue/units.json.gz")["replace_prompt_tokens"]:
        assert set(case) - {"out", "error"} == {"a", "b", "continuous_prompt", "num_prompt_tokens"}
        parts = Parts(*([SLOT if piece is None else piece for piece in case[side]] for side in ("a", "b")))
        if "error" in case:
            assert parts.num_slots == 0 and case["continuous_prompt"]
            continue
        filled = parts.with_prompt(case["num_prompt_tokens"] if case["continuous_prompt"] else 0)
        found = [[p.count if isinstance(p, PromptTokens) else p for p in side] for side in (filled.a, filled.b)]
        assert found == case["out"], case


def test_mask_is_one_piece():
    assert piece_as_json(MASK) == [{"mask": 1}, False]
