#!/usr/bin/env bash
# Fill the blanks of contexts typed in: [MASK] a few words, [sMASK] a sentence, [gMASK] a long text.
#
#   bash scripts/generate_block.sh [MODEL_FILE] [any flag of generate_samples.py]
#
#   MODEL_FILE        config_tasks/model_blocklm_*.sh, or the folder of a checkpoint of your own  (default: the demo model)
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoints (default: checkpoints)
#
# For example greedy (--top-k 1), beams (--num-beams 4), or a file instead of typing (--input FILE --output FILE).
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
GENERATION_ARGS=()
if [ $# -eq 0 ] || [ "${1#--}" != "$1" ]; then
    MODEL_ARGS=() # the program takes the demo model, and says so
else
    check_file model "$1"
    source_model "$1"
    shift
fi
as_lists MODEL_ARGS GENERATION_ARGS

# On the CPU every token reads every weight: from large pages, where the system has them, in a tenth less time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

launch_single generate_samples.py "${MODEL_ARGS[@]}" \
    --model-parallel-size 1 --fp16 \
    --seq-length 512 --mem-length 0 --out-seq-length 512 \
    --temperature 0.9 --top-k 40 --top-p 0 "${GENERATION_ARGS[@]}" "$@"
