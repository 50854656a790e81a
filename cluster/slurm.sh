#!/usr/bin/env bash
# Slurm: a Ray cluster inside one allocation, one sweep on it, gone with the allocation. An EXAMPLE: linted, it has not
# been run. A job that is requeued (--requeue) goes on from the last finished epoch.
#
# What it costs an hour: nodes x GPUs of the allocation, also while they wait; --time is the most it can be.
# What to fill in: the #SBATCH lines for your site, and every FILL_IN below.
# How to check:    sbatch --test-only cluster/slurm.sh
# How to use it:   sbatch cluster/slurm.sh search_spaces/fusion.yaml
#
#SBATCH --job-name=raz-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
set -euo pipefail

venv=FILL_IN     # an environment that all nodes see, with raz-sweep and ray[default,tune]==2.60.0
store=FILL_IN    # a folder that all nodes see and that stays: store and studies (cluster/README.md, shared folders)
data=FILL_IN     # the folder that holds the data sets, readable on all nodes
file=${1:?usage: sbatch cluster/slurm.sh FILE [options of raz-sweep run]}
shift

export PATH="$venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
umask 077
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') # for this job only; srun hands it on
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
cpus=--cpus-per-task=$SLURM_CPUS_PER_TASK # Slurm 22.05 to 23.02: a step gets one CPU unless it asks itself
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node

srun --nodes=1 --ntasks=1 "$cpus" --overlap -w "$head" ray start --head --node-ip-address="$address" --port="$port" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --resources='{"coordinator":64}' --object-store-memory=200000000 \
    --dashboard-host=127.0.0.1 --disable-usage-stats --block &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) "$cpus" --overlap \
        --exclude="$head" ray start --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --object-store-memory=200000000 \
        --disable-usage-stats --block &
    sleep 20
fi

# In the background, so that the signal five minutes before the end reaches this script, and through it the sweep.
srun --nodes=1 --ntasks=1 "$cpus" --overlap -w "$head" \
    env RAY_ADDRESS="$address:$port" raz-sweep run "$file" --store "$store" --data-root "$data" "$@" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
code=0
wait "$sweep" || code=$?
exit "$code"
