# A trial on a CPU: two processes, a small model with random weights, 200 questions of each file. To be sourced by run.sh.
MODEL_ARGS=(--block-lm --num-layers 2 --hidden-size 128 --num-attention-heads 4 --max-position-embeddings 512
    --tokenizer-model-type bert-large-uncased --tokenizer-type BertWordPieceTokenizer)
CONFIG_ARGS=(--device cpu --fp32 --epochs 1 --limit 200 --eval-samples 100 --lr 1e-4)
