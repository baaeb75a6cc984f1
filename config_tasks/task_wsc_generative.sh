# Winograd schema by generating the noun. To be sourced by the fine-tuning scripts.
#   DATA_PATH   folder of the task's files   (default: $DATA_ROOT/WSC)
EXPERIMENT_NAME="${MODEL_TYPE}-wsc_generative"
TASK_NAME=wsc
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/WSC}"
MAX_SEQ_LEN=128

LR_SINGLE=1e-5
EPOCH_SINGLE=50
XXLARGE_EPOCH=100
TRAIN_ARGS=(--lr-decay-style linear --warmup 0.1 --weight-decay 0.1)
COMMON_ARGS=(--save-interval 10000 --log-interval 50 --eval-interval 1000 --eval-iters 100)
BATCH_SIZE=16
