"""Rows being decoded: their key/value cache, and which of its columns each row sees.

``DecodingState`` feeds any number of tokens in calls of any shape. ``StaticDecodingState`` feeds a token per row in
steps of fixed shapes, recorded once as a CUDA graph and replayed: launching the kernels of a small step one by one
takes longer than running them. Nothing in a graph may move or change its shape: the cache has a fixed capacity, a mask
on the device says which columns count, and the column to write to is a number on the device. A step may choose the
tokens, too, and feed them in the next one: the host looks at them every few steps (``write``). On the CPU the same step
is called directly, for tests.

b rows, s tokens fed at once, k columns in the cache, v vocabulary, h hidden; of a step r rows (b of them in use) and c
columns
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from generation.inputs import PromptInputs
from generation.sampling import DAMAGED, DecodingSettings, pick_tokens
from model.modeling_glm import GLMModel
from mpu.cache import KeyValueCache
from mpu.kernels.host_memory import send
from mpu.kernels.static_attention import parts_of_keys
from mpu.kernels.static_cache import StaticKeyValueCache, static_cache
from mpu.masks import PrefixMask, VisibleKeys

CACHE_GROWTH = 256  # positions by which a full cache grows at least
CAPACITY_BUCKET = 256  # the columns of a step are a multiple of it
TOKENS_AT_ONCE = 8  # of a row, which are chosen before the host looks at them
NOTHING = -2  # in place of a token: the row has ended before
KEPT_GRAPHS = 4  # of a step, for as many ways to choose a token
KEPT_STEPS = 2  # how many steps nobody uses are kept for later states: beams need two kinds of them


class DecodingState:
    """Contexts of different lengths in one batch, padded on the right; the padding is hidden by the mask.

    Only the last position of a call is projected on the vocabulary, and the rows of the embedding table beyond the
    tokenizer's ``num_tokens``, which no training ever touched, get minus infinity.
    """

    def __init__(self, model: GLMModel, inputs: Sequence[PromptInputs], *, num_tokens: int, pad_id: int) -> None:
        """Run the model over the contexts, each fully bidirectional, and keep keys and values."""
        self.model = model
        self.num_tokens = num_tokens
        self.pad_id = pad_id
        self.device = model.word_embeddings.weight.device
        width = max(len(row) for row in inputs)
        self.cache = self._allocate(len(inputs), width + CACHE_GROWTH)
        self.visible = torch.empty((len(inputs), 0), dtype=torch.bool, device=self.device)  # [b,k]
        self.all_visible = True
        self._run([row.input_ids for row in inputs], [[(p, 0) for p in row.positions] for row in inputs], causal=False)

    @property
    def length(self) -> int:
        """Return the number of columns k."""
        return self.cache.length

    def feed(self, tokens: Sequence[int], positions: Sequence[tuple[int, int]]) -> Tensor:
        """Feed one token per row at (position, block position); return the next-token logits [b,v] in fp32."""
        hidden = self._run([[token] for token in tokens], [[position] for position in positions])
        logits = self.model.project(hidden[:, -1]).float()
        if self.num_tokens < logits.size(-1):
            logits[:, self.num_tokens :] = -math.inf
        return logits

    def append(self, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Feed a piece per row, of different lengths, in one causal call."""
        self._run(tokens, positions)

    def reorder(self, rows: Sequence[int], *, shared: int = 0) -> None:
        """Make row i the present row ``rows[i]``; their number may change.

        The first ``shared`` columns of row i and of row ``rows[i]`` have to be equal (beams of one context).
        """
        if list(rows) == list(range(len(self.visible))):
            return
        indices = send(torch.tensor(rows), self.device)
        self.cache.reorder(indices, shared=shared)
        self.visible = self.visible[indices]

    def join(self, other: DecodingState) -> None:
        """Take the rows of ``other``, which is not to be used any more, below those of this state.

        The columns that no row sees are dropped on the way, so that rows may come and go without end.
        """
        counts = torch.cat([self.visible.sum(dim=1), other.visible.sum(dim=1)])
        width, sizes = int(counts.max()), [len(self.visible), len(other.visible)]
        old, self.cache = self.cache, self._allocate(sum(sizes), width + CACHE_GROWTH)
        first = 0
        for cache, visible in ((old, self.visible), (other.cache, other.visible)):
            order = visible.byte().argsort(dim=1, descending=True, stable=True)[:, :width]  # [b,w]: what is seen first
            columns = order[:, None, :, None]
            for new, past in zip((*self.cache.keys, *self.cache.values), (*cache.keys, *cache.values)):
                rows = new[first : first + len(visible), :, : order.size(1)]  # [b,n,w,d]
                rows.copy_(past.gather(2, columns.expand(-1, past.size(1), -1, past.size(3))))
                new[first : first + len(visible), :, order.size(1) : width] = 0  # unseen, but multiplied by 0
            first += len(visible)
        self.cache.length = width
        self.visible = torch.arange(width, device=self.device) < counts[:, None]
        self.all_visible = bool(self.visible.all())

    def crop(self, length: int) -> None:
        """Forget the columns from ``length`` on."""
        self.cache.crop(length)
        self.visible = self.visible[:, :length]

    def _run(
        self,
        token_rows: Sequence[Sequence[int]],
        position_rows: Sequence[Sequence[tuple[int, int]]],
        *,
        causal: bool = True,
    ) -> Tensor:
        """Feed rows of tokens, padded to equal length; return the hidden states [b,s,h]."""
        lengths = [len(row) for row in token_rows]
        width = max(lengths)
        padding = [width - length for length in lengths]
        ids = [[*row, *[self.pad_id] * pad] for row, pad in zip(token_rows, padding)]
        positions = [[*row, *[(0, 0)] * pad] for row, pad in zip(position_rows, padding)]
        input_ids = send(torch.tensor(ids), self.device)  # [b,s]
        position_ids = send(torch.tensor(positions), self.device).transpose(1, 2)  # [b,2,s]
        self._reserve(width)
        real = send(torch.arange(width) < torch.tensor(lengths).unsqueeze(1), self.device)  # [b,s]
        self.all_visible = self.all_visible and not any(padding)
        self.visible = torch.cat([self.visible, real], dim=1)
        mask = self._mask(width, causal=causal)
        return self.model(input_ids, position_ids, mask, cache=self.cache, output="hidden")

    def _mask(self, width: int, *, causal: bool) -> PrefixMask:
        """Return the mask of ``width`` new columns: of a prefix alone where no earlier column is hidden."""
        if self.all_visible:
            return PrefixMask.prefix(torch.tensor(0 if causal else width)).to(self.device)
        visible = self.visible[:, None, None, :]  # [b,1,1,k]
        if width == 1 or not causal:
            return PrefixMask.matrix(visible)
        columns = torch.arange(self.visible.size(1), device=self.device)
        last = self.length + torch.arange(width, device=self.device).unsqueeze(1)  # [s,1]: a token's own column
        return PrefixMask.matrix(visible & (columns <= last))

    def _reserve(self, num_positions: int) -> None:
        """Make room in the cache for ``num_positions`` more."""
        old = self.cache
        needed = old.length + num_positions
        capacity = old.capacity
        assert capacity is not None, "a cache for decoding has a fixed size"
        if needed <= capacity:
            return
        self.cache = self._allocate(old.batch_size, needed + max(CACHE_GROWTH, capacity // 2))
        for new_tensors, old_tensors in ((self.cache.keys, old.keys), (self.cache.values, old.values)):
            for new, past in zip(new_tensors, old_tensors):
                new[:, :, : old.length] = past[:, :, : old.length]
        self.cache.length = old.length

    def _allocate(self, num_rows: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` columns of ``num_rows`` rows."""
        return self.model.new_cache(num_rows, capacity)


def can_decode_statically(model: GLMModel) -> bool:
    """Tell whether ``model`` has steps of fixed shapes: no tensor parallelism, no window, no relative positions.

    A prefix prompt through an LSTM has none either: its library chooses memory of its own.
    """
    config = model.config
    if config.prefix_prompt_length is not None and config.prompt_function == "lstm":
        return False
    return model.topology.model_parallel_size == 1 and not config.max_memory_length and not config.relative_encoding


class StaticStep:
    """Feed one token to each of r rows, with tensors that never move.

    The first call of a kind runs the kernels one by one, which also warms them up; on a GPU the second one records
    them.
    """

    def __init__(self, model: GLMModel, *, num_rows: int, capacity: int, num_tokens: int) -> None:
        """Reserve the cache of ``capacity`` columns and everything else that a step reads or writes."""
        self.model = model
        self.num_rows, self.capacity, self.num_tokens = num_rows, capacity, num_tokens
        weight = model.word_embeddings.weight
        with torch.inference_mode(False):  # inference tensors could not be written to outside of that mode
            self.cache = static_cache(model.new_cache(num_rows, capacity))
            # [4r + 1]: tokens [r], (position, block position) [r,2], how many tokens a row may still get [r], and the
            # column to write to
            self.inputs = torch.zeros(4 * num_rows + 1, dtype=torch.long, device=weight.device)
            # What the last steps have chosen, the latest at the end, and the numbers that the next ones draw by.
            self.chosen = torch.full((TOKENS_AT_ONCE, num_rows), NOTHING, device=weight.device)
            self.uniform = torch.zeros(TOKENS_AT_ONCE, num_rows, dtype=torch.float64, device=weight.device)
            # [r,1,1,c]: 0 for the columns that count, minus infinity for the others
            shape, dtype = (num_rows, 1, 1, capacity), self.cache.keys[0].dtype
            self.bias = torch.full(shape, -math.inf, dtype=dtype, device=weight.device)
            # [r,v] in fp32; what lies beyond ``num_tokens`` stays as it is
            self.logits = torch.full((num_rows, model.config.vocab_size), -math.inf, device=weight.device)
        self.parts = parts_of_keys(
            num_rows=num_rows, num_heads=self.cache.keys[0].size(1), num_columns=capacity, device=weight.device
        )
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}  # by kind of call; None: called once
        self.num_calls = 0
        self.owner: weakref.ref[StaticDecodingState] | None = None

    @property
    def is_free(self) -> bool:
        """Tell whether no state uses this step."""
        return self.owner is None or self.owner() is None

    def show(self, visible: Tensor) -> None:
        """Let the rows see the columns of ``visible`` (bool [b,k]), and nothing else."""
        rows, columns = visible.shape
        self.bias.fill_(-math.inf)
        self.bias[:rows, 0, 0, :columns].masked_fill_(visible, 0.0)

    @torch.no_grad()
    def __call__(self, tokens: Sequence[int], positions: Sequence[tuple[int, int]]) -> Tensor:
        """Feed a token per row at (position, block position); return the logits [b,v], valid until the next call."""
        self._take(tokens, positions, [0] * len(tokens))
        self._run(None, self._compute)
        return self.logits[: len(tokens)]

    @torch.no_grad()
    def write(
        self,
        tokens: Sequence[int],
        positions: Sequence[tuple[int, int]],
        *,
        left: Sequence[int],
        count: int,
        settings: DecodingSettings,
        end_ids: Sequence[int],
        block_positions: bool,
        uniform: Tensor | None,
    ) -> Tensor:
        """Feed a token per row, choose the next ones and feed them, ``count`` times; nobody waits for the device.

        A row ends with one of ``end_ids``, or when it has got as many tokens as are ``left`` to it; what it is fed
        afterwards it does not see. Positions count in the second row, without ``block_positions`` in the first.
        ``uniform`` fp64 [count,b] (on the host) is what tokens are drawn by, None for the best ones. Returns what was
        chosen, int64 [count,b] on the device: also ``DAMAGED``, which ends a row, and ``NOTHING`` after the end.
        """
        assert count <= TOKENS_AT_ONCE, count
        self._take(tokens, positions, left)
        if uniform is not None:
            self.uniform[:count, : len(tokens)] = send(uniform, self.uniform.device)
        kind = (settings, tuple(end_ids), block_positions)
        compute = partial(self._compute_and_choose, settings=settings, end_ids=end_ids, block_positions=block_positions)
        for _ in range(count):
            self._run(kind, compute)
        return self.chosen[-count:, : len(tokens)]

    def _take(self, tokens: Sequence[int], positions: Sequence[tuple[int, int]], left: Sequence[int]) -> None:
        """Put what the rows are fed into ``inputs``."""
        padding = [0] * (self.num_rows - len(tokens))
        pairs = [number for position in positions for number in position]
        numbers = [*tokens, *padding, *pairs, *padding, *padding, *left, *padding, self.cache.length]
        self.inputs.copy_(send(torch.tensor(numbers), self.inputs.device))

    def _run(self, kind: Hashable, compute: Callable[[], None]) -> None:
        """Make a step by ``compute``, or by the graph that was recorded of a step of this ``kind``."""
        if self.inputs.device.type != "cuda":
            compute()
        elif kind not in self.graphs:
            for other in list(self.graphs)[: max(0, len(self.graphs) - KEPT_GRAPHS + 1)]:
                del self.graphs[other]
            self.graphs[kind] = None
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # graphs are recorded on one, too
            side.wait_stream(current)
            with torch.cuda.stream(side):
                compute()
            current.wait_stream(side)
        else:
            graph = self.graphs[kind]
            if graph is None:
                graph = self.graphs[kind] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    compute()
            graph.replay()
        self.num_calls += 1
        self.cache.advance(1)

    def _compute_and_choose(self, *, settings: DecodingSettings, end_ids: Sequence[int], block_positions: bool) -> None:
        """Run the model, choose the next token of each row, and leave it in ``inputs`` to be fed next."""
        rows = self.num_rows
        tokens, positions, left, slot = self.inputs.split([rows, 2 * rows, rows, 1])
        alive = left > 0  # [r]
        self._compute()
        scores = self.logits
        if settings.min_length:
            scores = scores.clone()
            too_short = left > settings.max_length - settings.min_length
            for end in end_ids:
                scores[:, end].masked_fill_(too_short, -math.inf)
        uniform = None if settings.top_k == 1 else self.uniform[0]
        picked = pick_tokens(scores, uniform, settings=settings, end_id=end_ids[0])  # [r]
        self.chosen.copy_(torch.cat([self.chosen[1:], torch.where(alive, picked, NOTHING).unsqueeze(0)]))
        if uniform is not None:
            self.uniform.copy_(self.uniform.roll(-1, 0))
        self.bias.index_copy_(3, slot, torch.where(alive, 0.0, -math.inf).to(self.bias.dtype).view(rows, 1, 1, 1))
        ended = picked == DAMAGED
        for end in end_ids:
            ended = ended | (picked == end)
        left.sub_(1).clamp_(min=0).masked_fill_(ended, 0)
        tokens.copy_(picked.clamp(min=0))
        positions.view(rows, 2)[:, int(block_positions)] += left > 0
        slot.add_(1)

    def _compute(self) -> None:
        """Run the model on ``inputs`` and leave its logits in ``logits``; the column written to becomes visible."""
        rows = self.num_rows
        tokens, positions, _, slot = self.inputs.split([rows, 2 * rows, rows, 1])
        self.bias.index_fill_(3, slot, 0.0)
        mask = VisibleKeys(visible=None, additive=self.bias, parts=self.parts)
        cache = self.cache.step(slot)
        hidden = self.model(tokens.view(rows, 1), positions.view(rows, 2, 1), mask, cache=cache, output="hidden")
        logits = self.model.project(hidden[:, -1])  # [r,v]
        self.logits[:, : self.num_tokens].copy_(logits[:, : self.num_tokens])


class StaticDecoder:
    """The steps of a model, kept from one batch of prompts to the next: recording one takes as long as several steps.

    They hold the addresses of the weights: a model whose weights are replaced needs a new decoder.
    """

    def __init__(self, model: GLMModel, *, num_tokens: int) -> None:
        """Take a model in evaluation mode. Raises ValueError when it has no steps of fixed shapes."""
        if not can_decode_statically(model):
            raise ValueError(
                "decoding with steps of fixed shapes needs a model with learned positions, without a limit of its "
                "memory, on one rank; leave it out for this one"
            )
        self.model = model
        self.num_tokens = num_tokens
        self.steps: list[StaticStep] = []

    def state(self, inputs: Sequence[PromptInputs], *, pad_id: int) -> StaticDecodingState:
        """Run the model over the contexts ``inputs``."""
        return StaticDecodingState(self, inputs, pad_id=pad_id)

    def step_for(self, state: StaticDecodingState, *, num_rows: int, capacity: int) -> StaticStep:
        """Return an empty step with room for that much, which belongs to ``state`` as long as that lives."""
        num_rows = 1 << (num_rows - 1).bit_length()
        capacity = -(-capacity // CAPACITY_BUCKET) * CAPACITY_BUCKET
        free = [step for step in self.steps if step.is_free]
        same_size = [step for step in free if (step.num_rows, step.capacity) == (num_rows, capacity)]
        if same_size:
            step = same_size[-1]
        else:
            dropped = free[: len(free) - KEPT_STEPS + 1]
            self.steps = [step for step in self.steps if step not in dropped]
            step = StaticStep(self.model, num_rows=num_rows, capacity=capacity, num_tokens=self.num_tokens)
        self.steps = [*(s for s in self.steps if s is not step), step]  # the latest one last
        step.owner = weakref.ref(state)
        return step


class StaticDecodingState(DecodingState):
    """Rows being decoded by the steps of a ``StaticDecoder``; contexts and pieces go the ordinary way."""

    def __init__(self, decoder: StaticDecoder, inputs: Sequence[PromptInputs], *, pad_id: int) -> None:
        self.decoder = decoder
        self.step: StaticStep | None = None
        self.shown = False
        super().__init__(decoder.model, inputs, num_tokens=decoder.num_tokens, pad_id=pad_id)

    def feed(self, tokens: Sequence[int], positions: Sequence[tuple[int, int]]) -> Tensor:
        """Feed one token per row at (position, block position); return the next-token logits [b,v] in fp32."""
        logits = self._ready_step(1)(tokens, positions).clone()
        self.visible = torch.cat([self.visible, self.visible.new_ones((len(tokens), 1))], dim=1)
        return logits

    def write(
        self,
        tokens: Sequence[int],
        positions: Sequence[tuple[int, int]],
        *,
        left: Sequence[int],
        settings: DecodingSettings,
        end_ids: Sequence[int],
        block_positions: bool,
        uniform: Tensor | None,
    ) -> list[list[int]]:
        """Feed a token per row, choose the next ones and feed them, ``TOKENS_AT_ONCE`` times at most.

        Returns what each row got, one wait for the device; for the arguments see ``StaticStep.write``. ``settings``
        have one beam and do not forbid n-grams. A row that ended with an end token or ``DAMAGED`` has it at its end.
        """
        count = min(TOKENS_AT_ONCE, max(left))
        step = self._ready_step(count)
        chosen = step.write(
            tokens, positions, left=left, count=count, settings=settings, end_ids=end_ids,
            block_positions=block_positions, uniform=uniform,
        ).T  # [b,count]  # fmt: skip
        self.visible = torch.cat([self.visible, chosen != NOTHING], dim=1)
        rows = [[token for token in row if token != NOTHING] for row in chosen.tolist()]
        if (used := max(map(len, rows))) < count:
            self.crop(self.length - (count - used))
        self.all_visible = self.all_visible and all(len(row) == used for row in rows)
        return rows

    def _ready_step(self, num_positions: int) -> StaticStep:
        """Return the step, with room for ``num_positions`` more and the present mask."""
        self._reserve(num_positions)
        assert self.step is not None, "made with the cache"
        if not self.shown:
            self.step.show(self.visible)
            self.shown = True
        return self.step

    def append(self, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Feed a piece per row, of different lengths, in one causal call."""
        super().append(tokens, positions)
        self.shown = False

    def reorder(self, rows: Sequence[int], *, shared: int = 0) -> None:
        """Make row i the present row ``rows[i]``; their number may change, ``shared`` is as in the ordinary state."""
        if list(rows) == list(range(len(self.visible))):
            return
        assert self.step is not None, "made with the cache"
        if len(rows) <= self.step.num_rows:
            super().reorder(rows, shared=shared)
        else:
            indices = send(torch.tensor(rows), self.device)
            old, self.cache = self.cache, self._allocate(len(rows), self.step.capacity)
            self.cache.copy_rows(old, indices)
            self.visible = self.visible[indices]
        self.shown = False

    def join(self, other: DecodingState) -> None:
        """Take the rows of ``other``, which is not to be used any more."""
        super().join(other)
        self.shown = False

    def crop(self, length: int) -> None:
        """Forget the columns from ``length`` on."""
        super().crop(length)
        self.shown = False

    def _allocate(self, num_rows: int, capacity: int) -> StaticKeyValueCache:
        """Take a step with room for that much, and release the present one."""
        old, self.step = self.step, self.decoder.step_for(self, num_rows=num_rows, capacity=capacity)
        if old is not None:
            old.owner = None
        self.step.cache.clear(num_rows)
        self.shown = False
        return self.step.cache
