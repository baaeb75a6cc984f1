# GLM-Large-Chinese (335M): Chinese, short blanks, sentences and documents. To be sourced.
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoint (default: checkpoints)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="blocklm-large-chinese"
MODEL_ARGS=(--block-lm --cloze-eval --task-mask
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 1024
    --tokenizer-type ChineseSPTokenizer --fix-command-token
    --load-pretrained "${CHECKPOINT_PATH}/blocklm-large-chinese")
