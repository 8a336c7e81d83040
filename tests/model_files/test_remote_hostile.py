"""Servers and hubs that lie: one clear line, soon, and no more memory than was asked for."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probex_jax.buckets import stores
from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, open_model
from probex_jax.model_files import hub as module
from tests import hub as server
from tests.hub import IMPATIENT
from tests.hub_faults import MISBEHAVIOUR, OF_CONTENT, Answer, gzip_bomb
from tests.model_files.remote import FAR, lora, model, sharded, weights_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MESSAGES = {
    "other_etag": "changed on the server",
    "html": "whole files only",
    "deep_json": "whole files only",
    "huge_header": "try again later",
    "unavailable": "503 Service Unavailable",
    "drop": "try again later",
    "hang": "too slow|timed out",
    "redirect_loop": "redirects",
    "to_file": "redirects|protocol",
    "to_other_host": None,
    "wrong_range": r"asked for bytes \d+ to \d+, the server answers with",
    "wrong_total": "the list of files says|truncated|belong to no tensor|changed on the server",
    "ignores_range": "whole files only",
    "short_body": "broke off, .* bytes are missing",
    "long_body": "more bytes",
    "endless": "how long|more bytes",
    "corrupt": "the header would be|not a safetensors file|^$",
    "gzip": "gzip",
    "slow": "too slow|timed out",
    "no_length": "how long",
}


@pytest.fixture(autouse=True)
def impatient(hub, monkeypatch, request):
    slow = request.node.callspec.params.get("kind") if hasattr(request.node, "callspec") else ""
    timeout_s = 0.15 if slow in ("hang", "slow") else 5.0
    patience = replace(IMPATIENT, retries=1, timeout_s=timeout_s, longest_s=10)
    monkeypatch.setattr(stores, "PATIENCE", patience)
    gzip_bomb()  # made once, which takes a while


def peak_megabytes():
    """Of the memory of this process; with that of threads that are not Python's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def refused(read, message, megabytes=32):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin, before = time.monotonic(), peak_megabytes()
    with pytest.raises(ProbexError, match=message) as caught:
        read()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    assert peak_megabytes() - before < megabytes
    assert time.monotonic() - begin < 8
    return text


def test_all_misbehaviour_is_tried():
    assert MESSAGES.keys() == MISBEHAVIOUR.keys() | OF_CONTENT.keys()


@pytest.mark.parametrize("kind", MESSAGES)
def test_when_it_is_opened(hub, kind):
    model(hub, "lies/model")
    hub.misbehave = {"lies/model/model.safetensors": kind}
    addresses = ["hf://lies/model", f"{elsewhere(hub)}/lies/model/resolve/main/model.safetensors"]
    for address in addresses:
        if MESSAGES[kind] is None:
            with open_model(address) as m:
                np.testing.assert_array_equal(m.matrix("d"), FAR["d"])
        elif kind != "other_etag":  # of which the test below tells
            text = refused(lambda at=address: open_model(at), MESSAGES[kind])
            assert "model.safetensors" in text


@pytest.mark.parametrize("kind", MESSAGES)
def test_when_it_is_read(hub, kind):
    model(hub, "lies/later")
    url = f"{elsewhere(hub)}/lies/later/resolve/main/model.safetensors"
    for address in ("hf://lies/later", url):
        hub.misbehave = {}
        with open_model(address) as m:
            hub.misbehave = {"lies/later/model.safetensors": kind}
            # Of bits that are wrong in the middle of a file nothing tells.
            if kind == "corrupt":
                assert (m.matrix("d") != FAR["d"]).any()
                continue
            # The hub's hosts may have ETags of their own for the file of a commit.
            if MESSAGES[kind] is None or (kind == "other_etag" and address.startswith("hf")):
                np.testing.assert_array_equal(m.matrix("d"), FAR["d"])
                continue
            text = refused(lambda m=m: m.matrices("bd"), MESSAGES[kind])
            assert "model.safetensors" in text
            hub.misbehave = {}
            np.testing.assert_array_equal(m.matrix("d"), FAR["d"])


