"""Which test reads which golden file, and which files wait for a later issue.

The golden vectors are inputs and outputs recorded from the original release. Tests read them from the folder named by
``GLM_GOLDEN_DIR`` (default ``tests/golden``). ``tests/test_golden_index.py`` asserts that every file of that folder is
in one of the two tables below, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

READ_BY: dict[str, str] = {
    "model/weights.pt": "test_golden_model_forward.py",
    "model/forward_block.pt": "test_golden_model_forward.py",
    "model/forward_plain.pt": "test_golden_model_forward.py",
    "model/dropout_placement.pt": "test_golden_model_forward.py",
    "model/memory.pt": "test_golden_model_memory.py",
    "model/relative.pt": "test_golden_model_memory.py",
    "model/loss_grad.pt": "test_golden_model_loss.py",
    "model/heads.pt": "test_golden_model_heads.py",
    "model/prompt.pt": "test_golden_model_heads.py",
    "model/prompt_init.json": "test_golden_model_heads.py",
    "model/state_and_groups.json": "test_golden_model_state.py",
    "model/init_stats.json": "test_golden_model_state.py",
    "model/parallel.pt": "test_golden_model_parallel.py",
    "model/lr_schedule.json": "test_golden_model_optimization.py",
    "model/loss_scaler.json": "test_golden_model_optimization.py",
    "model/train_curve.pt": "test_golden_model_optimization.py",
    "model/ckpt/": "test_golden_model_checkpoints.py",
    "model/hf/": "test_golden_model_hf.py",
    "pretraining/blocks.json": "test_golden_pretraining_blocks.py",
    "pretraining/blocks512.npz": "test_golden_pretraining_blocks.py",
    "pretraining/block_units.json": "test_golden_pretraining_blocks.py",
    "pretraining/packing.json": "test_golden_pretraining_packing.py",
    "pretraining/masks.json": "test_golden_pretraining_packing.py",
    "pretraining/samplers.json": "test_golden_pretraining_samplers.py",
    "pretraining/loader.json": "test_golden_pretraining_samplers.py",
    "pretraining/corpora.json": "test_golden_pretraining_corpora.py",
    "pretraining/lazy_format.json": "test_golden_pretraining_corpora.py",
    "pretraining/splits.json": "test_golden_pretraining_corpora.py",
    "pretraining/multitask.json": "test_golden_pretraining_multitask.py",
    "pretraining/flags.json": "test_golden_pretraining_flags.py",
    "pretraining/configs.json": "test_golden_pretraining_configs.py",
    "pretraining/loss_and_logs.json": "test_golden_pretraining_logs.py",
    "generation/tokenizer_bert.json": "test_golden_generation_tokenizers.py",
    "generation/tokenizer_gpt2.json": "test_golden_generation_tokenizers.py",
    "generation/tokenizer_roberta.json": "test_golden_generation_tokenizers.py",
    "generation/tokenizer_chinese.json": "test_golden_generation_tokenizers.py",
    "generation/tokenizer_chinese_fixed.json": "test_golden_generation_tokenizers.py",
    "generation/command_tokens.json": "test_golden_generation_tokenizers.py",
    "generation/sentence_end.json": "test_golden_generation_tokenizers.py",
    "generation/prompt_inputs.json": "test_golden_generation_prompts.py",
    "generation/interactive_tiny.json": "test_golden_generation_interactive.py",
    "generation/interactive_text.json": "test_golden_generation_interactive.py",
    "generation/interactive_logits.npz": "test_golden_generation_interactive.py",
    "generation/tiny_model.pt": "test_golden_generation_interactive.py",
    "generation/beam_table.json": "test_golden_generation_decoding.py",
    "generation/table_lm.npz": "test_golden_generation_decoding.py",
    "generation/logit_filters.json": "test_golden_generation_decoding.py",
    "generation/multichoice.json": "test_golden_generation_multichoice.py",
    "generation/seq2seq_decode.json": "test_golden_generation_seq2seq_decode.py",
    "generation/seq2seq_items.json": "test_golden_generation_seq2seq_items.py",
    "generation/text_metrics.json": "test_golden_generation_text_metrics.py",
    "generation/output_files.json": "test_golden_generation_output_files.py",
    "generation/lm_items.json": "test_golden_generation_lm.py",
    "generation/lm_metrics.json": "test_golden_generation_lm.py",
    "superglue/raw/": "test_golden_superglue_examples.py",
    "superglue/examples.json.gz": "test_golden_superglue_examples.py",
    "superglue/parts.json.gz": "test_golden_superglue_examples.py",
    "superglue/units.json.gz": "test_golden_superglue_examples.py",
    "superglue/verbalizers.json.gz": "test_golden_superglue_examples.py",
    "superglue/enc_classification.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_cloze_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_cloze_chinese.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_cloze_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_cloze_roberta.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_edge_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_edge_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_fast_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_fast_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_flags_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_flags_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_multichoice.json.gz": "test_golden_superglue_multichoice.py",
    "superglue/enc_multitoken_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_multitoken_chinese.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_multitoken_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_priming_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_priming_chinese.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_priming_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_prompt_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_prompt_chinese.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_prompt_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_segment_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_segment_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_truncated_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_truncated_chinese.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_truncated_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_wsc_bert.json.gz": "test_golden_superglue_samples.py",
    "superglue/enc_wsc_gpt2.json.gz": "test_golden_superglue_samples.py",
    "superglue/collate.json.gz": "test_golden_superglue_samples.py",
    "superglue/multitask.json.gz": "test_golden_superglue_multitask.py",
    "superglue/metrics.json": "test_golden_superglue_metrics.py",
    "superglue/prediction_files.json": "test_golden_superglue_metrics.py",
    "superglue/configs.json": "test_golden_superglue_configs.py",
    "superglue/heads.pt": "test_golden_superglue_losses.py",
    "superglue/losses_eval.json": "test_golden_superglue_losses.py",
    "superglue/trajectories.json": "test_golden_superglue_trajectories.py",
    "superglue/grid.json": "test_golden_superglue_grid.py",
}

DEFERRED: dict[str, str] = {
    "model/decoder_layer.pt": "optional: the original's unfinished encoder-decoder is not provided",
    "pretraining/multilingual.json": "the multilingual release comes with a later issue",
    "multilingual/": "the multilingual release comes with a later issue",
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

    def files(self) -> list[str]:
        """List every golden file, relative to the root, without the documentation."""
        names = (p.relative_to(self.root).as_posix() for p in sorted(self.root.rglob("*")) if p.is_file())
        return [name for name in names if not name.endswith("README.md")]
