#!/usr/bin/env bash
# A cold 1 GiB file by HTTP, beside the same bytes read from the image by dd (direct, 1 MiB blocks): seconds and ratio.
#
#   bench/peers/stream.sh [ROUNDS, default 3]
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
atoll=${ATOLL:-target/release/atoll}
dir=$(mktemp -d)
cleanup() {
    "$atoll" down --state "$dir/state" >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT
head -c 1G /dev/urandom >"$dir/big.bin"
up() { "$atoll" up --state "$dir/state" --set httpd.listen=127.0.0.1:0 --detach >/dev/null; }
up
"$atoll" fs --state "$dir/state" put "$dir/big.bin" /www/big.bin >/dev/null 2>&1
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
for round in $(seq "$rounds"); do
    # Nothing cached: neither in fs-server nor in the page cache.
    "$atoll" down --state "$dir/state" >/dev/null
    sync
    [ "$(id -u)" != 0 ] || echo 3 >/proc/sys/vm/drop_caches
    begin=$(date +%s.%N)
    dd if="$dir/state/disk.img" of=/dev/null bs=1M count=1024 iflag=direct status=none
    disk=$(echo "$(date +%s.%N) $begin" | awk '{ print $1 - $2 }')
    up
    listen=$("$atoll" ps --state "$dir/state" --json | tr ',' '\n' | sed -n 's/.*"listen": *"\([^"]*\)".*/\1/p' | head -1)
    http=$(curl -s -o /dev/null -w '%{time_total}' "http://$listen/big.bin")
    echo "$disk $http" | awk -v round="$round" \
        '{ printf "round %d: disk %.2f s (%.0f MB/s), HTTP %.2f s (%.0f MB/s), HTTP rate / disk rate = %.2f\n", round, $1, 1073.7 / $1, $2, 1073.7 / $2, $1 / $2 }'
done
