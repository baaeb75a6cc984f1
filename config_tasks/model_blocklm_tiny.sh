# A model for laptops, by default the one of scripts/pretrain_tiny.sh. To be sourced.
#   CHECKPOINT_PATH   folder that holds the checkpoint                  (default: checkpoints)
#   TINY_LANGUAGE     en (BERT vocabulary) or zh (Chinese SentencePiece)  (default: en)
#   TINY_MODEL        name of the checkpoint's folder                    (default: blocklm-tiny-$TINY_LANGUAGE)
#   TINY_LAYERS, TINY_HIDDEN_SIZE, TINY_HEADS, TINY_POSITIONS            (default: 6, 256, 4, 1024)
#   TOKENIZER_ARGS    flags of another tokenizer
#   GLM_VOCAB_DIR     folder of the vocabularies                         (default: ${DATA_ROOT:-../shared/data}/vocab)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
TINY_LANGUAGE="${TINY_LANGUAGE:-en}"
TINY_MODEL="${TINY_MODEL:-blocklm-tiny-$TINY_LANGUAGE}"
export GLM_VOCAB_DIR="${GLM_VOCAB_DIR:-${DATA_ROOT:-../shared/data}/vocab}"
if [ "$TINY_LANGUAGE" = zh ]; then
    TOKENIZER_ARGS="${TOKENIZER_ARGS:---tokenizer-type ChineseSPTokenizer --fix-command-token}"
else
    TOKENIZER_ARGS="${TOKENIZER_ARGS:---tokenizer-model-type bert-base-uncased --tokenizer-type BertWordPieceTokenizer}"
fi
MODEL_TYPE="$TINY_MODEL"
MODEL_ARGS="--block-lm --cloze-eval --task-mask
    --num-layers ${TINY_LAYERS:-6} --hidden-size ${TINY_HIDDEN_SIZE:-256} --num-attention-heads ${TINY_HEADS:-4}
    --max-position-embeddings ${TINY_POSITIONS:-1024}
    $TOKENIZER_ARGS
    --load-pretrained ${CHECKPOINT_PATH}/$TINY_MODEL"
