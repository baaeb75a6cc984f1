"""Random states: dropout, the extra state of the model-parallel ranks, and activation checkpointing.

Ranks of one model-parallel group hold different heads, so dropout of attention probabilities must differ between them,
while every other dropout must be equal. Layers therefore draw the former under a second random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from mpu.initialize import ParallelTopology

MODEL_PARALLEL_STATE = "model-parallel-rng"
# Offset between the common seed and the seeds of the model-parallel ranks.
MODEL_PARALLEL_SEED_OFFSET = 2718
BYTE_VALUES = 256
HASH_BITS, HASH_FACTOR = 32, 0x45D9F3B
LOW_BITS = (1 << HASH_BITS) - 1


class ModelParallelRandomState:
    """Hold the second random state of a model-parallel rank and lend it to a block of code.

    It always exists, whatever the seed. With a model-parallel size of one nothing is swapped: the plain model draws
    all its numbers from torch's default state.
    """

    def __init__(self, topology: ParallelTopology, *, seed: int = 0) -> None:
        self.topology = topology
        self._seed = seed
        self._state: Tensor | None = None  # generator state, uint8 [bytes]
        self._device_type = "cpu"

    def seed(self, seed: int) -> None:
        """Start over from the seed that is common to the world; the rank's offset is added here."""
        self._seed = seed
        self._state = None

    @property
    def is_split(self) -> bool:
        """Tell whether ranks that share a model have a state of their own."""
        return self.topology.model_parallel_size > 1

    @contextmanager
    def fork(self, device: torch.device) -> Iterator[None]:
        """Run the body with ``device``'s default generator in the model-parallel state, then put the old state back."""
        if not self.is_split:
            yield
            return
        outside = _get_state(device)
        _set_state(device, self._state_for(device))
        try:
            yield
        finally:
            self._state = _get_state(device)
            _set_state(device, outside)

    def state_dict(self) -> dict[str, Tensor]:
        """Return {name: state} as checkpoints keep it under ``rng_tracker_states``."""
        return {MODEL_PARALLEL_STATE: self._state_for(torch.device(self._device_type)).clone()}

    def load_state_dict(self, states: dict[str, Tensor], *, device: torch.device | str = "cpu") -> None:
        """Continue from the state that ``state_dict`` returned for the same kind of device."""
        if MODEL_PARALLEL_STATE not in states:
            raise ValueError(
                f"random states hold {sorted(states)}, not {MODEL_PARALLEL_STATE!r}; "
                "resume without them (--no-load-rng)"
            )
        self._device_type = torch.device(device).type
        self._state = states[MODEL_PARALLEL_STATE].cpu()

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Return the contexts of a checkpointed forward pass and of its recomputation.

        The recomputation starts from the state the forward pass started from, and leaves the present state alone.
        """
        recorded: list[Tensor | None] = []

        @contextmanager
        def first_pass() -> Iterator[None]:
            recorded.append(self._state)
            yield

        @contextmanager
        def recomputation() -> Iterator[None]:
            present = self._state
            self._state = recorded[0]
            try:
                yield
            finally:
                self._state = present

        return first_pass(), recomputation()

    def _state_for(self, device: torch.device) -> Tensor:
        if self._state is None or self._device_type != device.type:
            rank_seed = self._seed + MODEL_PARALLEL_SEED_OFFSET + self.topology.model_parallel_rank
            self._state = torch.Generator(device).manual_seed(rank_seed).get_state()
            self._device_type = device.type
        return self._state


def _get_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def checkpoint_activations(
    function: Callable[[Tensor], Tensor], hidden: Tensor, *, random_state: ModelParallelRandomState
) -> Tensor:
    """Call ``function(hidden)`` without keeping its activations; the backward pass computes them again.

    Both random states are as in the first pass when the function is run again, so that dropout repeats itself.
    """
    return checkpoint(function, hidden, use_reentrant=False, context_fn=random_state.checkpoint_contexts)


class _ByteDropout(Function):
    """Dropout whose mask compares random bytes with a threshold: eight decisions from one 64-bit word."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, threshold: int) -> Tensor:
        count = inputs.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64, device=inputs.device)
        words.random_(-(2**63), None)  # the full 64-bit range: every byte is uniform
        # The comparison stays in bytes, in place: ten times faster than one that makes a bool tensor.
        keep = words.view(torch.uint8)[:count].ge_(threshold).view(inputs.shape)
        ctx.scale = BYTE_VALUES / (BYTE_VALUES - threshold)
        ctx.save_for_backward(keep)
        return (inputs * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None


def dropout(inputs: Tensor, probability: float, *, training: bool, fast: bool) -> Tensor:
    """Zero elements with ``probability`` and scale up the others.

    ``fast`` takes effect on the CPU: the probability is rounded to a multiple of 1/256 (0.1 becomes 26/256) and the
    mask is drawn about ten times faster. Probabilities that round to 0 or 1, and compiled layers,
    use torch's dropout.
    """
    if not training or probability == 0.0:
        return inputs
    threshold = round(BYTE_VALUES * probability)
    if fast and inputs.device.type == "cpu" and 0 < threshold < BYTE_VALUES and not torch.compiler.is_compiling():
        return _ByteDropout.apply(inputs, threshold)
    return F.dropout(inputs, probability, training=True)


def seeded_dropout(inputs: Tensor, probability: float, seed: Tensor) -> Tensor:
    """Zero elements with ``probability`` and scale up the others, as ``seed`` (int64, 0-dim, below 2**62) says.

    No generator takes part: whether element i stays is a hash of i and the seed, which a compiled layer computes
    beside its other operations. Equal seeds drop equal elements.
    """
    numbers = torch.arange(inputs.numel(), device=inputs.device)
    hashed = _hash_of(_hash_of((numbers + (seed & LOW_BITS)) & LOW_BITS) ^ (seed >> HASH_BITS))
    keep = (hashed >= round(probability * 2**HASH_BITS)).view(inputs.shape)
    scale = 1.0 / (1.0 - probability) if probability < 1.0 else 0.0
    return inputs * keep * scale


def _hash_of(numbers: Tensor) -> Tensor:
    """Mix the low 32 bits of int64 ``numbers``: multiplications and shifts, none of which leaves 63 bits."""
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * HASH_FACTOR & LOW_BITS
    return (numbers >> 16) ^ numbers


class Dropout(nn.Module):
    """Apply ``dropout`` in training mode."""

    def __init__(self, probability: float, *, fast: bool = True) -> None:
        super().__init__()
        self.probability = probability
        self.fast = fast

    def forward(self, inputs: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return ``inputs`` [...] with elements dropped, or unchanged in evaluation mode.

        With a ``seed`` it says which (``seeded_dropout``), in place of the default generator.
        """
        if seed is not None and self.training and self.probability > 0.0:
            return seeded_dropout(inputs, self.probability, seed)
        return dropout(inputs, self.probability, training=self.training, fast=self.fast)

    def extra_repr(self) -> str:
        return f"probability={self.probability}, fast={self.fast}"
