"""A run of the baseline: train, evaluate after each epoch, keep the best weights, go on after a kill.

b batch, s source tokens, t target tokens, v vocabulary
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from files.writing import check_can_write, whole_file, write_whole
from mt5.data import IGNORED, Encoder, Item, Row, batch_inputs, epoch_batches, num_updates, read_parts, rouge_of_words
from mt5.processes import Processes, start_processes
from mt5.settings import Settings
from mt5.tracking import Tracker

PRINTED_EVERY, TRACKED_EVERY = 50, 10  # updates
LENGTH_PENALTY, NO_REPEAT = 0.7, 3


@dataclass
class Progress:
    """Where a run is, and what it found.

    Attributes:
        epoch, update: the next update.
        best: the highest mean ROUGE-1.
        weights: file of the best weights.
    """

    weights: str
    epoch: int = 0
    update: int = 0
    best: float = -1.0
    losses: list[float] = field(default_factory=list)


def load_pretrained(name: str) -> tuple[nn.Module, Any]:
    """Return the model and the tokenizer of a folder or of a name on the hub. Raises ValueError with one line."""
    try:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, logging
    except ImportError as error:
        raise ValueError("mT5 needs transformers: pip install transformers sentencepiece") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if os.sep in name and not Path(name).is_dir() and (name.startswith((".", os.sep)) or name.count(os.sep) > 1):
        raise ValueError(f"--model {name}: no such folder; give the folder of an mT5, or a name on the hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSeq2SeqLM.from_pretrained(name, torch_dtype=torch.float32)
    except Exception as error:  # the library's errors have no common root
        reason = str(error).strip().split("\n")[0][:150]
        raise ValueError(
            f"--model {name} cannot be loaded ({reason}); give the folder of a downloaded mT5 (config.json, weights, "
            "spiece.model)"
        ) from error
    if not model.config.is_encoder_decoder or tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(f"--model {name} is no encoder-decoder with padding and end tokens; give an mT5")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"--model {name}: the tokenizer has {len(tokenizer)} pieces, the model rows for {rows}; they do not belong "
            "together, copy the folder again"
        )
    return model, tokenizer


class Run:
    """The baseline on one subtask."""

    def __init__(self, settings: Settings, processes: Processes) -> None:
        self.settings, self.processes = settings, processes
        self.rows: dict[str, list[Row]] = {split: read_parts(settings, split) for split in ("train", "valid")}
        check_can_write(settings.output)
        name = f"{settings.task}-{settings.subtask}"
        self.state_file = Path(settings.save_dir) / f"{name}.state.pt"
        check_can_write(self.state_file)
        torch.backends.cudnn.deterministic = True
        torch.manual_seed(settings.seed)
        model, tokenizer = load_pretrained(settings.model)
        self.encoder = Encoder(
            tokenizer, max_len=settings.max_len, summary_len=settings.summary_len, legacy=settings.legacy
        )
        self.items: dict[str, list[Item]] = {
            split: [self.encoder.item(row) for row in rows] for split, rows in self.rows.items()
        }
        for split, items in self.items.items():
            processes.print(f"{split}: {len(items)} rows")
        processes.print(f"processes: {processes.size} on {processes.device.type}, {settings.batch_size} rows each")
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        self.progress = Progress(str(Path(settings.save_dir) / f"{name}-{time.strftime('%Y-%m-%d')}.pth"))
        state = self._saved_state()
        if state is not None:
            model.load_state_dict(state["model"])
        self.model, self.optimizer = processes.prepare(model, optimizer)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            processes.print(f"continuing at epoch {self.progress.epoch}, iteration {self.progress.update}")
        self.tracker = Tracker(settings, enabled=processes.first, model=model)
        if self.tracker.notice:
            processes.print(self.tracker.notice)

    def train(self) -> None:
        """Run the epochs that are left."""
        settings, progress = self.settings, self.progress
        for epoch in range(progress.epoch, settings.epochs):
            began = time.perf_counter()
            self._epoch(epoch)
            self.processes.print(f"Epoch: {epoch} used {time.perf_counter() - began:.1f} seconds")
            self._evaluate(epoch)
            progress.epoch, progress.update = epoch + 1, 0
            self._save_state()
        self.tracker.end()
        self.processes.wait()
        if self.processes.first:
            self.state_file.unlink(missing_ok=True)
        self.processes.print(f"best weights: {progress.weights}; summaries of the validation data: {settings.output}")

    def _epoch(self, epoch: int) -> None:
        settings, processes, progress = self.settings, self.processes, self.progress
        items, size = self.items["train"], processes.size
        self.model.train()
        batches = epoch_batches(
            len(items), batch_size=settings.batch_size, rank=processes.rank, size=size, seed=settings.seed,
            epoch=epoch, first=progress.update,
        )  # fmt: skip
        total = num_updates(len(items), batch_size=settings.batch_size, size=size)
        for update, numbers in batches:
            torch.manual_seed(zlib.crc32(f"{settings.seed} {epoch} {update} {processes.rank}".encode()))
            loss_sum, count = self._loss([items[number] for number in numbers])
            everywhere = processes.sum(count)
            # Gradients are averaged over processes; the loss is that of a target token of the whole batch.
            processes.backward(loss_sum * size / everywhere)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if update % TRACKED_EVERY == 0 or update == total - 1:
                loss = float(processes.sum(loss_sum.detach()) / everywhere)
                if not math.isfinite(loss):
                    raise ValueError(f"the loss is {loss} in epoch {epoch}, iteration {update}; lower --lr")
                self.tracker.log({"Training Loss": loss})
                if update % PRINTED_EVERY == 0:
                    progress.losses.append(loss)
                    processes.print(f"Epoch: {epoch}, Iteration: {update}, Loss:  {loss}")
            progress.update = update + 1
            if settings.save_interval and progress.update % settings.save_interval == 0 and progress.update < total:
                self._save_state()

    def _loss(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Return the summed loss of the target tokens and their number; without items one runs that counts nothing."""
        inputs = batch_inputs(items or self.items["train"][:1], pad=self.encoder.pad, legacy=self.settings.legacy)
        inputs = {name: tensor.to(self.processes.device) for name, tensor in inputs.items()}
        labels = inputs.pop("labels")  # [b,t]
        if not items:
            labels.fill_(IGNORED)
        logits = self.model(**inputs, use_cache=False).logits.float()  # [b,t,v]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss, (labels != IGNORED).sum()

    @torch.no_grad()
    def _evaluate(self, epoch: int) -> None:
        """Write summaries of the validation rows, each process its share; print figures and keep what is best."""
        settings, processes, progress = self.settings, self.processes, self.progress
        bare = processes.bare(self.model).eval()
        numbers = range(processes.rank, len(self.items["valid"]), processes.size)
        mine: list[tuple[int, str]] = []
        for start in range(0, len(numbers), settings.eval_batch_size):
            chosen = numbers[start : start + settings.eval_batch_size]
            mine += zip(chosen, self._summaries(bare, [self.items["valid"][number] for number in chosen]))
        texts = [text for _, text in sorted(processes.gather(mine))]
        if not processes.first:
            return
        rows = self.rows["valid"]
        words = [(self.encoder.words(text), self.encoder.words(row.summary)) for text, row in zip(texts, rows)]
        scores = rouge_of_words(words)
        processes.print(f"epoch= {epoch}|" + " ".join(f"{name} = {score}" for name, score in scores.items()))
        self.tracker.log(scores)
        if scores["r1"] <= progress.best:
            return
        progress.best = scores["r1"]
        processes.print(f"found best validation r-1 score {progress.best} at epoch {epoch}")
        with whole_file(progress.weights) as file:
            torch.save(bare.state_dict(), file)
        content = io.StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(("Generated Text", "Actual Text"))
        writer.writerows((text, row.summary) for text, row in zip(texts, rows))
        write_whole(settings.output, content.getvalue())

    def _summaries(self, model: Any, items: Sequence[Item]) -> list[str]:
        inputs = batch_inputs(items, pad=self.encoder.pad)
        written = model.generate(
            input_ids=inputs["input_ids"].to(self.processes.device),
            attention_mask=inputs["attention_mask"].to(self.processes.device),
            num_beams=self.settings.num_beams,
            max_length=self.settings.max_length,
            no_repeat_ngram_size=NO_REPEAT,
            length_penalty=LENGTH_PENALTY,
            early_stopping=self.settings.num_beams > 1,
        )
        return self.encoder.tokenizer.batch_decode(written, skip_special_tokens=True)

    def _save_state(self) -> None:
        """Write what a run goes on from after a kill."""
        if not self.processes.first:
            return
        content = {
            "settings": self._fingerprint(),
            "progress": asdict(self.progress),
            "model": self.processes.bare(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with whole_file(self.state_file) as file:
            torch.save(content, file)

    def _fingerprint(self) -> dict[str, Any]:
        global_batch = self.settings.batch_size * self.processes.size
        return {**self.settings.decisive(), "batch_size": global_batch, "rows": len(self.rows["train"])}

    def _saved_state(self) -> dict[str, Any] | None:
        """Return the state to go on from; None without. Raises ValueError for the state of another run."""
        if self.settings.restart or not self.state_file.is_file():
            return None
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
            saved = state["settings"]
        except Exception as error:  # a damaged file can end in any error of torch or pickle
            raise ValueError(f"{self.state_file} cannot be read; --restart begins anew") from error
        now = self._fingerprint()
        for name, value in now.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{self.state_file} is of a run with {name} {saved.get(name)}, not {value}; --restart begins anew"
                )
        return state


def finetune(settings: Settings) -> int:
    """Train and evaluate; return the exit code."""
    processes = start_processes()
    run = Run(settings, processes)
    run.train()
    processes.end()
    return 0
