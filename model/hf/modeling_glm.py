"""GLM for Hugging Face transformers: a prefix language model that fills blanks, and its task classes.

b batch, s new positions, m cached positions, k = m + s keys, h hidden, n heads, d head dim, v vocabulary, c choices
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import logging

from .configuration_glm import GLMConfig
from .generation_glm import BlankFilling
from .inputs_glm import CACHE_NAME, CACHE_NAMES, IGNORED_LABEL, one_cache
from .layers_glm import GLMEmbedding, GLMProjection, GLMStack, VisibleKeys, project

logger = logging.get_logger(__name__)


@dataclass
class GLMModelOutput(BaseModelOutputWithPast):
    """What ``GLMModel`` returns: ``logits`` [b,s,v] are there when the configuration has ``output_predict``."""

    logits: Tensor | None = None


class GLMPreTrainedModel(PreTrainedModel):
    """What all GLM classes share: loading, saving, initialisation."""

    config_class = GLMConfig
    base_model_prefix = "glm"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012  # the library's convention
    _skip_keys_device_placement = [*CACHE_NAMES]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_cache_class = True
    _supports_static_cache = True
    # Before 5.23 the library counts what a cache of fixed size holds by looking at it, which no graph can.
    _can_compile_fullgraph = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw matrices from a normal distribution, narrower where a layer's halves end; biases are zero."""
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            narrowing = math.sqrt(2.0 * self.config.num_layers) if getattr(module, "ends_half_layer", False) else 1.0
            nn.init.normal_(module.weight, std=self.config.initializer_range / narrowing)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class GLMModel(GLMPreTrainedModel):
    """The network without a task."""

    def __init__(self, config: GLMConfig) -> None:
        """Build it. Raises ValueError when the configuration asks for what this code does not have."""
        super().__init__(config)
        for name in ("relative_encoding", "spell_length"):
            if getattr(config, name):
                raise ValueError(f"{name} is {getattr(config, name)!r}; this code is for models without it")
        self.word_embeddings = GLMEmbedding(config.vocab_size, config.hidden_size)
        self.transformer = GLMStack(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word embeddings, and with them the output projection."""
        self.word_embeddings = value

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states [...,h] to logits [...,v]."""
        return project(self.word_embeddings, hidden)

    def forward(  # noqa: PLR0917  # the order of the published classes
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_logits: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> GLMModelOutput | tuple:
        """Run the network on ids [b,s] or their embeddings [b,s,h].

        Args:
            position_ids: [b or 1,2,s], positions and positions inside a blank; [b or 1,s], positions outside of
                blanks; default: 0, 1, 2 ... outside of blanks.
            attention_mask: see ``VisibleKeys.from_attention_mask``; default: every position sees those before it.
            past_key_values, cache: two names for a cache of the library with m earlier positions; the inputs are then
                the new ones alone.
            output_logits: whether logits are computed; default: ``config.output_predict``.

        Other arguments have to be None; this class has no loss.
        """
        _refuse_others(self, kwargs)
        config = self.config
        cache = one_cache(past_key_values, cache)
        use_cache = config.use_cache and not self.training if use_cache is None else use_cache
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        output_logits = config.output_predict if output_logits is None else output_logits
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # [b,s,h]
        if self.transformer.gradient_checkpointing and self.training:
            use_cache, cache = False, None
        if use_cache and cache is None:
            cache = DynamicCache()
        length = embeddings.size(1)
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        device = embeddings.device
        if position_ids is None:
            position_ids = torch.arange(num_cached, num_cached + length, device=device).unsqueeze(0)
        position_ids = self._two_rows(position_ids, batch_size=embeddings.size(0), length=length)
        if attention_mask is None:
            attention_mask = torch.zeros((), dtype=torch.long, device=device)
        keys = VisibleKeys.from_attention_mask(
            attention_mask, query_length=length, key_length=num_cached + length, device=device
        )
        hidden, all_hidden, attentions = self.transformer(
            embeddings,
            position_ids.to(device),
            keys,
            cache=cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        output = GLMModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(all_hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            logits=self.project(hidden) if output_logits else None,
            **{CACHE_NAME: cache if use_cache else None},
        )
        return _as_asked(output, config, return_dict)

    def _two_rows(self, position_ids: Tensor, *, batch_size: int, length: int) -> Tensor:
        """Return [b or 1,2,s] of [b or 1,s] positions, or as they are without block positions.

        Raises ValueError for another shape.
        """
        rows = [2] if self.config.block_position_encoding else []
        shape = list(position_ids.shape)
        if shape[:1] in ([1], [batch_size]) and shape[1:] in ([length], [*rows, length]):
            if rows and len(shape) == 2:
                return torch.stack([position_ids, torch.zeros_like(position_ids)], dim=1)
            return position_ids
        both = f"[{batch_size},2,{length}] or " if rows else ""
        raise ValueError(f"position_ids has shape {shape}; give {both}[{batch_size},{length}]")


def _refuse_others(model: nn.Module, arguments: dict[str, Any]) -> None:
    """Raise TypeError for arguments that ``model`` does not know, unless they are None."""
    unknown = sorted(name for name, value in arguments.items() if value is not None)
    if unknown:
        hint = (
            "; the loss is that of a class with a task, as GLMForConditionalGeneration" if "labels" in unknown else ""
        )
        raise TypeError(f"{type(model).__name__} takes no {', '.join(unknown)}{hint}")


def _as_asked(output: Any, config: GLMConfig, return_dict: bool | None) -> Any:
    """Return the output, or a tuple where the caller or the configuration wants one."""
    return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class GLMForConditionalGeneration(GLMPreTrainedModel, BlankFilling, GenerationMixin):
    """Fill a blank: inputs come from ``tokenizer.build_inputs_for_generation``."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output projection, whose weight is that of the word embeddings."""
        return GLMProjection(self.glm.word_embeddings)

    def set_output_embeddings(self, value: Any) -> None:
        """Raise ValueError for a weight that is not that of the word embeddings: the two are one parameter here."""
        if value is not None and value.weight is not self.glm.word_embeddings.weight:
            raise ValueError("the output projection is that of the word embeddings; use set_input_embeddings")

    def forward(  # noqa: PLR0917  # the order of the published classes
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits [b,s,v], and with ``labels`` [b,s] the loss; see ``GLMModel.forward``.

        A label stands at the position that predicts it, -100 where there is none. The loss is the mean over labels, or
        their sum over ``num_items_in_batch``. ``logits_to_keep`` above 0 computes the logits of that many last
        positions alone. Other arguments have to be None.
        """
        _refuse_others(self, kwargs)
        output = self.glm(
            input_ids,
            position_ids,
            attention_mask,
            cache=one_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            use_cache=False if labels is not None and use_cache is None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            output_logits=False,
        )
        hidden = output.last_hidden_state
        logits = self.glm.project(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            targets = labels.to(logits.device).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED_LABEL, reduction="sum")
            count = (targets != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
            loss = loss / (count.to(loss.device).clamp(min=1) if isinstance(count, Tensor) else max(1, count))
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **{CACHE_NAME: getattr(output, CACHE_NAME)},
        )
        return _as_asked(result, self.config, return_dict)


class GLMForMultipleChoice(GLMPreTrainedModel):
    """Choose among texts for a blank: inputs come from ``tokenizer.build_inputs_for_multiple_choice``."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    def forward(  # noqa: PLR0917  # the order of the published classes
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        choice_ids: Sequence[Sequence[Tensor]] | None = None,
        choice_indices: Sequence[Sequence[Tensor]] | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MultipleChoiceModelOutput | tuple:
        """Return as ``logits`` [b,c] the log-probability of each choice, summed over its tokens.

        ``choice_ids[i][j]`` are the tokens of choice j of row i and ``choice_indices[i][j]`` the positions that predict
        them. With ``labels`` [b], numbers of choices, there is the loss. Raises ValueError when rows have different
        numbers of choices.
        """
        if choice_ids is None or choice_indices is None:
            raise ValueError("choice_ids or choice_indices are missing: use tokenizer.build_inputs_for_multiple_choice")
        counts = sorted({len(row) for row in choice_ids})
        if len(counts) != 1:
            raise ValueError(f"the rows have {counts} choices; give every row the same number")
        output = self.glm(
            input_ids,
            position_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            return_dict=True,
            output_logits=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden = output.last_hidden_state
        device = hidden.device
        tokens = [torch.as_tensor(choice, device=device) for row in choice_ids for choice in row]
        places = [torch.as_tensor(choice, device=device) for row in choice_indices for choice in row]
        rows = [torch.full_like(place, number // counts[0]) for number, place in enumerate(places)]
        logits = self.glm.project(hidden[torch.cat(rows), torch.cat(places)]).float()  # [tokens of all choices,v]
        targets = torch.cat(tokens).to(logits.device)
        scores = logits.log_softmax(dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
        sums = [part.sum() for part in scores.split([len(choice) for choice in tokens])]
        logits = torch.stack(sums).view(-1, counts[0])  # [b,c]
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        result = MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return _as_asked(result, self.config, return_dict)


class GLMForSequenceClassification(GLMPreTrainedModel):
    """Classify a text by the hidden state of its first token."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.glm = GLMModel(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.output_dropout_prob if dropout is None else dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(  # noqa: PLR0917  # the order of the published classes
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """Return the logits [b,labels] of the classes and, with ``labels``, the loss.

        ``labels`` are class numbers [b], targets [b] or [b,1] when there is one class, or 0 and 1 [b,labels] with
        ``config.problem_type`` "multi_label_classification". Without a mask all positions see each other.
        """
        output = _read(
            self,
            input_ids,
            position_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        if labels is not None and self.training and not any(one.requires_grad for one in self.out_proj.parameters()):
            logger.warning_once(
                "the head that classifies (dense, out_proj) is frozen: give peft modules_to_save=['model.dense', "
                "'out_proj'], which are names that it does not find by itself"
            )
        first = self.dropout(output.last_hidden_state[:, 0])  # [b,h]
        logits = self.out_proj(self.dropout(torch.tanh(self.dense(first))))
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return _as_asked(result, self.config, return_dict)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        if self.num_labels == 1 or self.config.problem_type == "regression":
            return F.mse_loss(logits.float().flatten(), labels.float().flatten())
        return F.cross_entropy(logits.float(), labels.flatten())


class GLMForTokenClassification(GLMPreTrainedModel):
    """Classify every token of a text, which sees the whole of it."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.glm = GLMModel(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.output_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(  # noqa: PLR0917  # the order of the classes above
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple:
        """Return the logits [b,s,labels] and, with ``labels`` [b,s] (-100 where there is none), the mean loss."""
        output = _read(
            self,
            input_ids,
            position_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(output.last_hidden_state))
        loss = None
        if labels is not None:
            targets = labels.to(logits.device).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED_LABEL)
        result = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return _as_asked(result, self.config, return_dict)


class GLMForQuestionAnswering(GLMPreTrainedModel):
    """Find an answer in a text: where it starts and where it ends."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__(config)
        self.glm = GLMModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(  # noqa: PLR0917  # the order of the classes above
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple:
        """Return logits [b,s] of the first and the last token, and with their positions [b] the mean of both losses.

        A position behind the text, where an answer was cut off, does not count.
        """
        output = _read(
            self,
            input_ids,
            position_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        starts, ends = self.qa_outputs(output.last_hidden_state).unbind(dim=-1)  # [b,s] each
        loss = None
        if start_positions is not None and end_positions is not None:
            losses = []
            for logits, places in ((starts, start_positions), (ends, end_positions)):
                targets = places.to(logits.device).flatten()
                targets = torch.where((targets >= 0) & (targets < logits.size(1)), targets, IGNORED_LABEL)
                losses.append(F.cross_entropy(logits.float(), targets, ignore_index=IGNORED_LABEL))
            loss = (losses[0] + losses[1]) / 2
        result = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=starts,
            end_logits=ends,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return _as_asked(result, self.config, return_dict)


def _read(
    model: Any,
    input_ids: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    *,
    inputs_embeds: Tensor | None,
    **options: Any,
) -> GLMModelOutput:
    """Run the network of a class that reads texts: without a mask all positions see each other."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    if attention_mask is None and given is not None:
        attention_mask = torch.tensor(given.size(1), device=given.device)
    return model.glm(
        input_ids,
        position_ids,
        attention_mask,
        inputs_embeds=inputs_embeds,
        use_cache=False,
        return_dict=True,
        output_logits=False,
        **options,
    )


GLMModel.register_for_auto_class("AutoModel")
GLMForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
GLMForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
GLMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
GLMForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
GLMForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
