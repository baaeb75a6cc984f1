# PANX: the kind of entity of every word. Trained in English, on all patterns at once. To be sourced.
#   DATA_PATH    folder of the task's files   (default: $DATA_ROOT/panx)
#   PATTERN_ID   the pattern                  (default: 0)
EXPERIMENT_NAME="${MODEL_TYPE}-panx"
TASK_NAME=PANX
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/panx}"
MAX_SEQ_LEN=256
PATTERN_ID="${PATTERN_ID:-0}"

LR_SINGLE=1e-5
EPOCH_SINGLE=50
XXLARGE_EPOCH=50
PROMPT_EPOCH=200
TRAIN_ARGS=(--lr-decay-style linear --warmup 0.1 --weight-decay 1.0e-1 --lr-decay-ratio 0 --pattern-ensemble
    --pattern-id "$PATTERN_ID")
COMMON_ARGS=(--save-interval 10000 --log-interval 50 --eval-interval 100 --eval-iters 100)
PATTERN_IDS=(0 1 2 3)
PROMPT_IDS=(1 2 3)
BATCH_SIZE=32
