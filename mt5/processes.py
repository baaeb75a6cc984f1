"""The processes of a run: one, or those that ``accelerate launch`` starts. Without accelerate it is one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Processes:
    """A run of one process, plain torch.

    Attributes:
        rank, size: number of this process, and how many there are.
        device: where the model is.
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def print(self, line: str) -> None:
        """Print a line once, however many processes there are."""
        if self.first:
            print(line, flush=True)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Return the model and the optimizer as they are used in training."""
        return model.to(self.device), optimizer

    def bare(self, model: nn.Module) -> nn.Module:
        """Return the model itself, which may be wrapped for training."""
        return model

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return value

    def gather(self, values: Iterable[Any]) -> list[Any]:
        """Return the values of all processes, one after the other."""
        return list(values)

    def wait(self) -> None:
        """Wait until all processes are here."""

    def end(self) -> None:
        """Leave the others."""


class _Accelerated(Processes):
    """Processes, precision and devices as ``accelerate config`` says."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator()
        self.device = self._accelerator.device
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return self._accelerator.prepare(model, optimizer)

    def bare(self, model: nn.Module) -> nn.Module:
        return self._accelerator.unwrap_model(model)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def sum(self, value: Tensor) -> Tensor:
        return self._accelerator.reduce(value, reduction="sum")

    def gather(self, values: Iterable[Any]) -> list[Any]:
        if self.size == 1:
            return list(values)
        from accelerate.utils import gather_object

        return gather_object(list(values))

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def end(self) -> None:
        self._accelerator.end_training()


def start_processes() -> Processes:
    """Return the processes of this run. Raises ValueError for several without accelerate."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("several processes need accelerate: pip install accelerate") from error
        return Processes()
    return _Accelerated()
