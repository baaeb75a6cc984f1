# LAMBADA: the last word of a passage, given the whole passage before it.
# To be sourced by scripts/evaluate_lm.sh.
#   DATA_PATH   lines {"text": "..."}   (default: $DATA_ROOT/lambada_test.jsonl)
EXPERIMENT_NAME="${MODEL_TYPE}-lambda"
TASK_NAME=lambda
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/lambada_test.jsonl}"

EVALUATE_ARGS=(--eval-batch-size 16 --seq-length 512)
