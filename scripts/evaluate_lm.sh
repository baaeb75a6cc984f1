#!/usr/bin/env bash
# Language modelling without training: accuracy on LAMBADA, or the perplexity of a text.
#
#   bash scripts/evaluate_lm.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#
#   MODEL_FILE        config_tasks/model_*.sh, or the folder of a checkpoint of your own
#   TASK_FILE         config_tasks/zero_*.sh: lambada, lambada_uni, lm, lm_uni, wikitext; --unidirectional goes with each
#   CHECKPOINT_PATH   folder of pre-trained checkpoints                      (default: checkpoints)
#   DATA_ROOT         folder of the tasks' files                             (default: data)
#   DATA_PATH         the file, anywhere                                     (default: as the task file says)
#   N_GPU             processes that share the windows                       (default: NUM_GPUS_PER_WORKER, else 1)
#   MP_SIZE           tensor-parallel size                                   (default: 1)
#   LIMIT             only the first lines of the file; the results say so
#
# The result is printed and written to runs/<experiment>/test_results.json.
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
export NUM_GPUS_PER_WORKER="${N_GPU:-${NUM_GPUS_PER_WORKER:-1}}"
EXPERIMENT_NAME="${EXPERIMENT_NAME}-${DATESTR}"

LOG_NAME="$EXPERIMENT_NAME" launch_distributed finetune_glm.py \
    --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --valid-data "$DATA_PATH" \
    "${MODEL_ARGS[@]}" "${EVALUATE_ARGS[@]}" --fp16 --model-parallel-size "$MP_SIZE" \
    --overwrite "${SHORTENED[@]}" "$@"
