#!/bin/bash
# Fine-tuning on several nodes under Slurm: `sbatch examples/slurm.sh --task mine.jsonl --rho .5`.
#
# One torchrun on each node starts a process for each of its GPUs. Two minutes before the time limit
# Slurm sends SIGTERM to all processes: they stop after the same step, with a checkpoint, and what is
# submitted again goes on from there (--resume begins anew where there is nothing to go on from). The
# folder and the data have to be on a disk that all nodes see.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "$SLURM_GPUS_ON_NODE" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first:29500" \
    --module greentrainer.cli train --output-dir "runs/slurm" --save-every 200 --resume "$@"
