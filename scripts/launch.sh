# The launcher every script ends in. To be sourced; sets the working folder to the repository's top.
#
#   launch_single PROGRAM ARGUMENTS...        one process on this machine
#   launch_distributed PROGRAM ARGUMENTS...   as many processes as the environment says; scripts/launch_ranks.py lists
#                                             its variables (NUM_WORKERS, NUM_GPUS_PER_WORKER, HOST_FILE_PATH ...)
#
#   PYTHON   the interpreter (default: the active environment, else ./.venv, else python3)

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

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
    echo "+ $python $*" >&2
    "$python" "$@"
}

# Run one program in several processes; its output goes to logs/log-$LOG_NAME-<date>.txt as well.
launch_distributed() {
    "$(find_python)" scripts/launch_ranks.py "$@"
}
