#!/usr/bin/env bash
# System calls of real servers for each call that they serve, by `strace -c -f`, with 32 or more calls outstanding:
#   * fs-server, net-host and httpd while 64 connections ask for a cached 1 KiB file (each request: open, read, send);
#   * the block driver while 32 reads of 4 KiB are outstanding (these wait for a disk).
#
#   bench/syscalls.sh
#
# Needs strace and wrk. Calls are counted by the leases in `atoll ps --io` and by wrk's requests. (strace slows the traced
# process, so its batches are larger than without; `atoll bench ipc` counts the host's own system calls without strace.)
set -euo pipefail
cd "$(dirname "$0")/.."
export ATOLL=${ATOLL:-$PWD/target/release/atoll}
exec python3 - <<'PY'
import glob, json, os, re, shutil, signal, subprocess, tempfile, time
atoll = os.environ["ATOLL"]
for tool in ["strace", "wrk"]:
    if not shutil.which(tool): raise SystemExit(f"skipped: {tool} is not installed")
directory = tempfile.mkdtemp()
state = directory + "/state"
def run(*words): return subprocess.run([atoll, *words], check=True, capture_output=True, text=True).stdout
def traced(pid, work):
    trace = subprocess.Popen(["strace", "-c", "-f", "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    result = work()
    trace.send_signal(signal.SIGINT)
    text = trace.communicate()[1]
    rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", text, re.M)
    return result, {name: int(count) for count, name in rows if name != "total"}
print(f"load {open('/proc/loadavg').read().split()[0]}")
try:
    run("up", "--state", state, "--set", "httpd.listen=127.0.0.1:0", "--detach")
    open(directory + "/1k.bin", "wb").write(os.urandom(1024))
    run("fs", "--state", state, "put", directory + "/1k.bin", "/www/1k.bin")
    parts = {part["name"]: part for part in json.loads(run("ps", "--state", state, "--json"))["components"]}
    url = f"http://{parts['httpd']['listen']}/1k.bin"
    for name, calls_each in [("fs", 2), ("net", 1), ("httpd", 1)]:
        def work():
            text = subprocess.run(["wrk", "-t1", "-c64", "-d3s", url], capture_output=True, text=True).stdout
            return int(re.search(r"(\d+) requests in", text).group(1))
        requests, made = traced(parts[name]["pid"], work)
        calls = requests * calls_each
        what = "requests" if name == "httpd" else "calls"
        print(f"{name:6} {calls:7} {what}, {sum(made.values()):6} system calls = {sum(made.values()) / calls:.3f} for each  {made}")
    # The driver: while `atoll bench block` reads 4 KiB at depth 32 (its first rows, in turns of a second with the floor).
    bench = subprocess.Popen([atoll, "bench", "block", "--seconds", "6"], stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": directory})
    def disk():
        # Its image of 1 GiB is written first.
        for _ in range(600):
            for own in glob.glob(directory + "/atoll-bench-*/state/atoll.sock"):
                text = subprocess.run([atoll, "ps", "--io", "--json", "--state", os.path.dirname(own)], capture_output=True, text=True).stdout
                parts = json.loads(text or "{}").get("components", [])
                if parts and parts[0]["pid"] and parts[0]["state"] == "ready": return parts[0]
            time.sleep(0.1)
        raise SystemExit("the driver did not start")
    def leased(): return next(value for key, value in disk().items() if "leased" in key)
    pid = disk()["pid"]
    before = leased()
    _, made = traced(pid, lambda: time.sleep(6))
    calls = (leased() - before) // 4096
    print(f"driver {calls:7} calls, {sum(made.values()):6} system calls = {sum(made.values()) / max(1, calls):.3f} for each  {made}")
    bench.wait()
finally:
    subprocess.run([atoll, "down", "--state", state], capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)
PY
