"""A device without hardware that shows what a GPU would be waited for, and what it would refuse.

Tensors on ``chip`` keep their numbers in host memory, and every operation on them is computed there. What makes the
host wait for a GPU raises ``WaitError`` (in ``Chip``, unless its place is allowed): reading a number, copies to the
host, copies from memory that is not pinned or without ``non_blocking``, shapes that depend on numbers, indices on the
host. Operations on tensors of both devices raise, too. Attention calls are noted with the kernel that a GPU would take.

The device can be made once a process, and before the first backward pass of it: ``chip_process`` gives one for it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.helpers import REPOSITORY

aten = torch.ops.aten
NAME = "chip"
COPIES = {aten._to_copy.default, aten.copy_.default}
# Their results, or the shapes of these, depend on numbers that are on the device.
READING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.unique_dim_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}


class WaitError(AssertionError):
    """The host would wait for the device here, or the device would refuse to compute this."""


class ChipTensor(Tensor):
    """A tensor on the device, with its numbers in ``host``; views share them."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> ChipTensor:
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=f"{NAME}:0",
        )  # fmt: skip
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise WaitError(f"{operation} on the device outside of its mode")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ChipTensor({list(self.shape)}, {self.dtype})"


class _BackendModule(_DummyBackendModule):
    """What ``torch.get_device_module`` returns for the device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16, torch.float32]

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return 9, 0

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @contextmanager
    def device(self, index: Any) -> Iterator[None]:
        yield


class AttentionCall(NamedTuple):
    """A call of ``scaled_dot_product_attention``, the kernel that a GPU takes, and what it has to copy before."""

    place: str
    kernel: str
    copies: tuple[str, ...]
    dtype: torch.dtype
    mask: bool


def _flash(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, *, causal: bool) -> Tensor:
    """Return the attention of samples one behind the other [queries,n,d], in fp32; causal is counted from the end."""
    parts = []
    for sample in range(len(starts) - 1):
        rows = query[starts[sample] : starts[sample + 1]]
        columns = slice(int(key_starts[sample]), int(key_starts[sample + 1]))
        parts_of = [part.float().transpose(0, 1) for part in (rows, key[columns], value[columns])]  # [n,s,d]
        mask = torch.ones(len(rows), columns.stop - columns.start, dtype=torch.bool)
        mask = mask.tril(mask.size(1) - mask.size(0)) if causal else mask
        parts.append(F.scaled_dot_product_attention(*parts_of, attn_mask=mask).transpose(0, 1))
    return torch.cat(parts)


def _flash_forward(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    starts, key_starts, _, _, dropout_p, causal = others[:6]
    assert {starts.dtype, key_starts.dtype} == {torch.int32} and starts.shape == key_starts.shape
    assert query.dtype in (torch.float16, torch.bfloat16) and query.size(-1) % 8 == 0, (query.dtype, query.shape)
    assert all(one.stride(-1) == 1 for one in (query, key, value)) and dropout_p == 0.0
    found = _flash(query, key, value, starts, key_starts, causal=causal).to(query.dtype)
    nothing = query.new_zeros(0)
    return found, torch.zeros(query.shape[1::-1]), nothing, nothing, nothing


def _flash_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    starts, key_starts, causal = others[2], others[3], others[7]
    inputs = [one.detach().requires_grad_() for one in (query, key, value)]
    with torch.enable_grad():
        found = _flash(*inputs, starts, key_starts, causal=causal)
    return torch.autograd.grad(found, inputs, gradient.float())


# What this build of torch has no kernel for.
KERNELS = {
    aten._flash_attention_forward.default: _flash_forward,
    aten._flash_attention_backward.default: _flash_backward,
}


def on_host(value: Any, tensors: list[Tensor]) -> Any:
    """Return arguments with host memory in place of tensors on the device; put all tensors into ``tensors``."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.host if isinstance(value, ChipTensor) else value
    if isinstance(value, list | tuple):
        return type(value)([on_host(one, tensors) for one in value])
    if isinstance(value, dict):
        return {name: on_host(one, tensors) for name, one in value.items()}
    return value


def on_device(value: Any, known: dict[int, ChipTensor]) -> Any:
    """Return a result with tensors on the device; those of arguments, by the id of their host memory, are ``known``."""
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else ChipTensor(value)
    return type(value)([on_device(one, known) for one in value]) if isinstance(value, list | tuple) else value


