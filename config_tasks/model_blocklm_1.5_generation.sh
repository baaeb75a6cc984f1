# GLM-515M: English, short blanks and documents. To be sourced.
#   CHECKPOINT_PATH   folder that holds the unpacked checkpoint (default: checkpoints)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="blocklm-1.5-generation"
MODEL_ARGS=(--block-lm --cloze-eval
    --num-layers 30 --hidden-size 1152 --num-attention-heads 18 --max-position-embeddings 512
    --tokenizer-model-type bert-large-uncased --tokenizer-type BertWordPieceTokenizer
    --load-pretrained "${CHECKPOINT_PATH}/blocklm-1.5-generation")
