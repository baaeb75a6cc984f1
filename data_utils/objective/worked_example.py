"""The worked example of docs/objective.md, computed by the code that builds training samples.

python -m data_utils.objective.worked_example            prints it
python -m data_utils.objective.worked_example --write    puts it into docs/objective.md
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from data_utils.objective import Objective
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.rows import mask_picture
from data_utils.tokenizers.tokenizer import word_list_tokenizer
from files.errors import run_main
from files.writing import write_whole

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "objective.md"
BEGIN = "<!-- worked example: written by python -m data_utils.objective.worked_example --write -->\n"
END = "<!-- end of the worked example -->\n"

WORDS = ("[CLS]", "x1", "x2", "x3", "x4", "x5", "x6", "<|endoftext|>", "[MASK]", "<|startofpiece|>", "<|endofpiece|>")
COMMANDS = {"ENC": 0, "pad": 7, "eos": 7, "MASK": 8, "sop": 9, "eop": 10, "sep": 11}
SPANS = [(3, 4), (5, 7)]  # x3, and x5 x6: the example of the paper's figure 2
SEED = 6  # shuffles the spans into the order x5 x6, x3


def worked_example() -> str:
    """Return the example as Markdown: tokens, targets, positions, loss mask, and the picture of the attention mask."""
    tokenizer = word_list_tokenizer(WORDS, COMMANDS)
    collator = BlankInfillingCollator(tokenizer, BlankInfillingSettings(bert_prob=1.0), max_seq_length=16)
    tokens = np.arange(8)
    blanks = collator.draw_order(tokens, SPANS, Objective.TOKEN, random.Random(SEED))
    row = collator.corrupt([blanks], Objective.TOKEN, random.Random(SEED))[0]
    short = {"<|startofpiece|>": "sop", "<|endofpiece|>": "eop", "<|endoftext|>": "eos"}

    def names(ids: np.ndarray) -> list[str]:
        return [short.get(WORDS[index], WORDS[index]) for index in ids]

    columns = list(range(len(row.input_ids)))
    parts = ["A" if column < row.prefix_length else "B" for column in columns]
    targets = [name if weight else "" for name, weight in zip(names(row.target_ids), row.loss_mask, strict=True)]
    rows = [
        ("part", parts),
        ("input", names(row.input_ids)),
        ("target", targets),
        ("position", row.position_ids[0].tolist()),
        ("position in span", row.position_ids[1].tolist()),
        ("loss mask", row.loss_mask.tolist()),
    ]
    table = ["| column | " + " | ".join(map(str, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    table += [f"| {title} | " + " | ".join(map(str, values)) + " |" for title, values in rows]
    width = max(map(len, names(row.input_ids)))
    picture = mask_picture(row.prefix_length, len(columns))
    drawn = [f"{name:>{width}}  {' '.join(line)}" for name, line in zip(names(row.input_ids), picture, strict=True)]
    text = " ".join(names(tokens))
    return "\n".join(
        [
            f"Text: `{text}`. Blanked out: `x3` and `x5 x6`; the shuffle puts `x5 x6` first.",
            "",
            *table,
            "",
            "Who sees whom: a line is a query, a column a key; `#` is part A, which everyone sees, `+` what part B has "
            "so far, `.` hidden.",
            "",
            "```text",
            *drawn,
            "```",
            "",
        ]
    )


def replaced(document: str, example: str) -> str:
    """Return ``document`` with the text between the two markers replaced."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{example}\n{END}{tail}"


def main() -> int:
    """Print the example, or write it into the document."""
    if sys.argv[1:] == ["--write"]:
        write_whole(DOCUMENT, replaced(DOCUMENT.read_text(encoding="utf-8"), worked_example()))
    else:
        print(worked_example())
    return 0


if __name__ == "__main__":
    run_main(main)
