"""One writer of a folder in a bucket, by lock objects on a server of S3 on localhost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import probex_jax as px
from probex_jax import bucket_locks
from probex_jax.bucket_paths import as_path
from probex_jax.claims import claim
from probex_jax.files import WRITER_LOCK, alone, one_writer, sharing_writers, write_json
from tests import s3


@pytest.fixture(scope="module")
def server():
    with s3.serving() as app:
        yield app


@pytest.fixture
def folder(server, request):
    return as_path(f"s3://{s3.BUCKET}/{request.node.name}")


def elsewhere(function):
    """What a function gives in another thread, which is as good as another process here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def enter(writers, folder):
    with writers(folder):
        return True


def test_a_second_writer_is_told_of_the_first(folder):
    with one_writer(folder), one_writer(folder):
        claim(folder, {"epochs": 1})
        with pytest.raises(px.ProbexError, match=r"pid \d+ on .* since 20"):
            elsewhere(lambda: enter(one_writer, folder))
    assert elsewhere(lambda: enter(one_writer, folder))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_those_that_divide_the_work_keep_others_out(folder):
    with sharing_writers(folder), pytest.raises(px.ProbexError, match="divide"):
        elsewhere(lambda: enter(one_writer, folder))
    assert elsewhere(lambda: enter(one_writer, folder))


def test_one_at_a_time_even_if_answers_are_lost(server, folder):
    inside, most, lock = [], [], threading.Lock()

    def work(number):
        with alone(folder / "lock") as ours:
            with lock:
                inside.append(number)
                most.append(len(inside))
            time.sleep(0.01)
            with lock:
                inside.remove(number)
        return ours

    server.share = 0.1
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        server.share = 0.0
    assert set(most) == {1}
    assert not folder.exists()


@pytest.mark.parity
def test_those_that_would_divide_the_work_are_kept_out(folder):
    with one_writer(folder), pytest.raises(px.ProbexError, match=r"pid \d+ on"):
        elsewhere(lambda: enter(sharing_writers, folder))


@pytest.mark.parity
def test_a_lock_is_kept_as_long_as_its_holder_lives(folder, monkeypatch):
    monkeypatch.setattr(bucket_locks, "STALE_S", 1.5)
    with one_writer(folder):
        time.sleep(2)
        with alone(folder / WRITER_LOCK, wait=False) as ours:
            assert not ours
        write_json(folder / "a.json", 1)


def test_who_lost_the_lock_writes_no_more(folder, monkeypatch):
    with one_writer(folder):
        (folder / WRITER_LOCK).write_bytes(b"another's")
        monkeypatch.setattr(bucket_locks, "STALE_S", 0.0)  # as if much time had passed
        with pytest.raises(px.ProbexError, match="another process"):
            write_json(folder / "a.json", 1)
    assert [path.name for path in folder.iterdir()] == [WRITER_LOCK]
