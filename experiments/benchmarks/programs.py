"""Whole programs, as a shell starts them: what they compile is not taken from a cache."""

import os
import subprocess
import sys
from pathlib import Path

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