class Chip(AbstractContextManager):
    """The context in which the device computes.

    Attributes:
        waits: how often the host has waited, by place: file and function.
        attention: the attention calls.
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        """Make the device. The host may wait at the ``allowed`` places, like ``training/metrics.py: report``."""
        _make_device()
        self.allowed = allowed
        self.waits: Counter[str] = Counter()
        self.attention: list[AttentionCall] = []
        self.preparing = False
        self._stack = ExitStack()

    def __enter__(self) -> Chip:
        lifting = torch._C._only_lift_cpu_tensors()  # type: ignore[attr-defined]
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, lifting)  # type: ignore[attr-defined]
        torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # torch.tensor copies through the mode
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """Let the host wait in the body: before the first step, after the last one."""
        self.preparing = True
        try:
            yield
        finally:
            self.preparing = False

    def wait(self, what: str) -> None:
        """Note that the host waits for the device; raise ``WaitError`` where it may not."""
        if self.preparing:
            return
        place = place_in_repository()
        self.waits[place] += 1
        if place not in self.allowed:
            raise WaitError(f"{place} waits for the device: {what}")


class _Operations(TorchDispatchMode):
    """Compute in host memory what is asked of the device, and check it first."""

    def __init__(self, chip: Chip) -> None:
        super().__init__()
        self.chip = chip
        self.pinned: dict[int, Tensor] = {}  # by address

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would load torch's compiler, which nothing here uses

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and operation._can_decompose():  # as it is in other modes
            with self:
                return operation.decompose(*args, **kwargs)
        if operation is aten.is_pinned.default:
            return args[0].untyped_storage().data_ptr() in self.pinned
        if operation is aten._pin_memory.default:
            with torch.inference_mode(False):
                copy = args[0].clone()
            self.pinned[copy.untyped_storage().data_ptr()] = copy
            return copy
        tensors: list[Tensor] = []
        host_args, host_kwargs = on_host((args, kwargs), tensors)
        on_chip = {id(one.host): one for one in tensors if isinstance(one, ChipTensor)}
        target = kwargs.get("device")
        to_chip = bool(on_chip) if target is None else torch.device(target).type == NAME
        if not (to_chip or on_chip):
            return operation(*args, **kwargs)
        if operation in COPIES:
            to_chip = self._check_copy(operation, args, kwargs, to_chip=to_chip)
            host_kwargs.pop("non_blocking", None)
        else:
            self._check(operation, args, kwargs, tensors)
        if target is not None and to_chip:
            host_kwargs["device"] = torch.device("cpu")
        host_kwargs.pop("pin_memory", None)
        if operation is aten._flash_attention_forward.default:
            self.chip.attention.append(AttentionCall(place_in_repository(), "two calls", (), args[0].dtype, mask=False))
        with torch.inference_mode(False), torch.no_grad():  # no inference tensors, which wrappers cannot be
            result = KERNELS.get(operation, operation)(*host_args, **host_kwargs)
            return on_device(result, on_chip) if to_chip else result

    def _check_copy(self, operation: Any, args: Any, kwargs: Any, *, to_chip: bool) -> bool:
        """Check a copy; tell whether its result is on the device."""
        if operation is aten.copy_.default:
            target, source = args[:2]
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            to_chip = isinstance(target, ChipTensor)
        else:
            [source] = args
            blocking = not kwargs.get("non_blocking", False)
        from_chip = isinstance(source, ChipTensor)
        if from_chip and not to_chip:
            self.chip.wait("a copy to the host")
        elif to_chip and not from_chip and (source.dim() > 0 or operation is aten._to_copy.default):
            if blocking:
                self.chip.wait("a copy to the device without non_blocking")
            elif source.untyped_storage().data_ptr() not in self.pinned:
                self.chip.wait("a copy to the device from memory that is not pinned")
        return to_chip

    def _check(self, operation: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Check an operation that has tensors on the device."""
        if operation in READING:
            self.chip.wait(f"{operation} depends on numbers of the device")
        if operation in INDEXING:
            indices = [index for index in args[1] if index is not None]
            scalar = len(args) > 2 and args[2].numel() == 1
            if any(not isinstance(index, ChipTensor) for index in indices):
                self.chip.wait(f"{operation} with indices on the host")
                return
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not scalar:
                self.chip.wait(f"{operation} with a mask, whose places have to be counted")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != NAME:
            raise WaitError(f"{place_in_repository()}: {operation} draws on the device with a generator of the host")
        strangers = [one for one in tensors if not isinstance(one, ChipTensor) and one.dim() > 0]
        if strangers:
            shapes = [list(one.shape) for one in strangers]
            raise WaitError(f"{place_in_repository()}: {operation} meets tensors {shapes} on the host")


class _Calls(TorchFunctionMode):
    """Note the attention calls on the device, and let its tensors become lists."""

    def __init__(self, chip: Chip) -> None:
        super().__init__()
        self.chip = chip

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and isinstance(args[0], ChipTensor):
            query, key, value, *others = args
            mask = others[0] if others else kwargs.get("attn_mask")
            kernel, copies = attention_kernel(
                query,
                key,
                value,
                mask,
                dropout_p=kwargs.get("dropout_p", 0.0),
                is_causal=kwargs.get("is_causal", False),
            )
            self.chip.attention.append(
                AttentionCall(place_in_repository(), kernel, tuple(copies), query.dtype, mask is not None)
            )
        if function is Tensor.tolist and isinstance(args[0], ChipTensor):  # torch has none for subclasses
            return args[0].to("cpu").tolist()
        return function(*args, **kwargs)


def attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> tuple[str, list[str]]:
    """Return the kernel that ``scaled_dot_product_attention`` takes on a GPU from Ampere on, and what it copies before.

    The kernel is ``flash``, ``efficient`` or ``math``; cuDNN's is off. The rules are those of torch's
    ``sdp_utils`` (``can_use_flash_attention``, ``can_use_mem_efficient_attention``, ``preprocess_mask``). Copies: a
    boolean mask becomes one of numbers, and a mask whose rows do not begin at multiples of 8 elements is padded, with
    every call. Raises ``WaitError`` for what attention refuses altogether.
    """
    inputs = (query, key, value)
    if len({one.dtype for one in inputs}) > 1 or len({one.size(-1) for one in (query, key)}) > 1:
        raise WaitError(f"queries, keys and values differ: {[(one.dtype, list(one.shape)) for one in inputs]}")
    if mask is not None and is_causal:
        raise WaitError("a mask and is_causal exclude each other")
    if mask is not None and mask.dtype not in (torch.bool, query.dtype):
        raise WaitError(f"a mask of {mask.dtype} for queries of {query.dtype}")
    rows = (*query.shape[:-1], key.size(-2))  # [b,n,s,k]
    if mask is not None and any(size not in (1, full) for size, full in zip(mask.shape[::-1], rows[::-1])):
        raise WaitError(f"a mask {list(mask.shape)} cannot be expanded to {list(rows)}")
    head_dim, half = query.size(-1), query.dtype in (torch.float16, torch.bfloat16)
    dense = (
        all(one.dim() == 4 and one.stride(-1) == 1 and one.size(-2) > 0 for one in inputs)
        and len({one.shape[:2] for one in inputs}) == 1
    )
    square = not is_causal or query.size(-2) == key.size(-2)
    if dense and half and mask is None and square and value.size(-1) == head_dim <= 256:
        return "flash", []
    alignment = 8 if half else 4
    aligned = head_dim % alignment == 0 and value.size(-1) % alignment == 0
    learned = mask is not None and mask.requires_grad and torch.is_grad_enabled()
    whole_mask = mask is None or mask.stride(-1) == 1
    if not (dense and aligned and whole_mask and not learned and query.dtype != torch.float64):
        return "math", []
    copies = []
    if mask is not None and mask.dtype == torch.bool:
        copies.append("a boolean mask becomes numbers")
    if mask is not None and any(stride % 8 for stride in mask.stride()[:-1]):
        copies.append("the rows of the mask are padded")
    return "efficient", copies


def place_in_repository() -> str:
    """Return file and function of the innermost frame that is code of the repository, and no test."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(str(REPOSITORY)) and "/.venv/" not in file and "/tests/" not in file:
            name = frame.f_code.co_name
            if not name.startswith("<"):  # a comprehension belongs to its function
                return f"{file.removeprefix(str(REPOSITORY)).lstrip('/')}: {name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside of the repository"


@cache
def _make_device() -> list[Any]:
    """Register the device with torch, and its autocast; return what has to live as long as the process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_BackendModule())
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL")
    for name in ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "scaled_dot_product_attention"):
        _register_autocast(library, name, lambda: torch.get_autocast_dtype(NAME))
    for name in (
        "layer_norm",
        "softmax.int",
        "log_softmax.int",
        "logsumexp",
        "nll_loss",
        "pow.Tensor_Scalar",
        "cumsum",
    ):
        _register_autocast(library, name, lambda: torch.float32)
    return [library, others]


def _register_autocast(library: Any, name: str, dtype: Callable[[], torch.dtype]) -> None:
    """Have an operation cast its floating-point inputs under autocast, as GPUs do."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(tensor: Tensor) -> Tensor:
        wanted = tensor.is_floating_point() and tensor.dtype != torch.float64 and isinstance(tensor, ChipTensor)
        return tensor.to(dtype()) if wanted else tensor

    def kernel(*args: Any, **kwargs: Any) -> Any:
        args = [cast(one) if isinstance(one, Tensor) else one for one in args]
        kwargs = {name: cast(one) if isinstance(one, Tensor) else one for name, one in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*args, **kwargs)

    library.impl(name, kernel, "AutocastPrivateUse1")


@contextmanager
def chip_process() -> Iterator[Callable[..., Any]]:
    """Give what calls a function of a module, with plain arguments and results, in a process that may have the device.

    The process has had no backward pass before, and nothing of the device is left in this one.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
