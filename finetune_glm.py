"""Fine-tune a GLM on a task, evaluate it, and write predictions.

    python finetune_glm.py --task rte --data-dir RTE --cloze-eval --load-pretrained CHECKPOINT --epochs 10 ...

``--epochs 0`` evaluates only. ``--help`` lists the flags; ``tasks/registry.py`` lists the tasks. From here to the loss:
``tasks/finetuning.py`` (the loop), ``training/engine.py`` (one update), ``tasks/objective.py`` (scores and losses; the
other families of tasks have their own: ``tasks/run.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from data_utils.errors import run_main
from tasks.configuration import FinetuningConfiguration, finetuning_configuration
from training.arguments import get_parser, parse_arguments
from training.flags import FINETUNING_WITHOUT_EFFECT

logger = logging.getLogger("glm")


def finetune(configuration: FinetuningConfiguration, *, notices: Sequence[str]) -> int:
    """Train, evaluate and predict as ``configuration`` says; return the exit code."""
    from tasks.building import build_engine, find_progress
    from tasks.finetuning import TEST_RESULTS_FILE, FineTuner, Result, result_table
    from tasks.run import prepare_task
    from training.build import build_log
    from training.data import build_pretraining_tokenizer
    from training.distributed import finish_distributed, seed_everything, start_distributed

    run, tuning, checkpoint = configuration.run, configuration.tuning, configuration.checkpoint
    made = run.summary_folder / TEST_RESULTS_FILE
    if made.exists() and not (tuning.overwrite or checkpoint.load or checkpoint.auto_resume):
        raise ValueError(f"{made} exists: this run was made already; give --overwrite or another --experiment-name")
    topology, device = start_distributed(configuration.device)
    first = topology.rank == 0

    for notice in notices:
        logger.info(notice)
    seed_everything(run.seed)
    tokenizer = build_pretraining_tokenizer(configuration.tokenizer)
    task = prepare_task(configuration, tokenizer=tokenizer, topology=topology)
    num_updates = tuning.epochs * task.batches_per_epoch // tuning.accumulation_steps
    engine = build_engine(
        task.build_network(), configuration, objective=task.objective(), num_updates=num_updates,
        topology=topology, device=device,
    )  # fmt: skip
    start = find_progress(engine, configuration, task.name)
    log = build_log(
        run, values=configuration.values, deepspeed_content=configuration.deepspeed_content,
        num_updates=num_updates, initial=start.updates, silent=not first,
    )  # fmt: skip
    notes = {} if configuration.task.limit is None else {"limit": configuration.task.limit}
    tuner = FineTuner(engine, task, settings=tuning, run=run, checkpoint=checkpoint, log=log, notes=notes)
    began, progress, result = time.perf_counter(), start, Result({}, {})
    try:
        if tuning.epochs:
            progress = tuner.train(task.training_set(), task.validation, start)
        if task.test:
            result = tuner.finish(progress, task.test)
    finally:
        log.close()
    seconds = time.perf_counter() - began
    results = {"validation": tuner.best, "test": result}
    for line in result_table(task.name, results, epoch=progress.best_epoch, seconds=seconds):
        logger.info(line)
    return finish_distributed(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and fine-tune."""
    parser = get_parser(__doc__, program="finetune_glm.py")
    parsed = parse_arguments(argv, parser=parser, without_effect=FINETUNING_WITHOUT_EFFECT)
    if parsed.values.task is None:
        raise ValueError("no --task: name one, for example rte; tasks/registry.py lists them")
    configuration = finetuning_configuration(parsed)
    if parsed.values.dry_run:
        print("nothing was started (plans of memory and time are made for pre-training only)")
        return 0
    from training.faults import faults_in_one_line

    with faults_in_one_line(batch_size=configuration.tuning.batch_size, checkpoints=configuration.checkpoint.save):
        return finetune(configuration, notices=parsed.notices)


if __name__ == "__main__":
    run_main(main)
