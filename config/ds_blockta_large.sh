# GLM-RoBERTa, 335M: words blanked out of the RoBERTa corpora (RoBERTa vocabulary). To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_blockta_large.json"
gpt_options=(--block-lm --task-mask --bert-prob 1.0 --avg-block-length 3
    --experiment-name blocklm-roberta-large-blank --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16
    --seq-length 512 --max-position-embeddings 512
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}" --save-interval 2500
    --train-iters 500000
    --resume-dataloader
    --train-data wikibook cc-news openwebtext --shuffle
    --tokenizer-type GPT2BPETokenizer --tokenizer-model-type roberta
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style linear --lr-decay-iters 500000 --lr-decay-ratio 0.025 --warmup .06
    --checkpoint-activations auto --deepspeed-activation-checkpointing --fp16
    --deepspeed --deepspeed_config "$config_json")
