# GLM-RoBERTa with 24 layers of 1152: words, sentences and documents of the RoBERTa corpora. To be sourced. The release
# named the DeepSpeed file of the large model here; this is the one made for this size.
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   LOAD_PATH         a run to go on with                 (default: none)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_blockta_1.25.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --avg-block-length 3
    --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.02 --non-sentence-start 0.02
    --experiment-name blocklm-roberta-1.25-blank --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 24 --hidden-size 1152 --num-attention-heads 18
    --seq-length 512 --max-sequence-length 513 --attention-scale 8.0
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}" ${LOAD_PATH:+--load "$LOAD_PATH"} --save-interval 2500
    --train-iters 500000 --resume-dataloader --filter-english
    --train-data wikibook cc-news openwebtext stories --loader-scatter 8 --no-lazy-loader
    --tokenizer-type GPT2BPETokenizer --tokenizer-model-type roberta
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style linear --lr-decay-iters 500000 --lr-decay-ratio 0.025 --warmup .06
    --checkpoint-activations auto --fp16
    --deepspeed --deepspeed_config "$config_json")
