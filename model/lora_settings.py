"""Settings of low-rank adapters, and how PEFT's adapter_config.json says them. Imports no torch.

PEFT is the Hugging Face package for adapters. Its names of layers are those of the exported model, which are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What --lora-target names, and where it is in a layer of the transformer.
LORA_TARGETS = {
    "query_key_value": "attention.query_key_value",
    "dense": "attention.dense",
    "dense_h_to_4h": "mlp.dense_h_to_4h",
    "dense_4h_to_h": "mlp.dense_4h_to_h",
}
# Options of PEFT that change what an adapter computes. Adapters that use one of them are refused.
UNSUPPORTED_OPTIONS = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
# Ways of drawing the first values that leave the weights of the model as they are.
HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


@dataclass(frozen=True)
class LoraSettings:
    """How large adapters are and which layers have them.

    Attributes:
        rank: of the product that is added to a matrix.
        alpha: the product is multiplied by alpha / rank.
        dropout: on the input of the adapters, in training.
        targets: keys of ``LORA_TARGETS``.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query_key_value",)

    def __post_init__(self) -> None:
        """Raise ValueError, in the words of the flags, for values that cannot be."""
        if self.rank < 1:
            raise ValueError(f"--lora-rank is {self.rank}; at least 1 is needed")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"--lora-alpha is {self.alpha}; give a number above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"--lora-dropout is {self.dropout}; give a probability below 1")
        unknown = [name for name in self.targets if name not in LORA_TARGETS]
        if unknown or not self.targets:
            raise ValueError(
                f"--lora-target is {' '.join(self.targets) or 'empty'}; choose among {', '.join(LORA_TARGETS)}"
            )

    @property
    def scale(self) -> float:
        """Return the factor of the product."""
        return self.alpha / self.rank


def peft_config(settings: LoraSettings, *, base_model: str | None) -> dict[str, Any]:
    """Return the content of adapter_config.json; ``base_model`` says where the model's weights come from."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": [LORA_TARGETS[name] for name in settings.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def settings_of_peft(config: Mapping[str, Any], *, modules: Sequence[str], file: str) -> LoraSettings:
    """Return the settings that adapter_config.json and the adapted ``modules`` of the weight file stand for.

    PEFT's target_modules may be patterns; the names in the weight file are exact. Raises ValueError for another kind of
    adapter, an option that changes what it computes, or modules that have no adapters here. ``file`` is for messages.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{file} is for adapters of kind {kind!r}; only LORA can be read")
    for name in UNSUPPORTED_OPTIONS:
        if config.get(name):
            raise ValueError(f"{file} has {name} = {config[name]!r}, which is not supported here; use it with PEFT")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{file} trains biases ({config['bias']!r}), which is not supported here; use it with PEFT")
    start = config.get("init_lora_weights", True)
    if start not in HARMLESS_STARTS:
        raise ValueError(
            f"{file} has init_lora_weights {start!r}, which changes the model's own weights; convert it with PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(rank, int) and isinstance(alpha, (int, float))):
        raise ValueError(f"{file} has r = {rank!r} and lora_alpha = {alpha!r} where two numbers belong; correct it")
    places = {place: name for name, place in LORA_TARGETS.items()}
    found = {".".join(module.split(".")[-2:]) for module in modules}
    unknown = sorted(found - set(places))
    if unknown or not found:
        raise ValueError(
            f"{file}: its weights adapt {', '.join(unknown) or 'nothing'}; adapters of {', '.join(places)} can be read"
        )
    return LoraSettings(
        rank=rank,
        # PEFT's other convention divides by the root of the rank.
        alpha=float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha),
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=tuple(name for name, place in LORA_TARGETS.items() if place in found),
    )
