"""docs/objective.md shows what the code does, and what the paper says of it holds."""

from __future__ import annotations

from data_utils.objective.worked_example import DOCUMENT, replaced, worked_example
from data_utils.show import mask_picture


def test_the_document_holds_what_the_code_gives():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert replaced(document, worked_example()) == document, (
        "run: python -m data_utils.objective.worked_example --write"
    )


def test_the_example_is_that_of_the_paper():
    lines = [line.strip("| ").split(" | ") for line in worked_example().split("\n")]
    rows = {title: values for title, *values in lines}
    assert rows["input"] == ["[CLS]", "x1", "x2", "[MASK]", "x4", "[MASK]", "eos", "sop", "x5", "x6", "sop", "x3"]
    assert " ".join(rows["target"]).split() == ["x5", "x6", "eop", "x3", "eop"]
    assert rows["position"] == [*map(str, range(7)), "5", "5", "5", "3", "3"]
    assert rows["position in span"] == ["0"] * 7 + ["1", "2", "3", "1", "2"]


def test_the_picture_of_a_mask():
    assert mask_picture(2, 4) == ["##..", "##..", "##+.", "##++"]
