# The mixture of the released summarizer: papers and news, summarized in Chinese. To be sourced.
#   DATA_PATH   folder of the task's files   (default: $DATA_ROOT/ncls)
EXPERIMENT_NAME="${MODEL_TYPE}-zhsum"
TASK_NAME=zhsum
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/ncls}"

TRAIN_ARGS=(--epochs 10 --batch-size 64 --lr 5e-5 --lr-decay-style linear --lr-decay-ratio 0 --warmup 0
    --weight-decay 0 --label-smoothing 0.1)
COMMON_ARGS=(--save-interval 1000 --log-interval 50 --eval-interval 1000 --eval-iters 100)
TASK_ARGS=(--src-seq-length 768 --tgt-seq-length 160 --min-tgt-length 100 --length-penalty 0.7
    --no-repeat-ngram-size 3 --num-beams 5 --select-topk --eval-batch-size 4)
