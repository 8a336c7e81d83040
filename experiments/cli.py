"""What the commands share: exit codes, progress bars, tables."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from tqdm import tqdm

from experiments import options
from probex_jax.engine import keep_compiled
from probex_jax.errors import ProbexError, one_line
from probex_jax.files import is_full
from probex_jax.reports import table
from probex_jax.sweeps import Stop

# What a running command would have saved when the process is told to end.
STOP = Stop()
_TERMINATED = 128 + signal.SIGTERM
_OTHERS_WAIT = threading.Event()

__all__ = ["STOP", "config", "one_line", "progress", "run", "table"]


def run(main: Callable[[], int | None]) -> None:
    """Runs a command: 2, with one line and no traceback, on a user's mistake; else what it says."""

    def without_arguments(rest: Sequence[str]) -> int:
        if rest:
            _exit(f"unexpected argument {rest[0]!r}; options are written --name=value")
        return main() or 0

    run_with_arguments(without_arguments)


def run_with_arguments(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a command that takes arguments beside its flags, and returns its exit code."""

    def guarded(argv: list[str]) -> int:
        # Orbax logs every step, and every error with a traceback before it raises it.
        logging.set_verbosity(logging.FATAL)
        if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            _exit("JAX_ENABLE_X64: the commands compute in float32, as experts are kept; unset it")
        _end_on_sigterm()
        keep_compiled()
        try:
            return main(argv[1:])
        except ProbexError as error:
            _exit(str(error))
        except BrokenPipeError:
            return _no_reader()
        except OSError as error:
            if error.filename is not None:
                _exit(f"{error.filename}: {str(error.strerror).lower()}")
            if not is_full(error):
                raise
            _exit("no space left on the disk; free some and run the same command again")
        except (RuntimeError, AssertionError):
            if not (reason := _no_device()):
                raise
            _exit(reason)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    if options.is_asked_for_help(sys.argv[1:]):
        try:
            print(options.screen(sys.modules["__main__"].__doc__ or ""), flush=True)
        except BrokenPipeError:
            sys.exit(_no_reader())
        sys.exit(0)
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow arguments
    try:
        app.run(guarded, flags_parser=_parse)
    except SystemExit as stop:
        if stop.code and _OTHERS_WAIT.is_set():
            _end_at_once(stop.code)
        # absl ends --helpfull with 1, as if it were a mistake.
        sys.exit(0 if {"--helpfull", "-helpfull"} & set(sys.argv[1:]) else stop.code)
    except BaseException:
        if _OTHERS_WAIT.is_set():
            traceback.print_exc()
            _end_at_once(1)
        raise


def _no_device() -> str:
    """Why JAX cannot begin, if it is told to use a device that is not there; "" otherwise."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        return (
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: JAX finds no such device here; set "
            "JAX_PLATFORMS=cpu, or unset it, or install JAX for the device (docs.jax.dev)"
        )
    return ""


def _no_reader() -> int:
    """Whoever read our output has seen enough; nothing may be flushed to it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def others_wait() -> None:
    """From now on this process ends at once if it fails, since others wait for it."""
    _OTHERS_WAIT.set()


def _end_at_once(code: Any) -> NoReturn:
    """JAX would wait for the other processes at the end, and these wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _end_on_sigterm() -> None:
    """From now on SIGTERM saves what is not saved and ends the process with 143.

    The main thread may be in a compiled program for minutes, and hears of no signal there; the
    system writes its number to a pipe, which another thread reads.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while os.read(read, 1) != bytes([signal.SIGTERM]):
            pass
        try:
            STOP.save()
            print("stopped; run the same command again to go on", file=sys.stderr, flush=True)
        except ProbexError as error:
            print(f"error: not saved: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(_TERMINATED)

    threading.Thread(target=watch, daemon=True).start()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except options.MISTAKES as error:
        _exit(options.in_one_line(error))


def config(default: str, help_text: str) -> flags.FlagHolder[Any]:
    """`options.config`; a mistake in it is found when it is defined, and ends the command."""
    try:
        return options.config(default, help_text)
    except options.MISTAKES as error:
        _exit(options.in_one_line(error))


def _exit(message: str) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def progress(total: int, what: str, unit: str) -> tqdm:
    """A progress bar with ETA on standard error; silent where that is not a terminal.

    Numbers of bytes ("B") are shown in kB, MB or GB.
    """
    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=None, dynamic_ncols=True
    )
