"""Read files written by ``torch.save`` without running anything they contain, and without keeping them in memory.

torch's weights-only reader comes first, with NumPy's random state on its allow-list. Files of the original also hold
instances of its own classes (loss scalers, configurations). For those a second reader is used that is as strict: a
fixed table of functions builds tensors, arrays and plain containers, and every other name in the file becomes an inert
stand-in, which ignores whatever the file does with it. So the weights stay readable.

Before either, the pickles in the file are looked through (``model.checkpoints.pickles``). Files are mapped into memory;
``release_pages`` gives back what was read.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.pickles import check_pickles

ZIP_MAGIC = b"PK\x03\x04"
DONT_NEED = 4  # MADV_DONTNEED of Linux


class UnreadableCheckpointError(ValueError):
    """A file is missing, cut off or not a checkpoint; an earlier checkpoint may be used instead."""


class InertObject:
    """Stand in for an instance of a class or the result of a function that is not trusted; does and keeps nothing."""

    pickled_name = ""

    def __new__(cls, *args: Any, **options: Any) -> InertObject:
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        """Ignore all arguments."""

    def __call__(self, *args: Any, **options: Any) -> InertObject:
        """Return itself: what an untrusted function returns, may be called as well."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item of a dictionary."""

    def append(self, value: Any) -> None:
        """Ignore an item of a list."""

    extend = add = append

    def __repr__(self) -> str:
        return f"<inert stand-in for {self.pickled_name}>"


class _Permitted:
    """A trusted function, wrapped so that the file can call it but not set attributes on it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file sets attribute {name!r} of a function")


def _encode(text: str, encoding: str) -> bytes:
    """Rebuild bytes: protocol 2 keeps them as Latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file encodes bytes as {encoding!r}")
    return text.encode("latin1")


def _bytearray(data: bytes = b"") -> bytearray:
    """Rebuild a bytearray of bytes; of a number it would be that many zeros."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("the file makes a bytearray of something else than bytes")
    return bytearray(data)


def _empty_array(kind: object, shape: tuple[int, ...], type_code: Any) -> np.ndarray:
    """Make the empty array whose content follows as its state."""
    return np.ndarray.__new__(np.ndarray, shape, type_code)


def _plain_dtype(name: str, *flags: bool) -> np.dtype:
    """Make a dtype of numbers; arrays of objects are refused."""
    dtype = np.dtype(name, *flags)
    if dtype.hasobject:
        raise pickle.UnpicklingError("the file holds an array of objects")
    return dtype


def _permitted_names() -> dict[tuple[str, str], Any]:
    """Return what each trusted (module, name) of a pickle stands for."""
    rebuild = torch._utils
    table: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor"): _Permitted(rebuild._rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Permitted(rebuild._rebuild_tensor_v2),
        ("torch._utils", "_rebuild_parameter"): _Permitted(rebuild._rebuild_parameter),
        ("torch", "Size"): _Permitted(torch.Size),
        ("torch", "device"): _Permitted(torch.device),
        ("collections", "OrderedDict"): _Permitted(OrderedDict),
        ("_codecs", "encode"): _Permitted(_encode),
    }
    for module in ("builtins", "__builtin__"):
        for kind in (set, frozenset, complex):
            table[module, kind.__name__] = _Permitted(kind)
        table[module, "bytearray"] = _Permitted(_bytearray)
    # torch.load itself answers for the storage classes with a number type ("FloatStorage"), before it asks here.
    for storage in (torch.storage.TypedStorage, torch.storage.UntypedStorage):
        table[storage.__module__, storage.__name__] = storage
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        table["torch", str(dtype).removeprefix("torch.")] = dtype
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table[module, "_reconstruct"] = _Permitted(_empty_array)
    table["numpy", "ndarray"] = _Permitted(np.ndarray)
    table["numpy", "dtype"] = _Permitted(_plain_dtype)
    table["numpy.dtypes", "UInt32DType"] = _Permitted(_plain_dtype)
    return table


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._permitted = _permitted_names()

    def find_class(self, module: str, name: str) -> Any:
        """Look ``module.name`` up in the table; nothing is ever imported."""
        if (module, name) not in self._permitted:
            self._permitted[module, name] = type("Inert", (InertObject,), {"pickled_name": f"{module}.{name}"})
        return self._permitted[module, name]


class _InertPickle:
    """What ``torch.load`` needs of a pickle module."""

    Unpickler = _InertUnpickler

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> Any:
        """Read one pickle (the format before torch 1.6 has several in a row)."""
        return _InertUnpickler(file, **options).load()


def numpy_allow_list() -> list[Any]:
    """Return what NumPy's random state is pickled with, under the module names of NumPy 1 and 2."""
    reconstruct = np.zeros(1).__reduce__()[0]
    random_state_dtype = type(np.dtype(np.uint32))
    modules = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [*((reconstruct, name) for name in modules), np.ndarray, np.dtype, random_state_dtype]


def read_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """Return the dictionary in a checkpoint file, with its tensors on the CPU and, where possible, memory-mapped.

    Instances of unknown classes appear as ``InertObject``; nothing in the file is executed. Raises
    ``UnreadableCheckpointError`` (a ValueError, one line) when the file is missing, cut off or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableCheckpointError(f"{path} does not exist; give a checkpoint folder")
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped into memory.
        mapped = is_archive(path)
        content = _load(path, mapped=mapped)
    except Exception as error:  # a damaged file can end in any error of torch, pickle or Python
        raise UnreadableCheckpointError(
            f"{path} cannot be read as a checkpoint: it is cut off, damaged or of another kind; use another one"
        ) from error
    if not isinstance(content, dict):
        raise UnreadableCheckpointError(
            f"{path} holds a {type(content).__name__} where a checkpoint has a dictionary; use another file"
        )
    return content


def is_archive(path: Path) -> bool:
    """Tell whether a file begins like a zip archive, as files of ``torch.save`` do since torch 1.6."""
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _load(path: Path, *, mapped: bool) -> Any:
    inert = check_pickles(path, archive=mapped)
    try:
        if inert:
            raise pickle.UnpicklingError
        with torch.serialization.safe_globals(numpy_allow_list()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of newer pickle protocols: they load, or raise
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped, pickle_module=_InertPickle)


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def release_pages(tensors: Iterable[Tensor]) -> None:
    """Drop the pages of tensors that are mapped from files; their values are read from the file again when needed.

    Tensors with memory of their own are left alone, and so are all of them where the system has no such call.
    """
    advise = _advise()
    if advise is None:
        return
    mapped = _mapped_files()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
        # Memory of the process itself would lose its values.
        if start < end and any(first <= start and end <= last for first, last in mapped):
            advise(start, end - start, DONT_NEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Return the address ranges of this process that are mapped from files."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            first, last = (int(number, 16) for number in addresses.split("-"))
            ranges.append((first, last))
    return ranges
