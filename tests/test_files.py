"""Locks among processes, and reading JSON."""

import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import probex_jax as px
from probex_jax import files
from probex_jax.errors import ProbexError
from probex_jax.files import WRITER_LOCK, one_writer, read_json, write_json

WRITER = """
import os, sys
from pathlib import Path
from probex_jax.files import one_writer
with one_writer(Path(sys.argv[1])):
    if not os.fork():  # the child says it: by then it holds nothing
        print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_writes_a_folder_and_says_who_it_is(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(px.ProbexError, match=f"pid {holder.pid}") as error,
        one_writer(tmp_path / "a"),
    ):
        pass
    assert str(tmp_path / "a") in str(error.value)
    # The process that it has forked lives on and holds nothing.
    holder.kill()
    holder.wait()
    with one_writer(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    holder.communicate()


def test_a_writer_may_enter_again_under_another_name_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with one_writer(tmp_path / "a"):
        with one_writer(Path("link")), one_writer(Path("a")):
            write_json(tmp_path / "a" / "b.json", 1)
        with ThreadPoolExecutor(1) as thread, pytest.raises(px.ProbexError, match=str(tmp_path)):
            thread.submit(one_writer(tmp_path / "a").__enter__).result()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_errors_inside_stay_what_they_are(tmp_path):
    with pytest.raises(BrokenPipeError), one_writer(tmp_path / "a"):
        raise BrokenPipeError


def test_a_folder_to_which_nothing_was_written_is_gone(tmp_path):
    with pytest.raises(KeyError), one_writer(tmp_path / "a"):
        raise KeyError
    assert not [*tmp_path.iterdir()]


def test_what_is_no_note_of_a_writer_is_not_shown(tmp_path):
    with one_writer(tmp_path), ThreadPoolExecutor(1) as thread:
        (tmp_path / WRITER_LOCK).write_bytes(b"\x1b[2J\xff")
        with pytest.raises(px.ProbexError) as error:
            thread.submit(one_writer(tmp_path).__enter__).result()
    assert str(error.value).isprintable()


def test_of_two_that_write_one_file_one_wins(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: write_json(tmp_path / "a.json", [n] * 1000), range(200)))
    assert len(set(read_json(tmp_path / "a.json"))) == 1
    assert len([*tmp_path.iterdir()]) == 1


def test_what_cannot_be_written_takes_no_space(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProbexError, match="a: No space"):
        files.write_bytes(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_file_system_without_locks_will_do_for_one_process(tmp_path, monkeypatch):
    def unknown(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with one_writer(tmp_path / "a"), one_writer(tmp_path / "a"):
        write_json(tmp_path / "a" / "b.json", 1)
