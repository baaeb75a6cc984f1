# The cloze benchmark on ReCoRD, its accuracy alone (with --epochs 0 --eval-valid); scripts/cloze_benchmark/run.sh trains
# and measures the rate. To be sourced by the fine-tuning scripts.
#   DATA_PATH   folder of scripts/cloze_benchmark/preparedata.sh   (default: $DATA_ROOT/cloze)
EXPERIMENT_NAME="${MODEL_TYPE}-cloze_test"
TASK_NAME=cloze_test
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/cloze}"
MAX_SEQ_LEN=512

LR_SINGLE=1e-5
EPOCH_SINGLE=4
XXLARGE_EPOCH=4
TRAIN_ARGS=(--lr-decay-style linear --lr-decay-ratio 0.1 --warmup 0.1 --weight-decay 1.0e-1)
COMMON_ARGS=(--save-interval 10000 --log-interval 50 --eval-interval 1000 --eval-iters 100)
BATCH_SIZE=32
