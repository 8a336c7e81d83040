"""Which file an address means, at which commit, and who is shown the token."""

import sys
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax.buckets import address_of, shown_path
from probex_jax.errors import ProbexError
from probex_jax.forest.forest import model_name
from probex_jax.model_files import open_model
from probex_jax.model_files.hub import HubAddress, hub_address
from tests.hub import write_repo
from tests.model_files.remote import FAR, lora, model, random, sharded, weights_file

OLD, NEW = random((8, 8)), random((8, 8), seed=1)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(address, message):
    with pytest.raises(ProbexError, match=message) as caught:
        open_model(address)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.fixture
def repo(hub, tmp_path):
    """A model that has moved: the tag v1 and the old commit lead to OLD, main to NEW."""
    name = f"org/{tmp_path.name}"
    model(hub, name, {"w": OLD}, {"config.json": '{"at": "old"}'})
    hub.tag(name, "v1")
    new = write_repo(tmp_path, "models", name, {"config.json": '{"at": "new"}'})
    weights_file(new / "model.safetensors", {"w": NEW})
    weights_file(new / "unet" / "a b.safetensors", {"w": NEW})
    old_commit = hub.commit_of(name)
    hub.move(name, new)
    hub.tag(name, "refs/pr/1")
    hub.tag(name, "a/branch")
    return name, old_commit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://org/repo", ("org/repo",)),
        ("hf:/org/repo", ("org/repo",)),
        ("hf://org/repo/", ("org/repo",)),
        ("hf://org/repo@main", ("org/repo", "main")),
        (f"hf://org/repo@{COMMIT}/a.safetensors", ("org/repo", COMMIT, "a.safetensors")),
        ("hf://org/repo/a/b c.safetensors", ("org/repo", "", "a/b c.safetensors")),
        ("hf://org/repo@refs/pr/7/a", ("org/repo", "refs/pr/7", "a")),
        ("hf://org/repo@refs/convert/parquet", ("org/repo", "refs/convert/parquet")),
        ("hf://org/repo@a%2Fb/c", ("org/repo", "a/b", "c")),
        ("hf://datasets/org/repo@v1/x", ("org/repo", "v1", "x", "dataset")),
        ("https://hub.test/org/repo", ("org/repo",)),
        ("https://hub.test/datasets/org/repo/", ("org/repo", "", "", "dataset")),
        ("https://hub.test/org/repo/tree/v1", ("org/repo", "v1")),
        ("https://hub.test/org/repo/tree/v1/unet", ("org/repo", "v1", "unet")),
        ("https://hub.test/o/r/resolve/main/a%20b.safetensors?download=true#L1",
         ("o/r", "main", "a b.safetensors")),
        ("https://hub.test/o/r/blob/refs%2Fpr%2F7/a", ("o/r", "refs/pr/7", "a")),
        ("https://hub.test/o/r/raw/main/a", ("o/r", "main", "a")),
    ],
)  # fmt: skip
def test_addresses_on_the_hub(monkeypatch, text, expected):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.test/")
    assert hub_address(address_of(Path(text))) == HubAddress(*expected)
    assert hub_address(address_of(text)) == HubAddress(*expected)


@pytest.mark.parametrize(
    "text",
    [
        "https://other.test/org/repo/resolve/main/a.safetensors",
        "http://hub.test/org/repo/resolve/main/a.safetensors",
        "https://hub.test:8/org/repo",
        "https://hub.test/a.safetensors",
        "https://hub.test/org/repo/commits/main/a.safetensors",
    ],
)
def test_addresses_elsewhere(monkeypatch, text):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.test")
    assert hub_address(text) is None


