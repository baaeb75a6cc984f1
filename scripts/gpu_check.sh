#!/usr/bin/env bash
# What a first run on a GPU has to find out, in under eight minutes: kernels by path, waits for the GPU, two flash calls
# against the memory-efficient kernel, utilisation of GLM-Large and GLM-2B (compiled and not), fine-tuning as on ReCoRD,
# the bandwidth in decoding, peak memory beside the plan's. docs/performance.md says how to read it.
#
#   bash scripts/gpu_check.sh [--only PART ...] [--output gpu_check.json]
#   bash scripts/gpu_check.sh --device cpu --tiny     tries the check itself, without a GPU
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
launch_single -m benchmarks gpu_check "$@"
