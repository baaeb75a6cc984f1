# GLM-Large-Chinese, 335M: words, sentences and documents of WuDao, Baike and Zhihu. To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   LOAD_PATH         the run to go on from; empty: none  (default: $CHECKPOINT_PATH/blocklm-large-chinese08-12-12-48)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
LOAD_PATH="${LOAD_PATH-$CHECKPOINT_PATH/blocklm-large-chinese08-12-12-48}"
config_json="${GLM_TOP:-}config/config_block_large_chinese.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.3 --avg-block-length 3
    --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.02
    --experiment-name blocklm-large-chinese --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16
    --seq-length 512 --max-position-embeddings 1024
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}"
    ${LOAD_PATH:+--load "$LOAD_PATH"}
    --log-interval 50 --eval-interval 1000 --save-interval 2000
    --train-iters 250000
    --train-data wudao baike zhihu
    --resume-dataloader --loader-scatter 32 --no-lazy-loader
    --tokenizer-type ChineseSPTokenizer --fix-command-token
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style cosine --lr-decay-ratio 0.1 --lr-decay-iters 200000 --warmup 0.04
    --checkpoint-activations auto --deepspeed-activation-checkpointing --fp16
    --deepspeed --deepspeed_config "$config_json")
