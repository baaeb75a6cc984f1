# The launcher every script ends in. To be sourced; sets the working folder to the repository's top.
#
#   launch_single PROGRAM ARGUMENTS...        one process on this machine
#   launch_distributed PROGRAM ARGUMENTS...   as many processes as the environment says; scripts/launch.py lists its
#                                             variables (NUM_WORKERS, NUM_GPUS_PER_WORKER, HOST_FILE_PATH ...)
#
#   PYTHON              the interpreter (default: the active environment, else ./.venv, else python3)
#   AVAILABLE_DEVICES   numbers of the GPUs to use, such as 0,1   (default: all)

CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1

if [ -n "${AVAILABLE_DEVICES:-}" ]; then
    if [[ ! "$AVAILABLE_DEVICES" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
        printf 'error: AVAILABLE_DEVICES is %q; give numbers of GPUs with commas between them, such as 0,1\n' \
            "$AVAILABLE_DEVICES" >&2
        exit 2
    fi
    export CUDA_VISIBLE_DEVICES="$AVAILABLE_DEVICES"
    commas="${AVAILABLE_DEVICES//[0-9]/}"
    NUM_GPUS_PER_WORKER="${NUM_GPUS_PER_WORKER:-$((${#commas} + 1))}"
fi

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -n "${VIRTUAL_ENV:-}" ]; then
        echo "$VIRTUAL_ENV/bin/python"
    elif [ -x .venv/bin/python ]; then
        echo ".venv/bin/python"
    else
        echo "python3"
    fi
}

# Run one program in this process, after showing the command.
launch_single() {
    local python
    python="$(find_python)"
    { printf '+'; printf ' %q' "$python" "$@"; printf '\n'; } >&2
    "$python" "$@"
}

# Tell whether find_python's interpreter has what the programs need.
has_requirements() {
    "$(find_python)" -c '
import importlib.util, sys
needed = ("torch", "numpy", "tokenizers", "sentencepiece", "tqdm")
sys.exit(any(importlib.util.find_spec(name) is None for name in needed))' 2> /dev/null
}

# End with one line unless every variable named holds a whole number of at least 1. To be called before arithmetic
# with variables that a user sets: bash evaluates what is in them, commands as well.
check_numbers() {
    local name
    for name in "$@"; do
        if [[ ! "${!name:-}" =~ ^[1-9][0-9]{0,8}$ ]]; then
            printf 'error: %s is %q; give a whole number from 1 to 999999999\n' "$name" "${!name:-}" >&2
            exit 2
        fi
    done
}

# Print the number of GPUs of this machine, but at most $1; without any: 1.
count_gpus() {
    "$(find_python)" scripts/launch.py --count-gpus "$1"
}

# Become one program in as many processes as the environment says: the script ends here, signals go to the launcher,
# and its exit code is the script's. Its output goes to logs/log-$LOG_NAME-<date>.txt as well.
launch_distributed() {
    export NUM_WORKERS NUM_GPUS_PER_WORKER RANKS_WITHOUT_GPU HOST_FILE_PATH NODE_RANK MASTER_ADDR MASTER_PORT \
        LAUNCHER LOG_NAME DRY_RUN
    exec "$(find_python)" scripts/launch.py "$@"
}
