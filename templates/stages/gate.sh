#!/bin/sh
# nvcc, when it is its turn: kernels that compile at the same time share one number of places, so that all
# of them together stay within the budget, and none waits while a place is free.
# Without a budget, as in a plain `docker buildx bake`: what six tenths of the memory hold, at 5 GB each.
: "${IMGBUILD_PLACES:=$(awk '/^MemTotal:/ { n = int($2 * 0.6 / 5e6); print (n < 1 ? 1 : n) }' /proc/meminfo)}"
turn=$$
while :; do
    place=0
    while [ "$place" -lt "$IMGBUILD_PLACES" ]; do
        exec 9> "/run/gate/$place"
        if flock --nonblock 9; then exec /opt/cuda/bin/nvcc "$@"; fi # held until nvcc ends, however it ends
        place=$((place + 1))
    done
    # All are taken: wait at one of them, each caller at another, rather than ask again and again.
    turn=$((turn + 1))
    exec 9> "/run/gate/$((turn % IMGBUILD_PLACES))"
    if flock --wait 2 9; then exec /opt/cuda/bin/nvcc "$@"; fi
done
