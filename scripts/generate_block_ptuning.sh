#!/usr/bin/env bash
# Fill blanks with a model and a prefix prompt (P-tuning v2) that was trained for it.
#
#   bash scripts/generate_block_ptuning.sh MODEL_FILE PROMPT [any flag of generate_samples.py]
#
#   MODEL_FILE        config_tasks/model_blocklm_*.sh, or the folder of a checkpoint of your own
#   PROMPT            checkpoint of the run that trained the prefix (--prefix-prompt, --freeze-transformer)
#   PROMPT_LENGTH     its number of vectors             (default: 100)
#   PROMPT_FUNC       what computes them: none, mlp, lstm  (default: none)
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
check_file model "${1:-}"
if [ ! -e "${2:-}" ]; then
    echo "error: PROMPT '${2:-}': no such checkpoint; name that of the run that trained the prefix after the model file" >&2
    exit 2
fi
exec bash "${GLM_TOP}scripts/generate_block.sh" "$1" --load "$2" \
    --prefix-prompt "${PROMPT_LENGTH:-100}" --prompt-func "${PROMPT_FUNC:-none}" "${@:3}"
