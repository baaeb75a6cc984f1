# What the fine-tuning scripts share. To be sourced; see the scripts for what is different among them.
#
#   read_task MODEL_FILE TASK_FILE     source both and check that they and the data are there
#   EPOCHS, LIMIT                      shorten a run (the results say so): epochs, examples of every split
#   DATA_ROOT                          folder of the tasks' folders          (default: data)
#   DATA_PATH                          folder of this task, anywhere         (default: as the task file says)
#   CHECKPOINT_PATH                    folder of pre-trained checkpoints     (default: checkpoints)
#   SAVE_PATH                          where fine-tuned ones go              (default: checkpoints/finetuned)
#   MP_SIZE                            tensor-parallel size                  (default: 1)
#   NUM_GPUS_PER_WORKER ...            processes: scripts/launch.py

read_task() {
    local file
    if [ $# -lt 2 ]; then
        echo "error: name a model file and a task file: bash scripts/$(basename "$0") config_tasks/model_*.sh config_tasks/{task,seq,zero}_*.sh" >&2
        return 2
    fi
    for file in "$1" "$2"; do
        if [ ! -f "$file" ]; then
            echo "error: $file: no such file; config_tasks/ holds model_*.sh, task_*.sh, seq_*.sh and zero_*.sh files" >&2
            return 2
        fi
    done
    CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}"
    SAVE_PATH="${SAVE_PATH:-checkpoints/finetuned}"
    MP_SIZE="${MP_SIZE:-1}"
    DATESTR="$(date +%m-%d-%H-%M)"
    source "$1"
    DATA_ROOT="${DATA_ROOT:-data}"
    source "$2"
    if [ ! -e "$DATA_PATH" ]; then
        echo "error: DATA_PATH $DATA_PATH: no such folder; set DATA_PATH to the task's folder, or DATA_ROOT to the one above" >&2
        return 2
    fi
    SHORTENED=()
    if [ -n "${LIMIT:-}" ]; then
        SHORTENED=(--limit "$LIMIT")
    fi
}
