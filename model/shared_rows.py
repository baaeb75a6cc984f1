"""Run a GLM on samples that share rows, and find the hidden states of each again.

b samples, s positions of a padded sample, r shared rows, w their width, h hidden
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.modeling_glm import GLMModel, target_positions
from mpu.kernels.host_memory import send
from mpu.masks import PrefixMask


@dataclass(frozen=True)
class SharedRows:
    """Where samples stand in rows that several of them share.

    Attributes:
        sources: int64 [r,w], the position among all b*s of the samples that stands there; -1 for padding.
        mask: of the shared rows.
        starts: int64 [b,2], where samples that begin alike have their start once: the sample that it is taken from, in
            the same row, and the length of the start; 0 for a sample that stands there as a whole. None without any.
    """

    sources: Tensor
    mask: PrefixMask
    starts: Tensor | None = None

    @classmethod
    def of(cls, sources: Tensor, prefix_lengths: Tensor, *, width: int, starts: Tensor | None = None) -> SharedRows:
        """Lay out samples of ``width`` positions, of which those before ``prefix_lengths`` [b] are visible to all."""
        samples = sources.div(width, rounding_mode="floor")  # [r,w], -1 for padding
        columns = sources - samples * width
        in_prefix = (sources >= 0) & (columns < prefix_lengths[samples])
        if starts is None:
            return cls(sources, PrefixMask.packed(samples + 1, in_prefix))
        owners, lengths = starts[samples].unsqueeze(2).unbind(-1)  # [r,w,1]
        seen, column = samples.unsqueeze(1), columns.unsqueeze(1)  # [r,1,w]
        related = (seen == samples.unsqueeze(2)) | (seen == owners) & (column < lengths)  # [r,w,w]
        visible = related & ((column <= columns.unsqueeze(2)) | in_prefix.unsqueeze(1))
        return cls(sources, PrefixMask.matrix(visible.unsqueeze(1)), starts)

    def gather(self, values: Tensor) -> Tensor:
        """Return [r,w] of values [b,s], or [r,2,w] of values [b,2,s]; 0 stands in the padding."""
        lines = values.unsqueeze(1) if values.dim() == 2 else values
        flat = F.pad(lines.transpose(0, 1).flatten(1), (0, 1))  # [1 or 2,b*s+1]: -1 is the 0 at the end
        return flat[:, self.sources].transpose(0, 1).view(len(self.sources), *values.shape[1:-1], -1)

    def places(self, shape: tuple[int, int]) -> Tensor:
        """Return for every position of the samples [b,s] its place among r*w; 0 for those that are in no row."""
        size = shape[0] * shape[1]
        places = self.sources.new_zeros(size + 1)  # padding is put behind the end
        numbers = torch.arange(self.sources.numel(), device=places.device)
        places = places.scatter(0, self.sources.flatten() % (size + 1), numbers)[:size].view(shape)
        if self.starts is None:
            return places
        owners, lengths = self.starts.unbind(1)
        in_start = torch.arange(shape[1], device=places.device) < lengths.unsqueeze(1)
        return torch.where(in_start, places[owners], places)


def states_at(
    model: GLMModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    attention_mask: Tensor,
    *,
    rows: Tensor | None,
    columns: Tensor,
    prompt_positions: Tensor | None = None,
    shared_rows: Tensor | None = None,
    shared_starts: Tensor | None = None,
) -> Tensor:
    """Return the hidden states [n,h] at ``rows`` and ``columns`` [n] of samples [b,s]; ``rows`` None is one per sample.

    The model runs on the samples padded or, with ``shared_rows`` (``SharedRows.sources``), in rows they share, where
    some may have the same start (``SharedRows.starts``). Its last
    layer has no queries but these positions, unless they would have to be waited for: there is one per sample, or
    ``rows``, ``columns`` and ``shared_rows`` are on the host.

    Raises:
        ValueError: a column outside of the sample; shared rows with what cannot have them: prompt vectors, relative
            positions, a mask of its own.
    """
    length = input_ids.size(1)
    if columns.device.type == "cpu" and not ((columns >= 0) & (columns < length)).all():
        raise ValueError(f"a state is read at one of the positions {columns.tolist()} of samples of {length}")
    if shared_rows is None:
        inputs: tuple[Tensor, Tensor | None, Tensor | PrefixMask] = (input_ids, position_ids, attention_mask)
        if rows is None:
            states = model(
                *inputs, prompt_positions=prompt_positions, output="hidden", query_positions=columns.unsqueeze(1)
            )
            return states.squeeze(1)
        places = rows * length + columns  # [n], among b*s
    else:
        if prompt_positions is not None:
            raise ValueError("samples with prompt_positions cannot share rows; leave shared_rows out")
        layout = _layout(
            model, input_ids, position_ids, attention_mask, shared_rows=shared_rows, shared_starts=shared_starts
        )
        assert position_ids is not None, "models with relative positions are refused above"
        inputs = (layout.gather(input_ids), layout.gather(position_ids), layout.mask)
        rows = torch.arange(len(input_ids), device=columns.device) if rows is None else rows
        all_places = layout.places((len(input_ids), length))
        places = all_places[send(rows, all_places.device), send(columns, all_places.device)]  # [n], among r*w
    query_positions, places = _last_queries(places, inputs[0].shape)
    states = model(*inputs, prompt_positions=prompt_positions, output="hidden", query_positions=query_positions)
    return states.flatten(0, 1)[send(places, states.device)]


def _layout(
    model: GLMModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    attention_mask: Tensor,
    *,
    shared_rows: Tensor,
    shared_starts: Tensor | None,
) -> SharedRows:
    """Return the layout of the samples, if they can share rows at all."""
    if model.config.relative_encoding or position_ids is None:
        raise ValueError("a model with relative positions cannot share rows among samples; leave shared_rows out")
    if attention_mask.numel() != len(input_ids):
        raise ValueError(
            f"samples that share rows need prefix_lengths [{len(input_ids)}], the attention_mask has shape "
            f"{list(attention_mask.shape)}; leave shared_rows out"
        )
    return SharedRows.of(shared_rows, attention_mask.flatten(), width=input_ids.size(1), starts=shared_starts)


def _last_queries(places: Tensor, shape: torch.Size) -> tuple[Tensor | None, Tensor]:
    """Return the positions [r,m] of a batch of ``shape`` [r,w] that the ``places`` [n] among r*w need, and where each
    place is among these r*m. The positions are None for all of them.
    """
    if places.device.type != "cpu":
        return None, places
    is_query = torch.zeros(shape, dtype=torch.bool)
    is_query.view(-1)[places] = True
    query_positions = target_positions(is_query)
    if query_positions is None:
        return None, places
    ranks = is_query.cumsum(dim=1) - 1  # of a query among those of its row
    rows = places.div(shape[1], rounding_mode="floor")
    return query_positions, rows * query_positions.size(1) + ranks.view(-1)[places]
