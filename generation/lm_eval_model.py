"""A GLM for lm-evaluation-harness: the field's standard evaluations on our checkpoints.

    python -m generation.lm_eval_model --model glm --model_args pretrained=checkpoints/blocklm-tiny-en \\
        --tasks glm_lambada --include_path tests/lm_eval_tasks

takes the command line of ``lm_eval``, to which this file adds the model ``glm``. docs/evaluation.md explains it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from files.errors import USER_ERROR_EXIT_CODE, error_line, run_main
from files.reading import described
from generation.api import GLM, load_model
from generation.inputs import texts_of
from generation.sampling import DecodingSettings

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    hint = "generation.lm_eval_model needs the package lm-eval: pip install lm-eval"
    if __name__ != "__main__":
        raise ValueError(hint) from error
    print(error_line(hint), file=sys.stderr)
    sys.exit(USER_ERROR_EXIT_CODE)

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class GenerationRequest:
    """What a task asks of a generation: how to decode, and where to stop."""

    settings: DecodingSettings
    until: tuple[str, ...]


def generation_request(options: dict[str, Any], *, default_length: int, positions: int) -> GenerationRequest:
    """Translate a task's ``generation_kwargs``; at most ``positions`` tokens are generated.

    Without ``do_sample``, or at temperature 0, decoding is greedy. Raises ValueError for an option that is unknown.
    """
    given = dict(options)
    until = tuple(texts_of(given.pop("until", None) or (), "generation_kwargs until"))
    try:
        sampled = bool(given.pop("do_sample", float(given.get("temperature") or 0.0) > 0.0))
        length, top_k, beams = (
            int(given.pop(name, default))
            for name, default in (("max_gen_toks", default_length), ("top_k", 0), ("num_beams", 1))
        )
        temperature, top_p = float(given.pop("temperature", 1.0)), float(given.pop("top_p", 0.0))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"generation_kwargs {described(options, width=200)}: {error}") from None
    sampled = sampled and temperature > 0.0
    if given:
        raise ValueError(
            f"generation_kwargs {', '.join(given)}: not known here; known are until, max_gen_toks, do_sample, "
            "temperature, top_k, top_p and num_beams"
        )
    settings = DecodingSettings(
        max_length=min(length, positions),
        temperature=temperature if sampled else 1.0,
        top_k=top_k if sampled else 1,
        top_p=top_p if sampled else 0.0,
        num_beams=beams,
    )
    return GenerationRequest(settings, until)


@register_model("glm")
class GLMForEvaluation(LM):
    """Answer the harness's requests with a GLM."""

    def __init__(
        self,
        pretrained: str | GLM,
        *,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        mask: str | None = None,
        unidirectional: bool = False,
        max_gen_toks: int = 256,
        seed: int = 1234,
        **options: Any,
    ) -> None:
        """Load ``pretrained``, a checkpoint (or take a GLM that is loaded already).

        ``mask`` stands at the end of contexts (None: [gMASK] where there is one, else [MASK]), unless they are scored
        from left to right (``unidirectional``). ``options`` are further arguments of ``generation.api.load_model``:
        ``settings``, ``released``, ``vocab_dir``, ``max_length``. ``batch_size`` auto is 16. ``device`` None is a GPU
        where there is one; so is a GPU where there is none, as the harness asks for ``cuda:0`` by itself.
        """
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        if not isinstance(pretrained, GLM):
            gpu = torch.cuda.is_available()
            where = ("cuda" if gpu else "cpu") if device is None or (device.startswith("cuda") and not gpu) else device
            pretrained = load_model(pretrained, device=where, dtype=DTYPES[dtype], **options)
        self.glm = pretrained
        self.batch_size = 16 if str(batch_size).startswith("auto") else int(batch_size)
        if max_batch_size is not None:
            self.batch_size = min(self.batch_size, int(max_batch_size))
        self.mask, self.unidirectional = mask, unidirectional
        self.max_gen_toks, self.seed = int(max_gen_toks), seed

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-probability, greedy) of the continuation of every (context, continuation)."""
        if not requests:
            return []
        contexts, continuations = zip(*(request.args for request in requests))
        scores = self.glm.loglikelihood(
            contexts, continuations, mask=self.mask, unidirectional=self.unidirectional, batch_size=self.batch_size
        )
        results = [(score.log_probability, score.greedy) for score in scores]
        self._keep("loglikelihood", requests, results)
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of every whole text."""
        texts = [request.args[0] for request in requests]
        scores = self.glm.rolling_loglikelihood(texts, unidirectional=self.unidirectional, batch_size=self.batch_size)
        results = [score.log_probability for score in scores]
        self._keep("loglikelihood_rolling", requests, results)
        return results

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what the model writes after every (context, generation_kwargs)."""
        positions = self.glm.model.config.max_position_embeddings
        groups: dict[GenerationRequest, list[int]] = {}
        for number, request in enumerate(requests):
            asked = generation_request(request.args[1], default_length=self.max_gen_toks, positions=positions)
            groups.setdefault(asked, []).append(number)
        by_number: dict[int, str] = {}
        for asked, numbers in groups.items():
            texts = self.glm.generate(
                [requests[number].args[0] for number in numbers],
                settings=asked.settings,
                until=asked.until,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            by_number.update(zip(numbers, texts))
        answers = [by_number[number] for number in range(len(requests))]
        self._keep("generate_until", requests, answers)
        return answers

    def _keep(self, kind: str, requests: Sequence[Instance], results: Sequence[Any]) -> None:
        """Hand results to the harness's cache."""
        for request, result in zip(requests, results):
            self.cache_hook.add_partial(kind, request.args, result)


def main() -> int:
    """Run the harness's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    run_main(main)
