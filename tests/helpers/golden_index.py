"""Which test reads which golden file.

The golden vectors are inputs and outputs recorded from the original release. Tests read them from the folder named by
``GLM_GOLDEN_DIR`` (default ``tests/golden``). ``tests/house/test_golden_index.py`` asserts that every file of that
folder is in the table below, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPOSITORY

READ_BY: dict[str, str] = {
    "model/weights.pt": "model/test_golden_forward.py",
    "model/forward_block.pt": "model/test_golden_forward.py",
    "model/forward_plain.pt": "model/test_golden_forward.py",
    "model/dropout_placement.pt": "model/test_golden_forward.py",
    "model/decoder_layer.pt": "model/test_golden_forward.py",
    "model/memory.pt": "model/test_golden_memory.py",
    "model/relative.pt": "model/test_golden_memory.py",
    "model/loss_grad.pt": "model/test_golden_loss.py",
    "model/heads.pt": "model/test_golden_heads.py",
    "model/prompt.pt": "model/test_golden_heads.py",
    "model/prompt_init.json": "model/test_golden_heads.py",
    "model/state_and_groups.json": "model/test_golden_state.py",
    "model/init_stats.json": "model/test_golden_state.py",
    "model/parallel.pt": "mpu/test_golden_parallel.py",
    "model/lr_schedule.json": "training/test_golden_optimization.py",
    "model/loss_scaler.json": "training/test_golden_optimization.py",
    "model/train_curve.pt": "training/test_golden_optimization.py",
    "model/ckpt/": "model/test_golden_checkpoints.py",
    "model/hf/": "model/test_golden_hf.py",
    "pretraining/blocks.json": "data_utils/test_golden_blocks.py",
    "pretraining/blocks512.npz": "data_utils/test_golden_blocks.py",
    "pretraining/block_units.json": "data_utils/test_golden_blocks.py",
    "pretraining/packing.json": "data_utils/test_golden_packing.py",
    "pretraining/masks.json": "data_utils/test_golden_packing.py",
    "pretraining/samplers.json": "data_utils/test_golden_samplers.py",
    "pretraining/loader.json": "data_utils/test_golden_samplers.py",
    "pretraining/corpora.json": "data_utils/test_golden_corpora.py",
    "pretraining/lazy_format.json": "data_utils/test_golden_corpora.py",
    "pretraining/splits.json": "data_utils/test_golden_corpora.py",
    "pretraining/multilingual.json": "data_utils/test_golden_multilingual.py",
    "pretraining/multitask.json": "tasks/test_golden_pretraining_multitask.py",
    "pretraining/flags.json": "training/test_golden_flags.py",
    "pretraining/configs.json": "training/test_golden_configs.py",
    "pretraining/loss_and_logs.json": "training/test_golden_logs.py",
    "generation/tokenizer_bert.json": "data_utils/test_golden_tokenizers.py",
    "generation/tokenizer_gpt2.json": "data_utils/test_golden_tokenizers.py",
    "generation/tokenizer_roberta.json": "data_utils/test_golden_tokenizers.py",
    "generation/tokenizer_chinese.json": "data_utils/test_golden_tokenizers.py",
    "generation/tokenizer_chinese_fixed.json": "data_utils/test_golden_tokenizers.py",
    "generation/command_tokens.json": "data_utils/test_golden_tokenizers.py",
    "generation/sentence_end.json": "data_utils/test_golden_tokenizers.py",
    "generation/prompt_inputs.json": "generation/test_golden_prompts.py",
    "generation/interactive_tiny.json": "generation/test_golden_interactive.py",
    "generation/interactive_text.json": "generation/test_golden_interactive.py",
    "generation/interactive_logits.npz": "generation/test_golden_interactive.py",
    "generation/tiny_model.pt": "generation/test_golden_interactive.py",
    "generation/beam_table.json": "generation/test_golden_decoding.py",
    "generation/table_lm.npz": "generation/test_golden_decoding.py",
    "generation/logit_filters.json": "generation/test_golden_decoding.py",
    "generation/multichoice.json": "tasks/test_golden_zero_shot_choices.py",
    "generation/seq2seq_decode.json": "tasks/test_golden_seq2seq_decode.py",
    "generation/seq2seq_items.json": "tasks/test_golden_seq2seq_items.py",
    "generation/text_metrics.json": "tasks/test_golden_text_metrics.py",
    "generation/output_files.json": "generation/test_golden_output_files.py",
    "generation/lm_items.json": "tasks/test_golden_language_model.py",
    "generation/lm_metrics.json": "tasks/test_golden_language_model.py",
    "superglue/raw/": "tasks/test_golden_superglue_examples.py",
    "superglue/examples.json.gz": "tasks/test_golden_superglue_examples.py",
    "superglue/parts.json.gz": "tasks/test_golden_superglue_examples.py",
    "superglue/units.json.gz": "tasks/test_golden_superglue_examples.py",
    "superglue/verbalizers.json.gz": "tasks/test_golden_superglue_examples.py",
    "superglue/enc_classification.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_cloze_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_cloze_chinese.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_cloze_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_cloze_roberta.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_edge_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_edge_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_fast_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_fast_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_flags_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_flags_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_multichoice.json.gz": "tasks/test_golden_superglue_multichoice.py",
    "superglue/enc_multitoken_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_multitoken_chinese.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_multitoken_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_priming_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_priming_chinese.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_priming_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_prompt_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_prompt_chinese.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_prompt_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_segment_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_segment_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_truncated_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_truncated_chinese.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_truncated_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_wsc_bert.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/enc_wsc_gpt2.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/collate.json.gz": "tasks/test_golden_superglue_samples.py",
    "superglue/multitask.json.gz": "tasks/test_golden_superglue_multitask.py",
    "superglue/metrics.json": "tasks/test_golden_superglue_metrics.py",
    "superglue/prediction_files.json": "tasks/test_golden_superglue_metrics.py",
    "superglue/configs.json": "tasks/test_golden_superglue_configs.py",
    "superglue/heads.pt": "tasks/test_golden_superglue_losses.py",
    "superglue/losses_eval.json": "tasks/test_golden_superglue_losses.py",
    "superglue/trajectories.json": "tasks/test_golden_superglue_trajectories.py",
    "superglue/grid.json": "tasks/test_golden_superglue_grid.py",
    "multilingual/mt5.json": "mt5/test_golden_mt5.py",
    "multilingual/mt5_tiny.model": "mt5/test_golden_mt5.py",
    "multilingual/inference_inputs.json": "generation/test_golden_multilingual_inputs.py",
    "multilingual/mglm_model.pt": "model/test_golden_multilingual.py",
    "multilingual/tokenizer.json": "data_utils/test_golden_multilingual_tokenizer.py",
    "multilingual/nlu_prompts.json": "tasks/test_golden_multilingual_nlu.py",
    "multilingual/seq2seq_examples.json": "tasks/test_golden_multilingual_seq2seq.py",
    "multilingual/seq2seq_samples.json": "tasks/test_golden_multilingual_seq2seq.py",
    "multilingual/metrics.json": "tasks/test_golden_multilingual_metrics.py",
    "multilingual/lr_schedule.json": "training/test_golden_optimization.py",
    "multilingual/record_cloze.json": "tasks/test_golden_cloze_benchmark.py",
    "multilingual/record_arrays.npz": "tasks/test_golden_cloze_benchmark.py",
    "multilingual/record_head.pt": "tasks/test_golden_cloze_benchmark.py",
    "multilingual/record_train_sparse.hdf5": "tasks/test_golden_cloze_benchmark.py",
    "multilingual/record_eval_sparse.hdf5": "tasks/test_golden_cloze_benchmark.py",
    "multilingual/mglm_tiny.model": "data_utils/test_golden_multilingual_tokenizer.py",
}


@dataclass(frozen=True)
class GoldenFolder:
    """A folder of golden vectors, laid out as ``model/``, ``pretraining/``, ``generation/`` ..."""

    root: Path

    @classmethod
    def from_environment(cls) -> GoldenFolder:
        """Return the folder named by ``GLM_GOLDEN_DIR``, else the repository's own copy."""
        return cls(Path(os.environ.get("GLM_GOLDEN_DIR", REPOSITORY / "tests" / "golden")))

    def path(self, name: str) -> Path:
        """Return the path of file or folder ``name``; skip the test when this folder does not hold it."""
        path = self.root / name
        if not path.exists():
            pytest.skip(f"{name} is not among the golden vectors of {self.root}")
        return path

    def json(self, name: str) -> Any:
        """Return the content of JSON file ``name``, gzip-compressed or not."""
        content = self.path(name).read_bytes()
        return json.loads(gzip.decompress(content) if name.endswith(".gz") else content)

    def files(self) -> list[str]:
        """List every golden file, relative to the root, without the documentation."""
        names = (p.relative_to(self.root).as_posix() for p in sorted(self.root.rglob("*")) if p.is_file())
        return [name for name in names if not name.endswith("README.md")]
