# Give the calling script a Python with everything installed, in $PYTHON. To be sourced from the repository's top.
#
#   GLM_PYTHON  the interpreter a new .venv is made from        (default: python3, >= 3.10 with pip)
#   GLM_TORCH   what pip installs as torch, with any pip option (default: torch==2.13.0)
#               e.g. GLM_TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#
# An active virtual environment that already has torch is used as it is; otherwise ./.venv is made once and reused.
# torch is installed first and alone: every other package would pull the newest CUDA build with it.

setup_environment() {
    if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; then
        PYTHON="$VIRTUAL_ENV/bin/python"
    else
        local base="${GLM_PYTHON:-python3}"
        if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "error: '$base' is not Python >= 3.10; name one with GLM_PYTHON=/path/to/python" >&2
            return 2
        fi
        if [ ! -x .venv/bin/python ] && ! "$base" -m venv .venv; then
            rm -rf .venv
            echo "error: '$base -m venv .venv' failed; install Python's venv module (Debian: python3-venv) or activate an environment that has torch" >&2
            return 2
        fi
        PYTHON=".venv/bin/python"
    fi
    export PYTHON
    local wanted stamp
    stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.glm-requirements"
    wanted="${GLM_TORCH:-torch==2.13.0} $(cat pyproject.toml requirements.txt | cksum) $PWD"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    echo "installing the requirements with $PYTHON (once; torch is the long part) ..."
    if ! "$PYTHON" -c 'import torch' 2>/dev/null || { [ -n "${GLM_TORCH:-}" ] && [ -z "${VIRTUAL_ENV:-}" ]; }; then
        # shellcheck disable=SC2086  # GLM_TORCH may carry pip options
        "$PYTHON" -m pip install --quiet --disable-pip-version-check ${GLM_TORCH:-torch==2.13.0} || return 1
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt || return 1
    printf '%s' "$wanted" > "$stamp"
}
