"""The files of the Chinese tasks of CLUE; their texts are used as they are."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.examples import InputExample
from tasks.processors import NO_FILES, DataProcessor, TableProcessor, label_of, same_named_files
from tasks.readers import Row, read_json_lines


class AfqmcProcessor(TableProcessor):
    """sentence1, sentence2, label."""

    labels = ("0", "1")
    files = same_named_files(".json")
    text_a, text_b = "sentence1", "sentence2"
    read = staticmethod(read_json_lines)
    indexed = True


class TnewsProcessor(TableProcessor):
    """sentence, keywords, label."""

    numbers = (100, 101, 102, 103, 104, 106, 107, 108, 109, 110, 112, 113, 114, 115, 116)
    labels = tuple(map(str, numbers))
    files = same_named_files(".json")
    text_a, text_b = "sentence", "keywords"
    read = staticmethod(read_json_lines)
    indexed = True


class CluewscProcessor(DataProcessor):
    """text, target (two spans with the indices of their characters), label, id or idx."""

    labels = ("false", "true")
    files = same_named_files(".json")
    few_files = NO_FILES

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        target = row["target"]
        index = row["idx"] if row.get("id") is None else row["id"]
        meta = {
            "span1_text": target["span1_text"],
            "span2_text": target["span2_text"],
            "span1_index": target["span1_index"],
            "span2_index": target["span2_index"],
            "span1_length": len(target["span1_text"]),
            "span2_length": len(target["span2_text"]),
        }
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=row.text("text"),
            text_b=target["span1_index"],
            label=label_of(row),
            meta=meta,
            idx=index,
        )
