# mGLM: words, sentences and documents blanked out of text in many languages, LANGUAGE_*.json.gz. To be sourced.
# Small languages are drawn more often than they are long (--dataset-temperature), from a tenth of the documents.
# The published configuration is not the released model: that has a hidden size of 1536 (HIDDEN_SIZE=1536).
#   CHECKPOINT_PATH   folder of checkpoints               (default: checkpoints)
#   SAVE_PATH         where this run's go                 (default: $CHECKPOINT_PATH)
#   MGLM_TOKENIZER    the SentencePiece file              (default: $CHECKPOINT_PATH/mglm250k/mglm250k-uni.model)
#   MULTILINGUAL      the folder of the texts             (default: multilingual in $GLM_CORPORA_DIR)
#   HIDDEN_SIZE       width                               (default: 1024)
#   MP_SIZE           tensor-parallel size                (default: 1)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
config_json="${GLM_TOP:-}config/config_blockta_multi_large.json"
gpt_options=(--block-lm --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --avg-block-length 3
    --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.02
    --experiment-name blocklm-roberta-large-multi --model-parallel-size "${MP_SIZE:-1}"
    --num-layers 24 --hidden-size "${HIDDEN_SIZE:-1024}" --num-attention-heads 16
    --seq-length 512 --max-sequence-length 1025
    --save "${SAVE_PATH:-$CHECKPOINT_PATH}" --log-interval 50 --eval-interval 1000 --save-interval 5000
    --train-iters 500000
    --train-data "multilingual${MULTILINGUAL:+=$MULTILINGUAL}" --dataset-temperature 0.3 --loader-scatter 32
    --loader-fraction 0.1
    --resume-dataloader --no-pre-tokenize
    --tokenizer-type ChineseSPTokenizer
    --tokenizer-model-type "${MGLM_TOKENIZER:-$CHECKPOINT_PATH/mglm250k/mglm250k-uni.model}"
    --split "949,50,1" --distributed-backend nccl
    --lr-decay-style linear --lr-decay-ratio 0.1 --lr-decay-iters 400000 --warmup 0.02
    --checkpoint-activations auto --fp16
    --deepspeed --deepspeed_config "$config_json")
