"""The hub for tests against the hub's own client, and against itself."""

import gzip
import hashlib
import http.client
import json
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import Faults, Hub, tables, write_repo
from tests.hub_faults import MISBEHAVIOUR, OF_CONTENT, gzip_bomb

WEIGHTS = bytes(range(256)) * 4
CONFIG = '{"hidden_size": 8}\n'
FILE = "/org/model/resolve/main/model.safetensors"


@pytest.fixture
def root(tmp_path):
    files = {"model.safetensors": WEIGHTS, "config.json": CONFIG, "unet/a b.safetensors": b"unet"}
    write_repo(tmp_path, "models", "org/model", files)
    return tmp_path


@pytest.fixture
def hub(root):
    hub = Hub(root)
    with hub.running():
        yield hub
    huggingface_hub.close_session()


def ask(hub, path, method="GET", host=None, body=None, **headers):
    """Status, headers and body (None where the connection broke before its end)."""
    connection = http.client.HTTPConnection(host or hub.url.removeprefix("http://"), timeout=5)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, headers)
        with connection.getresponse() as response:
            try:
                content = response.read()
            except http.client.IncompleteRead:
                content = None
            return response.status, response.headers, content
    finally:
        connection.close()


def first_bytes(hub, path, count, **headers):
    """What is read of a body before hanging up."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=5)
    connection.request("GET", path, headers=headers)
    with connection.getresponse() as response:
        content = response.read(count)
    connection.close()
    return response.headers, content


def test_describes_a_model(hub):
    api = HfApi(endpoint=hub.url)
    info = api.model_info("org/model", files_metadata=True)
    assert info.sha == hub.commit_of("org/model")
    files = {file.rfilename: file for file in info.siblings}
    assert sorted(files) == ["config.json", "model.safetensors", "unet/a b.safetensors"]
    weights, config = files["model.safetensors"], files["config.json"]
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.lfs.size == weights.size == len(WEIGHTS)
    git = subprocess.run(
        ["git", "hash-object", "--stdin"], input=CONFIG.encode(), capture_output=True, check=True
    )
    assert (config.lfs, config.size, config.blob_id) == (None, 19, git.stdout.decode().strip())
    assert all(file.size is None for file in api.model_info("org/model").siblings)


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_lists_trees_by_pages(hub, page_size):
    hub.page_size = page_size
    api = HfApi(endpoint=hub.url)
    tree = {entry.path: entry for entry in api.list_repo_tree("org/model", recursive=True)}
    weights = ["model.safetensors", "unet/a b.safetensors"]
    assert sorted(tree) == ["config.json", weights[0], "unet", weights[1]]
    assert tree[weights[0]].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert len(hub.log) == -(-len(tree) // page_size)
    assert [entry.path for entry in api.list_repo_tree("org/model", "unet")] == weights[1:]
    found = api.get_paths_info("org/model", ["config.json", "no", "unet", weights[1]])
    assert [entry.path for entry in found] == ["config.json", "unet", weights[1]]
    asked = json.dumps({"paths": ["config.json"]})
    path = "/api/models/org/model/paths-info/main"
    _, _, body = ask(hub, path, "POST", body=asked, Content_Type="application/json")
    assert [entry["path"] for entry in json.loads(body)] == ["config.json"]


@pytest.mark.parametrize("redirects", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_downloads(hub, tmp_path, redirects, relative):
    hub.redirects, hub.relative_links = redirects, relative
    hub.token = "hf_secret"
    # Of a relative link the client knows no better than to show its token.
    token = None if redirects and relative else "hf_secret"
    hub.private = {"org/model"} if token else set()
    options = {"endpoint": hub.url, "cache_dir": tmp_path / "cache", "token": token or False}
    file = Path(hf_hub_download("org/model", "unet/a b.safetensors", **options))
    assert file.read_bytes() == b"unet"
    assert file.resolve().name == hashlib.sha256(b"unet").hexdigest()
    folder = Path(snapshot_download("org/model", max_workers=2, **options))
    assert folder.name == hub.commit_of("org/model")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_text() == CONFIG
    assert hub.served("org/model/model.safetensors") == [(0, len(WEIGHTS))]
    assert hub.bytes_sent(".safetensors") == len(WEIGHTS) + 4
    links = [request for request in hub.log if request.path.startswith("/cdn/")]
    assert bool(links) == redirects
    assert not any(request.authorization for request in links)


def test_what_is_not_there(hub):
    api = HfApi(endpoint=hub.url)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/other")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="v2")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/model", "no.json", endpoint=hub.url, cache_dir=hub.repositories.root)
    for path in ("/org/model/resolve/main/%2e%2e/model/config.json", "/../../resolve/main/x"):
        assert ask(hub, path)[0] == 404
    hub.private, hub.token = {"org/model"}, "right"
    for token, message in [(False, "Invalid username"), ("wrong", "Invalid credentials")]:
        with pytest.raises(HfHubHTTPError, match=message) as refused:
            api.model_info("org/model", token=token)
        assert refused.value.response.status_code == 401
    assert api.model_info("org/model", token="right").private


def test_moves(hub, root, tmp_path):
    old = hub.commit_of("org/model")
    hub.tag("org/model", "refs/convert/x")
    new_folder = write_repo(tmp_path / "other", "models", "org/model", {"model.safetensors": "new"})
    new = hub.move("org/model", new_folder)
    assert len(new) == 40
    assert new == hub.commit_of("org/model") != old

    def at(revision):
        _, headers, body = ask(hub, f"/org/model/resolve/{revision}/model.safetensors")
        return headers["X-Repo-Commit"], body

    assert at("main") == at(new) == (new, b"new")
    assert at(old) == at("refs%2Fconvert%2Fx") == (old, WEIGHTS)
    with pytest.raises(RevisionNotFoundError):
        HfApi(endpoint=hub.url).model_info("org/model", revision="f" * 40)


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-7", 0, 8),
        ("bytes=8-", 8, 1024),
        ("bytes=1023-1023", 1023, 1024),
        ("bytes=1000-5000", 1000, 1024),
        ("bytes=-1", 1023, 1024),
        ("bytes=-5000", 0, 1024),
    ],
)
def test_ranges(hub, asked, begin, end):
    status, headers, body = ask(hub, FILE, Range=asked)
    assert (status, body) == (206, WEIGHTS[begin:end])
    assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/1024"
    assert headers["ETag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert hub.served("model.safetensors") == [(begin, end)]
    status, headers, body = ask(hub, FILE, "HEAD", Range=asked)
    assert (status, headers["Content-Length"], body) == (206, str(end - begin), b"")
    assert hub.bytes_sent() == end - begin


def test_ranges_that_are_none(hub):
    for asked in ("bytes=1024-", "bytes=5000-6000", "bytes=-0"):
        status, headers, body = ask(hub, FILE, Range=asked)
        assert (status, headers["Content-Range"], body) == (416, "bytes */1024", b"")
    for asked in ("bytes=7-3", "lines=1-2", "bytes=0-1,5-6", "bytes=-"):
        assert ask(hub, FILE, Range=asked)[::2] == (200, WEIGHTS)
    etag = ask(hub, FILE, "HEAD")[1]["ETag"]
    assert ask(hub, FILE, Range="bytes=0-7", If_Range=etag)[0] == 206
    assert ask(hub, FILE, Range="bytes=0-7", If_Range='"other"')[::2] == (200, WEIGHTS)


def test_large_files_are_sought(root):
    write_repo(root, "models", "org/huge", {"model.safetensors": 2**40})
    hub = Hub(root, quick_hashes=True)
    with hub.running():
        path = FILE.replace("org/model", "org/huge")
        status, headers, body = ask(hub, path, Range=f"bytes={2**40 - 9}-")
        assert (status, body) == (206, bytes(9))
        assert len(headers["X-Linked-ETag"]) == 66
        assert headers["X-Linked-Size"] == str(2**40)
        first_bytes(hub, path, 10)


def test_links_expire_and_refuse_tokens(hub):
    hub.redirects = True
    status, headers, _ = ask(hub, FILE, Range="bytes=0-7", Authorization="Bearer x")
    assert status == 302
    assert headers["X-Linked-Size"] == "1024"
    host, path = headers["Location"].removeprefix("http://").split("/", 1)
    assert host == hub.cdn_host
    assert ask(hub, f"/{path}", host=host, Range="bytes=0-7")[::2] == (206, WEIGHTS[:8])
    assert ask(hub, f"/{path}", host=host, Authorization="Bearer x")[0] == 400
    assert ask(hub, f"/{path[:-1]}", host=host)[0] == 403
    hub.expire_links()
    assert ask(hub, f"/{path}", host=host)[0] == 403
    hub.relative_links = True
    link = ask(hub, FILE)[1]["Location"]
    assert link.startswith("/cdn/")
    assert ask(hub, link)[::2] == (200, WEIGHTS)
    assert hub.served("org/model/model.safetensors") == [(0, 8), (0, 1024)]


def lucks(hub, faults, order):
    """What becomes of a request for each byte."""
    hub.faults = faults
    found = {}
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=5)
    for byte in order:
        try:
            connection.request("GET", FILE, headers={"Range": f"bytes={byte}-{byte + 9}"})
            with connection.getresponse() as response:
                if response.status in (429, 503):
                    assert response.headers["Retry-After"] == "0"
                found[byte] = (response.status, len(response.read()))
        except http.client.RemoteDisconnected:
            found[byte] = "dropped"
        except http.client.IncompleteRead as error:
            found[byte] = ("truncated", len(error.partial))
            connection.close()  # as the server has
    connection.close()
    return found


def test_faults_by_chance(hub):
    rates = {"too_many": 0.2, "unavailable": 0.1, "dropped": 0.1, "truncated": 0.1}
    found = lucks(hub, Faults(seed=1, **rates), range(500))
    expected = [(429, 21), (503, 21), "dropped", ("truncated", 5)]
    assert {*found.values()} == {*expected, (206, 10)}
    for (fault, rate), luck in zip(rates.items(), expected, strict=True):
        count = [*found.values()].count(luck)
        assert abs(count / 500 - rate) < 0.04
        assert count == sum(request.fault == fault for request in hub.log)
    # The same luck in any order; another one with another seed, and at the second attempt.
    faults = Faults(seed=1, **rates)
    again = lucks(hub, faults, range(100)[::-1])
    assert again == {byte: found[byte] for byte in again}
    assert lucks(hub, faults, range(100)) != again != lucks(hub, Faults(2, **rates), range(100))


def misbehaving(hub, kind, method="GET", asked="bytes=100-199"):
    hub.misbehave = {"org/model/model.safetensors": kind}
    assert ask(hub, "/org/model/resolve/main/config.json")[::2] == (200, CONFIG.encode())
    return ask(hub, FILE, method, Range=asked)


def test_misbehaves_in_bodies(hub):
    whole = WEIGHTS[100:200]

    def found(kind):
        status, headers, body = misbehaving(hub, kind)
        return status, headers["Content-Range"], headers["Content-Length"], body

    right = "bytes 100-199/1024"
    assert found("wrong_range") == (206, "bytes 99-198/1024", "100", WEIGHTS[99:199])
    assert found("wrong_total") == (206, "bytes 100-199/1025", "100", whole)
    assert found("ignores_range") == (200, None, "1024", WEIGHTS)
    assert found("short_body") == (206, right, "50", whole[:50])
    assert found("long_body") == (206, right, "1100", whole + bytes(1000))
    assert found("corrupt") == (206, right, "100", bytes(255 - byte for byte in whole))
    assert found("no_length") == (206, right, None, whole)
    assert {request.fault for request in hub.log if request.file.endswith("rs")} == {
        "wrong_range", "wrong_total", "ignores_range", "short_body", "long_body", "corrupt",
        "no_length",
    }  # fmt: skip


def test_misbehaves_without_end(hub):
    hub.misbehave = {"model.safetensors": "endless"}
    headers, body = first_bytes(hub, FILE, 10**6, Range="bytes=100-199")
    assert (headers["Content-Range"], body[:100]) == ("bytes 100-199/1024", WEIGHTS[100:200])
    assert len(body) == 10**6
    hub.misbehave = {"model.safetensors": "slow"}
    begin = time.monotonic()
    assert first_bytes(hub, FILE, 2)[1] == WEIGHTS[:2]
    assert time.monotonic() - begin > 0.9
    hub.misbehave = {"model.safetensors": "gzip"}
    headers, body = first_bytes(hub, FILE, 10**6)
    assert headers["Content-Encoding"] == "gzip"
    assert len(body) == int(headers["Content-Length"]) < 2**19
    assert zlib.decompressobj(31).decompress(body, 2**22) == bytes(2**22)
    assert gzip.decompress(gzip_bomb(4)) == bytes(2**22)


def test_misbehaves_in_other_ways(hub):
    etags = {misbehaving(hub, "other_etag", method)[1]["ETag"] for method in ["GET", "HEAD"] * 2}
    assert len(etags) == 4
    assert misbehaving(hub, "html")[2].startswith(b"<!doctype html>")
    assert misbehaving(hub, "unavailable")[0] == 503
    assert misbehaving(hub, "redirect_loop")[1]["Location"] == FILE
    assert misbehaving(hub, "to_file")[1]["Location"] == "file:///etc/passwd"
    assert misbehaving(hub, "to_other_host")[1]["Location"] == f"http://{hub.cdn_host}{FILE}"
    assert ask(hub, FILE, host=hub.cdn_host)[::2] == (200, WEIGHTS)
    assert [request.host for request in hub.log][-1] == hub.cdn_host
    with pytest.raises(http.client.LineTooLong):
        misbehaving(hub, "huge_header")
    with pytest.raises(http.client.RemoteDisconnected):
        misbehaving(hub, "drop")
    hub.misbehave = {"/api/models/org/model": "deep_json"}
    with pytest.raises(RecursionError):
        json.loads(ask(hub, "/api/models/org/model")[2])


def test_stops_while_clients_wait(root):
    hub = Hub(root)
    kinds = {"model.safetensors": "hang", "config.json": "slow", "a b.safetensors": "endless"}
    hub.misbehave = kinds
    threads = threading.active_count()
    with hub.running():
        connections = []
        unread = "unet/a%20b.safetensors"
        for file in ("model.safetensors", "config.json", unread, None):
            connections.append(http.client.HTTPConnection(hub.url.removeprefix("http://")))
            connections[-1].connect()
            if file:
                connections[-1].request("GET", f"/org/model/resolve/main/{file}")
        while {request.fault for request in hub.log} != {*kinds.values()}:
            time.sleep(0.001)
        time.sleep(0.05)  # the endless one fills what the sockets hold
        begin = time.monotonic()
    assert time.monotonic() - begin < 20
    assert threading.active_count() == threads
    for connection in connections:
        connection.close()
    with hub.running() as url:  # once more
        assert HfApi(endpoint=url).model_info("org/model").id == "org/model"
    huggingface_hub.close_session()


def test_all_misbehaviour_is_tried():
    assert not MISBEHAVIOUR.keys() & OF_CONTENT.keys()
    tried = Path(__file__).read_text()
    assert all(f'"{kind}"' in tried for kind in MISBEHAVIOUR | OF_CONTENT)


ROWS = [{"model": f"m{n}", "label": "ant", "accuracy": n / 8} for n in range(5)]


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_tables(hub, root, format):
    tables(root, "ProbeX/Model-J", {"SupViT": {"train": ROWS, "test": ROWS[:2]}}, format=format)
    api = HfApi(endpoint=hub.url)
    info = api.dataset_info("ProbeX/Model-J")
    splits = info.card_data["configs"][0]["data_files"]
    assert splits[0] == {"split": "train", "path": "SupViT/train-*"}
    path = f"SupViT/train-00000-of-00001.{format}"
    assert path in [file.rfilename for file in info.siblings]
    options = {"repo_type": "dataset", "endpoint": hub.url, "cache_dir": root / "cache"}
    file = Path(hf_hub_download("ProbeX/Model-J", path, **options))
    if format == "parquet":
        import pyarrow.parquet as pq

        assert pq.read_table(file).to_pylist() == ROWS
    elif format == "csv":
        assert file.read_text().splitlines()[:2] == ["model,label,accuracy", "m0,ant,0.0"]
    else:
        assert [json.loads(line) for line in file.read_text().splitlines()] == ROWS
    assert hub.served(f"datasets/ProbeX/Model-J/{path}") == [(0, file.stat().st_size)]


def test_tables_in_shards_without_configs(root):
    options = {"format": "csv", "shards": 2, "readme": False}
    folder = tables(root, "org/plain", {"a": {"train": ROWS}}, **options)
    assert "configs" not in (folder / "README.md").read_text()
    shards = [folder / "a" / f"train-0000{n}-of-00002.csv" for n in (0, 1)]
    assert [len(shard.read_text().splitlines()) - 1 for shard in shards] == [2, 3]


def test_command_line(root):
    asked = ["--misbehave=org/model/config.json=short_body", "--redirects"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.hub", root, *asked],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    cache = {"endpoint": server.stdout.readline().strip(), "cache_dir": root / "cache"}
    try:
        with pytest.raises(OSError, match="file should be of size 19 but has size 9"):
            hf_hub_download("org/model", "config.json", **cache)
        got = Path(hf_hub_download("org/model", "model.safetensors", **cache))
        assert got.read_bytes() == WEIGHTS
    finally:
        server.terminate()
        server.communicate()
        huggingface_hub.close_session()
