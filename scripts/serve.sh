#!/usr/bin/env bash
# Serve a page that fills blanks, and the same over HTTP (docs/web.md).
#
#   bash scripts/serve.sh [CHECKPOINT or MODEL_FILE] [options of python -m generation.web, such as --port 8001]
#
#   CHECKPOINT        folder or file of weights        (default: the one of scripts/quickstart.sh, else the demo model)
#   MODEL_FILE        config_tasks/model_blocklm_*.sh: the checkpoint that it names
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoints of model files (default: checkpoints)
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
if [[ "${1:-}" = *.sh ]]; then
    check_file model "$1"
    GENERATION_ARGS=()
    source "$(realpath -- "$1")"
    set -- --model-file "$@"
    as_lists MODEL_ARGS GENERATION_ARGS
    words=("${MODEL_ARGS[@]}" "${GENERATION_ARGS[@]}")
    for ((i = 0; i + 1 < ${#words[@]}; i++)); do # what the page takes of the flags of generate_samples.py
        case "${words[i]}" in
            --load-pretrained) set -- "$@" -- "${words[i + 1]}" ;;
            --fill) set -- --fill "${words[i + 1]}" "$@" ;;
        esac
    done
fi
launch_single -m generation.web "$@"
