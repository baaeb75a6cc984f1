#!/usr/bin/env bash
# Serve a page that fills blanks, and the same over HTTP (docs/web.md).
#
#   bash scripts/serve.sh [CHECKPOINT or MODEL_FILE] [options of python -m generation.web, such as --port 8000]
#
#   CHECKPOINT        folder or file of weights        (default: the one of scripts/quickstart.sh)
#   MODEL_FILE        config_tasks/model_blocklm_*.sh: the checkpoint that it names
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoints of model files (default: checkpoints)
set -euo pipefail
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
fi
CHECKPOINT=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    CHECKPOINT=("$(realpath -m -- "$1")")
    shift
fi
source "$(dirname -- "$0")/launch.sh"
if [[ "${CHECKPOINT[0]:-}" = *.sh ]]; then
    if [ ! -f "${CHECKPOINT[0]}" ]; then
        echo "error: ${CHECKPOINT[0]}: no such model file; config_tasks/model_blocklm_*.sh are there" >&2
        exit 2
    fi
    GENERATION_ARGS=""
    source "${CHECKPOINT[0]}"
    # shellcheck disable=SC2206  # MODEL_ARGS and a model's own GENERATION_ARGS are lists of words
    words=(${MODEL_ARGS[@]} ${GENERATION_ARGS:-})
    CHECKPOINT=()
    for ((i = 0; i + 1 < ${#words[@]}; i++)); do
        case "${words[i]}" in
            --load-pretrained) CHECKPOINT=("${words[i + 1]}") ;;
            --fill) set -- --fill "${words[i + 1]}" "$@" ;;
        esac
    done
    if [ ${#CHECKPOINT[@]} = 0 ]; then
        echo "error: $MODEL_TYPE names no checkpoint (--load-pretrained in MODEL_ARGS)" >&2
        exit 2
    fi
fi
launch_single -m generation.web ${CHECKPOINT[0]+"${CHECKPOINT[@]}"} "$@"
