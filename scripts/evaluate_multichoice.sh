#!/usr/bin/env bash
# Multiple choice without training: score the choices of every question, print the accuracy, write the answers.
#
#   bash scripts/evaluate_multichoice.sh MODEL_FILE [any flag of finetune_glm.py]
#
#   MODEL_FILE        config_tasks/model_*.sh, or the folder of a checkpoint of your own
#   CHECKPOINT_PATH   folder of pre-trained checkpoints                      (default: checkpoints)
#   DATA_PATH         a file of questions, a pattern of files in quotes, or a folder of *.jsonl files, also further
#                     down (default: $DATA_ROOT/multichoice, DATA_ROOT: data)
#   N_GPU             processes that share the questions                     (default: NUM_GPUS_PER_WORKER, else 1)
#   MP_SIZE           tensor-parallel size                                   (default: 1)
#   LIMIT             only the first questions of every file; the results say so
#
# A line is {"inputs_pretokenized": "... [MASK] ...", "choices_pretokenized": [...], "label": 0}; without a [MASK] the
# choice comes last, without a label the answer is only written. Answers: runs/<experiment>/multichoice-<file>.jsonl
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
check_file model "${1:-}"
source_model "$1"
shift
as_lists MODEL_ARGS
DATA_PATH="${DATA_PATH:-${DATA_ROOT:-data}/multichoice}"
if [ -d "$DATA_PATH" ]; then
    DATA_PATH="$DATA_PATH/**/*.jsonl"
fi
export NUM_GPUS_PER_WORKER="${N_GPU:-${NUM_GPUS_PER_WORKER:-1}}"
EXPERIMENT_NAME="${MODEL_TYPE}-multichoice-$(date +%m-%d-%H-%M)"

LOG_NAME="$EXPERIMENT_NAME" launch_distributed finetune_glm.py \
    --cloze-eval --experiment-name "$EXPERIMENT_NAME" --task multichoice --test-data "$DATA_PATH" \
    --seq-length 512 --eval-batch-size 16 "${MODEL_ARGS[@]}" --fp16 --model-parallel-size "${MP_SIZE:-1}" \
    --epochs 0 --no-validation --overwrite ${LIMIT:+--limit "$LIMIT"} "$@"
