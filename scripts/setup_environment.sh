# Give the calling script a Python with everything installed, in $PYTHON. To be sourced after launch.sh.
#
#   GLM_PYTHON        the interpreter a new .venv is made from        (default: python3, >= 3.10 with pip)
#   GLM_TORCH         what pip installs as torch, with any pip option (default: the version of constraints.txt)
#                     e.g. GLM_TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#   GLM_CONSTRAINTS   file of the versions to install, "none" for the newest ones  (default: constraints.txt)
#
# An active virtual environment that already has torch is used, with that torch; otherwise ./.venv is made once and
# reused. torch is installed first and alone: every other package would pull the newest CUDA build with it.

install() {
    as_step pip_install "$@"
}

pip_install() {
    cd -- "${GLM_TOP:-.}" && exec "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" # "." is a requirement
}

# Print constraints that leave torch, and what it requires, at the versions that are installed: $1 is a file, or none.
constraints_beside_torch() {
    "$PYTHON" - "$1" <<'END'
import importlib.metadata, re, sys
from pathlib import Path

def name_of(requirement):
    return re.match(r"[\w.-]*", requirement).group().lower().replace("_", "-")

kept = {"torch", *map(name_of, importlib.metadata.requires("torch") or ())}
lines = [] if sys.argv[1] == "none" else Path(sys.argv[1]).read_text(encoding="utf-8").split("\n")
print(f"torch=={importlib.metadata.version('torch')}", *(line for line in lines if name_of(line) not in kept), sep="\n")
END
}

setup_environment() {
    if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; then
        PYTHON="$VIRTUAL_ENV/bin/python"
    else
        local base="${GLM_PYTHON:-python3}"
        if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "error: '$base' is not Python >= 3.10; name one with GLM_PYTHON=/path/to/python" >&2
            return 2
        fi
        if [ ! -x "$GLM_TOP.venv/bin/python" ] && ! "$base" -m venv "$GLM_TOP.venv"; then
            rm -rf "$GLM_TOP.venv"
            echo "error: '$base -m venv $GLM_TOP.venv' failed; install Python's venv module (Debian: python3-venv) or activate an environment that has torch" >&2
            return 2
        fi
        PYTHON="${GLM_TOP:-$PWD/}.venv/bin/python" # in full: what is started may work in another folder
    fi
    export PYTHON
    local constraints="${GLM_CONSTRAINTS:-${GLM_TOP}constraints.txt}" prefix torch pinned installed
    local files=("${GLM_TOP}pyproject.toml" "${GLM_TOP}requirements.txt")
    if [ "$constraints" != none ]; then
        if [ ! -f "$constraints" ]; then
            echo "error: GLM_CONSTRAINTS $constraints: no such file; give one of 'package==version' lines, or none" >&2
            return 2
        fi
        constraints="$(realpath -- "$constraints")"
        files+=("$constraints")
        pinned="$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' "$constraints")"
    fi
    torch="${GLM_TORCH:-${pinned:-torch}}"
    prefix="$("$PYTHON" -c 'import sys; print(sys.prefix)')"
    installed="$torch $constraints $(cat "${files[@]}" | cksum) $(realpath -- "${GLM_TOP:-.}")"
    if [ "$(cat "$prefix/.glm-requirements" 2>/dev/null)" = "$installed" ]; then
        return 0
    fi
    echo "installing the requirements with $PYTHON (once; torch is the long part) ..."
    if ! "$PYTHON" -c 'import torch' 2>/dev/null || { [ -n "${GLM_TORCH:-}" ] && [ -z "${VIRTUAL_ENV:-}" ]; }; then
        if [ -z "${GLM_TORCH:-}" ] && [ "$constraints" != none ]; then
            install -c "$constraints" "$torch" || return 1
        else
            # shellcheck disable=SC2086  # GLM_TORCH may carry pip options, also an index without our versions
            install $torch || return 1
        fi
    fi
    constraints_beside_torch "$constraints" > "$prefix/.glm-constraints" || return 1
    install -c "$prefix/.glm-constraints" -r "${GLM_TOP}requirements.txt" || return 1
    printf '%s' "$installed" > "$prefix/.glm-requirements"
}
