"""Pre-train a GLM by autoregressive blank infilling.

    python pretrain_glm.py --block-lm --train-data corpus.jsonl --train-iters 1000 --save checkpoints ...

``--help`` lists the flags. From here to the loss: ``training/loop.py`` (the loop), ``training/engine.py`` (one update),
``model/modeling_glm.py`` (the model).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from files.errors import run_main
from training.arguments import parse_settings
from training.settings import PretrainingSettings

if TYPE_CHECKING:
    from training.signals import StopRequest

logger = logging.getLogger("glm")


def pretrain(configuration: PretrainingSettings, stop: StopRequest) -> int:
    """Build everything that ``configuration`` describes and train until ``stop``; return the exit code."""
    from training.build import (
        build_engine,
        build_log,
        check_data,
        claim_name,
        compute_cost,
        description_files,
        find_starting_point,
        locked_folders,
        order_record,
    )
    from training.data import build_pretraining_data, build_run_tokenizer
    from training.distributed import finish_distributed, seed_everything, start_distributed
    from training.logging import start_perf_log
    from training.loop import Trainer
    from training.screen import end_screen, start_screen

    stop.where = "before the first update"
    topology, device = start_distributed(configuration.device, shared=configuration.values)
    if configuration.run.train_iters > 0:
        configuration = claim_name(configuration, topology=topology)
    run, first = configuration.run, topology.rank == 0
    start_perf_log(configuration, first=first)
    for notice in configuration.notices:
        logger.info(notice)
    seed_everything(run.seed)
    with locked_folders(configuration, first=first and run.train_iters > 0):
        tokenizer = build_run_tokenizer(configuration)
        vocab_size = tokenizer.padded_size(configuration.tokenizer.make_vocab_size_divisible_by)
        engine = build_engine(configuration, vocab_size=vocab_size, topology=topology, device=device)
        engine.beside = description_files(configuration, tokenizer)
        start = find_starting_point(engine, configuration, tokenizer=tokenizer.fingerprint)
        data = build_pretraining_data(configuration, tokenizer=tokenizer, topology=topology)
        if configuration.mixture.multi_task_ratio > 0:
            from tasks.multitask import mix_downstream

            data = mix_downstream(data, configuration, tokenizer=tokenizer, topology=topology)
        settings = configuration.checkpoint
        check_data(data, start, settings=settings, num_updates=run.train_iters, topology=topology)
        number = {"num_updates": run.train_iters, "initial": start.updates}
        screen = start_screen(configuration, engine, data, **number)
        log = build_log(configuration, **number, silent=not first, screen=screen)
        began = time.monotonic()
        trainer = Trainer(
            engine,
            configuration,
            data=data,
            num_updates=run.train_iters,
            log=log,
            progress=start,
            cost=compute_cost(engine, configuration),
            stop=stop,
            order=order_record(configuration, data, updates=start.updates, topology=topology),
        )
        summary = None
        try:
            complete = trainer.train()
            if complete and first and run.train_iters > 0 and data.summary is not None:
                summary, row = data.summary(trainer.progress.batches)
                log.write({"iteration": trainer.progress.updates, **row})
        finally:
            log.close()
        if not complete:
            return finish_distributed(128 + stop.number)
        if first and run.train_iters > 0:
            for line in end_screen(configuration, data, seconds=time.monotonic() - began):
                logger.info(line)
            if summary is not None:
                logger.info(summary)
    return finish_distributed(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and pre-train."""
    configuration = parse_settings(PretrainingSettings, argv, description=__doc__)
    if configuration.run.dry_run:
        from training.plan import print_plan

        return print_plan(configuration)
    from training.distributed import faults_in_one_line

    if "train_iters" not in configuration.given:
        raise ValueError("no --train-iters: give the number of updates, or 0 to evaluate only")
    batch_size, checkpoints = configuration.batch.batch_size, configuration.checkpoint.save
    with faults_in_one_line(batch_size=batch_size, checkpoints=checkpoints) as stop:
        return pretrain(configuration, stop)


if __name__ == "__main__":
    run_main(main)
