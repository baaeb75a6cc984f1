# Winograd schema, the right noun against candidates; patterns 0 to 2. To be sourced by the fine-tuning scripts.
#   DATA_PATH   folder of the task's files   (default: $DATA_ROOT/WSC-negative)
EXPERIMENT_NAME="${MODEL_TYPE}-wsc"
TASK_NAME=wsc
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/WSC-negative}"
MAX_SEQ_LEN=128

LR_SINGLE=1e-5
EPOCH_SINGLE=50
XXLARGE_EPOCH=100
PROMPT_EPOCH=200
TRAIN_ARGS=(--lr-decay-style linear --warmup 0.1 --weight-decay 0.1 --loss-func mix --wsc-negative --length-penalty 1 --pattern-id 2)
COMMON_ARGS=(--save-interval 10000 --log-interval 50 --eval-interval 1000 --eval-iters 100)
PATTERN_IDS=(0 1 2)
PROMPT_IDS=(1 2 3)
BATCH_SIZE=16
