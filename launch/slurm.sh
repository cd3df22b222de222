#!/bin/bash
# Train on a SLURM cluster: sbatch launch/slurm.sh --config=… --workdir=…
# `python -m launch.slurm` submits it with other options than these.
#SBATCH --job-name=medjax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
# One task per GPU, because jax gives every task of a SLURM job one device of its node.
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Send SIGTERM two minutes before the time limit, so that the run saves and stops.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# At a preemption this shell receives the signal too. It waits for the run, which saves.
trap : TERM

srun "${PYTHON:-python}" -m medjax.train "$@"
code=$?
# Exit code 75 means that a signal stopped the run after a save. The same job resumes it,
# unless SLURM is ending the job, as after scancel.
if [ "$code" -eq 75 ]; then
  case $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) in
    CANCELLED | COMPLETING) ;;
    *) scontrol requeue "$SLURM_JOB_ID" ;;
  esac
fi
exit "$code"
