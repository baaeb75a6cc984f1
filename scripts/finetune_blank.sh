#!/usr/bin/env bash
# Fine-tune on text infilling: a share of the words of a text is masked and filled in.
#
#   bash scripts/finetune_blank.sh MODEL_FILE [any flag of finetune_glm.py]
#   MASK_RATIO   share of the words that are masked  (default: 0.1)
#   and the variables of scripts/finetune_seq2seq.sh
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
check_file model "${1:-}"
export MASK_RATIO="${MASK_RATIO:-0.1}"
exec bash "${GLM_TOP}scripts/finetune_seq2seq.sh" "$1" "${GLM_TOP}config_tasks/seq_blank.sh" "${@:2}"
