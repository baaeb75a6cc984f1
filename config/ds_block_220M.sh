# GLM-220M: words, sentences and documents blanked out of the Pile and news (GPT-2 vocabulary). To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   LOAD_PATH         a run to go on with                 (default: none)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_block_220M.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.3 --avg-block-length 3
    --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.02
    --experiment-name blocklm-220M --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 14 --hidden-size 1024 --num-attention-heads 16
    --seq-length 512 --max-sequence-length 1025
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}" ${LOAD_PATH:+--load "$LOAD_PATH"}
    --log-interval 50 --eval-interval 1000 --save-interval 2000
    --train-iters 400000
    --train-data pile cc-news --resume-dataloader --shuffle --filter-english
    --tokenizer-type GPT2BPETokenizer
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style cosine --lr-decay-ratio 0.025 --lr-decay-iters 320000 --warmup 0.04
    --checkpoint-activations auto --fp16
    --deepspeed --deepspeed_config "$config_json")
