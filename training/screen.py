"""What a person sees of a run at its start and at its end: what is trained on what, where everything is."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from files.progress import duration
from training.engine import Engine
from training.logging import draw_loss_curves, validation_table
from training.loop import TrainingData
from training.settings import PretrainingSettings, Settings, spelling

WIDTH = 12  # of the names
WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
# Of the arguments that are not the defaults, those that the other lines say already.
SAID = (
    "train_data", "valid_data", "test_data", "num_layers", "hidden_size", "num_attention_heads", "batch_size", "save",
    "max_position_embeddings", "gradient_accumulation_steps", "seq_length", "train_iters", "experiment_name",
    "summary_dir", "rank", "world_size", "local_rank", "deepspeed", "deepspeed_config", "task", "epochs",
)  # fmt: skip


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines of names and texts."""
    lines, margin = [], " " * (WIDTH + 2)
    for name, text in rows:
        first = f"  {name:<{WIDTH}}"
        lines += textwrap.wrap(text, 118, initial_indent=first, subsequent_indent=margin, **WHOLE_WORDS)
    return lines


def start_screen(
    settings: Settings, engine: Engine, data: TrainingData, *, num_updates: int, initial: int = 0
) -> list[str]:
    """Return what a run is, before its first update: ``num_updates`` with the ``initial`` ones made before."""
    run, batch, topology = settings.run, settings.batch, engine.topology
    config = settings.model
    sizes = f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads"
    ranks, t = topology.data_parallel_size, topology.model_parallel_size
    factors = f"{batch.batch_size} a rank x {batch.gradient_accumulation_steps} accumulated x {ranks} data ranks"
    samples = batch.batch_size * batch.gradient_accumulation_steps * ranks
    tokens = samples * batch.seq_length
    length = f"updates {initial:,} to {num_updates:,}"
    if num_updates == 0:
        length = "evaluation only"
    elif isinstance(settings, PretrainingSettings):
        length += f", {(num_updates - initial) * tokens:,} tokens"
    else:
        length += f", {settings.tuning.num_epochs} epochs"
    rows = [(f"{name} on" if name == "training" else name, text) for name, text in data.sizes.items()]
    rows += [
        ("model", f"{engine.num_parameters * t:,} parameters: {sizes}, {config.max_position_embeddings} positions"),
        ("engine", f"{engine.description}, {engine.precision}, {devices(topology.world_size, engine.device)}"
                   + (f" = {ranks} data x {t} tensor parallel" if topology.world_size > 1 else "")),
        ("an update", f"{samples:,} samples of at most {batch.seq_length:,} tokens = {factors}" if num_updates else ""),
        ("length", length),
        ("checkpoints", str(settings.checkpoint.save or "none: no --save")),
        ("the rest", str(run.summary_folder)),
        ("given", arguments(settings.changed) or "nothing but the defaults"),
    ]  # fmt: skip
    return [run.experiment_name, *table((name, text) for name, text in rows if text)]


def devices(world_size: int, device: torch.device) -> str:
    """Return how many processes compute where; on a CPU with the threads of each."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{world_size} process{'es' * (world_size > 1)} of {threads} thread{'s' * (threads > 1)} on the CPU"
    return f"{world_size} x {torch.cuda.get_device_name(device)}"


def arguments(changed: Mapping[str, Any]) -> str:
    """Return the arguments that are not the defaults, as they are typed, without those that other lines say."""
    words = []
    for name, value in sorted(changed.items()):
        if name not in SAID:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [spelling(name), *map(str, values)]
    return shlex.join(words)


def end_screen(
    settings: Settings, data: TrainingData, *, seconds: float, rows: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Draw the curves of the whole run, resumed parts included; return what it reached, where everything is, the time.

    ``rows`` come first.
    """
    run, saved = settings.run, settings.checkpoint.save
    made, lines, entropy = list(rows), [], data.unigram_entropy
    if run.metrics_path.exists():  # not where nothing is trained
        picture = run.summary_folder / "loss.png"
        note = draw_loss_curves(run.metrics_path, picture, title=run.experiment_name, unigram_entropy=entropy)
        made += [("loss curves", note or str(picture)), ("numbers", str(run.metrics_path))]
        lines = validation_table(run.metrics_path, unigram_entropy=entropy)
    if saved is not None and saved.exists():
        made.append(("checkpoints", f"{saved} ({size_on_disk(saved) / 1e6:,.1f} MB)"))
    return [*lines, f"{run.experiment_name} is done in {duration(seconds)}", *table(made)]


def size_on_disk(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