def test_the_hub_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_address("https://huggingface.co/o/r/resolve/main/a").path == "a"
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert hub_address("https://huggingface.co/o/r").id == "o/r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://repo", "expected hf://org/repo"),
        ("hf://../..", "expected hf://org/repo"),
        ("hf://org/../x", "expected hf://org/repo"),
        ("hf://org/repo@/a", "expected hf://org/repo"),
        ("hf://org/repo/../a.safetensors", r"'\.\./a\.safetensors' is not a plain path"),
        ("hf://org/repo/a//b", "is not a plain path"),
        ("hf://org/repo/a\x1b[31m.safetensors", r"\\x1b"),
        ("hf://org/repo/a\nb.safetensors", "expected hf://org/repo"),
        ("http://[::1/a.safetensors", "is not an address of a file"),
        ("http://host:port/a.safetensors", "is not an address of a file"),
        ("http://host:99999/a.safetensors", "is not an address of a file"),
        ("http://a.safetensors", "expected a .safetensors file"),
        ("https://host.test/model.bin?x=.safetensors", "a pickle can run code"),
        ("https://host.test/folder/", "expected a .safetensors file"),
        ("hf://org/repo\0", "no such file or folder"),
    ],
)
def test_no_addresses(hub, text, message):
    refused(text, message)
    assert not hub.log


@pytest.mark.parametrize("revision", ["", "@main", "@a%2Fbranch", "@refs/pr/1", "@refs%2Fpr%2F1"])
@pytest.mark.parametrize("path", ["", "/model.safetensors", "/unet", "/unet/a b.safetensors"])
def test_branches(hub, repo, revision, path):
    name, _ = repo
    for address in (f"hf://{name}{revision}{path}", Path(f"hf://{name}{revision}{path}")):
        with open_model(address) as m:
            np.testing.assert_array_equal(m.matrix("w"), NEW)
            assert m.path == f"hf://{name}@{hub.commit_of(name)}{path}"
            assert m.config == ({} if "unet" in path else {"at": "new"})


def test_tags_commits_and_pages(hub, repo):
    name, old = repo
    page = f"{hub.url}/{name}"
    for address in (
        f"hf://{name}@v1",
        f"hf://{name}@{old}/model.safetensors",
        f"{page}/tree/v1",
        f"{page}/resolve/v1/model.safetensors?download=true",
        f"{page}/blob/{old}/model.safetensors#x",
    ):
        with open_model(address) as m:
            np.testing.assert_array_equal(m.matrix("w"), OLD)
            assert m.path.startswith(f"hf://{name}@{old}")
            assert m.config == {"at": "old"}
    with open_model(page) as m:
        np.testing.assert_array_equal(m.matrix("w"), NEW)


def test_a_model_is_of_one_commit(hub, tmp_path):
    sharded(hub, "pin/model")
    other = write_repo(tmp_path, "models", "pin/model", {"config.json": '{"at": "new"}'})
    weights_file(other / "model.safetensors", {"x": NEW})
    with open_model("hf://pin/model") as m:
        old = m.path
        hub.move("pin/model", other)
        for name in "abcd":
            np.testing.assert_array_equal(m.matrix(name), FAR[name])
        assert m.config == {}
    with open_model("hf://pin/model") as m:
        assert list(m.layers) == ["x"]
        assert m.path != old
    with open_model(old) as m:
        assert list(m.layers) == [*"abcd"]


def test_any_server_s_address_is_asked_for_as_it_is_written(hub):
    model(hub, "plain/url", {"w": OLD}, {"config.json": '{"a": 1}'}, "a+b c.safetensors")
    at = f"{hub.url.replace('127.0.0.1', 'localhost')}/plain/url/resolve/main"
    for name in ("a+b%20c.safetensors", "a%2Bb%20c.safetensors?Expires=1&Sign=x%2Fy"):
        hub.log.clear()
        for address in (f"{at}/{name}", Path(f"{at}/{name}")):
            with open_model(f"{address}") as m:
                assert m.config == {"a": 1}
                np.testing.assert_array_equal(m.matrix("w"), OLD)
        paths = [r.path.removeprefix("/plain/url/resolve/main/") for r in hub.log]
        assert paths == [name, "config.json"] * 2
    refused(f"{at}/x.safetensors?Sign=secret", rf"^{at}/x.safetensors: nothing there")


def test_datasets(hub):
    files = {"SupViT/train/model_1/config.json": "{}"}
    folder = write_repo(hub.repositories.root, "datasets", "org/zoo", files)
    weights_file(folder / "SupViT/train/model_1/model.safetensors", {"w": OLD})
    for address in ("hf://datasets/org/zoo", f"{hub.url}/datasets/org/zoo/tree/main"):
        with open_model(f"{address}/SupViT/train/model_1") as m:
            np.testing.assert_array_equal(m.matrix("w"), OLD)
            assert m.path.startswith("hf://datasets/org/zoo@")


