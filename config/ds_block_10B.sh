# GLM-10B: words, sentences and documents of the Pile and CC-News (GPT-2 vocabulary), 512 tokens. To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_block_10B.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --avg-block-length 3
    --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.02
    --experiment-name blocklm-10b --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 48 --hidden-size 4096 --num-attention-heads 64
    --seq-length 512 --max-position-embeddings 1024
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}"
    --log-interval 50 --eval-interval 1000 --save-interval 2000
    --train-iters 250000
    --train-data pile cc-news
    --resume-dataloader --filter-english --loader-scatter 32
    --tokenizer-type GPT2BPETokenizer
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style cosine --lr-decay-ratio 0.1 --lr-decay-iters 175000 --warmup 0.04
    --checkpoint-activations auto --deepspeed-activation-checkpointing --fp16
    --deepspeed --deepspeed_config "$config_json")
