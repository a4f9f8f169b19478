#!/bin/sh
# confined.sh COMMAND...: run it in a network of its own, which has loopback and nothing else, so that nobody else reaches
# the servers that tests start. Where the system has no such network to give, it says so and runs the command all the same.
set -eu
if unshare --net ip link set lo up 2>/dev/null; then
  exec unshare --net sh -c 'ip link set lo up && exec "$@"' confined "$@"
fi
echo "tests/confined.sh: no network of its own to be had (it takes root, util-linux and iproute2); servers that these" \
  "tests start may be reached from other machines while they run" >&2
exec "$@"
