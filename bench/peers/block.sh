#!/usr/bin/env bash
# 4 KiB random reads at depth 32 and 1, and 1 MiB sequential ones: through the driver (`atoll bench block`) and by fio with
# fixed buffers (block.fio), on files of the same size in the same directory, in turns: the disk's own rate moves from one
# minute to the next. Prints each round, and the medians.
#
#   bench/peers/block.sh [SECONDS, default 4] [ROUNDS, default 3]
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-4}
rounds=${2:-3}
atoll=${ATOLL:-target/release/atoll}
command -v fio >/dev/null || { echo "skipped: fio is not installed" >&2; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# Written, and with what a disk cannot guess: holes would be read from nowhere.
head -c 1G /dev/urandom >"$dir/image"
sync "$dir/image"
# A fixed buffer is locked memory.
ulimit -l unlimited 2>/dev/null || true
for ((round = 1; round <= rounds; round++)); do
    fio --readonly --filename="$dir/image" --runtime="$seconds" --output-format=json bench/peers/block.fio >"$dir/fio.$round"
    "$atoll" bench block --json --seconds "$seconds" >"$dir/atoll.$round"
done
python3 - "$dir" "$rounds" <<'PY'
import json, sys
from statistics import median
print(f"load {open('/proc/loadavg').read().split()[0]}")
print(f"{'':28} {'round':>6} {'fio':>10} {'raw ring':>10} {'driver':>10}  driver/fio  driver/raw   fio p50/p99/p99.9 µs      driver p50/p99/p99.9 µs")
for job, name in [("rand4k-d32", "4 KiB random, depth 32"), ("rand4k-d1", "4 KiB random, depth 1"), ("seq1m-d4", "1 MiB sequential, depth 4")]:
    rounds = []
    for round in range(1, int(sys.argv[2]) + 1):
        fio = json.load(open(f"{sys.argv[1]}/fio.{round}"))["jobs"]
        rows = {row["name"]: row for row in json.load(open(f"{sys.argv[1]}/atoll.{round}"))["rows"]}
        read = next(each["read"] for each in fio if each["jobname"] == job)
        raw, driver = rows["direct " + name]["per_second"], rows["driver " + name]
        p = read["clat_ns"]["percentile"]
        theirs = "/".join(f"{p[key] / 1000:.0f}" for key in ["50.000000", "99.000000", "99.900000"])
        ours = "/".join(f"{driver[key] / 1000:.0f}" for key in ["p50_ns", "p99_ns", "p999_ns"])
        rate = driver["per_second"]
        rounds.append((read["iops"], raw, rate, rate / read["iops"], rate / raw))
        fields = "{:10.0f} {:10.0f} {:10.0f}  {:10.2f}  {:10.2f}"
        print(f"{name:28} {round:6} {fields.format(*rounds[-1])}   {theirs:24}  {ours}")
    print(f"{name:28} median {fields.format(*map(median, zip(*rounds)))}")
PY
