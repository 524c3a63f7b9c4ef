#!/bin/bash
# A training run on a SLURM cluster, from the repository's root, with the flags of scripts/train.py:
#
#     sbatch scripts/accelerate/slurm.sh --dataset_name user/photos --resolution 64 --output_dir out
#
# One task a machine starts a launcher, which starts a process for each GPU. Five minutes before the time is up SLURM
# sends SIGTERM: the run saves and ends, and the same sbatch line goes on from there.
# Run: with stand-ins for srun, scontrol and train.py; two launchers met on one machine without GPUs
# (tests/scripts/test_accelerate_configs.py). Not run: under SLURM, for want of a cluster.
#SBATCH --job-name=ddpm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail

MAIN_PROCESS_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MAIN_PROCESS_PORT=$((20000 + SLURM_JOB_ID % 10000)) # another one for every job that shares a machine
NUM_PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
export MAIN_PROCESS_IP MAIN_PROCESS_PORT NUM_PROCESSES

# In single quotes, because SLURM_NODEID has its value on each machine.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'accelerate launch \
    --config_file scripts/accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$NUM_PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_PROCESS_IP" --main_process_port "$MAIN_PROCESS_PORT" \
    scripts/train.py "$@"' train "$@"
