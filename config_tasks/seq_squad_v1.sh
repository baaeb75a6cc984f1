# SQuAD 1.1 as generation: answers. To be sourced by the seq2seq scripts.
#   DATA_PATH   folder of the task's files   (default: $DATA_ROOT/english_data/SQuAD)
#               of a multilingual model, which is evaluated on XQuAD: the folder with squad and xquad (default: $DATA_ROOT)
EXPERIMENT_NAME="${MODEL_TYPE}-squad_v1"
TASK_NAME=squad_v1
if [ -n "${MODEL_LANGUAGES:-}" ]; then
    DATA_PATH="${DATA_PATH:-${DATA_ROOT}}"
fi
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/english_data/SQuAD}"

LR_SINGLE=1e-5
EPOCH_SINGLE=5
BATCH_SINGLE=12
TRAIN_ARGS=(--lr-decay-style linear --warmup 0.06 --weight-decay 1.0e-1 --label-smoothing 0.1)
COMMON_ARGS=(--save-interval 10000 --log-interval 200 --eval-interval 1000 --eval-iters 100 --eval-epoch 1
    --overwrite)
TASK_ARGS=(--src-seq-length 512 --tgt-seq-length 64 --min-tgt-length 0 --length-penalty 0 --num-beams 5
    --select-topk --eval-batch-size 8 --validation-metric F1)
if [ -n "${MODEL_LANGUAGES:-}" ]; then
    TASK_NAME=xquad
    TRAIN_ARGS=(--lr-decay-style linear --lr-decay-ratio 0 --warmup 0 --weight-decay 0 --label-smoothing 0.1
        --epochs 10)
    TASK_ARGS=(--src-seq-length 512 --tgt-seq-length 64 --min-tgt-length 0 --length-penalty 0 --num-beams 20
        --select-topk --eval-batch-size 8 --validation-metric F1)
fi
