"""Fine-tune a GLM on a task, evaluate it, and write predictions.

    python finetune_glm.py --task rte --data-dir RTE --cloze-eval --load-pretrained CHECKPOINT --epochs 10 ...

``--epochs 0`` evaluates only. ``--help`` lists the flags; ``tasks/registry.py`` lists the tasks. From here to the loss:
``tasks/finetuning.py`` (the loop), ``training/engine.py`` (one update), ``tasks/objective.py`` (scores and losses).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from data_utils.errors import run_main
from tasks.configuration import FinetuningConfiguration, finetuning_configuration
from training.arguments import get_parser, parse_arguments
from training.flags import FINETUNING_WITHOUT_EFFECT


def finetune(configuration: FinetuningConfiguration, *, notices: Sequence[str]) -> int:
    """Train, evaluate and predict as ``configuration`` says; return the exit code."""
    from tasks.building import build_engine, build_network, encoding_options, find_progress, training_set
    from tasks.finetuning import TEST_RESULTS_FILE, FineTuner, result_table
    from tasks.registry import find_task
    from tasks.task_data import TaskData, batches_per_epoch
    from training.build import build_log
    from training.data import build_pretraining_tokenizer
    from training.distributed import finish_distributed, seed_everything, start_distributed

    run, tuning, checkpoint = configuration.run, configuration.tuning, configuration.checkpoint
    task = find_task(configuration.task.name)
    results = run.summary_folder / TEST_RESULTS_FILE
    if results.exists() and not (tuning.overwrite or checkpoint.load or checkpoint.auto_resume):
        raise ValueError(f"{results} exists: this run was made already; give --overwrite or another --experiment-name")
    topology, device = start_distributed(configuration.device)
    first = topology.rank == 0

    def announce(line: str) -> None:
        if first:
            print(line, flush=True)

    for notice in notices:
        announce(notice)
    seed_everything(run.seed)
    tokenizer = build_pretraining_tokenizer(configuration.tokenizer)
    encoding = encoding_options(configuration)
    data = TaskData(task, configuration.task, tokenizer=tokenizer, encoding=encoding, announce=announce)
    train = data.samples("train") if tuning.epochs else ()
    splits = configuration.task
    validation = data.evaluation_sets(splits.valid_data, default="dev") if tuning.validate else []
    valid_loss = data.samples((splits.valid_data or ("dev",))[0]) if tuning.epochs and validation else ()
    test = [] if splits.evaluate_valid else data.evaluation_sets(splits.test_data, default="test")
    test = test or validation
    if not (train or test):
        raise ValueError(f"{task.name}: nothing to train on and nothing to evaluate; see --epochs and --test-data")
    network = build_network(
        configuration, task, kind=(train or test[0].samples)[0].kind,
        tokenizer=tokenizer, encoding=encoding, topology=topology, announce=announce,
    )  # fmt: skip
    each = batches_per_epoch(len(train), batch_size=tuning.batch_size, topology=topology)
    num_updates = tuning.epochs * each // tuning.accumulation_steps
    engine = build_engine(
        network, configuration, num_updates=num_updates, topology=topology, device=device, announce=announce
    )
    start = find_progress(engine, configuration, task, announce=announce)
    log = build_log(
        run, values=configuration.values, deepspeed_content=configuration.deepspeed_content,
        num_updates=num_updates, initial=start.updates, silent=not first,
    )  # fmt: skip
    notes = {} if configuration.task.limit is None else {"limit": configuration.task.limit}
    tuner = FineTuner(
        engine, task, settings=tuning, run=run, checkpoint=checkpoint, log=log, pad_id=data.pad_id, notes=notes
    )
    began, progress = time.perf_counter(), start
    try:
        if tuning.epochs:
            batches = training_set(data, train, valid_loss, configuration, topology=topology)
            progress = tuner.train(batches, validation, start)
        metrics = tuner.finish(progress, test) if test else {}
    finally:
        log.close()
    for line in result_table([(task.name, metrics, progress.best_epoch, time.perf_counter() - began)]):
        announce(line)
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
