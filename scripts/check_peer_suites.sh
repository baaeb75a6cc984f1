#!/usr/bin/env bash
# Run the common suites of transformers over all our Hugging Face classes and tokenizers, and compare what fails with
# tests/peer_suites/not_applicable.txt, which says for every test that cannot apply why. Five to fifteen minutes on two cores.
#
#   bash scripts/check_peer_suites.sh [pytest arguments, such as -k TestModelAlone]
#
#   GLM_PYTHON              the interpreter, with transformers      (default: .venv/bin/python, else python3), e.g.
#                           build/transformers-4.40.2/bin/python of scripts/check_transformers_versions.sh
#   GLM_TRANSFORMERS_TESTS  the folder tests/ of a checkout of transformers of that version, with which the suite of
#                           generation runs too (default: the tests in the source archive of the package registry)
#
# What is fetched lies in a temporary folder and goes with it.
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
cd -- "${GLM_TOP:-.}"

python="${GLM_PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
if ! version="$("$python" -c 'import transformers; print(transformers.__version__)')"; then
    echo "error: $python has no transformers; install it, or name another one with GLM_PYTHON" >&2
    exit 2
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
suites="$folder/transformers_tests"
if [ -n "${GLM_TRANSFORMERS_TESTS:-}" ]; then
    cp -r "$GLM_TRANSFORMERS_TESTS" "$suites"
else
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
        --dest "$folder" "transformers==$version"
    tar -xzf "$folder/transformers-$version.tar.gz" -C "$folder" --strip-components=1 "transformers-$version/tests"
    mv "$folder/tests" "$suites"
fi
# The archive has the common suites alone; what they take from others is empty then, and one reads a text.
mkdir -p "$suites/generation" "$suites/exporters" "$suites/fixtures"
touch "$suites/__init__.py" "$suites/generation/__init__.py" "$suites/exporters/__init__.py"
[ -e "$suites/generation/test_utils.py" ] || echo "class GenerationTesterMixin: pass" >"$suites/generation/test_utils.py"
[ -e "$suites/exporters/test_export.py" ] || echo "class ExportTesterMixin: pass" >"$suites/exporters/test_export.py"
[ -e "$suites/fixtures/sample_text.txt" ] || cp README.md "$suites/fixtures/sample_text.txt"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/packages" parameterized
PYTHONPATH="$folder:$folder/packages" "$python" -m pytest -q -o addopts= -W ignore -p no:cacheprovider \
    -p tests.peer_suites.comparison --tb=short --show-capture=no tests/peer_suites/suites.py "$@"
