#!/bin/sh
# Encode a table of items in several processes of one machine:
#
#   sh examples/encode_shards.sh MODEL ITEMS OUT SHARDS PROCESSES
#
# Run it again after an interruption: complete files stay. A job array of Slurm does the same on many machines:
#
#   sbatch --array=1-16 --wrap \
#     'twotower encode model --items items --shard $SLURM_ARRAY_TASK_ID/16 --out vectors'
set -eu
model=$1 items=$2 out=$3 shards=$4 processes=$5

# One thread a process, so that they do not wait for each other's cores.
export OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1

seq "$shards" | xargs -P "$processes" -I NUMBER \
  twotower encode "$model" --items "$items" --shard "NUMBER/$shards" --out "$out"
