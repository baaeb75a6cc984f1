#!/usr/bin/env bash
# Pre-train a small GLM with 1024 positions on real text: where the task scripts start from on a laptop.
# About ten minutes on two cores. Run it again and it resumes.
#
#   bash scripts/pretrain_tiny.sh en|zh [any flag of pretrain_glm.py]
#
#   DATA_ROOT      folder with pretrain/{en_books,zh}_{train,valid}.jsonl    (default: ../shared/data)
#   GLM_VOCAB_DIR  folder with bert-uncased/vocab.txt, chinese-sp/...         (default: $DATA_ROOT/vocab)
#   STEPS          length of the training                                     (default: 1800 en, 1400 zh)
#   SAVE_PATH      where checkpoints go: $SAVE_PATH/blocklm-tiny-{en,zh}      (default: checkpoints)
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"

LANGUAGE="${1:-}"
DATA_ROOT="${DATA_ROOT:-../shared/data}"
SAVE_PATH="${SAVE_PATH:-checkpoints}"
export GLM_VOCAB_DIR="${GLM_VOCAB_DIR:-$DATA_ROOT/vocab}"
case "$LANGUAGE" in
    en) CORPUS=en_books STEPS="${STEPS:-1800}" TOKENIZER_ARGS="--tokenizer-type BertWordPieceTokenizer --tokenizer-model-type bert-base-uncased" ;;
    zh) CORPUS=zh STEPS="${STEPS:-1400}" TOKENIZER_ARGS="--tokenizer-type ChineseSPTokenizer --fix-command-token" ;;
    *) echo "error: name a language: bash scripts/pretrain_tiny.sh en|zh (given: '$LANGUAGE')" >&2; exit 2 ;;
esac
shift

# Samples of 512 tokens, some of them cut into shorter ones; three objectives.
# shellcheck disable=SC2086  # TOKENIZER_ARGS is a list of words
launch_single pretrain_glm.py \
    --block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.2 --gpt-min-ratio 0.25 --short-seq-prob 0.1 \
    --num-layers 6 --hidden-size 256 --num-attention-heads 4 --seq-length 512 --max-position-embeddings 1024 \
    $TOKENIZER_ARGS \
    --train-data "$DATA_ROOT/pretrain/${CORPUS}_train.jsonl" --valid-data "$DATA_ROOT/pretrain/${CORPUS}_valid.jsonl" --split 1 \
    --batch-size 2 --lr 5e-4 --lr-decay-style cosine --lr-decay-ratio 0.1 --warmup 0.05 --weight-decay 0.05 \
    --hidden-dropout 0.0 --attention-dropout 0.0 --bf16 \
    --train-iters "$STEPS" --log-interval 40 --eval-interval 400 --eval-iters 40 --eval-at-start --save-interval 400 \
    --keep-checkpoints 2 --experiment-name "blocklm-tiny-$LANGUAGE" --save "$SAVE_PATH" --auto-resume "$@"
