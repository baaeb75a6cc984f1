# A GLM of 1M parameters on English prose that every CPython carries, to try the launcher: two processes on a machine
# without GPU, DeepSpeed with ZeRO stage 1, about a minute. Run it again and it resumes. To be sourced.
#   TINY_DATA         folder of text and tokenizer, made when not there  (default: data/tiny-en)
#   CHECKPOINT_PATH   folder of checkpoints                              (default: checkpoints)
#   SAVE_PATH         where this run's go                                (default: $CHECKPOINT_PATH)
#   MP_SIZE           tensor-parallel size                               (default: 1)
TINY_DATA="${TINY_DATA:-data/tiny-en}"
RANKS_WITHOUT_GPU="${RANKS_WITHOUT_GPU:-2}"
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_block_tiny.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.2 --gpt-min-ratio 0.25
    --experiment-name ds-block-tiny --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 2 --hidden-size 128 --num-attention-heads 4
    --seq-length 128 --max-position-embeddings 256
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}" --save-interval 50 --keep-checkpoints 2 --auto-resume
    --log-interval 10 --eval-interval 50 --eval-iters 5
    --train-iters 100
    --train-data "$TINY_DATA/train.jsonl" --valid-data "$TINY_DATA/valid.jsonl" --split 1 --data-cache-dir "$TINY_DATA/cache"
    --tokenizer-type SentencePieceTokenizer --tokenizer-path "$TINY_DATA/tokenizer.model"
    --lr-decay-style cosine --lr-decay-ratio 0.1 --warmup 0.05
    --hidden-dropout 0 --attention-dropout 0
    --deepspeed --deepspeed_config "$config_json")

prepare() {
    source "${GLM_TOP}scripts/small_corpus.sh"
    prepare_small_corpus "$TINY_DATA"
}
