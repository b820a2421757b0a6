#!/usr/bin/env bash
# Measures the first sections of docs/numbers.md (calls, blocks, HTTP, copies), one after the other, and prints their tables. The
# later sections name the command of each figure.
#
#   bench/numbers.sh [SECONDS for each row, default 3]
#
# Raw outputs stay in bench/runs/DATE-HOST/. Needs a release build (made if there is none), and for the peers fio, nginx and
# wrk (a missing one leaves its rows out and says so). Traffic is on loopback only; scratch files lie in $TMPDIR, which
# should be on the disk to be measured and has to have 4 GiB free.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-3}
export ATOLL=${ATOLL:-$PWD/target/release/atoll}
[ -x "$ATOLL" ] || cargo build --release
runs=bench/runs/$(date -u +%F)-$(hostname)
mkdir -p "$runs"
{
    date -u +%FT%TZ
    uname -sr
    grep -m1 'model name' /proc/cpuinfo
    echo "$(nproc) processors, load $(cut -d' ' -f1-3 /proc/loadavg)"
    git log -1 --format='%h %s' 2>/dev/null || true
} | tee "$runs/machine.txt"

say() { printf '\n== %s\n' "$*" >&2; }
say "atoll bench ipc";   "$ATOLL" bench ipc --json --seconds "$seconds" >"$runs/ipc.json"
say "atoll bench block"; "$ATOLL" bench block --json --seconds "$((seconds * 2))" >"$runs/block.json"
say "atoll bench http";  "$ATOLL" bench http --json --seconds "$seconds" >"$runs/http.json"
say "bench/peers/block.sh (fio)";      bench/peers/block.sh "$seconds" >"$runs/fio.txt" || echo "left out" >&2
say "bench/peers/http.sh (nginx)";     bench/peers/http.sh "$seconds" 3 >"$runs/nginx.txt" || echo "left out" >&2
say "bench/peers/stream.sh (cold file against the disk)"; bench/peers/stream.sh >"$runs/stream.txt" || echo "left out" >&2
say "bench/copies.sh (user-space work for each byte)";    bench/copies.sh >"$runs/copies.txt" || echo "left out" >&2
say "bench/syscalls.sh (strace)";      bench/syscalls.sh >"$runs/syscalls.txt" || echo "left out" >&2

say "the table"
python3 - "$runs" <<'PY'
import json, pathlib, sys
runs = pathlib.Path(sys.argv[1])
print((runs / "machine.txt").read_text())
def us(ns): return f"{ns / 1000:.2f}" if ns < 100_000 else f"{ns / 1000:.0f}"
for name in ["ipc", "block", "http"]:
    run = json.loads((runs / f"{name}.json").read_text())
    print(f"### `atoll bench {name}`, load {run['machine']['load']}\n")
    print("| what | a second | p50 µs | p99 µs | p99.9 µs | processor µs | host's system calls | beside | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|---|--:|")
    for row in run["rows"]:
        cpu = f"{row['cpu_ns'] / 1000:.2f}" if row.get("cpu_ns") else ""
        calls = f"{row['system_calls']:.3f}" if row.get("system_calls") is not None else ""
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") else ""
        print(f"| {row['name']} | {row['per_second']:,.0f} | {us(row['p50_ns'])} | {us(row['p99_ns'])} | {us(row['p999_ns'])}"
              f" | {cpu} | {calls} | {row.get('floor') or ''} | {ratio} |")
    print()
for name in ["fio", "nginx", "stream", "copies", "syscalls"]:
    text = (runs / f"{name}.txt")
    if text.exists():
        print(f"### {name}\n\n```\n{text.read_text().strip()}\n```\n")
PY
