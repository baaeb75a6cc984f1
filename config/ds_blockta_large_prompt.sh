# GLM-RoBERTa with a prefix of 100 vectors before the keys of every layer: words and sentences. To be sourced.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   PRETRAINED        the weights to begin with           (default: $CHECKPOINT_PATH/blocklm-roberta-large-blank)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_blockta_large.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.8 --gap-sentence-prob 0.2 --avg-block-length 3
    --gpt-min-ratio 0.25 --short-seq-prob 0.02
    --experiment-name blocklm-roberta-large-blank --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16
    --seq-length 512 --max-sequence-length 513 --prefix-prompt 100 --prompt-func none
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}" --save-interval 5000
    --load-pretrained "${PRETRAINED:-$CHECKPOINT_PATH/blocklm-roberta-large-blank}"
    --train-iters 50000
    --train-data wikibook cc-news openwebtext stories --shuffle --filter-english --loader-scatter 8 --no-lazy-loader
    --tokenizer-type GPT2BPETokenizer --tokenizer-model-type roberta
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style linear --lr-decay-iters 50000 --lr-decay-ratio 0.1 --warmup .1
    --checkpoint-activations auto --fp16
    --deepspeed --deepspeed_config "$config_json")