def elsewhere(hub):
    return hub.url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("kind", ["endless", "gzip", "deep_json", "slow", "huge_header", "html"])
def test_small_files(hub, kind):
    sharded(hub, "lies/shards")
    lora(hub, "lies/lora")
    files = {"model.safetensors.index.json": kind, "adapter_config.json": kind}
    address = f"{elsewhere(hub)}/lies/lora/resolve/main/adapter_model.safetensors"
    with open_model("hf://lies/lora") as m, open_model(address) as n:
        hub.misbehave = files
        message = f"{MESSAGES[kind]}|list says|not valid JSON"
        text = refused(lambda: open_model("hf://lies/shards"), message)
        assert "index.json" in text
        for adapter in (m, n):
            for _ in range(2):
                text = refused(lambda a=adapter: a.matrices(a.layers), message)
                assert "adapter_config.json" in text


@pytest.mark.parametrize("kind", sorted(MESSAGES.keys() - {"other_etag", "wrong_range"}))
def test_the_list_of_files(hub, kind):
    model(hub, "lies/list")
    hub.misbehave = {"/api/models/lies/list/revision/main": kind}
    if kind in ("ignores_range", "no_length", "to_other_host"):
        open_model("hf://lies/list").close()
        return
    message = {
        "html": "not valid JSON",
        "wrong_total": "HTTP 206",
        "deep_json": "nested too deeply",
        "endless": "more bytes",
        "short_body": "the answer breaks off",
        "long_body": "not valid JSON|breaks off",
        "corrupt": "not UTF-8 text|not valid JSON",
    }.get(kind, MESSAGES[kind])
    # Of a list 64 MiB are read.
    text = refused(lambda: open_model("hf://lies/list"), message, megabytes=300)
    assert text.startswith("hf://lies/list: ")


def test_no_server(hub, monkeypatch):
    at = f"http://127.0.0.1:{free_port()}"
    address = f"{at}/a.safetensors"
    refused(lambda: open_model(address), f"^{address}: .*refused")
    monkeypatch.setenv("HF_ENDPOINT", at)
    refused(lambda: open_model("hf://org/repo"), "^hf://org/repo: .*refused")


def test_a_file_that_changes_on_a_server(hub, tmp_path):
    folder = model(hub, "lies/changes")
    at = f"{elsewhere(hub)}/lies/changes/resolve/main/model.safetensors"
    with open_model(at) as m:
        weights_file(folder / "model.safetensors", FAR | {"d": FAR["a"]}, {"author": "you"})
        text = refused(lambda: m.matrix("d"), "^.*changed on the server while it was read .*again$")
        assert text.startswith(at)
    with open_model(at) as m:
        np.testing.assert_array_equal(m.matrix("d"), FAR["a"])


class Listing:
    """A hub that says of a repository what a test says."""

    def __init__(self, monkeypatch):
        self.said = None
        monkeypatch.setattr(server._Handler, "_info", lambda handler, *_: self.said)


@pytest.fixture
def listing(hub, monkeypatch):
    model(hub, "lists/model")
    return Listing(monkeypatch)


