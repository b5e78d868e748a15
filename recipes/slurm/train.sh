#!/bin/bash
# Trains a recipe on one node or several, and sends itself to the queue again when its time is over:
#
#   sbatch train.sh recipe.yaml
#   sbatch --nodes=4 train.sh recipe.yaml train.batch_size=1024
#
# It starts the run, goes on with one that was stopped, and does nothing to one that is finished.

#SBATCH --job-name=hfpretrain
#SBATCH --nodes=1
# One task for each node: it is torchrun, which starts one process for each GPU.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# So many seconds before the limit SLURM warns this script (B:), which passes it on; a step and a save have to fit in.
#SBATCH --signal=B:USR1@600
# After the death of a node, and when we ask for it below, the job is queued again under its number.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

# Change these where your cluster differs.
shared=${SCRATCH:-$PWD}             # a folder that all nodes see, for prepared data and downloads
processes=${SLURM_GPUS_ON_NODE:-1}  # of each node, one for each GPU
restarts=${RESTARTS:-3}             # when a process dies; all of them go on from the newest checkpoint
seconds_to_save=540                 # less than what --signal above leaves
port=$((20000 + SLURM_JOB_ID % 10000))  # another one for each job: two of them may share a node

recipe=${1:?give the recipe: sbatch train.sh recipe.yaml}
overrides=("${@:2}")

export HFPRETRAIN_CACHE=${HFPRETRAIN_CACHE:-$shared/hfpretrain}
export HF_HOME=${HF_HOME:-$shared/huggingface}
cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$seconds_to_save  # torchrun kills after 30 seconds otherwise

child= warned= interrupted= finished=
pass_on() {
    interrupted=yes
    [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'warned=yes; pass_on USR1' USR1
trap 'pass_on TERM' TERM

# Runs a command to its end, whatever signals come meanwhile; its status is in $status. A trap ends bash's `wait`.
status=0
run() {
    "$@" &
    child=$!
    [[ ! $warned ]] || pass_on USR1  # it came just before
    while true; do
        interrupted=
        wait "$child" && status=0 || status=$?
        [[ $interrupted ]] || break
    done
    child=
}

# Data first, by one process that needs no GPU: what is wrong with the recipe is one sentence, and status 2.
run hfpretrain data "$recipe" "${overrides[@]}"

if [[ $status == 0 && ! $warned ]]; then
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # Nodes may end at different times, the one that writes the checkpoint last: none is to be killed for that.
    run srun --kill-on-bad-exit=0 --wait=0 torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" \
        --max-restarts="$restarts" --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 \
        --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="${hosts%%$'\n'*}:$port" \
        -m hfpretrain train "$recipe" --resume "${overrides[@]}"
    [[ $status != 0 ]] || finished=yes
fi

# Warned, and not finished: what was done is saved. Any other failure would come again, and so would a mistake in the
# recipe (2). torchrun's status is 1 whatever its processes end with: the warning is what tells the two apart.
if [[ $warned && ! $finished && $status != 2 ]]; then
    echo "the time is nearly over: job $SLURM_JOB_ID is queued again, to go on where it is" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
