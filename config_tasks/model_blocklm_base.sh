# GLM-Base (110M): English, short blanks. To be sourced.
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoint (default: checkpoints)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="blank-base"
MODEL_ARGS=(--block-lm
    --num-layers 12 --hidden-size 768 --num-attention-heads 12 --max-position-embeddings 512
    --tokenizer-model-type bert-base-uncased --tokenizer-type BertWordPieceTokenizer
    --load-pretrained "${CHECKPOINT_PATH}/blocklm-base-blank")
