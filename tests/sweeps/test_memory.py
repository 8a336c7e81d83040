"""What is free is what the machine has left, or less where a container leaves less."""

import jax
import pytest

from probex_jax.fitting.sharding import ONE
from probex_jax.sweeps import jobs
from probex_jax.sweeps.jobs import IN_FLIGHT, Job, Room
from probex_jax.sweeps.memory import free_bytes, free_on

GB = 10**9


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


@pytest.fixture
def machine(tmp_path):
    """Of 64 GB, 50 of them free."""
    meminfo = f"MemTotal: {64 * GB // 1000} kB\nMemFree: 1 kB\nMemAvailable: 48828125 kB\nbad\n"
    write(tmp_path, proc__meminfo=meminfo)
    return tmp_path


def test_what_the_machine_has_left(machine):
    assert free_bytes(machine) == 50 * GB


def test_a_container_leaves_less(machine):
    """Its files in cache are given up when memory is needed; the group above it has no limit."""
    write(machine, proc__self__cgroup="0::/pod/box\n")
    pod = {"memory.max": "max\n", "memory.current": 40 * GB}
    box = {"memory.max": 12 * GB, "memory.current": 9 * GB}
    write(machine, **{f"sys__fs__cgroup__pod__{name}": text for name, text in pod.items()})
    write(machine, **{f"sys__fs__cgroup__pod__box__{name}": text for name, text in box.items()})
    assert free_bytes(machine) == 3 * GB
    stat = f"anon 1\ninactive_file {2 * GB}\n"
    write(machine, **{"sys__fs__cgroup__pod__box__memory.stat": stat})
    assert free_bytes(machine) == 5 * GB
    write(machine, **{"sys__fs__cgroup__pod__memory.max": 41 * GB})
    assert free_bytes(machine) == 1 * GB
    write(machine, **{"sys__fs__cgroup__pod__memory.max": 39 * GB})
    assert free_bytes(machine) == 0


def test_a_container_of_version_1_whose_own_group_is_the_top(machine):
    write(machine, proc__self__cgroup="9:cpu:/docker/1\n4:hugetlb,memory:/docker/1\n0::/\n")
    top = {"limit_in_bytes": 8 * GB, "usage_in_bytes": 3 * GB}
    write(machine, **{f"sys__fs__cgroup__memory__memory.{name}": n for name, n in top.items()})
    assert free_bytes(machine) == 5 * GB
    write(machine, sys__fs__cgroup__memory__memory_stat="", proc__self__cgroup="0::/\n")
    assert free_bytes(machine) == 50 * GB


def test_where_nothing_tells(tmp_path):
    assert free_bytes(tmp_path) >= free_bytes() > 0


class Device:
    """One of 80 GB."""

    def __init__(self, used):
        self.used = used

    def memory_stats(self):
        return {"bytes_limit": 80 * GB, "bytes_in_use": self.used}


def test_what_others_use_of_a_device_is_not_free(monkeypatch):
    assert free_on(ONE) is None, "a CPU has the memory of the machine"
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(30 * GB), Device(79 * GB)])
    assert free_on(ONE) == 50 * GB, "of the one that trains"


@pytest.mark.parametrize("device", [None, Device(0)], ids=["cpu", "gpu"])
def test_all_jobs_together_take_a_third_of_the_machine(monkeypatch, device):
    monkeypatch.setattr(jobs, "free_bytes", lambda: 24.0 * GB)
    if device:
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
    room = Room.here(ONE)
    on_machine = IN_FLIGHT * room.host + (0 if device else room.device)
    assert 4 * GB < on_machine <= 8.001 * GB
    assert room.device <= room.alone <= (80 if device else 24) * GB
    single, several = Job(("a",), (None,)), Job(("a", "b"), (None,))
    assert room.limit(several) == room.device
    assert room.limit(single) == room.alone
