#!/usr/bin/env bash
# The cloze benchmark on ReCoRD: train until the accuracy is 0.81, say how fast. Run it again and it goes on.
#
#   bash scripts/cloze_benchmark/run.sh [--name NAME] [--config CONFIG] [--data_dir FOLDER] [any flag of finetune_glm.py]
#
#   --name       who submits the run, part of its name                 (default: nvidia)
#   --config     <chip>x<machines>x<processes on each>                 (default: V100sx1x8); a file of that name below
#                config/ says what is particular about it
#   --data_dir   of preparedata.sh, with the weights below it          (default: GLM_DATA_DIR, else /home/data/perf/glm)
#   --log_freq   0: events of the run; n: also those of every n updates   (default: 0)
#   --node_rank  number of this machine, where there are several       (with MASTER_ADDR and MASTER_PORT)
#
#   Flags of the original such as --train_batch_size 8 are taken as well. --pad-to-max computes in the original's way.
set -euo pipefail
source "$(dirname -- "$0")/../launch.sh"
name=nvidia config=V100sx1x8 data_dir="${GLM_DATA_DIR:-/home/data/perf/glm}" log_freq=0 given=()
while [ $# -gt 0 ]; do
    flag="${1%%=*}"
    case "$flag" in
        --train_batch_size) flag=--batch-size ;;
        --init_checkpoint) flag=--load-pretrained ;;
        --dist_backend) flag=--distributed-backend ;;
        --local_rank | --deepspeed_config) ;;
        --*) flag="${flag//_/-}" ;;
        *) flag="$1" ;;
    esac
    value=()
    if [[ "$1" = --*=* ]]; then
        value=("${1#*=}")
    elif [[ "$flag" =~ ^--(name|config|data-dir|log-freq|node-rank)$ ]]; then
        if [ $# -eq 1 ]; then
            echo "error: $1 needs a value" >&2
            exit 2
        fi
        value=("$2")
        shift
    fi
    shift
    case "$flag" in
        --name) name="${value[0]}" ;;
        --config) config="${value[0]}" ;;
        --data-dir) data_dir="${value[0]}" ;;
        --log-freq) log_freq="${value[0]}" ;;
        --node-rank) NODE_RANK="${value[0]}" ;;
        *) given+=("$flag${value[0]+=${value[0]}}") ;;
    esac
done
if [[ ! "$config" =~ ^[A-Za-z0-9_.-]+x([1-9][0-9]{0,3})x([1-9][0-9]{0,3})$ ]]; then
    printf 'error: --config is %q; <chip>x<machines>x<processes on each> is needed, such as V100sx1x8\n' "$config" >&2
    exit 2
fi
machines="${BASH_REMATCH[1]}" processes="${BASH_REMATCH[2]}"
events=(--perf-log run)
if [ "$log_freq" != 0 ]; then
    check_numbers log_freq
    events=(--perf-log steps --log-interval "$log_freq")
fi
CHECKPOINT_PATH="$data_dir" CONFIG_ARGS=()
source "${GLM_TOP}config_tasks/model_blocklm_large.sh"
if [ -f "${GLM_TOP}scripts/cloze_benchmark/config/$config.sh" ]; then
    source "${GLM_TOP}scripts/cloze_benchmark/config/$config.sh"
fi
NUM_WORKERS="${NUM_WORKERS:-$machines}"
if [ -z "${NUM_GPUS_PER_WORKER:-}" ]; then
    NUM_GPUS_PER_WORKER="$processes"
    [[ "$config" = CPU* ]] || NUM_GPUS_PER_WORKER="$(count_gpus "$processes")"
    if [ "$NUM_GPUS_PER_WORKER" != "$processes" ]; then
        echo "note: $config has $processes processes on a machine, there are not as many GPUs here: $NUM_GPUS_PER_WORKER will run"
    fi
fi

LOG_NAME="cloze-$name-$config" launch_distributed finetune_glm.py --task cloze_test --data-dir "$data_dir" --cloze-eval \
    --experiment-name "cloze-$name-$config" --auto-resume --save checkpoints/finetuned --keep-checkpoints 2 \
    "${MODEL_ARGS[@]}" --seq-length 512 --batch-size 4 --eval-batch-size 8 --epochs 4 --lr 1e-5 \
    --lr-decay-style linear --lr-decay-ratio 0.1 --warmup 0.1 --weight-decay 0.1 --clip-grad 1.0 --fp16 \
    --checkpoint-activations --seed 10483 --eval-at-start --eval-samples 19200 --stop-at accuracy=0.81 --report \
    "${events[@]}" "${CONFIG_ARGS[@]}" "${given[@]}"
