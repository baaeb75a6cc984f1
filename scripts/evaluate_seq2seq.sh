#!/usr/bin/env bash
# Score predictions: bash scripts/evaluate_seq2seq.sh HYPS REFS [--files2rouge] [--characters] [-lc]
#
#   HYPS   predictions, one a line (runs/EXPERIMENT/test.jsonl.hyps)
#   REFS   references, one a line (runs/EXPERIMENT/test.jsonl.refs)
#
# ROUGE and BLEU by the built-in scorer; --files2rouge takes ROUGE from that program, where it is installed.
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
if [ $# -lt 2 ]; then
    echo "error: name two files: bash scripts/evaluate_seq2seq.sh HYPS REFS (given: '$*')" >&2
    exit 2
fi

launch_single -m tasks.seq2seq.scoring "$@"
