#!/usr/bin/env bash
#SBATCH --job-name=parity-golf
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
# A record on one node with 8 GPUs, or on more: all nodes see this folder. In the root of the repository, after
# `make install BACKEND=torch` and `.venv/bin/pip install '.[data,records]'`:
#
#   RECORD_NAME="..." RECORD_AUTHOR="..." RECORD_GITHUB_ID=... sbatch records/launch/slurm.sh
#   ... sbatch --nodes=2 --gpus-per-node=4 records/launch/slurm.sh
#
# Where compute nodes have no network, get the data before: `python -m common.data fineweb`. A job that is requeued goes
# on from its last checkpoint; the nodes are free again when it ends.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-64}  # srun does not take it from sbatch since Slurm 22.05
export GPUS=${SLURM_GPUS_ON_NODE:-8} LAUNCH=srun
export TORCHRUN="--nnodes=$SLURM_NNODES --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$first:29500"
bash records/launch/run.sh
