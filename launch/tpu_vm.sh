#!/bin/bash
# Train on all hosts of a Cloud TPU: TPU=NAME ZONE=ZONE launch/tpu_vm.sh --config=… --workdir=…
# It requires medjax in ~/medjax on every host, installed with its [tpu] extra in ~/medjax/.venv.
set -euo pipefail

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd medjax && .venv/bin/python -m medjax.train $(printf '%q ' "$@")"
