"""Inputs of a GLM for filling a blank or choosing a text for it, from ids: no tokenizer is needed here.

b batch, s context length, g generated length, c choices, S padded length of a context and its choices
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

IGNORED_LABEL = -100
LOWERED = -1000.0  # what is added to scores to hide a key is no larger
# What this version of the library calls the cache: transformers 5.24 renamed ``past_key_values`` to ``cache``.
CACHE_NAMES = ("past_key_values", "cache")
CACHE_NAME = next(field.name for field in fields(BaseModelOutputWithPast) if field.name in CACHE_NAMES)


def one_cache(past_key_values: Any, cache: Any) -> Any:
    """Return the cache that was given under either name; raise ValueError for both."""
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of the same argument; give one of them")
    return past_key_values if cache is None else cache


def can_look(tensor: Tensor) -> bool:
    """Tell whether code may depend on the values of ``tensor``: on the CPU, where no device has to be waited for.

    What is compiled or exported holds for all values.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def visible_entries(mask: Tensor) -> Tensor:
    """Return which entries of an attention mask are visible, bool of its shape.

    They are those that are not zero. A floating mask without a positive entry is one that is added to scores, the
    library's other form: its zeros are visible, what it lowers is not. Raises ValueError for values of neither form,
    where they can be looked at.
    """
    if not mask.is_floating_point():
        return mask != 0
    if can_look(mask):
        added = (mask == 0) | (mask <= LOWERED)
        if not (bool(((mask == 0) | (mask == 1)).all()) or bool(added.all())):
            raise ValueError(
                "a floating attention_mask holds either 0 and 1, or what is added to scores, 0 and at most "
                f"{LOWERED:g}; this one has other values"
            )
    return torch.where((mask > 0).any(), mask != 0, mask == 0)


