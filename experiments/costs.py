"""What the steps of a run cost, kept from the run that did them."""

import os
import platform
import re
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from probex_jax.errors import ProbexError
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.reports import Cost

_NAME = "costs.json"


class Costs:
    """The record of a work directory: its command and machine, and the cost of each step.

    What stands in it stays: a run that finds a step done adds nothing.
    """

    def __init__(self, workdir: Path, writes: bool = True):
        """`writes`: whether this process does, of several at one command."""
        self._workdir, self._writes = workdir, writes

    @contextmanager
    def step(self, name: str, made: Path | None = None) -> Iterator[None]:
        """Measures what is inside; nothing is kept of what fails.

        Args:
          name: of the step.
          made: what the step makes; if it is there before, an earlier run began the step.
        """
        begun_before = made is not None and made.exists()
        _forget_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if not self._writes:
            return
        with one_writer(self._workdir):
            about, costs = self._read()
            if name not in (cost.step for cost in costs):
                costs.append(Cost(name, seconds, _peak_bytes(), begun_before))
                record = {"about": about, "steps": [vars(cost) for cost in costs]}
                write_json(self._workdir / _NAME, record)

    @property
    def steps(self) -> list[Cost]:
        """Of all steps that were measured."""
        return self._read()[1]

    @property
    def about(self) -> dict[str, str]:
        """The command and the machine of the first run, and when it ended its first step."""
        return self._read()[0]

    def _read(self) -> tuple[dict[str, str], list[Cost]]:
        path = self._workdir / _NAME
        if not path.exists():
            return _about(), []
        try:
            found = read_json(path)
            about = {name: found["about"][name] for name in _about()}
            return about, [Cost(**one) for one in found["steps"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ProbexError(f"{path}: damaged ({error}); remove it") from error


def _about() -> dict[str, str]:
    devices = jax.local_devices()
    return {
        "command": shlex.join(["probex", Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "first step ended": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}, {_cores()} CPU cores, "
        f"JAX devices: {len(devices)} ({devices[0].device_kind})",
        "Python": platform.python_version(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget_peak() -> None:
    """From now on `_peak_bytes` is that of what follows; on other systems than Linux, of all."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_bytes() -> int:
    with suppress(OSError), open("/proc/self/status") as file:
        found = re.search(r"^VmHWM:\s+(\d+) kB", file.read(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
