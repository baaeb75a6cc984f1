# Perplexity per word of the test set of WikiText-103; add --unidirectional for the other direction.
# To be sourced by scripts/evaluate_lm.sh.
#   DATA_PATH   the raw file of tokens   (default: $DATA_ROOT/wikitext-103/wiki.test.tokens)
EXPERIMENT_NAME="${MODEL_TYPE}-wikitext"
TASK_NAME=wikitext
DATA_PATH="${DATA_PATH:-${DATA_ROOT}/wikitext-103/wiki.test.tokens}"

EVALUATE_ARGS=(--eval-batch-size 16 --seq-length 1024 --overlapping-eval 256)
