"""Memory that is free: of the machine, of the container that this runs in, of the devices."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax

from probex_jax.fitting.sharding import Devices

# Files of a control group by its kind: its limit, what it uses, and of that the files in cache.
_FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_bytes(root: Path = Path("/")) -> float:
    """Memory that this process can still take: the least of what machine and containers leave.

    Caches of files count as free. Where the system does not tell, as on macOS, all that is
    installed does.

    Args:
      root: where the system's `proc` and `sys` are.
    """
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    available = _table(root / "proc/meminfo").get("MemAvailable:")
    return min([found if available is None else 1024.0 * available, *_left_by_containers(root)])


def _left_by_containers(root: Path) -> Iterator[float]:
    """What each control group leaves that this process is in, and those above it."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, used, cached = _FILES["v1" if controllers else "v2"]
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            try:
                bound = float((folder / limit).read_text())
                taken = float((folder / used).read_text())
            except (OSError, ValueError):  # not there, or "max"
                pass
            else:
                yield max(0.0, bound - taken + _table(folder / "memory.stat").get(cached, 0))
            if folder == top:
                break


def _table(path: Path) -> dict[str, int]:
    """The first number of each line, by its first word."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def free_on(devices: Devices) -> float | None:
    """Bytes that are free on each device; None where devices share the memory of the machine."""
    some = devices.local or jax.local_devices()[:1]
    told = [device.memory_stats() or {} for device in some]
    if not all("bytes_limit" in stats for stats in told):
        return None
    return float(min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in told))
