# Text and a tokenizer for small runs, without any download. To be sourced after launch.sh.
#
#   prepare_small_corpus FOLDER [FILES...]   writes FOLDER/{train,valid,blanks}.jsonl and FOLDER/tokenizer.model of the
#                                            files; without any: of the English prose that every CPython carries.
#                                            What is there is used as it is; other text than it was made of is refused

prepare_small_corpus() {
    local folder="$1"
    shift
    local data=()
    [ $# -gt 0 ] && data=(--data "$@")
    as_step launch_single scripts/quickstart_corpus.py "$folder" "${data[@]}"
    if [ ! -f "$folder/tokenizer.model" ]; then
        # The words are answers of cloze tasks, which have to be one token.
        as_step launch_single -m data_utils.train_tokenizer "$folder/train.jsonl" --vocab-size 4000 --fit \
            --words Yes No Maybe True False true false Right Wrong --output "$folder/tokenizer.model"
    fi
}

# Take the words after --data, up to the next flag, into the list DATA; the other words are left in the list WORDS.
split_data() {
    DATA=() WORDS=()
    while [ $# -gt 0 ]; do
        if [ "$1" != --data ]; then
            WORDS+=("$1")
            shift
            continue
        fi
        shift
        if [ $# -eq 0 ] || [ "${1#--}" != "$1" ]; then
            echo "error: --data needs one file of text at least" >&2
            exit 2
        fi
        while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
            if [ ! -e "$1" ]; then
                echo "error: --data $1: no such file" >&2
                exit 2
            fi
            DATA+=("$1")
            shift
        done
    done
}
