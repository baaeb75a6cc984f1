#!/usr/bin/env bash
# Run the tests of the Hugging Face files with the oldest supported transformers, the newest, and two in between.
#
#   bash scripts/check_transformers_versions.sh [TEST_FILE ...]       (default: all tests of the Hugging Face files)
#
#   GLM_TRANSFORMERS  the versions, "newest" for the newest one       (default: "4.40.2 5.0.0 5.23.0 newest")
#   GLM_PYTHON        the interpreter the environments are made from  (default: .venv/bin/python, else python3)
#   GLM_TORCH         what pip installs as torch, with any pip option, where the interpreter has none
#                     (default: the version of constraints.txt)
#
# The environments stay in build/transformers-VERSION and are used again; remove one to make it anew. They see the
# packages of the interpreter, so that torch is not installed again; what a version needs otherwise lies in front.
set -uo pipefail
source "$(dirname -- "$0")/launch.sh"
cd -- "${GLM_TOP:-.}" || exit

python="${GLM_PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"

make_environment() { # folder, version
    local requirement="transformers==$2" others="numpy accelerate peft"
    if [ "$2" = newest ]; then
        requirement="transformers"
    elif [ "$(printf '%s\n4.46\n' "$2" | sort -V | head -n 1)" = "$2" ]; then
        others="numpy<2 accelerate<1 peft<0.12" # what there was in the days of these versions
    fi
    if [ ! -e "$1/.complete" ]; then
        echo "making $1 ..."
        rm -rf "$1"
        "$python" -m venv "$1" || return 1
        local packages
        if packages="$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)' 2>/dev/null)"; then
            echo "$packages" >"$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/interpreter.pth"
        else
            # shellcheck disable=SC2086  # a list of words, on purpose
            "$1/bin/python" -m pip install --quiet --disable-pip-version-check ${GLM_TORCH:-$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)} || return 1
        fi
    elif [ "$2" != newest ]; then
        return 0
    fi
    # shellcheck disable=SC2086  # a list of words, on purpose
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "$requirement" $others \
        safetensors sentencepiece tqdm pytest pytest-timeout &&
        touch "$1/.complete"
}

if [ $# -eq 0 ]; then
    set -- tests/model/test_golden_hf.py tests/model/test_hf_*.py tests/house/test_readme_huggingface.py \
        tests/house/test_docs_huggingface.py
fi
status=0
summary=""
for version in ${GLM_TRANSFORMERS:-4.40.2 5.0.0 5.23.0 newest}; do
    folder="build/transformers-$version"
    if ! make_environment "$folder" "$version"; then
        echo "error: $folder could not be made; look at pip's message above" >&2
        exit 2
    fi
    installed="$("$folder/bin/python" -c 'import transformers; print(transformers.__version__)')"
    echo "== transformers $installed"
    if as_step "$folder/bin/python" -m pytest -q "$@"; then
        summary+="transformers $installed: passed"$'\n'
    else
        summary+="transformers $installed: FAILED"$'\n'
        status=1
    fi
done
printf '%s' "$summary"
exit "$status"
