# Perplexity of a text with a document on every line, unidirectional.
# To be sourced by scripts/evaluate_lm.sh.
#   DATA_PATH   a document on every line   (default: $DATA_ROOT/bert-large-test.txt)
EXPERIMENT_NAME="${MODEL_TYPE}-lm_uni"
TASK_NAME=language_model
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/bert-large-test.txt}"

EVALUATE_ARGS=(--eval-batch-size 16 --seq-length 512 --overlapping-eval 256 --unidirectional)
