"""Fuzzes the readers of model files, guided by coverage; no test of pytest's.

    make fuzz FUZZ_SECONDS=600
    python -m tests.model_files.fuzz_atheris -max_total_time=600 out/fuzz/corpus

Inputs are those of `fuzz_target`. A failure is any exception but a ProbexError of one line, more
than a second of processor time, more than 64 MB of memory at once, or a file that the safetensors
library refuses and we do not. libFuzzer then stops, and leaves the input in out/fuzz/. It belongs
into tests/model_files/corpus/ once it is mended: `test_fuzz_corpus` reads all of that in `make
test`. `python -m tests.model_files.fuzz_seeds` writes the seeds there anew.

Flags are libFuzzer's (https://llvm.org/docs/LibFuzzer.html); what is found new is written into the
first folder. Linux only, one run at a time.
"""

import ctypes
import importlib.util
import resource
import shutil
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["probex_jax.model_files", "probex_jax.zoo"]):
    from tests.model_files.fuzz_target import PEAK_BYTES, SECONDS, Target, kind_of, run

from probex_jax.model_files import untrusted_text

HERE = Path(__file__).parent
OUT = Path("out/fuzz")
MEMORY_DISK = Path("/dev/shm")
FLAGS = ("-timeout=20", "-rss_limit_mb=3000", "-max_len=65536", "-print_final_stats=1")
M_MMAP_THRESHOLD = -3  # of mallopt(3)
WARM_UP = 200


class Checked:
    """Runs an input within its time and memory; says which takes more than all before."""

    def __init__(self, target: Target):
        self._target = target
        self._runs = 0
        self._most = {"seconds": 0.02, "bytes": 2_000_000}

    def __call__(self, data: bytes) -> None:
        before = reset_peak()
        outcome, seconds = run(self._target, data)
        taken = {"seconds": seconds, "bytes": peak() - before}
        self._runs += 1
        if self._runs <= WARM_UP:
            return
        for what, amount in taken.items():
            if amount > self._most[what]:
                self._most[what] = amount
                print(f"most {what}: {amount:.3g}, {outcome}, {kind_of(data)}, {len(data)} bytes")
                (OUT / f"most-{what}").write_bytes(data)
        assert seconds < SECONDS, f"took {seconds:.2f} s"
        assert taken["bytes"] < PEAK_BYTES, f"took {taken['bytes'] / 1e6:.0f} MB"


def reset_peak() -> int:
    """Makes the peak of the process's memory what it has now; returns that, in bytes.

    tracemalloc would slow every run several times over; the kernel counts pages for nothing. It
    sees less than was allocated where a run takes memory that the ones before gave back to malloc,
    so `main` has malloc give large blocks back to the kernel. The corpus's test counts exactly.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def leave_arrays_alone() -> None:
    """Takes atheris out of the one function that compares arrays; it never frees what they give."""
    spec = importlib.util.spec_from_file_location("plain", untrusted_text.__file__)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    untrusted_text._check_structure = plain._check_structure


def main() -> None:
    leave_arrays_alone()
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    (OUT / "corpus").mkdir(parents=True, exist_ok=True)
    folder = (MEMORY_DISK if MEMORY_DISK.is_dir() else OUT) / "probex-fuzz"
    # libFuzzer ends the process itself, so what a run leaves is cleared by the next.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    seeds, dictionary = HERE / "corpus", HERE / "fuzz.dict"
    flags = [*FLAGS, f"-dict={dictionary}", f"-artifact_prefix={OUT}/", *sys.argv[1:], str(seeds)]
    atheris.Setup([sys.argv[0], *flags], Checked(Target(folder)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
