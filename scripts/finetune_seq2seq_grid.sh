#!/usr/bin/env bash
# Fine-tune on a sequence-to-sequence task for every setting of a grid, and summarize. Runs that are done are skipped.
#
#   bash scripts/finetune_seq2seq_grid.sh MODEL_FILE TASK_FILE [any flag of scripts/dispatcher.py]
#   LRS       learning rates         (default: 5e-6 1e-5 2e-5)
#   BATCHES   batch sizes            (default: 4 8 12)
#   EPOCHS    epochs                 (default: 5 10)
#   GPUS      their numbers, separated by commas; as many runs at a time as there are groups of N_GPU  (default: all)
#   N_GPU     processes of each run  (default: 1)
#   and DATA_ROOT, DATA_PATH, CHECKPOINT_PATH, SAVE_PATH of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"

as_list() {
    local IFS=,
    echo "[$*]"
}

# shellcheck disable=SC2046,SC2086  # the grid's values are lists of words
launch_single scripts/dispatcher.py --model "$MODEL_FILE" --task "$TASK_FILE" --n_gpu "${N_GPU:-1}" \
    --gpu "${GPUS:-$(seq -s, 0 $(($(count_gpus 64) - 1)))}" \
    --grid "{\"lr\": $(as_list ${LRS:-5e-6 1e-5 2e-5}), \"batch-size\": $(as_list ${BATCHES:-4 8 12}), \
\"epochs\": $(as_list ${EPOCHS:-5 10})}" "$@"
