#!/usr/bin/env bash
# Set up, pre-train a small GLM on real text, and see how well it fills blanks. Run it again and it resumes.
#
#   bash scripts/quickstart.sh [--data FILE ...] [--steps N] [--output FOLDER]
#
#   --data     your own text in any language (.txt with a document per line, .jsonl with a key "text", .parquet, also
#              .gz .zst); default: the English prose that every CPython carries
#   --steps    length of the training (default 2000, about seven minutes on two cores)
#   --output   where everything goes (default: quickstart); a corpus and a model that are there are used as they are
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
source "${GLM_TOP}scripts/small_corpus.sh"

split_data "$@"
set -- "${WORDS[@]}"
STEPS=2000 OUTPUT=quickstart
while [ $# -gt 0 ]; do
    if [[ $# -eq 1 && "$1" =~ ^--(steps|output)$ ]]; then
        echo "error: $1 needs a value" >&2
        exit 2
    fi
    case "$1" in
        --steps) STEPS="$2"; shift 2 ;;
        --output) OUTPUT="$2"; shift 2 ;;
        *) echo "error: unknown option '$1'; known are --data, --steps, --output" >&2; exit 2 ;;
    esac
done
check_numbers STEPS
source "${GLM_TOP}scripts/setup_environment.sh"
setup_environment

step() { printf '\n== %s\n' "$*"; }

step "1/4, 2/4 corpus and tokenizer"
prepare_small_corpus "$OUTPUT" "${DATA[@]}"

step "3/4 pre-training: tokens, sentences and documents are blanked out and filled in"
as_step launch_single pretrain_glm.py \
    --block-lm --task-mask --hidden-dropout 0 --attention-dropout 0 \
    --num-layers 4 --hidden-size 192 --num-attention-heads 4 --max-position-embeddings 256 \
    --tokenizer-type SentencePieceTokenizer --tokenizer-path "$OUTPUT/tokenizer.model" \
    --bert-prob 0.7 --gap-sentence-prob 0.1 --gpt-min-ratio 0.25 --bert-ratio 0.4 --avg-block-length 1 --seq-length 64 \
    --train-data "$OUTPUT/train.jsonl" --valid-data "$OUTPUT/valid.jsonl" --split 1 --data-cache-dir "$OUTPUT/cache" \
    --batch-size 16 --initialization neighbours \
    --lr 1e-3 --warmup 0.15 --lr-decay-style cosine --weight-decay 0.02 --adam-beta2 0.98 \
    --train-iters "$STEPS" --log-interval "$((STEPS < 1000 ? (STEPS + 9) / 10 : 100))" --eval-interval 500 --eval-iters 100 --eval-at-start \
    --experiment-name quickstart --save "$OUTPUT/checkpoints" --auto-resume --save-interval 500 --keep-checkpoints 2 \
    --summary-dir "$OUTPUT"

step "4/4 filling blanks in text held out from training"
as_step launch_single scripts/score_blanks.py "$OUTPUT/checkpoints/quickstart" "$OUTPUT"

[ "${DRY_RUN:-}" != 1 ] || exit 0
printf -v folder %q "$OUTPUT" # as a shell reads it: the lines below are there to be copied
printf -v top %q "$GLM_TOP"
top="${top#\'\'}"
printf -v python %q "$PYTHON"
python="${top:+PYTHONPATH=${top%/} }$python"
cat << EOF

Done. Loss curves: $OUTPUT/runs/quickstart/loss.png
Next:
  bash ${top}scripts/quickstart.sh --steps $((2 * STEPS)) --output $folder          train on from here
  $python ${top}generate_samples.py --load-pretrained $folder/checkpoints/quickstart --num-beams 4    fill your own blanks
  bash ${top}scripts/serve.sh $folder/checkpoints/quickstart          the same on a page
  $python ${top}scripts/score_blanks.py ${top}model/demo $folder          the same table for the demo model, trained on books
  bash ${top}scripts/generate_block.sh --top-k 1          fill blanks with that one
  $python -m data_utils.show --train-data $folder/train.jsonl --task-mask \\
      --tokenizer-type SentencePieceTokenizer --tokenizer-path $folder/tokenizer.model      see training samples
  $python -m tensorboard.main --logdir $folder/runs
EOF
