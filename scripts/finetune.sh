# What the fine-tuning scripts share. To be sourced first, with the script's own words MODEL_FILE TASK_FILE [flags]: it
# reads the two files, checks that they and the data are there, and leaves the flags in "$@".
#
#   finetune FLAGS ...                 train with them; what every script says about a run stands before them
#   EPOCHS, LIMIT                      shorten a run (the results say so): epochs, examples of every split
#   DATA_ROOT                          folder of the tasks' folders          (default: data)
#   DATA_PATH                          folder of this task, anywhere         (default: as the task file says)
#   CHECKPOINT_PATH                    folder of pre-trained checkpoints     (default: checkpoints)
#   SAVE_PATH                          where fine-tuned ones go              (default: checkpoints/finetuned)
#   MP_SIZE                            tensor-parallel size                  (default: 1)
#   NUM_GPUS_PER_WORKER ...            processes: scripts/launch.py

source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
MODEL_FILE="${1:-}" TASK_FILE="${2:-}"
check_file model "$MODEL_FILE"
case "$(basename -- "$0")" in
    evaluate_lm.sh) check_file evaluation "$TASK_FILE" ;;
    *seq2seq* | *summary*) check_file sequence-to-sequence "$TASK_FILE" ;;
    *) check_file understanding "$TASK_FILE" ;;
esac
shift 2
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
SAVE_PATH="${SAVE_PATH:-checkpoints/finetuned}"
MP_SIZE="${MP_SIZE:-1}"
DATESTR="$(date +%m-%d-%H-%M)"
MODEL_LANGUAGES="" UNDERSTANDING_CONFIG="" SEQ2SEQ_CONFIG="" PROMPT_CONFIG="" PROMPT_ARGS=()
source_model "$MODEL_FILE"
DATA_ROOT="${DATA_ROOT:-data}"
source "$(realpath -- "$TASK_FILE")"
as_lists MODEL_ARGS TRAIN_ARGS COMMON_ARGS TASK_ARGS EVALUATE_ARGS PROMPT_ARGS
if [ ! -e "$DATA_PATH" ]; then
    echo "error: DATA_PATH $DATA_PATH: no such file or folder; set DATA_PATH to the task's, or DATA_ROOT to the folder above" >&2
    exit 2
fi
SHORTENED=()
if [ -n "${LIMIT:-}" ]; then
    SHORTENED=(--limit "$LIMIT")
fi

finetune() {
    LOG_NAME="${LOG_NAME:-$EXPERIMENT_NAME}" launch_distributed finetune_glm.py \
        --finetune --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --data-dir "$DATA_PATH" --save "$SAVE_PATH" \
        --model-parallel-size "$MP_SIZE" --overwrite "${SHORTENED[@]}" "$@"
}
