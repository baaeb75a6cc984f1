#!/usr/bin/env bash
# P-tuning under DeepSpeed: trained vectors stand in the patterns besides words, or, for the multilingual model, before
# the keys of every layer, whose other weights are frozen.
#
#   bash scripts/ds_finetune_superglue_prompt.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   DEEPSPEED_CONFIG   its batch size, rate and weight decay count  (default: that of the model file, else
#                      config_tasks/config_blocklm_10B.json)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
EXPERIMENT_NAME="${EXPERIMENT_NAME}_${DATESTR}"
if [ -n "${MODEL_LANGUAGES:-}" ]; then
    XXLARGE_EPOCH="${PROMPT_EPOCH:-$XXLARGE_EPOCH}"
fi
if [ ${#PROMPT_ARGS[@]} -eq 0 ]; then
    PROMPT_ARGS=(--continuous-prompt --num-prompt-tokens 3)
fi

finetune --deepspeed --deepspeed_config "${DEEPSPEED_CONFIG:-${PROMPT_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_10B.json}}" \
    --cloze-eval --seq-length "$MAX_SEQ_LEN" --checkpoint-activations --eval-batch-size 16 --save-epoch 100000 \
    --no-load-optim --no-load-lr-scheduler "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" \
    "${PROMPT_ARGS[@]}" \
    --fp16 --epochs "${EPOCHS:-$XXLARGE_EPOCH}" "$@"
