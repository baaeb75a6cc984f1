"""The GLM network: word embeddings, transformer, tied output, loss at target positions.

b batch, s new positions, m cached positions, h hidden, v vocabulary, r query positions, t
tensor-parallel size, T prompt length
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from model.config import GLMConfig
from model.prompt import PrefixEncoder, PromptEncoder, replace_embeddings
from mpu.cache import KeyValueCache
from mpu.cross_entropy import CHUNK_ELEMENTS, LARGE_VOCABULARY, chunked_loss_sum, vocab_parallel_cross_entropy
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import send
from mpu.layers import LayerContext, VocabParallelEmbedding
from mpu.mappings import copy_to_model_parallel, gather_from_model_parallel
from mpu.masks import PrefixMask, VisibleKeys
from mpu.random import ModelParallelRandomState
from mpu.relative import RelativeTransformer
from mpu.transformer import Transformer

# On a GPU the last layer's queries are a multiple of so many: kernels fill their tiles, and shapes come again.
QUERY_MULTIPLE = 64
OUTPUTS = ("logits", "last_logits", "sharded_logits", "hidden")


class LanguageModelLoss(NamedTuple):
    """Sums over target positions: the training loss is the global ``loss_sum`` over the global ``weight_sum``."""

    loss_sum: Tensor  # fp32, 0-dim
    weight_sum: Tensor  # fp32, 0-dim

    @property
    def mean(self) -> Tensor:
        """Return the loss per target position, and 0 when there is none."""
        return self.loss_sum / self.weight_sum.masked_fill(self.weight_sum == 0, 1.0)


def count_parameters(config: GLMConfig) -> int:
    """Count the parameters of the whole model, built on the meta device: no memory is taken."""
    return GLMModel(config, device="meta").num_parameters()


class GLMModel(nn.Module):
    """A GLM language model. Its state-dict keys are those of the released checkpoints."""

    def __init__(
        self,
        config: GLMConfig,
        *,
        topology: ParallelTopology | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build and initialise the model, or this rank's shard of it.

        ``generator`` is a CPU generator that has to be in the same state on all ranks of a model-parallel group (None:
        torch's default one); the numbers do not depend on the model-parallel size. On the meta device nothing is
        allocated. Raises ValueError when the sizes cannot be cut into ``topology.model_parallel_size`` parts.
        """
        super().__init__()
        topology = ParallelTopology.single() if topology is None else topology
        self.config = config
        self.topology = topology
        self.random_state = ModelParallelRandomState(topology)
        context = LayerContext(topology, self.random_state, generator=generator, device=device, dtype=dtype)
        self.word_embeddings = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, context, initializer_std=config.initializer_std
        )
        stack = RelativeTransformer if config.relative_encoding else Transformer
        self.transformer = stack(config, context)
        self.inference_head: Callable[[Tensor], Tensor] | None = None  # in place of the product with the word table
        self.prompt_spell: PromptEncoder | None = None
        if config.prompt_length is not None:
            with _default_generator_from(generator):
                self.prompt_spell = PromptEncoder(
                    config.prompt_length,
                    config.hidden_size,
                    function=config.prompt_function,
                    device=device,
                    dtype=dtype,
                )
        self.prefix_encoder: PrefixEncoder | None = None
        if config.prefix_prompt_length is not None:
            with _default_generator_from(generator):
                self.prefix_encoder = PrefixEncoder(
                    config.prefix_prompt_length,
                    config.num_layers,
                    config.hidden_size,
                    function=config.prompt_function,
                    device=device,
                    dtype=dtype,
                )

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | PrefixMask | VisibleKeys,
        *,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        label_smoothing: float = 0.0,
        cache: KeyValueCache | None = None,
        prompt_positions: Tensor | None = None,
        output: str = "logits",
        query_positions: Tensor | None = None,
    ) -> Tensor | LanguageModelLoss:
        """Run the network on ``input_ids`` [b,s].

        ``position_ids``: [b or 1,2,s] with block positions (row 0 position, row 1 block position), [b or 1,s] without,
        unused in relative mode. ``attention_mask``: a ``PrefixMask``, or a tensor as in its ``from_attention_mask``:
        prefix_lengths [] / [1] / [b] / [b,1], or a mask [b or 1,1,s or 1,>= m+s] where nonzero means visible.
        ``cache``: earlier positions; the inputs are then only the new ones, which are appended to it.
        ``prompt_positions`` [b,T]: where the prompt vectors replace word embeddings.

        With ``labels`` [b,s] (and ``loss_mask`` [b,s], default all ones) it returns a ``LanguageModelLoss``: the last
        layer and the vocabulary projection are computed only where ``loss_mask`` is not 0. A mask left on the CPU saves
        a wait for the GPU. ``label_smoothing``: see ``vocab_parallel_cross_entropy``. Otherwise ``output`` chooses:
        ``logits`` [b,s,v], ``last_logits`` [b,v] of the last position, ``sharded_logits`` [b,s,v/t], or ``hidden``
        [b,s,h], the final LayerNorm's output; with ``query_positions`` [b,r] only of those, [b,r,...].
        """
        if output not in OUTPUTS:
            raise ValueError(f"output {output!r} is unknown; choose one of {', '.join(OUTPUTS)}")
        if labels is not None:
            loss_mask = torch.ones(labels.shape, device=labels.device) if loss_mask is None else loss_mask
            on_gpu = input_ids.device.type == "cuda"
            query_positions = target_positions(loss_mask, multiple=QUERY_MULTIPLE if on_gpu else 1)
        elif output == "last_logits" and input_ids.size(1) > 1:
            query_positions = torch.full((len(input_ids), 1), input_ids.size(1) - 1, device=input_ids.device)
        hidden = self._hidden(
            input_ids,
            position_ids,
            attention_mask,
            cache=cache,
            prompt_positions=prompt_positions,
            query_positions=query_positions,
        )
        if labels is not None:
            assert loss_mask is not None
            if query_positions is not None:
                labels = labels.gather(1, send(query_positions, labels.device))
                loss_mask = loss_mask.gather(1, query_positions)
            return self._loss(hidden, labels, loss_mask, label_smoothing=label_smoothing)
        if output == "hidden":
            return hidden
        if output == "last_logits":
            return self.project(hidden[:, -1])
        return self.project(hidden, gather=output == "logits")

    def project(self, hidden: Tensor, *, gather: bool = True) -> Tensor:
        """Map hidden states [...,h] to logits [...,v], or to this rank's [...,v/t] without ``gather``."""
        hidden = copy_to_model_parallel(hidden, self.topology)
        multiply = self.inference_head
        logits = F.linear(hidden, self.word_embeddings.weight) if multiply is None else multiply(hidden)
        return gather_from_model_parallel(logits, self.topology) if gather else logits

    def new_cache(
        self, batch_size: int, max_length: int, *, window: int | None = None, differentiable: bool = False
    ) -> KeyValueCache:
        """Allocate an empty key/value cache for ``max_length`` positions, on the device of the weights.

        ``window`` limits how many positions are kept between calls; None takes ``config.max_memory_length`` (0: no
        limit). A ``differentiable`` cache lets gradients flow back into the calls that filled it.
        """
        window = self.config.max_memory_length if window is None else window
        weight = self.word_embeddings.weight
        heads = self.config.num_attention_heads
        return KeyValueCache.allocate(
            num_layers=self.config.num_layers,
            batch_size=batch_size,
            max_length=max_length,
            num_heads=heads // self.topology.model_parallel_size,
            head_dim=self.config.hidden_size // heads,
            dtype=weight.dtype,
            device=weight.device,
            window=window or None,
            differentiable=differentiable,
        )

    def freeze_transformer(self, *, tune_prefix_layers: int = 0) -> None:
        """Stop training word embeddings and transformer, except its first ``tune_prefix_layers`` layers."""
        self.word_embeddings.requires_grad_(False)
        self.transformer.requires_grad_(False)
        self.transformer.layers[:tune_prefix_layers].requires_grad_(True)

    def num_parameters(self) -> int:
        """Count the parameters this rank holds; the tied output counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | PrefixMask | VisibleKeys,
        *,
        cache: KeyValueCache | None,
        prompt_positions: Tensor | None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        embeddings = self.word_embeddings(input_ids)  # [b,s,h]
        if prompt_positions is not None:
            if self.prompt_spell is None:
                raise ValueError("prompt_positions are given to a model without a prompt; set prompt_length")
            embeddings = replace_embeddings(embeddings, self.prompt_spell(), prompt_positions)
        if query_positions is not None:
            query_positions = send(query_positions, embeddings.device)
        options = {} if self.prefix_encoder is None else {"prefix": self.prefix_encoder()}
        return self.transformer(
            embeddings, position_ids, attention_mask, cache=cache, query_positions=query_positions, **options
        )

    def _loss(self, hidden: Tensor, labels: Tensor, loss_mask: Tensor, *, label_smoothing: float) -> LanguageModelLoss:
        """Sum the weighted losses of the positions whose weight is not 0."""
        flat_mask = loss_mask.flatten()
        indices = flat_mask.nonzero().squeeze(-1)  # [targets]
        if indices.numel() == 0:
            zero = hidden.float().sum() * 0.0  # keeps the graph and its collectives alive
            return LanguageModelLoss(zero, torch.zeros_like(zero.detach()))
        chosen = flat_mask[indices].float()
        weights = send(chosen, hidden.device)
        indices = send(indices, hidden.device)
        targets = send(labels, hidden.device).flatten()[indices]
        states = hidden.flatten(0, 1)[indices]  # [targets,h]
        table = self.word_embeddings.weight
        if self.config.vocab_size >= LARGE_VOCABULARY and len(states) * len(table) > CHUNK_ELEMENTS:
            loss_sum = chunked_loss_sum(
                copy_to_model_parallel(states, self.topology), table, targets, weights, topology=self.topology,
                label_smoothing=label_smoothing,
                unit_weights=chosen.device.type == "cpu" and bool((chosen == 1).all()),  # a GPU's would be waited for
            )  # fmt: skip
            return LanguageModelLoss(loss_sum, weights.sum())
        logits = self.project(states, gather=False)  # [targets,v/t]
        losses = vocab_parallel_cross_entropy(logits, targets, topology=self.topology, label_smoothing=label_smoothing)
        return LanguageModelLoss((losses * weights).sum(), weights.sum())


def target_positions(loss_mask: Tensor, *, multiple: int = 1) -> Tensor | None:
    """Return where the rows of ``loss_mask`` [b,s] are not 0, in order: [b,r]; None for all positions.

    r is the most of a row, rounded up to a ``multiple``. A row with fewer goes on with its first positions whose weight
    is 0.
    """
    targets = loss_mask != 0
    most = int(targets.sum(dim=1).max())
    most = -(-most // multiple) * multiple
    if most == 0 or most >= targets.size(1):
        return None
    return targets.byte().argsort(dim=1, descending=True, stable=True)[:, :most]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode, without dropout; each part of ``model`` is then in its mode of before again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _default_generator_from(generator: Generator | None) -> Iterator[None]:
    """Let torch's own layer initialisation, which knows no generator, follow the given one; None changes nothing."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=generator, device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
