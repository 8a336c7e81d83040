"""The cache of byte ranges: by content, checked, shared, and optional."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, open_model
from probex_jax.model_files.remote import FIRST_BYTES
from tests import hub as server
from tests.model_files.remote import COMMON, FAR, SIZE, asked, model, served, sharded, weights_file


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "deep" / "cache"


def read(address, cache, names="abcd", expected=FAR):
    with open_model(address, remote=Remote(cache)) as m:
        for name, matrix in m.matrices(names).items():
            np.testing.assert_array_equal(matrix, expected[name])
        return m.path


def kept(cache):
    return sorted(path for path in cache.glob("*/*-*") if path.suffix != ".partial")


def elsewhere(hub, repo):
    return f"{hub.url.replace('127.0.0.1', 'localhost')}/{repo}/resolve/main/model.safetensors"


def test_what_was_read_is_not_asked_for_again(hub, cache):
    sharded(hub, "cache/again")
    commit = read("hf://cache/again", cache)
    assert served(hub) == 4
    hub.log.clear()
    assert read("hf://cache/again", cache) == commit
    assert [r.path.split("?")[0] for r in hub.log] == ["/api/models/cache/again/revision/main"]
    # Of a commit the list of files is kept, too.
    read(commit, cache)
    hub.log.clear()
    read(commit, cache)
    assert not hub.log


def test_nothing_is_kept_without_a_cache(hub, cache, monkeypatch):
    model(hub, "cache/none")
    monkeypatch.chdir(cache.parents[1])
    before = sorted(cache.parents[1].rglob("*"))
    for _ in range(2):
        hub.log.clear()
        read("hf://cache/none", None)
        assert served(hub) == 2
    assert sorted(cache.parents[1].rglob("*")) == before


def test_on_bytes_counts_what_came_from_the_server(hub, cache):
    model(hub, "cache/count")
    counts = []
    for total in (FIRST_BYTES + SIZE, 0):
        counts.clear()
        with open_model("hf://cache/count", remote=Remote(cache, counts.append)) as m:
            m.matrix("d")
        assert sum(counts) == total


def test_ranges_that_are_kept_in_part(hub, cache):
    model(hub, "cache/part")
    for rows, requests in ([3, 250], 3), ([250, 3], 0), ([3, 250, 130], 1):
        hub.log.clear()
        with open_model("hf://cache/part", remote=Remote(cache)) as m:
            np.testing.assert_array_equal(m.rows("d", rows), FAR["d"][rows])
        assert len(asked(hub)) == requests


def test_models_of_one_content_share_it(hub, cache, tmp_path):
    folder = model(hub, "cache/one")
    shutil.copytree(folder, hub.repositories.root / "models/cache/two")
    read("hf://cache/one", cache)
    hub.log.clear()
    read("hf://cache/two", cache)
    assert not asked(hub)
    hub.move("cache/one", folder)  # another commit of the same files
    read("hf://cache/one", cache)
    assert not asked(hub)
    # Another content of the same size is another one.
    new = tmp_path / "new" / "model.safetensors"
    weights_file(new, FAR | {"d": FAR["a"]}, COMMON)
    assert new.stat().st_size == (folder / "model.safetensors").stat().st_size
    hub.move("cache/one", new.parent)
    read("hf://cache/one", cache, "d", {"d": FAR["a"]})
    read("hf://cache/two", cache, "d")


DAMAGE = {
    "a bit": lambda path: path.write_bytes(flipped(path.read_bytes(), len(path.read_bytes()) // 2)),
    "a bit of the sum": lambda path: path.write_bytes(flipped(path.read_bytes(), -1)),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 5),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "gone": lambda path: path.unlink(),
    "of another range": lambda path: path.rename(shifted(path)),
}


def flipped(data, at):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def shifted(path):
    begin, end = map(int, path.name.split("-"))
    return path.with_name(f"{begin + 8}-{end + 9}")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_fetched_again(hub, cache, damage):
    model(hub, f"cache/damage-{damage.replace(' ', '-')}")
    address = f"hf://cache/damage-{damage.replace(' ', '-')}"
    read(address, cache, "b")
    read(address, cache, "d")
    for path in kept(cache):
        DAMAGE[damage](path)
    hub.log.clear()
    read(address, cache, "bd")
    assert len(asked(hub)) == 3
    hub.log.clear()
    read(address, cache, "bd")
    assert not asked(hub)


def test_files_of_others_in_the_cache(hub, cache):
    model(hub, "cache/others")
    commit = read("hf://cache/others", cache)
    read(commit, cache)
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    os.truncate(max(kept(cache), key=lambda path: path.stat().st_size), 2**40)  # is not read
    odd = ["x", "1-2", "-1-5", "\u00b2-\u00b3", "1-2-", "5-1", "0-100.12-34.partial"]
    for name in odd:
        (folder / name).write_bytes(b"x" * 100)
    hub.log.clear()
    read(commit, cache)
    assert len(asked(hub)) == 1
    (listing,) = cache.glob("*.json")
    for text in (b"[]", b"{", b'{"a": 1}', b'{"a": ["x", "y"]}', b'{"a": [-1, ""]}', b"\xff",
                 b'{"a": [1, 2]}', b'{"a": []}', b"[" * 100_000, b"null", b""):  # fmt: skip
        listing.write_bytes(text)
        hub.log.clear()
        read(commit, cache)
        assert (len(asked(hub)), len(hub.log)) == (0, 1)
    assert {path.name for path in folder.iterdir()} >= {*odd}


def test_a_list_of_files_is_of_its_hub(hub, cache, monkeypatch):
    model(hub, "cache/hubs")
    commit = read("hf://cache/hubs", cache)
    read(commit, cache)
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("127.0.0.1", "localhost"))
    hub.log.clear()
    read(commit, cache)
    assert len(hub.log) == 1


def test_any_server_with_an_etag(hub, cache):
    folder = model(hub, "cache/url")
    address = elsewhere(hub, "cache/url")
    read(address, cache)
    hub.log.clear()
    read(address, cache)
    assert asked(hub) == [(0, FIRST_BYTES - 1)]  # which says whether it is still the same
    size = (folder / "model.safetensors").stat().st_size
    weights_file(folder / "model.safetensors", FAR | {"d": FAR["a"]}, COMMON)
    assert (folder / "model.safetensors").stat().st_size == size
    read(address, cache, "d", {"d": FAR["a"]})


def with_etag(monkeypatch, etag):
    """Of all files of the hub."""
    content = server._Handler._content

    def changed(handler, file, headers):
        answer = content(handler, file, headers)
        answer.headers["ETag"] = etag
        return answer

    monkeypatch.setattr(server._Handler, "_content", changed)


def test_an_etag_is_of_one_address(hub, cache, monkeypatch):
    with_etag(monkeypatch, '"same"')
    for name in "ab":
        model(hub, f"etag/{name}", {"w": FAR[name]})
        read(elsewhere(hub, f"etag/{name}"), cache, "w", {"w": FAR[name]})


def test_a_server_without_a_lasting_etag(hub, cache, monkeypatch):
    model(hub, "cache/weak")
    with_etag(monkeypatch, 'W/"weak"')
    for _ in range(2):
        read(elsewhere(hub, "cache/weak"), cache)
    assert not cache.exists()


def test_threads_share_a_cache(hub, cache):
    model(hub, "cache/threads")
    commit = hub.commit_of("cache/threads")
    together = threading.Barrier(8, timeout=20)

    def one(number):
        together.wait()
        for _ in range(3):
            read(f"hf://cache/threads@{commit}", cache, "dcba"[number % 4 :])
            for path in kept(cache)[: number % 2]:
                path.unlink(missing_ok=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert not list(cache.rglob("*.partial"))


def test_a_list_is_written_whole_by_threads_at_once(hub, cache):
    model(hub, "cache/lists")
    commit = hub.commit_of("cache/lists")
    for _ in range(5):
        shutil.rmtree(cache, ignore_errors=True)
        together = threading.Barrier(8, timeout=20)

        def one(_, together=together):
            together.wait()
            open_model(f"hf://cache/lists@{commit}", remote=Remote(cache)).close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))


def test_a_cache_that_cannot_be_written(hub, cache):
    model(hub, "cache/full")
    cache.parent.mkdir()
    cache.write_text("a file")
    for address in ("hf://cache/full", f"hf://cache/full@{hub.commit_of('cache/full')}"):
        with pytest.raises(ProbexError, match=f"^{cache}.*: (File exists|Not a directory)$"):
            open_model(address, remote=Remote(cache))
    cache.unlink()
    with open_model("hf://cache/full", remote=Remote(cache)) as m:
        shutil.rmtree(cache)
        cache.write_text("a file")
        with pytest.raises(ProbexError, match=r"File exists|Not a directory"):
            m.matrix("d")
        cache.unlink()
        m.matrix("d")
