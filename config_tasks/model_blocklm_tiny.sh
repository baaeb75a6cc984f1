# A model for laptops, by default the one of scripts/pretrain_tiny.sh. To be sourced.
#   CHECKPOINT_PATH   folder that holds the checkpoint                  (default: checkpoints)
#   TINY_LANGUAGE     en or zh                                          (default: en)
#   TINY_MODEL        name of the checkpoint's folder                   (default: blocklm-tiny-$TINY_LANGUAGE)
#   TINY_DATA         folder of its text and tokenizer                  (default: data/tiny-$TINY_LANGUAGE)
#   TINY_LAYERS, TINY_HIDDEN_SIZE, TINY_HEADS, TINY_POSITIONS           (default: 6, 256, 4, 1024)
#   TOKENIZER_ARGS    flags of another tokenizer                        (default: tokenizer.model in $TINY_DATA)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
TINY_LANGUAGE="${TINY_LANGUAGE:-en}"
TINY_MODEL="${TINY_MODEL:-blocklm-tiny-$TINY_LANGUAGE}"
TINY_DATA="${TINY_DATA:-data/tiny-$TINY_LANGUAGE}"
if [ -n "${TOKENIZER_ARGS:-}" ]; then
    read -r -a TOKENIZER_ARGS <<< "$TOKENIZER_ARGS"
else
    TOKENIZER_ARGS=(--tokenizer-type SentencePieceTokenizer --tokenizer-path "$TINY_DATA/tokenizer.model")
fi
MODEL_TYPE="$TINY_MODEL"
MODEL_ARGS=(--block-lm --cloze-eval --task-mask
    --num-layers "${TINY_LAYERS:-6}" --hidden-size "${TINY_HIDDEN_SIZE:-256}" --num-attention-heads "${TINY_HEADS:-4}"
    --max-position-embeddings "${TINY_POSITIONS:-1024}"
    "${TOKENIZER_ARGS[@]}"
    --load-pretrained "${CHECKPOINT_PATH}/$TINY_MODEL")
