"""Which keys every query sees: the forms in which batches say it, and the forms in which kernels want it.

b batch, s new positions (queries), m cached positions, k = m + s keys, n heads of this rank, r query positions
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mpu.cache import KeyValueCache
from mpu.kernels.host_memory import send

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


ROW_MULTIPLE = 8  # elements; where rows of a mask may begin for the memory-efficient kernel of GPUs


def rows_at(states: Tensor, positions: Tensor) -> Tensor:
    """Return the rows [b,r,...] of ``states`` [b,s,...] at ``positions`` [b,r]."""
    firsts = torch.arange(states.size(0), device=positions.device).unsqueeze(1) * states.size(1)
    rows = states.flatten(0, 1).index_select(0, (positions + firsts).flatten())
    return rows.view(*positions.shape, *states.shape[2:])


@dataclass(frozen=True)
class PrefixMask:
    """The mask of a batch, in one of three forms; ``prefix``, ``packed`` and ``matrix`` make them.

    Attributes:
        prefix_lengths: [], [1], [b] or [b,1]; columns of the prefix are visible to all, the rest causally, and cached
            columns always.
        segment_ids: [b or 1,s], several samples in a row: the number of the sample of each position. Every sample sees
            itself alone; without a cache.
        in_prefix: [b or 1,s], beside ``segment_ids``: nonzero where the whole sample sees a position, which else only
            later ones do.
        visible: [b or 1, 1, s or 1, >= k]; nonzero means visible, the last k columns count.
        on_host: the same mask in host memory, where it was made there: what is worked out from its numbers does not
            wait for the device.
    """

    prefix_lengths: Tensor | None = None
    segment_ids: Tensor | None = None
    in_prefix: Tensor | None = None
    visible: Tensor | None = None
    on_host: PrefixMask | None = None

    @classmethod
    def prefix(cls, prefix_lengths: Tensor) -> PrefixMask:
        """Mask rows of one sample each by the length of its prefix: [], [1], [b] or [b,1]."""
        return cls(prefix_lengths=prefix_lengths)

    @classmethod
    def packed(cls, segment_ids: Tensor, in_prefix: Tensor) -> PrefixMask:
        """Mask rows that samples share, [b or 1,s] each."""
        return cls(segment_ids=segment_ids, in_prefix=in_prefix)

    @classmethod
    def matrix(cls, visible: Tensor) -> PrefixMask:
        """Mask by any rule at all: [b or 1, 1, s or 1, >= k]."""
        return cls(visible=visible)

    @classmethod
    def from_attention_mask(cls, attention_mask: Tensor) -> PrefixMask:
        """Tell the form of a tensor by its rank, for callers who pass one to a model.

        [], [1], [b] or [b,1]: prefix lengths. [b or 1,2,s]: samples that share rows, their numbers and where their
        prefixes are. [b or 1, 1, s or 1, >= k]: a matrix. Raises ValueError for any other shape.
        """
        shape = attention_mask.shape
        if len(shape) == 4:
            return cls.matrix(attention_mask)
        if len(shape) == 3 and shape[1] == 2:
            return cls.packed(*attention_mask.unbind(1))
        if len(shape) < 2 or shape[1:] == (1,):
            return cls.prefix(attention_mask)
        raise ValueError(
            f"attention_mask has shape {list(shape)}; give prefix lengths of shape [], [b], [b,1], samples that share "
            "rows as [b,2,s] (without a cache), or a mask of shape [b,1,s,k]"
        )

    def to(self, device: torch.device) -> PrefixMask:
        """Return the mask on ``device``, without waiting for it."""
        return PrefixMask(**{name: send(form, device) for name, form in self._forms.items()}, on_host=self.known)

    @property
    def num_rows(self) -> int:
        """Return the batch size the mask is for, or 1 when it fits any."""
        return max(form.size(0) if form.dim() else 1 for form in self._forms.values())

    @property
    def known(self) -> PrefixMask | None:
        """Return the mask in host memory, where a look at its numbers is no wait; None: it was made elsewhere."""
        here = all(form.device.type == "cpu" for form in self._forms.values())
        return self if here else self.on_host

    @property
    def _forms(self) -> dict[str, Tensor]:
        names = ("prefix_lengths", "segment_ids", "in_prefix", "visible")
        return {name: form for name in names if (form := getattr(self, name)) is not None}

    def padded(self, num_positions: int) -> PrefixMask:
        """Put ``num_positions`` more behind the others; in rows that are shared they are a sample of their own."""
        if self.segment_ids is None or self.in_prefix is None or num_positions == 0:
            return self
        wider = (F.pad(form, (0, num_positions)) for form in (self.segment_ids, self.in_prefix))
        return PrefixMask(
            segment_ids=next(wider),
            in_prefix=next(wider),
            on_host=None if self.on_host is None else self.on_host.padded(num_positions),
        )

    def two_calls(self, *, batch_size: int, length: int) -> TwoCalls | None:
        """Work out, on the host, the mask of b rows of s positions as two calls of a kernel without a mask.

        Returns None for a mask that is no such thing: a matrix, samples whose positions do not lie side by side, or a
        prefix that is not the beginning of its sample.
        """
        if self.prefix_lengths is not None:
            segment_ids = torch.zeros(batch_size, length, dtype=torch.int64)
            in_prefix = torch.arange(length) < self.prefix_lengths.reshape(-1, 1).expand(batch_size, 1)  # [b,s]
        elif self.segment_ids is not None and self.in_prefix is not None:
            segment_ids = self.segment_ids.expand(batch_size, length)
            in_prefix = self.in_prefix.expand(batch_size, length) != 0
        else:
            return None
        first = torch.ones(batch_size, length, dtype=torch.bool)
        first[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]  # where samples begin
        rows = torch.arange(batch_size).unsqueeze(1).expand(batch_size, length)
        samples = torch.stack([rows[first], segment_ids[first]]).unique(dim=1).size(1)
        late_prefix = in_prefix[:, 1:] & ~in_prefix[:, :-1] & ~first[:, 1:]
        sample_starts = F.pad(first.flatten().nonzero().flatten(), (0, 1), value=batch_size * length)
        if len(sample_starts) != samples + 1 or late_prefix.any():
            return None
        before = F.pad(in_prefix.flatten().cumsum(0), (1, 0))  # [b*s+1], positions of prefixes before each
        prefix_starts = before[sample_starts]
        prefix_rows, later_rows = (choice.flatten().nonzero().flatten() for choice in (in_prefix, ~in_prefix))
        starts = (prefix_starts, sample_starts - prefix_starts, sample_starts)
        order = torch.cat([prefix_rows, later_rows]).argsort()
        return TwoCalls(prefix_rows, later_rows, order, *(numbers.to(torch.int32) for numbers in starts))

    def kernel_rule(self, *, query_length: int, key_length: int) -> str | None:
        """Return the rule of attention kernels that the mask comes to, ``all`` keys or ``causal``; None: it is a mask.

        Only prefix lengths in host memory are looked at.
        """
        lengths = None if self.known is None else self.known.prefix_lengths
        if lengths is None or not lengths.numel():
            return None
        if query_length == 1 or int(lengths.min()) >= query_length:
            return "all"
        return "causal" if query_length == key_length and int(lengths.max()) <= 1 else None

    def visible_keys(
        self, *, query_length: int, key_length: int, device: torch.device | str, by_rule: bool = True
    ) -> VisibleKeys:
        """Work out what s queries see of k keys. Raises ValueError when the mask is for other lengths.

        With ``by_rule`` a mask that is a rule of kernels becomes that rule; without, batches of one form have masks of
        one form.
        """
        if self.visible is not None:
            known = None if self.known is None else self.known.visible
            return _keys_of_matrix(
                self.visible, known, query_length=query_length, key_length=key_length, device=device, by_rule=by_rule
            )
        if self.segment_ids is not None and self.in_prefix is not None:
            if not self.segment_ids.size(1) == query_length == key_length:
                num_rows, width = self.segment_ids.shape
                raise ValueError(
                    f"attention_mask has shape {[num_rows, 2, width]}; samples that share rows need [b,2,s] of "
                    f"{query_length} positions, without a cache (there are {key_length} keys)"
                )
            segment_ids = self.segment_ids.to(device, non_blocking=True)
            in_prefix = self.in_prefix.to(device, non_blocking=True) != 0
            columns = torch.arange(query_length, device=device)
            causal = columns <= columns.unsqueeze(1)  # [s,s]
            same_sample = segment_ids.unsqueeze(1) == segment_ids.unsqueeze(2)  # [b or 1,s,s]
            return VisibleKeys((same_sample & (causal | in_prefix.unsqueeze(1))).unsqueeze(1))
        assert self.prefix_lengths is not None
        rule = self.kernel_rule(query_length=query_length, key_length=key_length) if by_rule else None
        if query_length == 1 or rule == "all":
            return VisibleKeys(None)  # one new position sees the cache and itself
        prefix_lengths = self.prefix_lengths.to(device, non_blocking=True).reshape(-1, 1, 1, 1)  # [b or 1,1,1,1]
        columns = torch.arange(query_length - key_length, query_length, device=device)  # [k], cached ones are negative
        rows = torch.arange(query_length, device=device).unsqueeze(1)  # [s,1]
        return VisibleKeys((columns <= rows) | (columns < prefix_lengths), causal=rule == "causal")


class TwoCalls(NamedTuple):
    """A mask as two calls of an attention kernel that takes samples one behind the other and has no mask.

    The positions of all rows are numbered through, row after row: b*s of them, in p samples. The first call has the
    prefixes, which see themselves; the second all later positions, which see their sample up to themselves.

    Attributes:
        prefix_rows, later_rows: int64, the positions of either call.
        order: int64 [b*s], the place of each position when those of the first call are followed by those of the second.
        prefix_starts, later_starts, sample_starts: int32 [p+1], where the part of each sample begins among the
            positions of the first call, of the second, and among all of them.
    """

    prefix_rows: Tensor
    later_rows: Tensor
    order: Tensor
    prefix_starts: Tensor
    later_starts: Tensor
    sample_starts: Tensor

    def to(self, device: torch.device) -> TwoCalls:
        """Return the calls on ``device``, without waiting for it."""
        return TwoCalls(*(send(numbers, device) for numbers in self))


def _keys_of_matrix(
    mask: Tensor,
    known: Tensor | None,
    *,
    query_length: int,
    key_length: int,
    device: torch.device | str,
    by_rule: bool,
) -> VisibleKeys:
    _, heads, rows, columns = mask.shape
    if heads != 1 or rows not in (1, query_length) or columns < key_length:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}; for {query_length} new positions and "
            f"{key_length} keys it has to be [b or 1, 1, {query_length} or 1, at least {key_length}]"
        )
    visible = mask[..., columns - key_length :].to(device, non_blocking=True) != 0
    if visible.device.type == "cpu":
        known = visible
    elif known is not None:
        known = known[..., columns - key_length :] != 0
    if known is not None:
        if by_rule and known.all():
            return VisibleKeys(None)
        if known.any(dim=-1).all():
            return VisibleKeys(visible)
    fully_masked = ~visible.any(dim=-1, keepdim=True)  # [b or 1,1,s or 1,1]
    return VisibleKeys(visible | fully_masked, fully_masked)


@dataclass
class VisibleKeys:
    """The mask of one call of the model, as all its layers use it.

    Attributes:
        visible: bool [b or 1, 1, s or 1, k]; None: everything is visible.
        fully_masked: bool [b or 1, 1, s or 1, 1], rows that see nothing. They attend uniformly to all keys, which
            attention gets by zeroing their query; their row of ``visible`` is all true.
        additive: of the dtype of queries, 0 where visible, minus infinity elsewhere: on a GPU beside ``visible``, whose
            kernels would make it in every layer; in place of it by decoding steps of fixed shapes.
        blocks: the form for FlexAttention, where a call uses it.
        calls: the form for FlashAttention, where a call uses it.
        causal: ``visible`` is every query's own key and those before it, which kernels know without a mask.
        parts: how many parts the keys of a decoding step are split into (``mpu/kernels/static_attention.py``).
    """

    visible: Tensor | None
    fully_masked: Tensor | None = None
    additive: Tensor | None = None
    blocks: BlockMask | None = None
    calls: TwoCalls | None = None
    causal: bool = False
    parts: int = 1
    _biases: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict, repr=False)

    def at(self, positions: Tensor) -> VisibleKeys:
        """Return the mask of the queries at ``positions`` [b,r] alone."""

        def choose(rows: Tensor | None) -> Tensor | None:  # [b or 1,1,s or 1,...]
            if rows is None or rows.size(2) == 1:
                return rows
            return rows_at(rows[:, 0].expand(len(positions), -1, -1), positions).unsqueeze(1)  # [b,1,r,...]

        additive = choose(self.additive) if self.visible is None else None  # else it is made of ``visible``
        return VisibleKeys(choose(self.visible), choose(self.fully_masked), additive)

    def behind(self, length: int) -> VisibleKeys:
        """Return the mask with ``length`` keys in front that every query sees; no row sees nothing then."""
        visible, additive = self.visible, self.additive
        if visible is not None:
            visible = visible if self.fully_masked is None else visible & ~self.fully_masked
            visible = F.pad(visible, (length, 0), value=True)
        return VisibleKeys(visible, None, None if additive is None else F.pad(additive, (length, 0), value=0.0))

    @property
    def needs_mask(self) -> bool:
        """Tell whether a kernel has to be given a mask for all queries."""
        return self.visible is not None and not self.causal and self.calls is None and self.blocks is None

    @property
    def num_rows(self) -> int:
        """Return the batch size the mask was made for, or 1 when it fits any."""
        return 1 if self.visible is None else self.visible.size(0)

    def make_additive(self, dtype: torch.dtype) -> None:
        """Make the additive form for queries of ``dtype``, once for all layers.

        Its rows begin where the kernel wants them; others it would copy there, in every layer.
        """
        if self.additive is None and self.visible is not None:
            *leading, columns = self.visible.shape
            room = torch.zeros(*leading, columns + -columns % ROW_MULTIPLE, dtype=dtype, device=self.visible.device)
            self.additive = room[..., :columns].masked_fill_(~self.visible, -math.inf)

    def silence_fully_masked_rows(self, query: Tensor) -> Tensor:
        """Zero the queries [b,n,s,d] of rows that see nothing: their scores are all 0, their attention uniform."""
        return query if self.fully_masked is None else query.masked_fill(self.fully_masked, 0.0)

    def bias(self, *, batch_size: int, num_heads: int, dtype: torch.dtype) -> Tensor | None:
        """Return the additive form [b * num_heads, s or 1, k], made once a call: 0 where visible, else -infinity."""
        known = self._biases.get((dtype, num_heads))
        if known is not None:
            return known
        bias = self.additive  # [b or 1,1,s or 1,k]
        if bias is None:
            if self.visible is None:
                return None
            bias = torch.zeros_like(self.visible, dtype=dtype).masked_fill_(~self.visible, -math.inf)
        expanded = bias.expand(batch_size, num_heads, *bias.shape[2:]).flatten(0, 1)
        self._biases[dtype, num_heads] = expanded
        return expanded


def keys_of_call(
    mask: PrefixMask | VisibleKeys, states: Tensor, *, cache: KeyValueCache | None, by_rule: bool = True
) -> VisibleKeys:
    """Return what ``states`` [b,s,h] see of themselves and of ``cache``; ``by_rule``: see ``visible_keys``.

    Raises ValueError for another batch size.
    """
    batch_size, length, _ = states.shape
    if mask.num_rows not in (1, batch_size):
        raise ValueError(f"attention_mask is for {mask.num_rows} rows, the batch has {batch_size}; give one or all")
    if isinstance(mask, VisibleKeys):
        return mask
    key_length = length + (0 if cache is None else cache.length)
    return mask.visible_keys(query_length=length, key_length=key_length, device=states.device, by_rule=by_rule)
