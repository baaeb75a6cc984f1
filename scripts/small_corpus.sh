# Text and a tokenizer for small runs, without any download. To be sourced after launch.sh.
#
#   prepare_small_corpus FOLDER [DATA FILES...]   writes FOLDER/{train,valid,blanks}.jsonl and FOLDER/tokenizer.model;
#                                                 without files: the English prose that every CPython carries

prepare_small_corpus() {
    local folder="$1"
    shift
    local data=()
    [ $# -gt 0 ] && data=(--data "$@")
    launch_single scripts/quickstart_corpus.py "$folder" "${data[@]}"
    if [ ! -f "$folder/tokenizer.model" ] || [ "$folder/train.jsonl" -nt "$folder/tokenizer.model" ]; then
        bash scripts/train_tokenizer.sh "$folder/train.jsonl" --vocab-size 4000 --output "$folder/tokenizer.model"
    fi
}
