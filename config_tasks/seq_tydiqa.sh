# TyDiQA-GoldP: questions in nine languages, trained in English (folder tydiqa). To be sourced.
#   DATA_PATH   folder of the task's files   (default: $DATA_ROOT)
EXPERIMENT_NAME="${MODEL_TYPE}-tydiqa"
TASK_NAME=tydiqa
DATA_PATH="${DATA_PATH:-${DATA_ROOT}}"

LR_SINGLE=1e-5
EPOCH_SINGLE=20
BATCH_SINGLE=12
TRAIN_ARGS=(--lr-decay-style linear --lr-decay-ratio 0 --warmup 0.06 --weight-decay 1.0e-1
    --label-smoothing 0.1 --epochs 40)
COMMON_ARGS=(--save-interval 10000 --log-interval 200 --eval-interval 1000 --eval-iters 100 --eval-epoch 1
    --overwrite)
TASK_ARGS=(--src-seq-length 512 --tgt-seq-length 64 --min-tgt-length 0 --length-penalty 0 --num-beams 5
    --select-topk --eval-batch-size 8 --validation-metric F1)
