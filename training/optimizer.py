"""Optimizers: parameter groups, update rules, gradient clipping, loss scale, and states of other origin.

r rows, c columns of a matrix
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from files.reading import value_of
from model.checkpoints.reading import master_of
from mpu.fsdp import fill_rows, own_rows, spread_like
from mpu.gradients import gradient_norm
from mpu.initialize import ParallelTopology
from training.settings import OptimizerSettings, PrecisionSettings

OPTIMIZERS = ("adam", "adafactor")

# Constants of Adafactor's paper: what is added to squared gradients, the least size of a parameter, the largest root
# mean square of an update, and the exponent of the second moment's decay.
GRADIENT_EPS = 1e-30
PARAMETER_EPS = 1e-3
CLIP_THRESHOLD = 1.0
DECAY_EXPONENT = -0.8


def build_parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters as two groups: with weight decay, and without.

    LayerNorm parameters and those whose own name is ``bias`` are not decayed. A group keeps the order in which the
    modules are walked: optimizer states number their parameters by it. (The biases of an LSTM have other names and
    are decayed, as in the original.)
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            (no_decay if isinstance(module, nn.LayerNorm) or name == "bias" else decay).append(parameter)
    return [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]


@torch.no_grad()
def keep_masters(model: nn.Module) -> None:
    """Turn the fp32 parameters of ``model`` into bf16, and keep the fp32 value of a trainable one as its ``master``.

    Optimizers update masters, and checkpoints hold them (``master_of``).
    """
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            continue
        if parameter.requires_grad:
            master = nn.Parameter(parameter.detach().clone())
            master.__dict__.update(parameter.__dict__)  # the model-parallel flag
            parameter.master = master  # type: ignore[attr-defined]  # read by ``master_of``
        parameter.data = parameter.to(torch.bfloat16)


def build_optimizer(model: nn.Module, settings: OptimizerSettings, *, fused: bool = True) -> Optimizer:
    """Build the optimizer of the trainable parameters of ``model``, or of their masters.

    ``adam`` is AdamW: decoupled weight decay and bias correction; ``fused`` updates all tensors in one kernel, on the
    CPU too. ``adafactor`` has factored second moments, no first moment and takes the rate as it is given (betas and
    epsilon do not concern it). Raises ValueError for another name or when nothing is trainable.
    """
    groups = build_parameter_groups(model)
    for group in groups:
        group["params"] = [master_of(parameter) for parameter in group["params"]]
    if not any(group["params"] for group in groups):
        raise ValueError("the model has no trainable parameter; freeze less of it")
    lr, weight_decay = settings.lr, settings.weight_decay
    if settings.optimizer == "adam":
        betas, eps = (settings.adam_beta1, settings.adam_beta2), settings.adam_eps
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
    if settings.optimizer == "adafactor":
        return Adafactor(groups, lr=lr, weight_decay=weight_decay)
    raise ValueError(f"optimizer {settings.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, *, topology: ParallelTopology) -> Tensor:
    """Scale all gradients by ``max_norm / (norm + 1e-6)`` when that is below one.

    Returns the global norm from before, a 0-dim fp32 tensor on the gradients' device; the host does not wait for it. A
    ``max_norm`` of 0 leaves the gradients alone.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(parameters, topology=topology)
    if max_norm > 0 and parameters:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_([own_rows(p.grad) for p in parameters if p.grad is not None], factor)
    return norm


