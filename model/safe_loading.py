"""Read a checkpoint file without running anything that is in it (spec: model 11.2).

Files are pickles. Plain ones load with torch's own restricted reader. Files of the original also hold objects of its
classes (loss scalers ...): those are read as inert stand-ins, so that the tensors beside them stay readable.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

TENSOR_FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2 name it differently


class InertObject:
    """Stands for an object of a class that is not loaded: calls do nothing, its state is kept as plain data."""

    def __new__(cls, *arguments: Any, **options: Any) -> InertObject:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignore an item of a pickled list-like object."""

    def extend(self, items: Any) -> None:
        """Ignore items of a pickled list-like object."""

    def __call__(self, *arguments: Any, **options: Any) -> InertObject:
        return self


def _allowed_globals() -> dict[tuple[str, str], Any]:
    """Return what a pickle may name: containers, rebuilding of tensors and of NumPy arrays."""
    reconstruct = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("builtins", "complex"): complex,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    allowed |= {("torch._utils", name): getattr(torch._utils, name) for name in TENSOR_FUNCTIONS}
    allowed |= {(module, "_reconstruct"): reconstruct for module in NUMPY_MODULES}
    for name in ("float16", "float32", "float64", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool"):
        allowed["torch", name] = getattr(torch, name)
    return allowed


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _allowed_globals()
        if (module, name) in allowed:
            return allowed[module, name]
        return type(name.rsplit(".", 1)[-1], (InertObject,), {"__module__": f"inert.{module}"})


def _inert_load(file: Any, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()


_INERT_PICKLE = SimpleNamespace(
    Unpickler=_InertUnpickler, load=_inert_load, UnpicklingError=pickle.UnpicklingError, __name__="inert pickle"
)


def _safe_globals() -> list[Any]:
    """Return what torch's restricted reader needs for NumPy's random state."""
    allowed = _allowed_globals()
    reconstruct = allowed["numpy.core.multiarray", "_reconstruct"]
    types = [np.ndarray, np.dtype, type(np.dtype("uint32"))]
    return [*types, *((reconstruct, f"{module}._reconstruct") for module in NUMPY_MODULES)]


def read_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """Return the dictionary in a checkpoint file, tensors on the CPU and mapped from the file where possible.

    Nothing in the file is executed. Raises ValueError with one line when the file is missing, truncated, or no
    checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    try:
        content = _read(path)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, error) from error
    except pickle.UnpicklingError as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; a checkpoint is a dictionary with a key 'module'")
    return content


def _read(path: Path) -> Any:
    mapped = _is_zip(path)  # files older than torch 1.6 cannot be mapped
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        options = {"map_location": "cpu", "weights_only": False, "pickle_module": _INERT_PICKLE}
        return torch.load(path, mmap=mapped, **options)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _damaged(path: Path, error: Exception) -> ValueError:
    size = path.stat().st_size if path.exists() else 0
    reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:120]
    return ValueError(
        f"{path}: not a readable checkpoint ({size:,} bytes: truncated, or another kind of file); "
        f"copy or download it again ({reason})"
    )
