# What the fine-tuning scripts share. To be sourced first, with the script's own words MODEL_FILE TASK_FILE [flags]: it
# reads the two files, checks that they and the data are there, leaves the flags in "$@", and the working folder is the
# repository's top.
#
#   finetune FLAGS ...                 train with them; what every script says about a run stands before them
#   EPOCHS, LIMIT                      shorten a run (the results say so): epochs, examples of every split
#   DATA_ROOT                          folder of the tasks' folders          (default: data)
#   DATA_PATH                          folder of this task, anywhere         (default: as the task file says)
#   CHECKPOINT_PATH                    folder of pre-trained checkpoints     (default: checkpoints)
#   SAVE_PATH                          where fine-tuned ones go              (default: checkpoints/finetuned)
#   MP_SIZE                            tensor-parallel size                  (default: 1)
#   NUM_GPUS_PER_WORKER ...            processes: scripts/launch.py

if [ $# -lt 2 ]; then
    echo "error: name a model file and a task file: bash scripts/$(basename "$0") config_tasks/model_*.sh config_tasks/{task,seq,zero}_*.sh" >&2
    exit 2
fi
MODEL_FILE="$(realpath -m -- "$1")" TASK_FILE="$(realpath -m -- "$2")"
shift 2
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
for file in "$MODEL_FILE" "$TASK_FILE"; do
    if [ ! -f "$file" ]; then
        echo "error: $file: no such file; config_tasks/ holds model_*.sh, task_*.sh, seq_*.sh and zero_*.sh files" >&2
        exit 2
    fi
done
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
SAVE_PATH="${SAVE_PATH:-checkpoints/finetuned}"
MP_SIZE="${MP_SIZE:-1}"
DATESTR="$(date +%m-%d-%H-%M)"
MODEL_LANGUAGES="" UNDERSTANDING_CONFIG="" SEQ2SEQ_CONFIG="" PROMPT_CONFIG="" PROMPT_ARGS=""
source "$MODEL_FILE"
DATA_ROOT="${DATA_ROOT:-data}"
source "$TASK_FILE"
if [ ! -e "$DATA_PATH" ]; then
    echo "error: DATA_PATH $DATA_PATH: no such folder; set DATA_PATH to the task's folder, or DATA_ROOT to the one above" >&2
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
