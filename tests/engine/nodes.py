"""Two nodes of a Ray cluster in a network namespace of their own, which has loopback alone.

Elsewhere Ray takes a machine's own address, and two nodes of one machine are not as on two. Run by
`unshare`; says where it is in a line, and ends when standard input does.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PORT = 6399
_UP, _SIOCSIFFLAGS = 0x1 | 0x40, 0x8914
_START_S = 120


def loopback_up():
    """Brings up the one interface of a new namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP))


def main():
    loopback_up()
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=2"]
    here = tempfile.mkdtemp(prefix="ray-")
    head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={here}"]
    commands = [
        [*ray, "--node-ip-address=127.0.0.1", *head],
        [*ray, f"--address=127.0.0.1:{PORT}"],
    ]
    processes = []
    try:
        for number, command in enumerate(commands, start=1):
            with open(Path(here) / f"{number}.log", "w") as log:
                processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                )
            wait_for_nodes(number)
        print(os.getpid(), flush=True)
        sys.stdin.read()
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait()
        shutil.rmtree(here, ignore_errors=True)


def wait_for_nodes(count):
    """Waits until there are so many."""
    program = (
        f"import ray; ray.init('127.0.0.1:{PORT}', log_to_driver=False); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        if done.stdout.strip() == str(count):
            return
    raise TimeoutError(f"no {count} nodes in {_START_S} s: {done.stderr[-500:]}")


def processes(parent):
    """All processes that one has started, and those that these have."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [parent]
    for process in found:
        found += children.get(process, [])
    return found[1:]


def workers_of(parent):
    """The workers of clusters that a process started, with work or waiting for it."""
    found = []
    for process in processes(parent):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/comm").read_text().startswith("ray::Worker"):
                found.append(process)
    return found


if __name__ == "__main__":
    main()
