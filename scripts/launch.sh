# What every script begins with. To be sourced with the script's own words: --help among them prints the comment at the
# script's top and ends it. The working folder stays the one where the user typed, so that every relative path is meant
# from there; $GLM_TOP stands before the files of this repository.
#
#   launch_single PROGRAM ARGUMENTS...        become one process on this machine
#   launch_distributed PROGRAM ARGUMENTS...   become as many processes as the environment says; scripts/launch.py lists
#                                             its variables (NUM_WORKERS, NUM_GPUS_PER_WORKER, HOST_FILE_PATH ...)
#   as_step COMMAND ...                       either of them, or any command, as one step of several
#
#   PYTHON              the interpreter (default: the active environment, else .venv of the repository, else python3)
#   AVAILABLE_DEVICES   numbers of the GPUs to use, such as 0,1   (default: all)

for word in "$@"; do
    if [[ "$word" = --help || "$word" = -h ]]; then
        sed -n '2,${/^#/!q; s/^# \{0,1\}//; p;}' "$0"
        exit 0
    fi
done
unset word
GLM_TOP="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)/"
if [ "$GLM_TOP" -ef . ]; then
    GLM_TOP=""
else
    export PYTHONPATH="${GLM_TOP%/}${PYTHONPATH:+:$PYTHONPATH}" # for python -m
fi

if [ -z "${PYTORCH_ALLOC_CONF+set}${PYTORCH_CUDA_ALLOC_CONF+set}" ]; then
    export PYTORCH_ALLOC_CONF=expandable_segments:True # batches of many sizes leave no holes in a GPU's memory
fi

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
    elif [ -x "$GLM_TOP.venv/bin/python" ]; then
        echo "$GLM_TOP.venv/bin/python"
    else
        echo "python3"
    fi
}

# Become one program, a file of the repository or "-m" and a module, after showing the command; DRY_RUN=1: only show it.
launch_single() {
    local program="$1" python
    shift
    python="$(find_python)"
    [ "$program" = -m ] || program="$GLM_TOP$program"
    { printf '+'; printf ' %q' "$python" "$program" "$@"; printf '\n'; } >&2
    if [ "${DRY_RUN:-}" != 1 ]; then
        exec "$python" "$program" "$@"
    fi
}

# Become one program in as many processes as the environment says: signals go to the launcher, and its exit code is the
# script's. Its output goes to logs/log-$LOG_NAME-<date>.txt as well.
launch_distributed() {
    export NUM_WORKERS NUM_GPUS_PER_WORKER RANKS_WITHOUT_GPU HOST_FILE_PATH NODE_RANK MASTER_ADDR MASTER_PORT \
        LAUNCHER LOG_NAME DRY_RUN
    [ $# -eq 0 ] || set -- "$GLM_TOP$1" "${@:2}"
    exec "$(find_python)" "${GLM_TOP}scripts/launch.py" "$@"
}

# Run a command as one step of several. A signal goes to it, and when it has ended there is no further step. What fails
# ends the script under "set -e".
as_step() {
    local signal
    declare -F "$1" > /dev/null || set -- exec "$@"
    (trap - INT QUIT && "$@") <&0 & # what bash starts in the background ignores Ctrl-C
    STEP=$!
    for signal in HUP INT TERM USR1; do
        # shellcheck disable=SC2064  # the name of this signal
        trap "end_step $signal" "$signal"
    done
    local code=0
    wait "$STEP" || code=$?
    trap - HUP INT TERM USR1
    return "$code"
}

end_step() {
    local code=0 number
    number="$(kill -l "$1")"
    trap '' HUP INT TERM USR1
    kill -"${1/INT/TERM}" "$STEP" 2> /dev/null || true # a Ctrl-C has reached it already; a second would not let it save
    wait "$STEP" || code=$?
    exit "$((code > 0 ? code : 128 + number))"
}

# Source the model file $1. A checkpoint's folder says itself what model it is, and is all that such a file would set.
source_model() {
    if [ -d "$1" ]; then
        MODEL_TYPE="$(basename -- "$(realpath -- "$1")")"
        MODEL_ARGS=(--cloze-eval --load-pretrained "$1")
    else
        source "$(realpath -- "$1")"
    fi
}

# End with one line unless $2 is a file of the kind $1, which is told by a variable that all of its kind set; a model may
# be a checkpoint's folder as well.
check_file() {
    local -A sets=([model]=MODEL_ARGS [understanding]=MAX_SEQ_LEN [sequence-to-sequence]=TASK_ARGS
        [evaluation]=EVALUATE_ARGS [pre-training]=gpt_options)
    local -A shipped=([model]=config_tasks/model_ [understanding]=config_tasks/task_ [evaluation]=config_tasks/zero_
        [sequence-to-sequence]=config_tasks/seq_ [pre-training]=config/ds_)
    local kind="$1" file="${2:-}" other found="" needed
    needed="name one of $GLM_TOP${shipped[$kind]}*.sh"
    if [ "$kind" = model ]; then
        needed="$needed, or the folder of a checkpoint of your own"
        [ ! -d "$file" ] || return 0
    fi
    if [ ! -f "$file" ]; then
        printf 'error: %s; %s\n' "$([ -n "$file" ] && echo "$file: no such file" || echo "no $kind file is named")" "$needed" >&2
        exit 2
    fi
    for other in "${!sets[@]}"; do
        if LC_ALL=C grep -q -a -E "^([^#]*[[:space:];])?${sets[$other]}\+?=" "$file"; then
            [ "$other" = "$kind" ] && return
            found="of the kind $other"
        fi
    done
    if [ -n "$found" ] || ! LC_ALL=C grep -q -a -E '^[[:space:]]*(source|\.) ' "$file"; then
        echo "error: $file is ${found:-no $kind file} (it sets no ${sets[$kind]}); $needed" >&2
        exit 2
    fi
}

# Make lists of the variables named: a file of the original, or the environment, has words in one text.
as_lists() {
    local name
    for name in "$@"; do
        if [[ "$(declare -p "$name" 2> /dev/null)" != "declare -a"* ]]; then
            read -r -d '' -a "$name" <<< "${!name:-}" || true
        fi
    done
}

# Tell whether find_python's interpreter has what the programs need.
has_requirements() {
    "$(find_python)" -c '
import sys
from importlib.util import find_spec
from files.errors import REQUIRED_PACKAGES
sys.exit(any(find_spec(name) is None for name in REQUIRED_PACKAGES))' 2> /dev/null
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
    "$(find_python)" "${GLM_TOP}scripts/launch.py" --count-gpus "$1"
}