def context_mask(mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """Return 0 and 1, int [b,s], where ids [b,s] are padding and text; all is text where there is no ``mask``.

    Raises ValueError for a mask of another shape.
    """
    if mask is None:
        return torch.ones_like(input_ids)
    if mask.shape != input_ids.shape:
        shapes = f"{list(mask.shape)}, the ids have {list(input_ids.shape)}"
        raise ValueError(f"attention_mask has shape {shapes}; give both the same, as a tokenizer does")
    return visible_entries(mask).long()


def generation_inputs(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    mask_token_ids: Sequence[int],
    sop_token_id: int,
    eop_token_id: int | None = None,
    pad_token_id: int | None = None,
    max_gen_length: int = 512,
    targets: Sequence[Sequence[int]] | None = None,
    padding: bool = False,
    skip_padding: bool = False,
) -> dict[str, Tensor]:
    """Return what a model needs to fill the first blank of each context [b,s], or to learn to.

    Without ``targets``: ``input_ids`` [b,s+1], ``position_ids`` [b,2,s+g] and ``generation_attention_mask``
    [b,1,s+g,s+g] for g = ``max_gen_length`` tokens. With ``targets``, ids of a filling per row: ``input_ids`` [b,s+g],
    ``position_ids``, ``attention_mask`` and ``labels`` [b,s+g], -100 where there is nothing to learn; g is the longest
    target's length, or ``max_gen_length`` with ``padding``; this alone needs the end and padding tokens.
    Positions count padding, unless ``skip_padding``. Raises ValueError for a row without a blank.
    """
    if max_gen_length < 1:
        raise ValueError(f"max_gen_length is {max_gen_length}; it has to be at least 1")
    batch_size, length = input_ids.shape
    device = input_ids.device
    attention_mask = context_mask(attention_mask, input_ids)
    mask_indices = _first_index(input_ids, mask_token_ids)  # [b]
    context_positions = _context_positions(attention_mask, skip_padding=skip_padding)  # [b,s]
    num_new = max_gen_length
    labels: list[list[int]] = []
    if targets is not None:
        assert eop_token_id is not None and pad_token_id is not None, (eop_token_id, pad_token_id)
        if len(targets) != batch_size:
            raise ValueError(f"there are {len(targets)} targets for {batch_size} texts; give one for each")
        labels = [[*target, eop_token_id][:max_gen_length] for target in targets]
        num_new = max_gen_length if padding else max(map(len, labels))
    blocks = torch.arange(1, num_new + 1, device=device).expand(batch_size, -1)  # [b,g]
    blank_positions = context_positions.gather(1, mask_indices.unsqueeze(1)).expand(-1, num_new)  # [b,g]
    positions = torch.cat([context_positions, blank_positions], dim=1)
    position_ids = torch.stack([positions, torch.cat([torch.zeros_like(context_positions), blocks], dim=1)], dim=1)
    width = length + num_new
    mask = torch.zeros((batch_size, 1, width, width), dtype=torch.long, device=device)
    mask[..., :length] = attention_mask[:, None, None, :]
    mask[..., length:, length:] = torch.ones((num_new, num_new), dtype=torch.long, device=device).tril()
    if targets is None:
        starts = input_ids.new_full((batch_size, 1), sop_token_id)
        ids = torch.cat([input_ids, starts], dim=1)
        return {"input_ids": ids, "position_ids": position_ids, "generation_attention_mask": mask}
    fed = [[sop_token_id, *row, *[pad_token_id] * num_new][:num_new] for row in labels]
    learned = [[*[IGNORED_LABEL] * length, *row, *[IGNORED_LABEL] * (num_new - len(row))] for row in labels]
    return {
        "input_ids": torch.cat([input_ids, input_ids.new_tensor(fed)], dim=1),
        "position_ids": position_ids,
        "attention_mask": mask,
        "labels": input_ids.new_tensor(learned),
    }


def multiple_choice_inputs(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    mask_token_id: int,
    sop_token_id: int,
    choices: Sequence[Sequence[Sequence[int]]],
    skip_padding: bool = False,
) -> dict[str, Any]:
    """Return what a model needs to score ``choices``, ids of c texts per row, for the first blank of contexts [b,s].

    The choices of a row stand one after the other behind its context and do not see each other: ``input_ids`` [b,S],
    ``position_ids`` [b,2,S], ``attention_mask`` [b,1,S,S]; ``choice_ids`` and ``choice_indices`` hold for each row and
    choice its tokens and the positions that predict them. Raises ValueError for a row without a blank or with an empty
    choice.
    """
    batch_size, length = input_ids.shape
    device = input_ids.device
    if len(choices) != batch_size:
        raise ValueError(f"there are choices for {len(choices)} of {batch_size} texts; give a list for each")
    attention_mask = context_mask(attention_mask, input_ids)
    mask_indices = _first_index(input_ids, [mask_token_id]).tolist()
    context_positions = _context_positions(attention_mask, skip_padding=skip_padding)
    width = max(length + sum(map(len, row)) for row in choices)
    ids = torch.zeros((batch_size, width), dtype=torch.long, device=device)
    position_ids = torch.zeros((batch_size, 2, width), dtype=torch.long, device=device)
    mask = torch.zeros((batch_size, 1, width, width), dtype=torch.long, device=device)
    ids[:, :length] = input_ids
    position_ids[:, 0, :length] = context_positions
    choice_indices: list[list[Tensor]] = []
    for row, row_choices in enumerate(choices):
        position = context_positions[row, mask_indices[row]]
        indices = []
        start = length
        for number, choice in enumerate(row_choices):
            if not choice:
                raise ValueError(f"choice {number} of text {row} is empty; every choice needs a token")
            end = start + len(choice)
            ids[row, start:end] = ids.new_tensor([sop_token_id, *choice[:-1]])
            position_ids[row, 0, start:end] = position
            position_ids[row, 1, start:end] = torch.arange(1, len(choice) + 1, device=device)
            mask[row, 0, start:end, start:end] = torch.ones_like(mask[row, 0, start:end, start:end]).tril()
            indices.append(torch.arange(start, end, device=device))
            start = end
        mask[row, 0, :start, :length] = attention_mask[row]
        position_ids[row, :, start:] = position_ids[row, :, start - 1 : start]
        choice_indices.append(indices)
    return {
        "input_ids": ids,
        "position_ids": position_ids,
        "attention_mask": mask,
        "choice_ids": [[ids.new_tensor(choice) for choice in row] for row in choices],
        "choice_indices": choice_indices,
    }


def _first_index(input_ids: Tensor, mask_token_ids: Sequence[int]) -> Tensor:
    """Return the index [b] of the first blank in each row; raise ValueError when a row has none."""
    is_blank = torch.isin(input_ids, torch.tensor(list(mask_token_ids), device=input_ids.device))  # [b,s]
    without = (~is_blank.any(dim=1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"text {without[0]} of the batch has no blank to fill; mark it with [MASK]")
    return is_blank.int().argmax(dim=1)


def _context_positions(attention_mask: Tensor, *, skip_padding: bool) -> Tensor:
    if skip_padding:
        return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return torch.arange(attention_mask.size(1), device=attention_mask.device).repeat(attention_mask.size(0), 1)
