#!/usr/bin/env bash
# Run the tests of the Hugging Face files with the oldest and the newest supported transformers.
#
#   bash scripts/check_transformers_versions.sh [TEST_FILE ...]       (default: all tests of the Hugging Face files)
#
#   GLM_TRANSFORMERS  the versions, "newest" for the newest one       (default: "4.40.2 newest")
#   GLM_PYTHON        the interpreter the environments are made from  (default: python3)
#   GLM_TORCH         what pip installs as torch, with any pip option (default: torch==2.13.0)
#
# The environments stay in build/transformers-VERSION and are used again; remove one to make it anew.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() { # folder, version
    local requirement="transformers==$2" others="numpy accelerate peft"
    if [ "$2" = newest ]; then
        requirement="transformers"
    elif [ "$(printf '%s\n4.46\n' "$2" | sort -V | head -n 1)" = "$2" ]; then
        others="numpy<2 accelerate<1 peft<0.12" # what there was in the days of these versions
    fi
    "${GLM_PYTHON:-python3}" -m venv "$1" || return 1
    # shellcheck disable=SC2086  # lists of words, on purpose
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check ${GLM_TORCH:-torch==2.13.0} &&
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check "$requirement" $others \
            safetensors sentencepiece tqdm pytest pytest-timeout &&
        touch "$1/.complete"
}

if [ $# -eq 0 ]; then
    set -- tests/model/test_golden_hf.py tests/test_model_hf_*.py tests/house/test_readme_huggingface.py tests/house/test_docs_huggingface.py
fi
status=0
summary=""
for version in ${GLM_TRANSFORMERS:-4.40.2 newest}; do
    folder="build/transformers-$version"
    if [ ! -e "$folder/.complete" ]; then
        echo "making $folder ..."
        rm -rf "$folder"
        if ! make_environment "$folder" "$version"; then
            echo "error: $folder could not be made; look at pip's message above" >&2
            exit 2
        fi
    fi
    installed="$("$folder/bin/python" -c 'import transformers; print(transformers.__version__)')"
    echo "== transformers $installed"
    if "$folder/bin/python" -m pytest -q "$@"; then
        summary+="transformers $installed: passed"$'\n'
    else
        summary+="transformers $installed: FAILED"$'\n'
        status=1
    fi
done
printf '%s' "$summary"
exit "$status"
