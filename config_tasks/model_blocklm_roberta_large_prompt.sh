# GLM-RoBERTa for prompts with a frozen transformer: the weights before any finetuning. To be sourced.
#   CHECKPOINT_PATH   folder that holds the checkpoint (default: checkpoints)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="blocklm-roberta-large-pre"
MODEL_ARGS=(--block-lm --cloze-eval
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-sequence-length 513
    --tokenizer-type GPT2BPETokenizer --tokenizer-model-type roberta
    --load-pretrained "${CHECKPOINT_PATH}/blocklm-roberta-large-blank11-08-09-21")
