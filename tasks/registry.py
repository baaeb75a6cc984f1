"""The one list of understanding tasks: ``--task`` names one of them.

The command line, the fine-tuning loop and the tests all start from ``TASKS``.
"""

from __future__ import annotations

import difflib
import runpy
from pathlib import Path

from tasks.multilingual import pvp as multilingual_pvp
from tasks.multilingual import readers as multilingual_readers
from tasks.multilingual.task import MultilingualTask, PawsxTask
from tasks.settings import CLOZE_BENCHMARK, LANGUAGE_MODEL_TASKS, MULTILINGUAL_TASKS, SEQ2SEQ_TASKS
from tasks.superglue import outputs, processors, pvp, samples
from tasks.superglue.task import MultichoiceTask, Task, WscTask

# Tasks made by ``tasks.declaration.declare``.
DECLARED: tuple[Task, ...] = ()

# What benchmarks of GLUE report comes after the accuracy, which selects as in the original.
_TASKS = (
    Task("rte", processors.RteProcessor, pvp.RtePVP),
    Task("cb", processors.CbProcessor, pvp.CbPVP, metrics=("accuracy", "f1-macro")),
    Task("boolq", processors.BoolqProcessor, pvp.BoolqPVP),
    Task(
        "copa", processors.CopaProcessor, pvp.CopaPVP,
        choice_head=True, head_texts=samples.cause_or_effect_texts, entries=outputs.choice_entries,
    ),
    Task("wic", processors.WicProcessor, pvp.WicPVP, head_texts=samples.word_texts),
    WscTask("wsc", processors.WscProcessor, pvp.WscPVP, head_texts=samples.pronoun_texts),
    # Text and span as a pair: no patterns, for a classification head.
    Task("wsc1", processors.WscPairProcessor, head_texts=samples.pronoun_and_candidate_texts),
    Task(
        "multirc", processors.MultircProcessor, pvp.MultircPVP,
        metrics=("f1a", "em", "acc"), head_texts=samples.answer_texts, entries=outputs.passage_entries,
    ),
    Task(
        "record", processors.RecordProcessor, pvp.RecordPVP, metrics=("EM", "F1"), varying_choices=True,
        choice_head=True, head_texts=samples.candidate_texts, entries=outputs.candidate_entries,
    ),
    Task("ax-b", processors.AxBroadProcessor, pvp.RtePVP, metrics=("accuracy", "matthews")),
    Task("ax-g", processors.AxGenderProcessor, pvp.RtePVP, metrics=("accuracy", "parity")),
    Task("mnli", processors.MnliProcessor, pvp.MnliPVP),
    Task("mnli-mm", processors.MnliMismatchedProcessor, pvp.MnliPVP),
    Task("sst2", processors.Sst2Processor, pvp.Sst2PVP),
    Task("cola", processors.ColaProcessor, pvp.ColaPVP, metrics=("accuracy", "matthews")),
    Task("mrpc", processors.MrpcProcessor, pvp.MrpcPVP, metrics=("accuracy", "f1")),
    Task("qqp", processors.QqpProcessor, pvp.QqpPVP, metrics=("accuracy", "f1")),
    Task("qnli", processors.QnliProcessor, pvp.QnliPVP),
    Task("agnews", processors.AgnewsProcessor, pvp.AgnewsPVP),
    Task("yahoo", processors.YahooProcessor, pvp.YahooPVP),
    Task("yelp-polarity", processors.YelpPolarityProcessor, pvp.YelpPolarityPVP),
    Task("yelp-full", processors.YelpFullProcessor, pvp.YelpFullPVP),
    Task("xstance", processors.XstanceProcessor, pvp.XstancePVP),
    Task("xstance-de", processors.XstanceGermanProcessor, pvp.XstancePVP),
    Task("xstance-fr", processors.XstanceFrenchProcessor, pvp.XstancePVP),
    Task("race", processors.RaceProcessor, pvp.RacePVP, varying_choices=True, head_texts=None),
    Task(
        "squad", processors.SquadProcessor, pvp.SquadPVP,
        head_texts=None, entries=outputs.text_entries, only_mixed=True,
    ),
    Task("afqmc", processors.AfqmcProcessor, pvp.AfqmcPVP, entries=outputs.sorted_entries),
    # One of its words is two tokens of the released vocabulary.
    Task("tnews", processors.TnewsProcessor, pvp.TnewsPVP, multi_token=True, entries=outputs.sorted_entries),
    Task("cluewsc", processors.CluewscProcessor, pvp.CluewscPVP, head_texts=samples.chinese_pronoun_texts),
    MultichoiceTask(
        "multichoice", processors.MultichoiceProcessor, varying_choices=True, choice_head=True, head_texts=None,
        entries=outputs.choice_entries, needs_folder=False,
    ),
    MultilingualTask("xnli", multilingual_readers.XnliProcessor, multilingual_pvp.XnliPVP),
    PawsxTask("pawsx", multilingual_readers.PawsxProcessor, multilingual_pvp.PawsxPVP),
    MultilingualTask(
        "panx", multilingual_readers.PanxProcessor, multilingual_pvp.PanxPVP, metrics=("f1-macro",),
    ),
    *DECLARED,
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}


def find_task(name: str) -> Task:
    """Return the task called ``name``, in any case, or the one that a Python file declares as ``TASK``.

    Raise ValueError that offers the nearest names.
    """
    if name.lower().endswith(".py"):
        return _declared_in(name)
    task = TASKS.get(name.lower())
    if task is None:
        known = sorted({*TASKS, *SEQ2SEQ_TASKS, *MULTILINGUAL_TASKS, *LANGUAGE_MODEL_TASKS, CLOZE_BENCHMARK})
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
        raise ValueError(f"--task {name}: no such task; {hint}")
    if task.only_mixed:
        raise ValueError(
            f"--task {name}: with one answer to choose from nothing is learnt; it only serves pre-training"
        )
    return task


def _declared_in(path: str) -> Task:
    """Run a Python file and return its ``TASK``."""
    if not Path(path).is_file():
        raise ValueError(f"--task {path}: no such file")
    task = runpy.run_path(path).get("TASK")
    if not isinstance(task, Task):
        raise ValueError(f"--task {path}: the file has no TASK = declare(...); see tasks/superglue/README.md")
    return task
