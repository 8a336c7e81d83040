"""Locks among processes."""

import errno
import fcntl
import subprocess
import sys

import pytest

import probex_jax as px
from probex_jax.files import alone

HOLDER = """
import sys
from pathlib import Path
from probex_jax.files import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_given_back_when_it_dies(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with alone(path, wait=False) as ours:
        assert not ours
    holder.kill()
    with alone(path) as ours:
        assert ours
    holder.communicate()


def test_errors_inside_stay_what_they_are(tmp_path):
    with pytest.raises(BrokenPipeError), alone(tmp_path / "lock"):
        raise BrokenPipeError
    with alone(tmp_path / "lock", wait=False) as ours:
        assert ours


def test_a_file_system_without_locks_will_do_for_one_process(tmp_path, monkeypatch):
    def unknown(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with alone(tmp_path / "lock", needed=False) as ours:
        assert ours
    with pytest.raises(px.ProbexError, match="lock: Operation not s"), alone(tmp_path / "lock"):
        pass
    missing = tmp_path / "none" / "lock"
    with pytest.raises(px.ProbexError, match="No such file"), alone(missing, needed=False):
        pass
