"""The common suites of transformers over our classes and tokenizers: scripts/check_peer_suites.sh runs them.

The suites come as the package ``transformers_tests`` (an unpacked source archive of transformers). What fails there has
to be in ``not_applicable.txt``, with its reason, and what is there has to fail.
"""

from __future__ import annotations

import copy
import tempfile
import unittest
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceTrainer
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from torch import Tensor
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_tokenization_common import TokenizerTesterMixin

from model.hf import tokenization_glm
from model.hf.configuration_glm import GLMConfig
from model.hf.modeling_glm import (
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForQuestionAnswering,
    GLMForSequenceClassification,
    GLMForTokenClassification,
    GLMModel,
)
from tests.helpers.hf_models import tiny_config

BATCH, LENGTH = 3, 7
REPOSITORY = Path(__file__).parents[2]


class TinyModel:
    """The sizes and inputs that the suites ask for; the names are theirs."""

    batch_size, seq_length, num_choices, num_labels = BATCH, LENGTH, 2, 3
    num_hidden_layers, hidden_size, num_attention_heads, is_training = 2, 32, 4, True

    def get_config(self) -> GLMConfig:
        return tiny_config(num_labels=self.num_labels)

    def prepare_config_and_inputs_for_common(self) -> tuple[GLMConfig, dict[str, Tensor]]:
        ids = torch.randint(2, 60, (BATCH, LENGTH), generator=torch.Generator().manual_seed(3))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class ModelSuite(ModelTesterMixin):
    fx_compatible = test_pruning = test_head_masking = test_torchscript = False  # the first three are of old versions

    def setUp(self) -> None:
        self.model_tester = TinyModel()

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = copy.deepcopy(inputs_dict)
        rows = torch.arange(BATCH)
        labels: dict[type, dict[str, Tensor]] = {
            GLMForConditionalGeneration: {"labels": torch.zeros(BATCH, LENGTH, dtype=torch.long)},
            GLMForMultipleChoice: {"labels": rows % 2},
            GLMForSequenceClassification: {"labels": rows},
            GLMForTokenClassification: {"labels": torch.zeros(BATCH, LENGTH, dtype=torch.long)},
            GLMForQuestionAnswering: {"start_positions": rows, "end_positions": rows},
        }
        if model_class is GLMForMultipleChoice:  # two choices of two tokens
            inputs["choice_ids"] = torch.tensor([[[3, 6], [4, 5]]] * BATCH)
            inputs["choice_indices"] = torch.tensor([[[1, 2], [3, 4]]] * BATCH)
        return inputs | (labels.get(model_class, {}) if return_labels else {})


class TestModelAlone(ModelSuite, unittest.TestCase):
    all_model_classes = (GLMModel,)


class TestModelsOfTasks(ModelSuite, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (
        GLMForConditionalGeneration, GLMForMultipleChoice, GLMForSequenceClassification, GLMForTokenClassification,
        GLMForQuestionAnswering,
    )  # fmt: skip
    all_generative_model_classes = (GLMForConditionalGeneration,)


class TokenizerSuite(TokenizerTesterMixin):
    """The suite of one tokenizer, which lies in the folder that the tests use."""

    test_seq2seq = False
    from_pretrained_id = ()

    @classmethod
    def setUpClass(cls) -> None:
        getattr(super(), "setUpClass", lambda: None)()
        cls.vocabulary = tempfile.TemporaryDirectory()
        cls.made = cls.tokenizer_class(*map(str, small_vocabulary(cls.tokenizer_class, Path(cls.vocabulary.name))))
        if hasattr(cls, "tmpdirname"):  # of newer versions; older ones have a folder for each test
            cls.made.save_pretrained(cls.tmpdirname)

    @classmethod
    def tearDownClass(cls) -> None:
        getattr(super(), "tearDownClass", lambda: None)()
        cls.vocabulary.cleanup()

    def setUp(self) -> None:
        super().setUp()
        self.made.save_pretrained(self.tmpdirname)


def small_vocabulary(kind: type, folder: Path) -> list[Path]:
    """Write a vocabulary of about a thousand pieces of our pages for a class of tokenizers; return its files."""
    texts = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "docs").glob("*.md")]
    texts.append((REPOSITORY / "README.zh-CN.md").read_text(encoding="utf-8"))
    if kind is tokenization_glm.GLMBertTokenizer:
        made = BertWordPieceTokenizer()
        made.train_from_iterator(texts, vocab_size=1500, show_progress=False)
        return [Path(made.save_model(str(folder))[0])]
    if issubclass(kind, tokenization_glm.GLMChineseTokenizer | tokenization_glm.GLMSentencePieceTokenizer):
        file = folder / kind.vocab_files_names["vocab_file"]
        with file.open("wb") as written:
            SentencePieceTrainer.train(
                sentence_iterator=(line for text in texts for line in text.split("\n")), model_writer=written,
                vocab_size=3000, model_type="bpe", user_defined_symbols=["<n>"], minloglevel=2,
            )  # fmt: skip
        return [file]
    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind is tokenization_glm.GLMRobertaTokenizer else []
    made.train_from_iterator(texts, vocab_size=1500, special_tokens=special, show_progress=False)
    return [Path(file) for file in made.save_model(str(folder))]


for _name, _kind in tokenization_glm.TOKENIZERS.items():
    _is_fast = issubclass(_kind, tokenization_glm.GLMFastTokenizer)
    _fields = {
        "tokenizer_class": _kind, "rust_tokenizer_class": _kind if _is_fast else None,
        "test_slow_tokenizer": not _is_fast, "test_rust_tokenizer": _is_fast,
    }  # fmt: skip
    globals()[f"Test{_name.removeprefix('GLM')}"] = type(f"Test{_name}", (TokenizerSuite, unittest.TestCase), _fields)
