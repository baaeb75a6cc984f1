# A GLM of 1M parameters on the quickstart's text, to try the launcher: two processes under DeepSpeed, about a minute.
# To be sourced by scripts/ds_pretrain_nvidia.sh; needs no GPU and no download but the requirements.
#   TINY_DATA             folder of text and tokenizer, made when it is not there  (default: quickstart)
#   CHECKPOINT_PATH       folder of checkpoints                                    (default: checkpoints)
#   MP_SIZE               tensor-parallel size                                     (default: 1)
#   NUM_GPUS_PER_WORKER   processes                                                (default: 2)
TINY_DATA="${TINY_DATA:-quickstart}"
export NUM_GPUS_PER_WORKER="${NUM_GPUS_PER_WORKER:-2}"
config_json="config/config_block_tiny.json"
gpt_options="--block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.2 --gpt-min-ratio 0.25
    --experiment-name blocklm-tiny --model-parallel-size ${MP_SIZE:-1}
    --num-layers 2 --hidden-size 128 --num-attention-heads 4
    --seq-length 128 --max-position-embeddings 256
    --save ${CHECKPOINT_PATH:-checkpoints}/ds-tiny --save-interval 50 --keep-checkpoints 2 --auto-resume
    --log-interval 10 --eval-interval 50 --eval-iters 5
    --train-iters 100
    --train-data $TINY_DATA/train.jsonl --valid-data $TINY_DATA/valid.jsonl --split 1 --data-cache-dir $TINY_DATA/cache
    --tokenizer-type SentencePieceTokenizer --tokenizer-path $TINY_DATA/tokenizer.model
    --lr-decay-style cosine --lr-decay-ratio 0.1 --warmup 0.05
    --hidden-dropout 0 --attention-dropout 0
    --deepspeed --deepspeed_config $config_json"

prepare() {
    source scripts/setup_environment.sh
    setup_environment
    source scripts/small_corpus.sh
    prepare_small_corpus "$TINY_DATA"
}
