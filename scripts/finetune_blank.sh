#!/usr/bin/env bash
# Fine-tune on text infilling: a share of the words of a text is masked and filled in.
#
#   bash scripts/finetune_blank.sh MODEL_FILE [any flag of finetune_glm.py]
#   MASK_RATIO   share of the words that are masked  (default: 0.1)
#   and the variables of scripts/finetune_seq2seq.sh
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "error: name a model file: bash scripts/finetune_blank.sh config_tasks/model_*.sh" >&2
    exit 2
fi
export MASK_RATIO="${MASK_RATIO:-0.1}"
exec bash "$(dirname -- "$0")/finetune_seq2seq.sh" "$1" "$(dirname -- "$0")/../config_tasks/seq_blank.sh" "${@:2}"
