#!/bin/bash
# Prepares a recipe's data ahead of training, without a GPU, in shares on as many machines as there are:
#
#   sbatch data.sh recipe.yaml
#   sbatch --array=1-4 --export=ALL,SHARES=4 data.sh recipe.yaml
#
# Training, or `hfpretrain data recipe.yaml`, joins the shares. Tasks that failed can be sent again by their numbers:
# sbatch --array=3,7 data.sh recipe.yaml

#SBATCH --job-name=hfpretrain-data
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# A share that is interrupted goes on at the part that is missing.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log

set -euo pipefail

# Change these where your cluster differs.
shared=${SCRATCH:-$PWD}  # as in train.sh: all machines see it
shares=${SHARES:-16}     # the end of --array above. Not SLURM's own count, which is smaller when some are sent again

recipe=${1:?give the recipe: sbatch data.sh recipe.yaml}

export HFPRETRAIN_CACHE=${HFPRETRAIN_CACHE:-$shared/hfpretrain}
export HF_HOME=${HF_HOME:-$shared/huggingface}

# In the place of this shell, so that signals of SLURM come to it.
exec hfpretrain data "$recipe" "${@:2}" --shard "$SLURM_ARRAY_TASK_ID/$shares"
