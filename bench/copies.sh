#!/usr/bin/env bash
# What httpd and net-host do in user space for each byte sent: their user time for 64 MiB and for 512 MiB of one cached
# file by HTTP, and how long a copy of as many bytes takes here. Copying would add that to each process that copies.
#
#   bench/copies.sh
#
# Where the machine has a cycle counter, instructions are counted too (perf stat -e instructions:u).
set -euo pipefail
cd "$(dirname "$0")/.."
export ATOLL=${ATOLL:-$PWD/target/release/atoll}
exec python3 - <<'PY'
import json, os, re, shutil, signal, socket, subprocess, tempfile, time
atoll = os.environ["ATOLL"]
directory = tempfile.mkdtemp()
state, MIB = directory + "/state", 1 << 20
def run(*words): return subprocess.run([atoll, *words], check=True, capture_output=True, text=True).stdout
def user_ns(pid):
    # Sampled by the tick on most kernels: many transfers, so that the error is small.
    return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[11]) * 10_000_000
def instructions(pids, work):
    """Of each process while `work` runs; None where there is no counter."""
    counters = [subprocess.Popen(["perf", "stat", "-x,", "-e", "instructions:u", "-p", str(pid)],
                                 stderr=subprocess.PIPE, text=True) for pid in pids] if shutil.which("perf") else []
    time.sleep(0.3 if counters else 0)
    work()
    counts = []
    for counter in counters:
        counter.send_signal(signal.SIGINT)
        field = counter.communicate()[1].strip().split(",")[0]
        counts.append(int(field) if field.isdigit() else None)
    return counts or [None] * len(pids)
def fetch(address, mib):
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        buffer, left = bytearray(1 << 20), mib
        for _ in range(mib // 16):
            connection.sendall(b"GET /16m.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            body = 16 * MIB - (len(head) - head.index(b"\r\n\r\n") - 4)
            while body:
                body -= connection.recv_into(buffer, min(body, len(buffer)))
try:
    run("up", "--state", state, "--set", "httpd.listen=127.0.0.1:0", "--detach")
    open(directory + "/16m.bin", "wb").write(os.urandom(16 * MIB))
    run("fs", "--state", state, "put", directory + "/16m.bin", "/www/16m.bin")
    parts = {part["name"]: part for part in json.loads(run("ps", "--state", state, "--json"))["components"]}
    names, address = ["httpd", "net"], parts["httpd"]["listen"]
    pids = [parts[name]["pid"] for name in names]
    fetch(address, 64)
    source, begin = bytearray(os.urandom(16 * MIB)), time.perf_counter()
    for _ in range(32): bytes(source)
    copy = (time.perf_counter() - begin) / 512 * 1e6
    print(f"load {open('/proc/loadavg').read().split()[0]}; one copy of 1 MiB takes {copy:.0f} µs here")
    figures = {}
    for mib, repeats in [(64, 16), (512, 8)]:
        before = [user_ns(pid) for pid in pids]
        counts = instructions(pids, lambda: [fetch(address, mib) for _ in range(repeats)])
        for name, pid, old, count in zip(names, pids, before, counts):
            spent = (user_ns(pid) - old) / 1000 / mib / repeats
            figures[name, mib] = spent
            more = f", {count / mib / repeats / MIB:.4f} instructions for each byte" if count else ""
            print(f"{name:5} {repeats:2} x {mib:3} MiB: {spent:6.1f} µs of user time for each MiB, {spent / copy:.2f} of a copy{more}")
    io = {part["name"]: part for part in json.loads(run("ps", "--io", "--state", state, "--json"))["components"]}
    for name in names: print(name, "counters:", json.dumps(io[name].get("io", {key: value for key, value in io[name].items() if "byte" in key or key in ("leased", "verified", "copied")})))
    for name, pid in zip(names, pids):
        maps = open(f"/proc/{pid}/maps").read()
        print(f"{name} maps a payload region: {'yes, read-only' if re.search('r--s.*memfd:disk', maps) else 'no'}")
finally:
    subprocess.run([atoll, "down", "--state", state], capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)
PY
