"""Fine-tune a GLM on a task, evaluate it, and write predictions.

    python finetune_glm.py --task rte --data-dir RTE --cloze-eval --load-pretrained CHECKPOINT --epochs 10 ...

``--epochs 0`` evaluates only. ``--help`` lists the flags; ``tasks/registry.py`` lists the tasks. From here to the loss:
``training/loop.py`` (the loop; ``tasks/finetuning.py`` adds epochs), ``training/engine.py`` (one update),
``tasks/superglue/objective.py`` (scores and losses; the other families of tasks have their own: ``tasks/run.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from files.errors import run_main
from tasks.settings import FinetuningSettings
from training.arguments import parse_settings

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer
    from mpu.initialize import ParallelTopology
    from tasks.run import TaskRun
    from training.signals import StopRequest

logger = logging.getLogger("glm")


def prepare_task(configuration: FinetuningSettings, *, tokenizer: Tokenizer, topology: ParallelTopology) -> TaskRun:
    """Read the data of the configured task and return its run.

    Raises:
        ValueError: no such task, files that are missing or malformed, or nothing to do.
    """
    from tasks.cloze_benchmark.run import ClozeBenchmarkRun
    from tasks.language_model.run import LanguageModelRun
    from tasks.multilingual.run import MultilingualRun
    from tasks.seq2seq.run import Seq2SeqRun
    from tasks.superglue.run import UnderstandingRun

    families: dict[str, type[TaskRun]] = {
        "understanding": UnderstandingRun, "seq2seq": Seq2SeqRun, "language_model": LanguageModelRun,
        "multilingual": MultilingualRun, "cloze_benchmark": ClozeBenchmarkRun,
    }  # fmt: skip
    run = families[configuration.family](configuration, tokenizer=tokenizer, topology=topology)
    if not (run.training or run.test):
        raise ValueError(f"{run.name}: nothing to train on and nothing to evaluate; see --epochs and --test-data")
    return run


def finetune(configuration: FinetuningSettings, stop: StopRequest) -> int:
    """Train until ``stop``, evaluate and predict as ``configuration`` says; return the exit code."""
    from model.checkpoints.format import TRACKERS
    from tasks.finetuning import TEST_RESULTS_FILE, FineTuner, find_progress, result_table
    from training.build import build_log, check_data, claim_name, description_files, locked_folders, wrap_model
    from training.data import build_run_tokenizer
    from training.distributed import finish_distributed, seed_everything, start_distributed
    from training.logging import start_perf_log
    from training.screen import end_screen, start_screen

    stop.where = "before the first update"
    topology, device = start_distributed(configuration.device, shared=configuration.values)
    configuration = claim_name(configuration, topology=topology)
    run, tuning, checkpoint = configuration.run, configuration.tuning, configuration.checkpoint
    made = [run.summary_folder / TEST_RESULTS_FILE, *([checkpoint.save / TRACKERS[0]] if checkpoint.save else ())]
    goes_on = tuning.overwrite or checkpoint.load or checkpoint.auto_resume
    if not goes_on and (before := [file for file in made if file.exists()]):
        raise ValueError(
            f"{before[0]} exists: this run was made already; continue it (--auto-resume), give another "
            "--experiment-name, or --overwrite"
        )
    start_perf_log(configuration, first=topology.rank == 0)
    for notice in configuration.notices:
        logger.info(notice)
    seed_everything(run.seed)
    with locked_folders(configuration, first=topology.rank == 0):
        tokenizer = build_run_tokenizer(configuration)
        task = prepare_task(configuration, tokenizer=tokenizer, topology=topology)
        engine = wrap_model(
            task.build_network(), configuration, schedule_length=task.schedule_length, topology=topology, device=device,
            criterion=task.criterion(),
        )  # fmt: skip
        engine.beside = description_files(configuration, tokenizer)
        start = find_progress(engine, configuration, task.name)
        updates = task.num_updates
        data = task.training_data()
        check_data(data, start, settings=checkpoint, num_updates=updates, topology=topology)
        screen = start_screen(configuration, engine, data, num_updates=updates, initial=start.updates)
        silent = topology.rank > 0
        log = build_log(configuration, num_updates=updates, initial=start.updates, silent=silent, screen=screen)
        tuner = FineTuner(engine, task, configuration, progress=start, log=log, stop=stop)
        began = time.perf_counter()
        try:
            complete = tuner.train()
        finally:
            log.close()
    if complete and topology.rank == 0:
        seconds, results = time.perf_counter() - began, {"validation": tuner.best, "test": tuner.test}
        for line in result_table(task.name, results, epoch=tuner.progress.best_epoch, seconds=seconds):
            logger.info(line)
        for line in end_screen(configuration, data, seconds=seconds, rows=tuner.results()):
            logger.info(line)
    return finish_distributed(0 if complete else 128 + stop.number)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and fine-tune."""
    configuration = parse_settings(FinetuningSettings, argv, description=__doc__)
    if configuration.run.dry_run:
        print("nothing was started (plans of memory and time are made for pre-training only)")
        return 0
    from training.distributed import faults_in_one_line

    batch_size, checkpoints = configuration.batch.batch_size, configuration.checkpoint.save
    with faults_in_one_line(batch_size=batch_size, checkpoints=checkpoints) as stop:
        return finetune(configuration, stop)


if __name__ == "__main__":
    run_main(main)
