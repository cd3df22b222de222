#!/bin/bash
# Train in a container on this machine; or, if it runs there already, follow it.
#
#   host.sh tpu|cuda IMAGE ARGUMENTS…   the arguments are those of medjax train
#
# The exit code is that of the run. The container outlives the connection that started it,
# so the same command follows it again. When the machine shuts down, docker sends SIGTERM.
set -uo pipefail

target=$1 image=$2
shift 2
name=medjax
grace=300

if [ "$target" = tpu ]; then
  # The device files belong to root, and a TPU's driver locks much memory.
  devices=(--privileged --user=0)
else
  devices=(--gpus=all)
fi

# Devices and docker appear some seconds after a machine has started.
for _ in 1 2 3 4 5 6 7 8 9 10; do
  docker info >/dev/null 2>&1 && break
  sleep "${MEDJAX_WAIT:-6}"
done

if [ "$(docker inspect --format='{{.State.Running}}' "$name" 2>/dev/null)" != true ]; then
  case $image in
    *-docker.pkg.dev/*) gcloud auth configure-docker --quiet "${image%%/*}" || exit 1 ;;
  esac
  docker rm --force "$name" >/dev/null 2>&1
  # The network of the host, so that the processes of several hosts meet. The data workers
  # hand over batches in shared memory.
  docker run --detach --pull=always --name="$name" --network=host --ipc=host \
    --stop-timeout="$grace" --volume=/mnt:/mnt "${devices[@]}" "$image" train "$@" >/dev/null || exit 1
fi

docker logs --follow --tail=200 "$name"
# Docker does not answer if it stops with the machine. That is a lost connection, not the
# end of the run.
code=$(docker wait "$name") || exit 255
exit "$code"
