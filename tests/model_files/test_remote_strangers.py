"""The hub as strangers may ask it: given up soon, and followed to its own hosts only."""

import importlib

import huggingface_hub
import numpy as np
import pytest

from probex_jax.buckets import Patience, Unreachable, stores
from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, open_model
from probex_jax.model_files.hub import HubFile, HubRepo
from tests.model_files.remote import FAR, model

WARY = Remote(patience_s=0.2, own_hosts=True)


@pytest.fixture(autouse=True)
def patient(hub, monkeypatch):
    """Servers are otherwise waited for as long as users of commands wait."""
    model(hub, "lies/model")
    monkeypatch.setattr(stores, "PATIENCE", Patience())


@pytest.mark.parametrize("of", ["revision/main", "model.safetensors"])
@pytest.mark.parametrize("kind", ["hang", "slow", "drop", "unavailable"])
def test_a_hub_that_does_not_answer_is_given_up(hub, kind, of):
    hub.misbehave = {of: kind}
    with pytest.raises(Unreachable, match="lies/model"):
        open_model("hf://lies/model", remote=WARY)
    hub.misbehave = {}
    with open_model("hf://lies/model", remote=Remote(patience_s=60, own_hosts=True)) as m:
        np.testing.assert_array_equal(m.matrix("d"), FAR["d"])


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nothing.invalid"])
def test_a_hub_that_is_not_there_is_given_up(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(Unreachable, match="lies/model"):
        open_model("hf://lies/model", remote=WARY)


@pytest.mark.parametrize("of", ["revision/main", "model.safetensors"])
def test_a_redirect_to_another_server_is_refused(hub, of):
    hub.misbehave = {of: "to_other_host"}
    with pytest.raises(ProbexError, match=r"lies/model.* another server, 'localhost"):
        open_model("hf://lies/model", remote=Remote(own_hosts=True))


def test_a_redirect_to_itself_is_followed(hub):
    hub.redirects = hub.relative_links = True
    with open_model("hf://lies/model", remote=Remote(own_hosts=True)) as m:
        np.testing.assert_array_equal(m.matrix("d"), FAR["d"])


@pytest.fixture
def redirecting(monkeypatch):
    """A hub in the client's place, whose file is elsewhere; gives what it was asked."""
    library = importlib.import_module(type(huggingface_hub.get_session()).__module__.split(".")[0])
    asked, elsewhere = [], []

    def answer(request):
        asked.append(request)
        if request.url.host == "huggingface.co":
            return library.Response(302, headers={"Location": elsewhere[0]})
        return library.Response(206, content=b"x")

    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co")
    monkeypatch.setenv("HF_TOKEN", "secret")
    with library.Client(transport=library.MockTransport(answer)) as client:
        monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: client)
        yield asked, elsewhere


@pytest.mark.parametrize(
    ("location", "is_followed"),
    [
        ("https://cas-bridge.xethub.hf.co/x?Signature=y", True),
        ("https://cdn-lfs.huggingface.co/x", True),
        ("http://cas-bridge.xethub.hf.co/x", False),
        ("https://hf.co.example/x", False),
        ("https://notthehf.co/x", False),
        ("https://hf.co:8443/x", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("https://10.0.0.1/", False),
        ("http://[::1]/", False),
        ("http://huggingface.co/org/name", False),
        ("file:///etc/passwd", False),
    ],
)
def test_where_the_hub_s_files_may_be(redirecting, location, is_followed):
    asked, elsewhere = redirecting
    elsewhere.append(location)
    repo = HubRepo("org/name", "model", "0" * 40, {"a.safetensors": HubFile(9)})
    if is_followed:
        repo.open("a.safetensors", Remote(own_hosts=True), first=0)
        assert [str(request.url) for request in asked[1:]] == [location]
    else:
        with pytest.raises(ProbexError, match=r"org/name.* another server"):
            repo.open("a.safetensors", Remote(own_hosts=True), first=0)
    shown = ["authorization" in request.headers for request in asked]
    assert shown == ([True, False] if is_followed else [True])
