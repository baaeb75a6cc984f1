# mGLM-1B (1.07B): many languages, short blanks, sentences and documents, 250112 rows of vocabulary. To be sourced.
#   CHECKPOINT_PATH    folder that holds the downloaded files                      (default: checkpoints)
#   MGLM_CHECKPOINT    the file or folder of weights                               (default: pretrained.pt in it)
#   MGLM_TOKENIZER     the SentencePiece file       (default: mglm250k/mglm250k-uni.model beside the weights)
#   MGLM_LAYERS, MGLM_HIDDEN_SIZE, MGLM_HEADS, MGLM_POSITION_ROWS  of a model of your own (default: 24, 1536, 16, 1025)
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
MODEL_TYPE="blocklm-large-multilingual"
MODEL_ARGS=(--block-lm --task-mask --cloze-eval --summary-prompt tldr
    --num-layers "${MGLM_LAYERS:-24}" --hidden-size "${MGLM_HIDDEN_SIZE:-1536}" --num-attention-heads "${MGLM_HEADS:-16}"
    --max-sequence-length "${MGLM_POSITION_ROWS:-1025}"
    --tokenizer-type ChineseSPTokenizer
    --tokenizer-model-type "${MGLM_TOKENIZER:-$CHECKPOINT_PATH/mglm250k/mglm250k-uni.model}"
    --load-pretrained "${MGLM_CHECKPOINT:-$CHECKPOINT_PATH/pretrained.pt}")
# What the fine-tuning scripts do otherwise for it: XQuAD for SQuAD, its DeepSpeed files, prefix prompts.
MODEL_LANGUAGES=many
UNDERSTANDING_CONFIG="${GLM_TOP:-}config_tasks/config_blocklm_large.json"
SEQ2SEQ_CONFIG="${GLM_TOP:-}config_tasks/config_blocklm_large_squad.json"
PROMPT_CONFIG="${GLM_TOP:-}config_tasks/config_blocklm_large_prompt.json"
PROMPT_ARGS=(--prefix-prompt 100 --prompt-func none --freeze-transformer --warmup 0.01)
# What scripts/generate_block.sh does with this model where nothing else is said; a GPU is meant (NUM_BEAMS=4 on a CPU).
GENERATION_ARGS=(--fill replace --out-seq-length 200 --num-beams "${NUM_BEAMS:-35}" --no-repeat-ngram-size 3
    --length-penalty 0.7)
