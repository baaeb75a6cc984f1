#!/usr/bin/env bash
# Fill blanks with a model and a prefix prompt (P-tuning v2) that was trained for it.
#
#   bash scripts/generate_block_ptuning.sh MODEL_FILE PROMPT [any flag of generate_samples.py]
#
#   MODEL_FILE        config_tasks/model_blocklm_*.sh
#   PROMPT            checkpoint of the run that trained the prefix (--prefix-prompt, --freeze-transformer)
#   PROMPT_LENGTH     its number of vectors             (default: 100)
#   PROMPT_FUNC       what computes them: none, mlp, lstm  (default: none)
set -euo pipefail
if [ $# -lt 2 ] || [ ! -f "$1" ]; then
    echo "error: name a model file and a prompt: bash scripts/generate_block_ptuning.sh config_tasks/model_blocklm_*.sh" \
        "PROMPT (given: '${1:-}' '${2:-}')" >&2
    exit 2
fi
MODEL_FILE="$1"
PROMPT="$(realpath -m -- "$2")"
shift 2
exec bash "$(dirname -- "$0")/generate_block.sh" "$MODEL_FILE" --load "$PROMPT" \
    --prefix-prompt "${PROMPT_LENGTH:-100}" --prompt-func "${PROMPT_FUNC:-none}" "$@"
