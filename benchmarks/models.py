"""The models that are measured by name: the released ones, and two that a CPU can run.

``config_tasks/model_blocklm_NAME.sh`` gives a released model its name here, in lower case.
"""

from __future__ import annotations

from dataclasses import replace

from model.config import GLMConfig
from model.released import RELEASED_MODELS, ReleasedModel

_BASE = RELEASED_MODELS["GLM-Base"]
MODELS: dict[str, ReleasedModel] = {
    **{
        released.config_task.removeprefix("model_blocklm_").removesuffix(".sh").lower(): released
        for released in RELEASED_MODELS.values()
    },
    "tiny": replace(_BASE, name="tiny", config=GLMConfig(6, 256, 4, 30592), config_task="model_blocklm_tiny.sh"),
    "small": replace(_BASE, name="small", config=GLMConfig(12, 512, 8, 30592, max_position_embeddings=512)),
}