def test_what_is_not_there(hub):
    model(hub, "there/model", files={"a.bin": b"x", "b/c.bin": b"x", "d/x.txt": b"x"})
    refused("hf://there/other", r"^hf://there/other: no such repo.*\(HTTP 404, RepoNotFound\)")
    refused("hf://there/model@v9", r"^hf://there/model@v9: .*\(HTTP 404, RevisionNotFound\)")
    refused(
        "hf://there/model/x.safetensors",
        r"/x.safetensors: nothing there .*404",
    )
    refused("hf://there/model/x", "/x: no such file or folder in the repository, at")
    refused("hf://there/model/b", "c.bin: a pickle can run code")
    refused("hf://there/model/a.bin", "a.bin: a pickle can run code")
    refused("hf://there/model/d", r"hf://there/model@\w{12}/d: no model here")
    sharded(hub, "there/shards")
    (hub.repositories.root / "models/there/shards/model-00002-of-00002.safetensors").unlink()
    refused("hf://there/shards", "model-00002-of-00002.safetensors: nothing there")
    refused(f"{hub.url}/there/model/commits/a.safetensors", r"nothing there .*404")


def tokens(hub):
    """Of each host and kind of address, what it was shown."""
    return {(r.host.split(":")[0], r.path.split("/")[1]): r.authorization for r in hub.log}


@pytest.mark.parametrize("place", ["HF_TOKEN", "file"])
def test_the_token_goes_to_the_hub_alone(hub, monkeypatch, tmp_path, place):
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    else:
        (tmp_path / "no token").write_text("hf_secret\n")  # where the fixture says that it is
    hub.redirects, hub.private, hub.token = True, {"org/secret"}, "hf_secret"
    lora(hub, "org/secret")
    with open_model("hf://org/secret") as m:
        for _ in range(2):
            assert len(m.matrices(m.layers)) == 1
            hub.expire_links()
            m._stored._shards[0].bytes.forget()
    bearer = "Bearer hf_secret"
    assert tokens(hub) == {
        ("127.0.0.1", "api"): bearer,
        ("127.0.0.1", "org"): bearer,
        ("localhost", "cdn"): None,
    }
    hub.log.clear()
    # The same file as of any server; there is no token for that.
    address = f"{hub.url.replace('127.0.0.1', 'localhost')}/org/secret/resolve/main/a.safetensors"
    refused(address, r"not allowed, .*401")
    assert {r.authorization for r in hub.log} == {None}


def test_private_without_a_token(hub, monkeypatch):
    model(hub, "org/mine")
    hub.private, hub.token = {"org/mine"}, "hf_right"
    message = r"^hf://org/mine: not allowed, or .*\(HTTP 401\); log in with `hf auth login`"
    refused("hf://org/mine", message)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("hf://org/mine", message)
    assert len(hub.log) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    open_model("hf://org/mine").close()


def test_without_the_libraries(hub, monkeypatch):
    setup = (Path(px.__file__).parents[1] / "setup.cfg").read_text()
    for library, address in (
        ("huggingface_hub.utils", "hf://org/repo"),
        ("obstore", f"{hub.url}/a.safetensors"),
        ("obstore", "s3://bucket/a.safetensors"),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, library, None)
            # What a store was made of before is there all the same.
            with pytest.raises(ProbexError, match=r"pip install probex_jax\[hub\]") as caught:
                open_model(address)
        assert library.partition(".")[0] in str(caught.value)
    assert "\nhub =" in setup
    assert "\nbuckets =" in setup


def test_offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("hf://org/repo", r"^hf://org/repo: Cannot reach .*offline mode is enabled")
    assert not hub.log


def test_secrets_of_addresses_are_not_shown():
    url = "https://me:secret@host/folder/a.safetensors?signature=secret#secret"
    assert shown_path(url) == shown_path(Path(url)) == "https://host/folder/a.safetensors"
    assert shown_path("hf://org/repo@v1") == "hf://org/repo@v1"
    assert model_name(Path(url)) == "a"
    with pytest.raises(ProbexError) as caught:
        open_model("https://me:secret@127.0.0.1:1/a.bin?signature=secret")
    assert "secret" not in str(caught.value)
