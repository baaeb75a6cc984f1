#!/usr/bin/env bash
# Go on pre-training a model on your own text. Run it again and it resumes.
#
#   bash scripts/continue_pretrain.sh CHECKPOINT FILES... [--tokens N | --hours H] [--output FOLDER] [--general FILE]
#                                     [any flag of pretrain_glm.py]
#
#   CHECKPOINT   whatever this project reads: a run's folder, a released one, one of the Hugging Face layout; or an
#                adapter (LoRA), which is first merged into the model it was trained on (--base FOLDER: where that is)
#   FILES        your text (.jsonl with a key "text", .txt with a document per line, .parquet, also .gz .zst, folders)
#   --tokens     length of the training in tokens                       (default: those of the text, 100 updates at least)
#   --hours      its length in hours, by the speed of the first updates
#   --output     where everything goes: losses, checkpoints, the model as an exported folder       (default: continued)
#   --general    text that the model should not forget, of which it prints the loss as well (default: the English prose
#                that every CPython carries, for a tokenizer made for English)
#   N_GPU        processes on this machine                            (default: NUM_GPUS_PER_WORKER, else its GPUs)
#
# Of your text, one document in twenty (500 at most) is held out. Tokenizer and objectives are the model's own.
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"

OUTPUT=continued
for ((i = 1; i <= $#; i++)); do
    case "${!i}" in
        --output) next=$((i + 1)); OUTPUT="${!next:-}" ;;
        --output=*) word="${!i}"; OUTPUT="${word#*=}" ;;
    esac
done
export NUM_GPUS_PER_WORKER="${N_GPU:-${NUM_GPUS_PER_WORKER:-$(count_gpus 64)}}"
check_numbers NUM_GPUS_PER_WORKER

step() { printf '\n== %s\n' "$*"; }
launch() {
    if [ "$NUM_GPUS_PER_WORKER" -gt 1 ]; then launch_distributed "$@"; else launch_single "$@"; fi
}

step "1/5 the model, the text and what is held out of it"
as_step launch_single scripts/continue_pretrain.py plan "$@" --processes "$NUM_GPUS_PER_WORKER"
[ "${DRY_RUN:-}" != 1 ] || exit 0
mapfile -d '' -t FLAGS < "$OUTPUT/flags"

step "2/5 the losses before"
if [ ! -f "$OUTPUT/before.jsonl" ]; then
    as_step launch pretrain_glm.py "${FLAGS[@]}" --train-iters 0 --metrics-file "$OUTPUT/before.partial.jsonl"
    mv -- "$OUTPUT/before.partial.jsonl" "$OUTPUT/before.jsonl"
fi
if [ ! -f "$OUTPUT/updates" ]; then # --hours: how fast this machine is
    as_step launch pretrain_glm.py "${FLAGS[@]}" --train-iters 16 --log-interval 8 --eval-iters 1 --experiment-name speed \
        --metrics-file "$OUTPUT/speed.jsonl"
    as_step launch_single scripts/continue_pretrain.py updates "$OUTPUT"
fi
UPDATES="$(< "$OUTPUT/updates")"
RESULT="$OUTPUT/$(< "$OUTPUT/result")"

step "3/5 pre-training"
if [ ! -f "$OUTPUT/trained" ]; then
    every="$((UPDATES < 50 ? 5 : UPDATES / 10))"
    as_step launch pretrain_glm.py "${FLAGS[@]}" --train-iters "$UPDATES" --log-interval "$every" \
        --eval-interval "$((UPDATES < 500 ? 0 : UPDATES / 5))" --save "$OUTPUT/checkpoints" --save-interval "$every" \
        --keep-checkpoints 2 --experiment-name continued --auto-resume --metrics-file "$OUTPUT/after.jsonl"
    touch "$OUTPUT/trained"
fi

step "4/5 the model as an exported folder"
if [ ! -d "$RESULT" ]; then
    as_step launch_single scripts/convert_glm_checkpoint_to_transformers.py "$OUTPUT/checkpoints/continued" --output "$RESULT"
fi

step "5/5 before and after"
as_step launch_single scripts/continue_pretrain.py report "$OUTPUT"
