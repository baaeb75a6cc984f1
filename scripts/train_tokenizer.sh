#!/usr/bin/env bash
# Train a SentencePiece tokenizer on your text (any format that --train-data takes).
#
#   bash scripts/train_tokenizer.sh FILES ... --vocab-size N [--output tokenizer.model]
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
launch_single -m data_utils.train_tokenizer "$@"
