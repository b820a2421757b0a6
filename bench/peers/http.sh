#!/usr/bin/env bash
# Requests a second at 1 KiB, 64 KiB and 1 MiB with 64 keep-alive connections: Atoll beside nginx, the same loader
# (wrk, one thread), the same machine, one after the other, several rounds.
#
#   bench/peers/http.sh [SECONDS] [ROUNDS]
#
# Needs nginx and wrk, and target/release/atoll (`cargo build --release`). Prints one line per run and the median ratio
# per size; raw lines go to bench/runs/ when SAVE=1.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-5} rounds=${2:-3}
atoll=${ATOLL:-target/release/atoll}
for tool in nginx wrk "$atoll"; do
    command -v "$tool" >/dev/null || { echo "http.sh: $tool is missing" >&2; exit 1; }
done

run=$(mktemp -d)
nginx_pid=
finish() {
    [ -z "$nginx_pid" ] || kill "$nginx_pid" 2>/dev/null || true
    "$atoll" --state "$run/state" down >/dev/null 2>&1 || true
    wait 2>/dev/null || true
    rm -rf "$run"
}
trap finish EXIT

mkdir "$run/www"
declare -A bytes=([1k]=1024 [64k]=65536 [1m]=1048576)
for size in 1k 64k 1m; do head -c "${bytes[$size]}" /dev/urandom >"$run/www/$size"; done
chmod -R a+rX "$run"

port=18081
sed -e "s|@ROOT@|$run/www|; s|@RUN@|$run|; s|@PORT@|$port|" bench/peers/nginx.conf >"$run/nginx.conf"
nginx -e "$run/error.log" -c "$run/nginx.conf" &
nginx_pid=$!

"$atoll" --state "$run/state" up --detach --set httpd.listen=127.0.0.1:0 >/dev/null
"$atoll" --state "$run/state" fs put "$run/www/1k" "$run/www/64k" "$run/www/1m" /www >/dev/null
listen=$("$atoll" --state "$run/state" ps --json |
    sed -n 's/.*"listen": *"\([0-9.]*:[0-9]*\)".*/\1/p' | head -n 1)

rate() { # rate URL -> requests a second
    wrk -t1 -c64 -d"${seconds}s" --latency "$1" >"$run/wrk.txt"
    if grep -q 'Non-2xx\|Socket errors' "$run/wrk.txt"; then cat "$run/wrk.txt" >&2; exit 1; fi
    awk '/Requests\/sec/ {print $2}' "$run/wrk.txt"
}

lines="$run/lines"
{
    echo "# $(date -u +%FT%TZ) $(uname -r) $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)"
    echo "# load $(cut -d' ' -f1-3 /proc/loadavg), $(nginx -v 2>&1), ${seconds}s a run"
    printf '%-6s %12s %12s %8s\n' size nginx/s atoll/s ratio
} | tee "$lines"
for size in 1k 64k 1m; do
    curl -sf "http://127.0.0.1:$port/$size" | cmp - "$run/www/$size"
    curl -sf "http://$listen/$size" | cmp - "$run/www/$size"
    for _ in $(seq "$rounds"); do
        peer=$(rate "http://127.0.0.1:$port/$size")
        ours=$(rate "http://$listen/$size")
        awk -v s="$size" -v n="$peer" -v a="$ours" 'BEGIN {printf "%-6s %12.0f %12.0f %8.3f\n", s, n, a, a / n}'
    done
done | tee -a "$lines"
echo
for size in 1k 64k 1m; do
    awk -v s="$size" '$1 == s {print $4}' "$lines" | sort -n |
        awk -v s="$size" '{r[NR] = $1} END {printf "%-6s median ratio %.3f\n", s, r[int((NR + 1) / 2)]}'
done | tee -a "$lines"
if [ "${SAVE:-0}" = 1 ]; then
    mkdir -p bench/runs
    cp "$lines" "bench/runs/$(date -u +%Y%m%d-%H%M%S)-http-nginx.txt"
fi
