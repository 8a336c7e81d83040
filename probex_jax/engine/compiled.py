"""Compiled programs, kept from one process to the next."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from probex_jax.files import user_cache


def keep_compiled() -> None:
    """Has JAX keep compiled programs on disk; `JAX_COMPILATION_CACHE_DIR` says where instead.

    An expert on all layers has a program for each of their shapes, most of the time of a short
    command. Programs are those of one processor: a home that machines share has a folder for each.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    cpu = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu += "".join(sorted({line for line in lines if line.startswith(("flags", "model name"))}))
    folder = user_cache() / "compiled" / hashlib.sha256(cpu.encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
