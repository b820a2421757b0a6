#!/bin/sh
# Requests per second of Atoll's httpd and of nginx with sendfile (one worker), 64 connections, same files, same processors,
# in turns in one run. Needs nginx and wrk. Writes a table; keep it with `| tee bench/runs/http-$(date +%F).txt`.
#
#   bench/peers/http.sh [SECONDS per measurement, default 5] [ROUNDS, default 3]
#
# ATOLL=path of the binary (default target/release/atoll). PIN=1 puts the servers on processor 0 and wrk on processor 1;
# without it the kernel places everything on all processors.
set -eu
seconds=${1:-5}
rounds=${2:-3}
cd "$(dirname "$0")/../.."
atoll=${ATOLL:-target/release/atoll}
[ -x "$atoll" ] || { echo "build first: cargo build --release" >&2; exit 1; }
for tool in nginx wrk curl; do
    command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin
    command -v "$tool" >/dev/null || { echo "skipped: $tool is not installed" >&2; exit 1; }
done
dir=$(mktemp -d)
nginx_pid=
cleanup() {
    [ -z "$nginx_pid" ] || kill "$nginx_pid" 2>/dev/null || true
    "$atoll" down --state "$dir/state" >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT INT TERM

servers= client= mask=11
if [ -n "${PIN:-}" ]; then
    servers="taskset -c 0" client="taskset -c 1" mask=01
fi

mkdir "$dir/www"
head -c 1024 /dev/urandom >"$dir/www/1k.bin"
head -c 65536 /dev/urandom >"$dir/www/64k.bin"
head -c 1048576 /dev/urandom >"$dir/www/1m.bin"
chmod -R a+rX "$dir"

port=${NGINX_PORT:-18081}
sed -e "s|@DIR@|$dir|g" -e "s|@PORT@|$port|g" -e "s|@CPUMASK@|$mask|g" bench/peers/nginx.conf >"$dir/nginx.conf"
$servers nginx -c "$dir/nginx.conf" &
nginx_pid=$!

$servers "$atoll" up --state "$dir/state" --set httpd.listen=127.0.0.1:0 --detach >/dev/null
for file in 1k.bin 64k.bin 1m.bin; do
    "$atoll" fs --state "$dir/state" put "$dir/www/$file" "/www/$file" >/dev/null
done
listen=$("$atoll" ps --state "$dir/state" --json | tr ',' '\n' | sed -n 's/.*"listen": *"\([^"]*\)".*/\1/p' | head -1)

for file in 1k.bin 64k.bin 1m.bin; do
    for base in "http://127.0.0.1:$port" "http://$listen"; do
        curl -sf "$base/$file" | cmp - "$dir/www/$file" || { echo "$base/$file differs" >&2; exit 1; }
    done
done

echo "# $(date -u +%FT%TZ) $(uname -r) $(nproc) processors, load $(cut -d' ' -f1-3 /proc/loadavg)"
echo "# $(nginx -v 2>&1); wrk, 1 thread, 64 connections, $seconds s, $rounds rounds in turns${PIN:+, servers pinned to 0, wrk to 1}"
measure() { $client wrk -t1 -c64 -d"$seconds"s --latency "$1"; }
column() { sed -n "s|^ *$1:* *\([0-9.]*[a-zA-Z]*\).*|\1|p" | head -1; }
printf '%-8s %-6s %12s %12s %10s %10s\n' file round server requests/s p50 p99
for file in 1k.bin 64k.bin 1m.bin; do
    for round in $(seq "$rounds"); do
        for server in nginx atoll; do
            case $server in nginx) url="http://127.0.0.1:$port/$file" ;; *) url="http://$listen/$file" ;; esac
            measure "$url" >"$dir/out"
            printf '%-8s %-6s %12s %12s %10s %10s\n' "$file" "$round" "$server" "$(column Requests/sec <"$dir/out")" \
                "$(column 50% <"$dir/out")" "$(column 99% <"$dir/out")"
            grep -E 'Socket errors|Non-2xx' "$dir/out" || true
            eval "best=\${best_${server}_${file%.bin}:-0}"
            now=$(column Requests/sec <"$dir/out")
            eval "best_${server}_${file%.bin}=$(printf '%s\n%s\n' "$best" "$now" | sort -g | tail -1)"
        done
    done
    eval "n=\$best_nginx_${file%.bin} a=\$best_atoll_${file%.bin}"
    echo "$file: best atoll / best nginx = $(echo "$a $n" | awk '{ printf "%.2f", $1 / $2 }')"
done
