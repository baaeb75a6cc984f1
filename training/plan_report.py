"""What a plan says, and how: the layout of the ranks, the memory, disk and time of a run, as text.

``training/planning.py`` makes plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import GLMConfig
from training.configurations import BatchSettings
from training.memory_estimate import HostMemory, RankMemory
from training.metrics import PEAK_FLOPS

GB = 1e9
CARDS = (24, 40, 80, 141)  # GB of known GPUs, taken as 10^9 bytes
PLANNED_MFU = 0.4
PLANNED_GPUS = ("A100", "H100")


@dataclass(frozen=True)
class Layout:
    """How the ranks share the model and the data (mpu/initialize.py)."""

    world_size: int
    tensor_parallel_size: int

    def __post_init__(self) -> None:
        """Refuse a world that cannot be cut."""
        if self.world_size % self.tensor_parallel_size:
            raise ValueError(
                f"{self.world_size} processes cannot be cut into model-parallel groups of {self.tensor_parallel_size}; "
                "start a multiple of --model-parallel-size processes"
            )

    @property
    def data_parallel_size(self) -> int:
        """Return the number of copies of the model, each with its own data."""
        return self.world_size // self.tensor_parallel_size

    def describe(self) -> str:
        """Return one line that says which ranks belong together."""
        world, size = self.world_size, self.tensor_parallel_size
        text = f"{world} ranks = {size} tensor-parallel x {self.data_parallel_size} data-parallel"
        if size > 1:
            text += f"; ranks {_some([f'{first}-{first + size - 1}' for first in range(0, world, size)])} share a model"
        if self.data_parallel_size > 1:
            groups = [_some([str(rank) for rank in range(first, world, size)]) for first in range(size)]
            text += f"; gradients are summed over ranks {_some(groups, separator=' | ')}"
        return text


def _some(names: list[str], *, separator: str = ", ") -> str:
    """Join names, the middle of many left out."""
    return separator.join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])


@dataclass(frozen=True)
class Plan:
    """A resolved run.

    Attributes:
        name: of the experiment.
        config: the model.
        vocabulary: where its size comes from.
        num_parameters: of the whole model; ``rank_parameters`` those a tensor-parallel rank holds.
        engine: in words; ``zero_stage`` is 0 without ZeRO. ``layout``: the ranks.
        batch: micro batch, accumulation, length.
        width, num_targets: positions of a row and targets of a micro batch, at most.
        num_updates: of the whole run.
        memory, host: of one rank. ``checkpoint_bytes``: on disk, all ranks. ``checkpoints``: how many are kept.
        flops_per_token: forward and backward; recomputation is not counted.
        in_memory: whether every rank reads its token store into memory.
        notices: what to know before starting.
    """

    name: str
    config: GLMConfig
    vocabulary: str
    num_parameters: int
    rank_parameters: int
    engine: str
    zero_stage: int
    layout: Layout
    batch: BatchSettings
    width: int
    num_targets: int
    num_updates: int
    memory: RankMemory
    host: HostMemory
    checkpoint_bytes: int
    checkpoints: int | None
    flops_per_token: float
    in_memory: bool
    notices: tuple[str, ...]

    @property
    def tokens_per_update(self) -> int:
        """Return the text tokens of one update over all data ranks."""
        batch = self.batch
        return batch.batch_size * batch.accumulation_steps * self.layout.data_parallel_size * batch.seq_length

    @property
    def flops_per_update(self) -> float:
        """Return the arithmetic of one update on all ranks."""
        return self.flops_per_token * self.tokens_per_update

    @property
    def fitting_cards(self) -> tuple[int, ...]:
        """Return the known GPU sizes, in GB, that one rank fits on."""
        return tuple(card for card in CARDS if self.memory.total <= card * GB)

    def days(self, num_updates: int, *, gpu: str) -> float:
        """Return the days that ``num_updates`` take on GPUs of that name at ``PLANNED_MFU``."""
        rate = PEAK_FLOPS[gpu] * PLANNED_MFU * self.layout.world_size
        return self.flops_per_update * num_updates / rate / 86400

    def report(self) -> str:
        """Return the plan as text."""
        config, batch, data_ranks = self.config, self.batch, self.layout.data_parallel_size
        share = "" if self.layout.tensor_parallel_size == 1 else f", {self.rank_parameters:,} on each tensor rank"
        factors = f"{batch.batch_size} x {batch.accumulation_steps} x {data_ranks} x {batch.seq_length}"
        times = ", ".join(f"{self.days(1000, gpu=gpu):.3g} days on {gpu}" for gpu in PLANNED_GPUS)
        kept = "all are kept" if self.checkpoints is None else f"{self.checkpoints} are kept, one more while saving"
        store = "read into memory by every rank (add its size)" if self.in_memory else "mapped, in the page cache"
        rows = [
            ("model", f"{self.num_parameters:,} parameters{share}"),
            ("", f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads, "
                 f"vocabulary {config.vocab_size:,}, {config.max_position_embeddings} positions"),
            ("vocabulary", self.vocabulary),
            ("engine", self.engine),
            ("layout", self.layout.describe()),
            ("update", f"{self.tokens_per_update:,} tokens = {factors}: "
                       "micro batch x accumulation x data ranks x length"),
            ("run", f"{self.num_updates:,} updates, {self.num_updates * self.tokens_per_update:,} tokens"),
            *self._memory_rows(),
            ("data", f"token store {store}"),
            ("checkpoint", f"{_gb(self.checkpoint_bytes)} on disk, {kept} (--keep-checkpoints)"),
            ("compute", f"{self.flops_per_update:.3g} FLOPs per update; 1000 updates: {times} "
                        f"(assumed: {PLANNED_MFU:.0%} of the half-precision peak)"),
        ]  # fmt: skip
        lines = [f"plan of {self.name}: computed, not measured; GB are 10^9 bytes"]
        lines += [f"  {title:<12}{text}" for title, text in rows]
        return "\n".join([*lines, *self.notices])

    def _memory_rows(self) -> list[tuple[str, str]]:
        memory, host, states, amounts = self.memory, self.host, self.memory.states, self.memory.activations
        kept, other = ("recomputed", "kept") if memory.checkpointing else ("kept", "recomputed")
        alternative = amounts.plain if memory.checkpointing else amounts.checkpointed
        casts = f", {_gb(states.casts)} half-precision copies" if states.casts else ""
        cards = ", ".join(f"{card} GB" for card in self.fitting_cards)
        fits = f"fits GPUs of {cards}" if cards else f"fits no GPU of up to {CARDS[-1]} GB"
        lines = [
            f"of one rank's {'GPU' if memory.on_gpu else 'process'}, at most {_gb(memory.total)}"
            + (f": {fits}" if memory.on_gpu else ""),
            f"{_gb(states.parameters)} parameters, {_gb(states.gradients)} gradients, {_gb(states.optimizer)} optimizer"
            + casts,
            f"{_gb(memory.kept)} activations, {kept} ({_gb(alternative)} if {other}), {_gb(amounts.temporary)} "
            f"temporary: {self.batch.batch_size} rows of {self.width}, {self.num_targets:,} targets",
            f"{_gb(states.buffers)} buffers, {_gb(memory.allowance)} for "
            f"{'the CUDA context' if memory.on_gpu else 'the process'} and fragmentation",
        ]
        if states.start >= memory.peak:
            lines.append(f"the start is the peak: the fp32 weights, {_gb(states.start)}, before ZeRO shares them")
        rows = [("" if index else "memory", line) for index, line in enumerate(lines)]
        if memory.on_gpu:
            line = f"{_gb(host.total)} per rank at most: {_gb(host.offload)} offloaded, {_gb(host.building)} while the "
            line += f"model is built, {_gb(host.saving)} while saving, {_gb(host.resuming)} while resuming"
            rows.append(("host", line))
        return rows


def _gb(size: float) -> str:
    return f"{size / GB:.2f} GB"
