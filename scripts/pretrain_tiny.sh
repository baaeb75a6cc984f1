#!/usr/bin/env bash
# Pre-train a small GLM with 1024 positions: where the task scripts start from on a laptop.
# About ten minutes on two cores. Run it again and it resumes.
#
#   bash scripts/pretrain_tiny.sh en|zh [--data FILE ...] [any flag of pretrain_glm.py]
#
#   --data       your own text (.txt with a document per line, .jsonl with a key "text", .parquet, also .gz .zst);
#                en without it: the English prose that every CPython carries; zh needs it
#   TINY_DATA    folder of the text and the tokenizer made of it; what is there is used   (default: data/tiny-{en,zh})
#   STEPS        length of the training                                                   (default: 1800 en, 1400 zh)
#   SAVE_PATH    where checkpoints go: $SAVE_PATH/blocklm-tiny-{en,zh}                    (default: checkpoints)
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
source "${GLM_TOP}scripts/small_corpus.sh"

LANGUAGE="${1:-}"
case "$LANGUAGE" in
    en) STEPS="${STEPS:-1800}" ;;
    zh) STEPS="${STEPS:-1400}" ;;
    *) echo "error: name a language: bash scripts/pretrain_tiny.sh en|zh (given: '$LANGUAGE')" >&2; exit 2 ;;
esac
check_numbers STEPS
split_data "${@:2}"
TINY_DATA="${TINY_DATA:-data/tiny-$LANGUAGE}"
if [ "$LANGUAGE" = zh ] && [ ${#DATA[@]} -eq 0 ] && [ ! -f "$TINY_DATA/train.jsonl" ]; then
    echo "error: there is no Chinese text in $TINY_DATA: name yours with --data FILE ..." >&2
    exit 2
fi
prepare_small_corpus "$TINY_DATA" "${DATA[@]}"

# Samples of 512 tokens, some of them cut into shorter ones; three objectives.
launch_single pretrain_glm.py \
    --block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.2 --gpt-min-ratio 0.25 --short-seq-prob 0.1 \
    --num-layers 6 --hidden-size 256 --num-attention-heads 4 --seq-length 512 --max-position-embeddings 1024 \
    --tokenizer-type SentencePieceTokenizer --tokenizer-path "$TINY_DATA/tokenizer.model" \
    --train-data "$TINY_DATA/train.jsonl" --valid-data "$TINY_DATA/valid.jsonl" --split 1 --data-cache-dir "$TINY_DATA/cache" \
    --batch-size 2 --lr 5e-4 --lr-decay-style cosine --lr-decay-ratio 0.1 --warmup 0.05 --weight-decay 0.05 \
    --hidden-dropout 0.0 --attention-dropout 0.0 \
    --train-iters "$STEPS" --log-interval 40 --eval-interval 400 --eval-iters 40 --eval-at-start --save-interval 400 \
    --keep-checkpoints 2 --experiment-name "blocklm-tiny-$LANGUAGE" --save "${SAVE_PATH:-checkpoints}" --auto-resume "${WORDS[@]}"
