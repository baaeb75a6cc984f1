# GLM-10B-Chinese, second stage: 1024 tokens, from the run of the first. To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   LOAD_PATH         the run to go on from; empty: none  (default: $CHECKPOINT_PATH/blocklm-10b-chinese07-08-15-28)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
LOAD_PATH="${LOAD_PATH-$CHECKPOINT_PATH/blocklm-10b-chinese07-08-15-28}"
config_json="${GLM_TOP:-}config/config_block_10B_longer.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --avg-block-length 3
    --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.5
    --experiment-name blocklm-10b-chinese --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 48 --hidden-size 4096 --num-attention-heads 64
    --seq-length 1024 --max-position-embeddings 1024
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}"
    ${LOAD_PATH:+--load "$LOAD_PATH"} --no-load-lr-scheduler
    --log-interval 50 --eval-interval 1000 --save-interval 2000
    --train-iters 150000
    --train-data wudao baike zhihu
    --resume-dataloader --loader-scatter 32 --no-lazy-loader
    --tokenizer-type ChineseSPTokenizer
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style cosine --lr-decay-ratio 0.1 --lr-decay-iters 20000 --warmup 0.025
    --checkpoint-activations auto --deepspeed-activation-checkpointing --fp16
    --deepspeed --deepspeed_config "$config_json")
