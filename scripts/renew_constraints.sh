#!/usr/bin/env bash
# Run all tests with the newest versions of every package and, when they pass, write those into constraints.txt.
#
#   bash scripts/renew_constraints.sh [--check] [pytest arguments]
#
#   --check       write nothing: tell whether the tests pass with the newest versions
#   GLM_PYTHON    the interpreter; older ones take the newest versions that exist for them   (default: python3)
#   GLM_TORCH     what pip installs as torch, with any pip option                            (default: torch)
#
# The environment is made anew in build/newest-packages every time.
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
cd -- "${GLM_TOP:-.}"

# Print the content of constraints.txt for the environment of $1, a Python with everything installed.
freeze_constraints() {
    local version
    version="$("$1" -c 'import sys; print("{}.{}".format(*sys.version_info))')"
    cat <<END
# The exact versions that all tests passed with, of every package, direct and indirect. Written by
# scripts/renew_constraints.sh (pip freeze of a fresh environment after the tests); do not edit.
#
# scripts/setup_environment.sh installs with it, by hand: pip install -c constraints.txt -r requirements.txt
# GLM_CONSTRAINTS=none takes the newest versions instead.
#
# Python $version wrote it. Older Pythons take the newest versions that exist for them: many packages leave an old Python
# behind before we do, so one version for all of them need not exist. The build of torch is not chosen here: no local
# version (+cpu, +cu130), and the NVIDIA packages and Triton, which a CUDA build pins itself, are left out.
END
    "$1" -m pip freeze --exclude-editable | grep -v -i -E '^(nvidia|cuda|triton)' |
        sed -E "s/^(torch==[^+]*)\+.*/\1/; s/\$/ ; python_version >= \"$version\"/"
}

CHECK=""
if [ "${1:-}" = --check ]; then
    CHECK=1
    shift
fi
FOLDER="$PWD/build/newest-packages"
rm -rf "$FOLDER"
"${GLM_PYTHON:-python3}" -m venv "$FOLDER"
# shellcheck disable=SC2086  # GLM_TORCH may carry pip options
"$FOLDER/bin/python" -m pip install --quiet --disable-pip-version-check ${GLM_TORCH:-torch}
export VIRTUAL_ENV="$FOLDER" GLM_CONSTRAINTS=none
unset GLM_TORCH
if ! as_step bash scripts/test.sh "$@"; then
    echo "error: the tests fail with the newest versions; constraints.txt stays as it is. What is installed:" >&2
    "$FOLDER/bin/python" -m pip freeze --exclude-editable >&2
    exit 1
fi
if [ -n "$CHECK" ]; then
    echo "the tests pass with the newest versions; what differs from constraints.txt:"
    freeze_constraints "$FOLDER/bin/python" | diff constraints.txt - || true
else
    freeze_constraints "$FOLDER/bin/python" > constraints.txt
    echo "constraints.txt is renewed"
fi
