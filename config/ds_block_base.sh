# GLM-Base, 110M: words blanked out of Wikipedia and books (BERT vocabulary). To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_block_base.json"
gpt_options=(--block-lm --bert-prob 1.0
    --experiment-name blocklm-blank --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 12 --hidden-size 768 --num-attention-heads 12
    --seq-length 512 --max-position-embeddings 512
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}"
    --train-iters 150000
    --resume-dataloader
    --train-data bert-base --lazy-loader
    --tokenizer-type BertWordPieceTokenizer --tokenizer-model-type bert-base-uncased
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style cosine --lr-decay-iters 120000 --lr-decay-ratio 0.05 --warmup .05
    --checkpoint-activations auto --deepspeed-activation-checkpointing --fp16
    --deepspeed --deepspeed_config "$config_json")
