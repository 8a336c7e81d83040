"""Whole programs, as a shell starts them: what they compile is not taken from a cache."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments import cli

_REPOSITORY = Path(__file__).parents[2]
_CACHE = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}


def run(*arguments: str) -> None:
    """Runs Python with arguments, such as "-m" and a module, to its end.

    Raises:
      RuntimeError: if it fails, with what it said.
    """
    env = {name: value for name, value in os.environ.items() if name not in _CACHE}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=_REPOSITORY, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def child(words: Sequence[str], folder: Path = _REPOSITORY, seconds: float | None = None) -> int:
    """Runs a command to its end, and its own children with it.

    Args:
      words: of the command.
      folder: where it runs.
      seconds: it is ended after; None for no limit.

    Returns:
      Its exit code.

    Raises:
      subprocess.TimeoutExpired: if it was ended.
    """
    is_ending = threading.Event()
    with subprocess.Popen(words, cwd=folder, process_group=0) as process:

        def end() -> None:
            is_ending.set()
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(timeout=30)

        try:
            with cli.STOP.saves(end):
                code = process.wait(timeout=seconds)
                if is_ending.is_set():
                    signal.pause()  # who ended it ends this process next
                return code
        except BaseException:
            end()
            raise
