# GLM-Doc (335M): English, short blanks and documents. To be sourced.
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoint (default: checkpoints)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="generation-large"
MODEL_ARGS=(--block-lm
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512
    --tokenizer-model-type bert-large-uncased --tokenizer-type BertWordPieceTokenizer
    --load-pretrained "${CHECKPOINT_PATH}/blocklm-large-generation")
