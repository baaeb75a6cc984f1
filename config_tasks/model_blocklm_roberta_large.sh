# GLM-RoBERTa (335M): English, short blanks, RoBERTa vocabulary. To be sourced.
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoint (default: checkpoints)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="blocklm-roberta-large"
MODEL_ARGS=(--block-lm --cloze-eval
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512
    --tokenizer-model-type roberta --tokenizer-type GPT2BPETokenizer
    --load-pretrained "${CHECKPOINT_PATH}/blocklm-roberta-large-blank")
