"""Generation with a GLM in Hugging Face transformers: lengths, beams, inputs of a step, several blanks.

b batch, n tokens so far, s new positions, c context length, g length of a piece
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.utils import logging

from .inputs_glm import CACHE_NAME, IGNORED_LABEL, context_mask, generation_inputs, one_cache, visible_entries

logger = logging.get_logger(__name__)


class BlankFilling(GenerationMixin):
    """What ``GLMForConditionalGeneration`` adds to the library's generation."""

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """Generate as the library does, from what ``tokenizer.build_inputs_for_generation`` returns.

        Without a limit on the length, as much is generated as the inputs have room for (``max_gen_length``); no limit
        goes beyond that room or the model's positions. With ``inputs_embeds`` [b,s,h] in the place of ids the result
        holds what is generated alone. When the configuration knows ``mask_token_ids`` and ``sop_token_id``, ids of a
        text [b,s] and their ``attention_mask`` are enough: its first blank is filled.

        Training inputs, with ``labels``, are what ``Seq2SeqTrainer`` gives: their targets are left out, the result is
        that of an encoder and decoder, the start token and what is generated, and ``max_length`` counts that alone.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if kwargs.get("labels") is not None and input_ids is not None:
            return self._generate_for_labels(input_ids, generation_config=generation_config, **kwargs)
        cache = one_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None))
        if cache is not None:
            kwargs[CACHE_NAME] = cache
        settings = self.generation_config if generation_config is None else generation_config
        mask_ids, start = self.config.mask_token_ids, self.config.sop_token_id
        if kwargs.get("generation_attention_mask") is None and input_ids is not None:
            if kwargs.get("position_ids") is not None:
                raise ValueError(
                    "generate takes position_ids with generation_attention_mask alone; leave them out, or give what "
                    "tokenizer.build_inputs_for_generation returns"
                )
            if kwargs.get("attention_mask") is not None:
                kwargs["attention_mask"] = context_mask(kwargs["attention_mask"], input_ids)
        if "generation_attention_mask" not in kwargs and mask_ids and start is not None and input_ids is not None:
            prepared = generation_inputs(
                input_ids,
                context_mask(kwargs.pop("attention_mask", None), input_ids),
                mask_token_ids=mask_ids,
                sop_token_id=start,
                max_gen_length=self.config.max_sequence_length,
                skip_padding=True,
            )
            input_ids = prepared.pop("input_ids")
            kwargs |= prepared
        mask, embeds = kwargs.get("generation_attention_mask"), kwargs.get("inputs_embeds")
        if input_ids is None and embeds is not None:
            kwargs["num_embedded"] = embeds.size(1)
        given = embeds if input_ids is None else input_ids
        if mask is not None and given is not None:
            length = given.size(1)
            chunk = kwargs.get("prefill_chunk_size", getattr(settings, "prefill_chunk_size", None))
            if chunk is not None:
                raise ValueError(
                    f"prefill_chunk_size is {chunk}; a text around a blank is seen in both directions and fed in one "
                    "piece: leave it out"
                )
            kwargs["generation_attention_mask"] = visible_entries(mask)
            kwargs.pop("attention_mask", None)  # what the library made of it for an assistant
            if "position_ids" in kwargs:  # under this name the library would cut and continue them, as [b,n]
                kwargs["generation_position_ids"] = kwargs.pop("position_ids")
            room = self._room(kwargs["generation_position_ids"], length)
            kwargs |= _limited(room, length, settings=settings, options=kwargs)
        return super().generate(input_ids, generation_config=generation_config, **kwargs)

    def _generate_for_labels(
        self,
        input_ids: Tensor,
        *,
        labels: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Generate for training inputs of ``generation_inputs`` with targets; see ``generate``."""
        if position_ids is None or position_ids.dim() != 3 or attention_mask is None or attention_mask.dim() != 4:
            raise ValueError(
                "generate takes labels with what else tokenizer.build_inputs_for_generation(..., targets=...) returns"
            )
        start = int((labels != IGNORED_LABEL).any(dim=0).int().argmax())  # where the pieces begin
        steps = torch.arange(1, self.config.position_rows, device=input_ids.device).expand(len(input_ids), -1)  # [b,g]
        blank = position_ids[:, :1, start : start + 1].expand(-1, 1, steps.size(1))
        positions = torch.cat([position_ids[:, :, :start], torch.cat([blank, steps.unsqueeze(1)], dim=1)], dim=2)
        columns = torch.arange(positions.size(2), device=input_ids.device)
        seen = F.pad(visible_entries(attention_mask)[:, 0, 0, :start], (0, steps.size(1)), value=True)  # [b,n]
        mask = seen[:, None, None, :] & ((columns < start) | (columns <= columns[:, None]))
        if kwargs.get("max_length") is not None:
            kwargs["max_new_tokens"] = max(1, kwargs.pop("max_length") - 1)
        return self.generate(
            input_ids[:, : start + 1],
            generation_config=generation_config,
            position_ids=positions,
            generation_attention_mask=mask,
            **kwargs,
        )[:, start:]

    def _room(self, position_ids: Tensor, length: int) -> int:
        """Return how long inputs of ``length`` may become; raise ValueError when they do not fit the positions."""
        last = self.config.position_rows - 1
        fits = (position_ids <= last).flatten(0, -2).all(dim=0).long()  # [columns]
        room = int(fits.cumprod(dim=0).sum())  # columns that can be fed
        if room < length:
            raise ValueError(f"the text has {length - 1} tokens, the model has {last + 1} positions; shorten the text")
        return room + 1

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        past_key_values: Any = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        generation_position_ids: Tensor | None = None,
        generation_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_embedded: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of the next call, given all ids [b,n] so far, without the first ``num_embedded``.

        ``generation_position_ids`` [b,2,>= n] and ``generation_attention_mask`` [b,1,>= n,>= n] were made for the whole
        result. Without them the text is continued from left to right, ``attention_mask`` [b,n] hiding the padding.
        """
        length = num_embedded + input_ids.size(1)
        cache = one_cache(past_key_values, cache)
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        new = slice(num_cached, length)
        if generation_attention_mask is not None and generation_position_ids is not None:
            mask, position_ids = generation_attention_mask, generation_position_ids
            extra = length - position_ids.size(-1)
            if extra > 0:  # proposed to be checked, and too many
                position_ids = torch.cat([position_ids, position_ids[..., -1:].expand(-1, -1, extra)], dim=-1)
                mask = F.pad(F.pad(mask, (0, extra)), (0, 0, 0, extra), value=True)
            mask = mask[:, :, new, :length]
        else:
            real = input_ids.new_ones(len(input_ids), length) if attention_mask is None else attention_mask
            columns = torch.arange(length, device=input_ids.device)
            mask = (columns <= columns[new, None]) & (real != 0)[:, None, None, :]  # [b,1,s,n]
            position_ids = (real.cumsum(dim=1) - 1).clamp(min=0)
            if self.config.block_position_encoding:
                position_ids = torch.stack([position_ids, torch.zeros_like(position_ids)], dim=1)
        if num_cached > 0:
            inputs_embeds = None  # in the cache
        result = {
            "input_ids": input_ids[:, max(0, num_cached - num_embedded) :].contiguous(),
            "position_ids": position_ids[..., new].contiguous(),
            "attention_mask": mask,
            CACHE_NAME: cache,
        }
        if inputs_embeds is not None:
            result |= {"input_ids": None, "inputs_embeds": self._embedded(inputs_embeds, input_ids, num_embedded)}
        passed = ("use_cache", "logits_to_keep", "output_attentions", "output_hidden_states")
        return result | {name: kwargs[name] for name in passed if kwargs.get(name) is not None}

    def _embedded(self, embeds: Tensor, input_ids: Tensor, num_embedded: int) -> Tensor:
        """Return embeddings of all positions: those that are given, and of the ids [b,n] after them."""
        ids = input_ids if num_embedded else input_ids[:, embeds.size(1) :]
        if not ids.size(1):
            return embeds
        return torch.cat([embeds, self.get_input_embeddings()(ids).to(embeds)], dim=1)

    @torch.no_grad()
    def fill_blanks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_ids: int | Sequence[int] | None = None,
        sop_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        max_gen_length: int = 64,
        **options: Any,
    ) -> list[list[list[int]]]:
        """Fill all blanks of texts [b,c] from left to right; return for each text the ids of its pieces.

        A piece is context of those after it. The ids that are not given are taken from the configuration; ``options``
        are those of ``generate``. Pieces come without start and end tokens. Raises ValueError for a text without a
        blank or when an id is not known.
        """
        known: dict[str, Any] = {"mask_token_ids": mask_token_ids, "sop_token_id": sop_token_id}
        known["eos_token_id"] = eos_token_id
        for name, value in known.items():
            place = self.generation_config if name == "eos_token_id" else self.config
            known[name] = getattr(place, name) if value is None else value
            if known[name] is None:
                of_tokenizer = "eop_token_id" if name == "eos_token_id" else name
                raise ValueError(f"fill_blanks does not know {name}; give it, as tokenizer.{of_tokenizer}")
        if isinstance(known["mask_token_ids"], int):
            known["mask_token_ids"] = [known["mask_token_ids"]]
        ends = {known["eos_token_id"]} if isinstance(known["eos_token_id"], int) else set(known["eos_token_id"])
        start, device = known["sop_token_id"], input_ids.device
        context = context_mask(attention_mask, input_ids)
        positions = (context.cumsum(dim=1) - 1).clamp(min=0)  # [b,c]
        is_blank = torch.isin(input_ids, torch.tensor(list(known["mask_token_ids"]), device=device)) & (context != 0)
        blanks = [positions[row, columns].tolist() for row, columns in enumerate(is_blank)]
        if not all(blanks):
            raise ValueError(f"text {blanks.index([])} of the batch has no blank to fill; mark it with [MASK]")
        pieces: list[list[list[int]]] = [[] for _ in blanks]
        length = input_ids.size(1)
        ids, visible = input_ids, context != 0
        position_ids = torch.stack([positions, torch.zeros_like(positions)], dim=1)  # [b,2,n]
        options = {"pad_token_id": min(ends), **options}
        for number in range(max(map(len, blanks))):
            rows = [row for row, places in enumerate(blanks) if number < len(places)]
            here = torch.tensor([blanks[row][number] for row in rows], device=device)
            steps = torch.arange(1, max_gen_length + 1, device=device)
            new = torch.stack([here[:, None].expand(-1, max_gen_length), steps.expand(len(rows), -1)], dim=1)
            grown = torch.cat([position_ids[rows], new], dim=2)  # [rows,2,n+g]
            width = grown.size(2)
            columns = torch.arange(width, device=device)
            seen = torch.cat([visible[rows], visible.new_ones((len(rows), max_gen_length))], dim=1)
            mask = ((columns <= columns[:, None]) | (columns < length)) & seen[:, None, None, :]
            starts = ids.new_full((len(rows), 1), start)
            results = self.generate(
                torch.cat([ids[rows], starts], dim=1),
                position_ids=grown,
                generation_attention_mask=mask,
                eos_token_id=sorted(ends),
                **options,
            )[:, ids.size(1) + 1 :].tolist()
            filled = [list(takewhile(lambda token: token not in ends, result)) for result in results]
            for row, piece in zip(rows, filled):
                pieces[row].append(piece)
            # The last token of a piece that was cut off is not fed.
            fed = [piece[: max_gen_length - 1] for piece in filled]
            added = max(map(len, fed)) + 1
            place = ids.size(1)
            ids = torch.cat([ids, ids.new_full((len(ids), added), start)], dim=1)
            visible = torch.cat([visible, visible.new_zeros((len(ids), added))], dim=1)
            position_ids = torch.cat([position_ids, position_ids.new_zeros((len(ids), 2, added))], dim=2)
            for index, (row, piece) in enumerate(zip(rows, fed)):
                end = place + 1 + len(piece)
                ids[row, place + 1 : end] = ids.new_tensor(piece)
                visible[row, place:end] = True
                position_ids[row, :, place:] = new[index, :, :added]
        return pieces


def _limited(room: int, length: int, *, settings: Any, options: dict[str, Any]) -> dict[str, int]:
    """Return the limit of the length to put into ``options`` of generate, so that a result has ``room`` tokens at most.

    Nothing when the limit that is in force (``options``, else ``settings``, in the library's order) is low enough.
    """
    default_length = getattr(type(settings)(), "max_length", None)  # of this version of the library
    new_tokens = options.get("max_new_tokens", settings.max_new_tokens)
    max_length = options.get("max_length", settings.max_length)
    if new_tokens is None and "max_length" not in options and max_length in (None, default_length):
        return {"max_new_tokens": room - length}
    asked = max_length if new_tokens is None else length + new_tokens
    if asked <= room:
        return {}
    logger.warning_once(
        "generation ends after %d tokens: the inputs were built for no more (max_gen_length), or the model has no more "
        "positions",
        room - length,
    )
    return {"max_length": room} if "max_length" in options else {"max_new_tokens": room - length}
