# The published row of eight BI-V100: batch size 8. To be sourced by run.sh.
CONFIG_ARGS=(--batch-size 8)