FILE = {"rfilename": "model.safetensors", "size": 1_049_152, "blobId": "0" * 40}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "expected an object"),
        *[
            ({"siblings": [], "sha": sha}, "expected a commit")
            for sha in (None, 7, "main", "../../../x", COMMIT.upper(), f"{COMMIT}\n",
                        "\x1b[31m" * 1000)
        ],
        ({}, "expected a commit"),
        ({"sha": COMMIT}, "expected a list of files"),
        ({"sha": COMMIT, "siblings": None}, "expected a list of files"),
        ({"sha": COMMIT, "siblings": {"a": "b"}}, "expected a list of files"),
        ({"sha": COMMIT, "siblings": []}, "no model here"),
        ({"sha": COMMIT, "siblings": ["model.safetensors"]}, "the hub lists"),
        *[
            ({"sha": COMMIT, "siblings": [FILE | odd]}, "the hub lists")
            for odd in ({"size": "12"}, {"size": -1}, {"size": 1.5}, {"size": True},
                        {"size": 2**70}, {"rfilename": 1}, {"blobId": 7}, {"blobId": "x" * 999},
                        {"lfs": {"sha256": [1]}})
        ],
        *[
            ({"sha": COMMIT, "siblings": [FILE | {"rfilename": name}]}, "no model here")
            for name in ("../model.safetensors", "/model.safetensors", "a/../model.safetensors",
                         "", ".safetensors", "\x1b[31m.safetensors", "a\\b.safetensors",
                         "x" * 300 + ".safetensors", "?/model.safetensors", "%2e%2e/a.safetensors")
        ],
    ],
)  # fmt: skip
def test_lists_that_lie(listing, said, message):
    listing.said = said
    text = refused(lambda: open_model("hf://lists/model"), message)
    assert text.startswith("hf://lists/model")


def test_more_about_lists(hub, listing):
    commit = hub.commit_of("lists/model")
    path = hub.repositories.root / "models/lists/model/model.safetensors"
    right = FILE | {"size": path.stat().st_size}
    listing.said = {"sha": commit, "siblings": [right | {"blobId": None}]}
    open_model("hf://lists/model").close()
    listing.said["siblings"][0] = {"rfilename": "model.safetensors"}  # no more is known
    open_model("hf://lists/model").close()
    for size in (right["size"] - 1, right["size"] + 1, 10, 0, 2**62):
        listing.said["siblings"][0] = right | {"size": size}
        refused(lambda: open_model("hf://lists/model"), f"list of files says {size}|too few|lie")
    other = {"rfilename": "config.json", "size": 10**9}
    listing.said["siblings"] = [FILE | {"size": right["size"], "blobId": None}, other]
    with open_model("hf://lists/model") as m:
        refused(lambda: m.config, r"config.json: (1000000000 bytes, the limit|nothing there)")
    listing.said = {"sha": COMMIT, "siblings": [right]}
    refused(lambda: open_model(f"hf://lists/model@{commit}"), "answers with another commit")
    refused(lambda: open_model("hf://lists/model"), "nothing there .*404")


def test_a_list_of_names_alone_is_enough(hub, listing, tmp_path):
    commit = hub.commit_of("lists/model")
    listing.said = {"sha": commit, "siblings": [{"rfilename": "model.safetensors"}]}
    for requests in (2, 1):  # of the size one is left
        hub.log.clear()
        with open_model("hf://lists/model", remote=Remote(tmp_path)) as m:
            np.testing.assert_array_equal(m.matrix("d"), FAR["d"])
        assert len([request for request in hub.log if request.file]) == requests


def test_long_lists(listing, monkeypatch):
    monkeypatch.setattr(module, "_MAX_LISTED", 100)
    files = [{"rfilename": f"{n}.txt"} for n in range(101)]
    for count, message in ((101, "at most 100$"), (100, "no model here")):
        listing.said = {"sha": COMMIT, "siblings": files[:count]}
        refused(lambda: open_model("hf://lists/model"), message)


def test_what_the_hub_says_is_printed_safely(hub, monkeypatch):
    evil = "\x1b[31m" + "x" * 10_000
    headers = {"X-Error-Code": "x" * 5000, "X-Error-Message": "y" * 5000}
    for status in (400, 401, 403, 404, 418, 422):
        answer = Answer.of(status, json.dumps({"error": evil}).encode(), **headers)
        monkeypatch.setattr(server._Handler, "_route", lambda handler, a=answer: a)
        text = refused(lambda: open_model("hf://org/repo"), f"^hf://org/repo: .*HTTP {status}")
        assert len(text) < 300
