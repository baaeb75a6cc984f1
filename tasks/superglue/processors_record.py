"""ReCoRD: a passage, a query with a gap, and the entities that may fill it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial

from tasks.examples import InputExample
from tasks.processors import DataProcessor, split_files
from tasks.readers import Row, standardize

WRONG_CANDIDATES = 9  # beside the right one, in training
SHUFFLE_SEED = 42


class RecordProcessor(DataProcessor):
    """passage with entities, qas with query and answers: one example per question, in training one per answer."""

    labels = ("0", "1")
    few_files = split_files(test="val.jsonl")  # dev stays val.jsonl

    def converter(self, set_type: str) -> Callable[[Row], Iterable[InputExample]]:
        shuffler = random.Random(SHUFFLE_SEED)  # one for all rows of a file, in their order
        return partial(self.questions, set_type=set_type, shuffler=shuffler)

    def questions(self, row: Row, *, set_type: str, shuffler: random.Random) -> Iterable[InputExample]:
        """Yield the examples of a passage."""
        passage_index, passage = row["idx"], row["passage"]
        raw_text = passage["text"]
        entities = sorted({standardize(raw_text[e["start"] : e["end"] + 1]) for e in passage["entities"]})
        text = standardize(raw_text).replace("@highlight\n", "- ")
        for question in row["qas"]:
            answers = list(dict.fromkeys(standardize(answer["text"]) for answer in question.get("answers", ())))
            index, query = question["idx"], standardize(question["query"])
            guid = f"{set_type}-p{passage_index}-q{index}"
            place = {"passage_idx": passage_index, "question_idx": index}
            if set_type != "train" and not self.options.for_training:
                meta = {**place, "candidates": entities, "answers": answers}
                yield InputExample(guid, text, query, "1", meta, index, num_choices=len(entities))
                continue
            for number, answer in enumerate(answers):
                wrong = [entity for entity in entities if entity not in answers]
                if len(wrong) > WRONG_CANDIDATES:
                    shuffler.shuffle(wrong)
                    wrong = wrong[:WRONG_CANDIDATES]
                meta = {**place, "candidates": [answer, *wrong], "answers": [answer]}
                own_index = [passage_index, index, number]
                own_guid = f"{guid}-a{number}"
                yield InputExample(own_guid, text, query, "0", meta, own_index, num_choices=len(wrong) + 1)
