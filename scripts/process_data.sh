#!/usr/bin/env bash
# Make the stores of the texts in many languages ahead of training: bash scripts/process_data.sh [flags of data_utils.corpora.prepare]
#
#   MULTILINGUAL      folder of the files LANGUAGE_*.json.gz            (default: multilingual in $GLM_CORPORA_DIR)
#   GLM_CORPORA_DIR   folder of corpora                                 (default: data)
#   CHECKPOINT_PATH, MGLM_TOKENIZER   the SentencePiece file            (default: mglm250k/mglm250k-uni.model in checkpoints)
#   STORES            where the stores go; training finds them with --data-cache-dir   (default: $GLM_CORPORA_DIR/stores)
#
# The texts are kept as texts (--no-pre-tokenize), as config/ds_multi_blockta_large.sh reads them.
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
export GLM_CORPORA_DIR="${GLM_CORPORA_DIR:-data}"
launch_single -m data_utils.corpora.prepare \
    --train-data "multilingual${MULTILINGUAL:+=$MULTILINGUAL}" --no-pre-tokenize \
    --tokenizer-type ChineseSPTokenizer --task-mask --decoder-mask \
    --tokenizer-model-type "${MGLM_TOKENIZER:-${CHECKPOINT_PATH:-checkpoints}/mglm250k/mglm250k-uni.model}" \
    --output "${STORES:-$GLM_CORPORA_DIR/stores}" "$@"
