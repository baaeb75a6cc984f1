# MLQA: questions in seven languages, trained on SQuAD 1.1 (folders squad and mlqa). To be sourced.
#   DATA_PATH   folder of the task's files   (default: $DATA_ROOT)
EXPERIMENT_NAME="${MODEL_TYPE}-mlqa"
TASK_NAME=mlqa
DATA_PATH="${DATA_PATH:-${DATA_ROOT}}"

LR_SINGLE=1e-5
EPOCH_SINGLE=5
BATCH_SINGLE=12
TRAIN_ARGS=(--lr-decay-style linear --lr-decay-ratio 0 --warmup 0 --weight-decay 0 --label-smoothing 0.1
    --epochs 10)
COMMON_ARGS=(--save-interval 10000 --log-interval 200 --eval-interval 1000 --eval-iters 100 --eval-epoch 1
    --overwrite)
TASK_ARGS=(--src-seq-length 512 --tgt-seq-length 64 --min-tgt-length 0 --length-penalty 0 --num-beams 5
    --select-topk --eval-batch-size 8 --validation-metric F1)
