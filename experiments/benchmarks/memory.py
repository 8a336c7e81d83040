"""One function in a process of its own, and how much memory that took at most.

A process's peak counts everything since its start, so that what is measured needs a fresh one. On
Linux; reads VmHWM, since ru_maxrss of a child begins at its parent's.
"""

import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

_MIB = 2**10  # /proc counts in KiB


def fresh(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Calls a function in a fresh process.

    Args:
      function: of a module that can be imported.
      *arguments: what JSON can hold.

    Returns:
      `result`: what the function returned, through JSON; `start_mib`: resident when the module was
      imported; `peak_mib`: resident at most.
    """
    module = function.__module__
    if module == "__main__":
        module = sys.modules[module].__spec__.name  # type: ignore[union-attr]
    asked = json.dumps([module, function.__name__, arguments])
    done = subprocess.run(
        [sys.executable, "-m", __name__, asked], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def command(name: str, *arguments: str) -> None:
    """What `python -m experiments.NAME` does, in this process.

    Args:
      name: of the command.
      *arguments: its flags.

    Raises:
      SystemExit: if it fails.
    """
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


def _main(asked: str) -> None:
    module, function, arguments = json.loads(asked)
    work = getattr(importlib.import_module(module), function)
    start = _status("VmRSS")
    result = work(*arguments)
    found = {"result": result, "start_mib": start, "peak_mib": _status("VmHWM")}
    print("\n" + json.dumps(found))


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        [line] = (line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) / _MIB


if __name__ == "__main__":
    _main(sys.argv[1])