class Adafactor(Optimizer):
    """Minimise with memory for r + c numbers per matrix (Shazeer and Stern, 2018).

    ``lr`` is relative to the root mean square of a parameter. There is no first moment, and the rate is the schedule's
    (the paper's time-dependent rate is off), as the original used it.
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; call ``closure`` first when it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, lr=group["lr"], weight_decay=group["weight_decay"])
        return loss

    def _update(self, parameter: Tensor, *, lr: float, weight_decay: float) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            if gradient.dim() >= 2:
                state["exp_avg_sq_row"] = gradient.new_zeros(gradient.shape[:-1])  # [r]
                state["exp_avg_sq_col"] = gradient.new_zeros(gradient.shape[:-2] + gradient.shape[-1:])  # [c]
            else:
                state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] += 1
        rate = lr * _root_mean_square(parameter).clamp(min=PARAMETER_EPS)
        keep = 1.0 - float(state["step"]) ** DECAY_EXPONENT
        square = gradient.square() + GRADIENT_EPS
        if gradient.dim() >= 2:
            rows = state["exp_avg_sq_row"].lerp_(square.mean(dim=-1), 1.0 - keep)
            columns = state["exp_avg_sq_col"].lerp_(square.mean(dim=-2), 1.0 - keep)
            row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)  # [r,1]
            update = gradient * row_factor * columns.rsqrt().unsqueeze(-2)
        else:
            update = gradient * state["exp_avg_sq"].lerp_(square, 1.0 - keep).rsqrt()
        update /= (_root_mean_square(update) / CLIP_THRESHOLD).clamp(min=1.0)
        parameter.mul_(1.0 - weight_decay * rate).sub_((update * rate).to(parameter.dtype))


def _root_mean_square(values: Tensor) -> Tensor:
    return values.float().square().mean().sqrt()


class DynamicLossScaler:
    """Choose the factor that keeps half-precision gradients in range.

    The scale halves when gradients overflow (after ``hysteresis`` overflows, the first time) and doubles after
    ``window`` updates without one. As in the original, the allowance is refilled by a growth only, or with
    ``consecutive_hysteresis`` by any update without overflow.
    """

    def __init__(
        self,
        *,
        loss_scale: float | None = None,
        initial_scale: float = 2.0**32,
        window: float = 1000,
        hysteresis: int = 2,
        min_scale: float = 1.0,
        consecutive_hysteresis: bool = False,
    ) -> None:
        """Start at ``initial_scale``, or stay at ``loss_scale`` for good when it is given (and not 0)."""
        self.dynamic = not loss_scale
        self.scale = float(loss_scale or initial_scale)
        self.window = window
        self.hysteresis = hysteresis
        self.min_scale = min_scale
        self.consecutive_hysteresis = consecutive_hysteresis
        self.num_updates = 0
        self.last_overflow = -1
        self.remaining_hysteresis = hysteresis

    @classmethod
    def of(cls, settings: PrecisionSettings) -> DynamicLossScaler:
        return cls(
            loss_scale=settings.loss_scale,
            window=settings.loss_scale_window,
            hysteresis=settings.hysteresis,
            min_scale=settings.min_scale,
        )

    def update(self, overflow: bool) -> None:
        """Count one update and adapt the scale; ``overflow`` tells whether its gradients were not finite."""
        if self.dynamic and overflow:
            if self.hysteresis == 1 or self.remaining_hysteresis == 1:
                self.scale = max(self.scale / 2.0, self.min_scale)
            else:
                self.remaining_hysteresis -= 1
            self.last_overflow = self.num_updates
        elif self.dynamic:
            due = (self.num_updates - self.last_overflow) % self.window == 0  # to grow
            if self.consecutive_hysteresis or due:
                self.remaining_hysteresis = self.hysteresis
            if due:
                self.scale *= 2.0
        self.num_updates += 1

    def state_dict(self) -> dict[str, float | int]:
        return {
            "scale": self.scale,
            "num_updates": self.num_updates,
            "last_overflow": self.last_overflow,
            "remaining_hysteresis": self.remaining_hysteresis,
        }

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Continue from ``state_dict``'s result; a constant scale stays what it is."""
        place = "the loss scale of the checkpoint"
        if self.dynamic:
            self.scale = value_of(state, "scale", float, place=place, above=0)
        self.num_updates = value_of(state, "num_updates", int, place=place, at_least=0)
        self.last_overflow = value_of(state, "last_overflow", int, place=place)
        self.remaining_hysteresis = value_of(state, "remaining_hysteresis", int, place=place)


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Continue ``optimizer`` from the moments of ``state``; rate, betas and decay stay those of this run.

    Besides our own states it takes those of the original: wrapped for fp16 (``optimizer_state_dict`` with fp32 masters
    under ``fp32_from_fp16``, which replace the rounded weights), and with the step count in the group. Raises
    ValueError when the state belongs to other parameters.
    """
    masters = state.get("fp32_from_fp16")
    state = state.get("optimizer_state_dict", state)
    if not (isinstance(state.get("state"), Mapping) and isinstance(state.get("param_groups"), list)):
        raise ValueError("the optimizer state has an unknown layout; continue without it (--no-load-optim)")
    # Without biases to train (adapters) the second group is empty, and DeepSpeed leaves it out of states.
    groups, saved_groups = _filled(optimizer.param_groups), _filled(state["param_groups"])
    sizes = [len(group["params"]) for group in saved_groups]
    if sizes != [len(group["params"]) for group in groups]:
        raise ValueError(
            f"the optimizer state is for groups of {sizes} parameters, this model has "
            f"{[len(group['params']) for group in groups]}; continue without it (--no-load-optim)"
        )
    moments: dict[int, dict[str, Any]] = {}
    for group, saved_group in zip(groups, saved_groups, strict=True):
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            if index in state["state"]:
                moments[index] = _moments_of(parameter, state["state"][index], step=saved_group.get("step"))
    new_groups = optimizer.state_dict()["param_groups"]
    for group, saved_group in zip(_filled(new_groups), saved_groups, strict=True):
        group["params"] = saved_group["params"]
    optimizer.load_state_dict({"state": moments, "param_groups": new_groups})
    if masters is not None:
        _copy_masters(optimizer.param_groups, masters)


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def _moments_of(parameter: nn.Parameter, saved: Mapping[str, Any], *, step: Any) -> dict[str, Any]:
    """Return the saved state of one parameter as tensors that share no memory with it, with its step count."""
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in saved.items()}
    moment = state.get("exp_avg")
    if moment is not None and moment.shape != parameter.shape:
        raise ValueError(
            f"the optimizer state holds a moment of shape {tuple(moment.shape)} for a parameter of shape "
            f"{tuple(parameter.shape)}; continue without it (--no-load-optim)"
        )
    if "step" not in state and step is not None:
        state["step"] = torch.tensor(float(step))
    elif isinstance(state.get("step"), int) and moment is not None:
        state["step"] = torch.tensor(float(state["step"]))
    whole = (key for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape)
    return state | {key: spread_like(state[key], parameter) for key in whole if key != "step"}


@torch.no_grad()
def _copy_masters(groups: list[dict[str, Any]], masters: list[list[Tensor]]) -> None:
    for group, group_masters in zip(groups, masters, strict=True):
        for parameter, master in zip(group["params"], group_masters, strict=True):
            fill_rows(parameter, master)
