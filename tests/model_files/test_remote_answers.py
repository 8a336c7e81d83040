"""What becomes of a server's answers: what obstore refuses and resumes, and what is added to it."""

import datetime
import os
import signal
import ssl
import threading
import time
from dataclasses import replace

import numpy as np
import obstore
import pytest
import safetensors.numpy
from obstore.store import HTTPStore

from probex_jax.buckets import (
    Conflict,
    NotThere,
    Patience,
    Refused,
    Unreachable,
    problems,
    read,
    store_of,
    stores,
)
from probex_jax.errors import ProbexError
from probex_jax.model_files import Remote, open_model
from probex_jax.model_files.remote import RemoteRanges
from tests.model_files.answering import FILE, answer, endless, plain, redirect, serving, slow
from tests.model_j import hearing_interrupts


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Soon at an end."""
    soon = Patience(3, 0.001, 0.002, timeout_s=3, longest_s=5, too_many_s=(0.002, 0.002))
    monkeypatch.setattr(stores, "PATIENCE", soon)


def ranges(server, remote=None, **how):
    """The file, of whose beginning nothing is read when it is opened."""
    return RemoteRanges(server.url, remote or Remote(), size=len(FILE), first=0, **how)


def got(server, begin=100, end=200, **how):
    return ranges(server, **how).read(begin, end).tobytes()


def refused(server, kind=Unreachable, names="", **how):
    """An error of a kind, in one short line, which names the file, and what is given."""
    started = time.monotonic()
    with pytest.raises(kind, match=names or None) as caught:
        got(server, **how)
    assert str(caught.value).startswith(server.url)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert time.monotonic() - started < 20


def test_asks_for_a_range_as_it_is():
    with serving(answer()) as server:
        assert got(server) == FILE[100:200]
    assert server.asked[0].startswith("GET /f.safetensors HTTP/1.1\r\n")
    assert server.headers()["range"] == "bytes=100-199"
    assert "accept-encoding" not in server.headers()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_obstore_tries_again(status):
    with serving(plain(f"{status} Later"), plain(f"{status} Later"), answer()) as server:
        assert got(server) == FILE[100:200]


def test_obstore_gives_up():
    with serving(plain("503 Slow", b"\x1b[31m" + b"x" * 10_000)) as server:
        refused(server, names="503")
    with serving(b"") as server:
        refused(server)
    refused(server)  # closed


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("404 Not Found", NotThere),
        ("410 Gone", NotThere),
        ("401 Unauthorized", Refused),
        ("403 Forbidden", Refused),
        ("400 Bad Request", Unreachable),
        ("416 Range Not Satisfiable", Unreachable),
        ("412 Precondition Failed", Conflict),
        ("204 No Content", Unreachable),
    ],
)
def test_what_is_refused_is_not_tried_again(status, kind):
    body = b"because" if status[0] == "4" else b""
    with serving(plain(status, body), answer()) as server:
        refused(server, kind, status[:3] if body else "")


@pytest.mark.parametrize(
    "given",
    [
        answer(content_range="bytes 99-198/1024"),
        answer(100, 199),
        answer(100, 201),
        answer(content_range=None),
        answer(content_range="bytes */1024"),
        answer(content_range="bytes 100-199/*"),
        answer(content_range="lines 100-199/1024"),
        answer(content_range="bytes 100-199/150"),
        plain("200 OK", FILE),
        answer(content_length=None, transfer_encoding="chunked"),
    ],
)
def test_obstore_refuses(given):
    with serving(given, answer()) as server:  # and does not try again
        refused(server)


def test_obstore_refuses_an_endless_body():
    with serving(endless()) as server:
        refused(server)


def test_obstore_ends_what_is_too_slow(monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE", replace(stores.PATIENCE, timeout_s=0.15))
    with serving(lambda *range_: hang()) as server:
        refused(server)


@pytest.mark.parametrize("etag", ['"e"', None])
def test_what_is_slow_but_steady_is_waited_for(monkeypatch, etag):
    """The range takes longer than all tries of one request may."""
    patience = Patience(2, 0.001, 0.002, timeout_s=0.4, longest_s=0.5)
    monkeypatch.setattr(stores, "PATIENCE", patience)

    def steady(begin, end):
        yield answer(begin, end, content=b"", content_length=end - begin, etag=etag)
        for at in range(begin, end, 16):
            time.sleep(0.015)
            yield FILE[at : min(at + 16, end)]

    with serving(steady) as server:
        assert got(server, 0, len(FILE)) == FILE


BROKEN = answer(content=FILE[100:150], content_length=100)


def test_obstore_goes_on_where_a_body_broke_off():
    broken, rest = answer(content=FILE[100:150], content_length=100), answer(150, 200)
    with serving(broken, plain("503 Slow"), rest) as server:
        assert got(server) == FILE[100:200]


def test_obstore_compares_etags_when_it_goes_on():
    with serving(BROKEN, lambda *range_: answer(*range_, etag='"f"')) as server:
        refused(server, ProbexError)


# What obstore takes or gives up, and `RemoteRanges` does not.


def taken(server):
    """What obstore alone makes of it."""
    store, key = store_of(server.url)
    return len(obstore.get(store, key, options={"range": (100, 200)}).bytes())


def test_a_body_without_an_etag_is_resumed():
    broken = answer(content=FILE[100:150], content_length=100, etag=None)
    with serving(broken) as server, pytest.raises(obstore.exceptions.GenericError):
        taken(server)
    with serving(broken, lambda *range_: answer(*range_, etag=None)) as server:
        assert got(server) == FILE[100:200]


def test_too_many_requests_are_waited_for():
    with serving(*[plain("429 Too Many Requests")] * 4, answer()) as server:
        with pytest.raises(obstore.exceptions.GenericError):
            taken(server)
        assert got(server) == FILE[100:200]
    with serving(plain("429 Too Many Requests")) as server:
        refused(server, names="429")


@pytest.mark.parametrize(
    ("given", "length", "names"),
    [
        (answer(content=FILE[100:300]), 200, ""),
        (answer(content=FILE[100:150]), 50, "50 bytes"),
        (answer(content_encoding="gzip"), 100, "gzip"),
        (answer(content_encoding="x" * 3000), 100, "xxx"),
    ],
)
def test_a_body_that_is_not_the_range(given, length, names):
    with serving(given) as server:
        assert taken(server) == length
    with serving(given, lambda *range_: answer(*range_, content=b"")) as server:
        refused(server, ProbexError, names)


def test_a_short_body_is_resumed():
    with serving(answer(content=FILE[100:150]), answer) as server:
        assert got(server) == FILE[100:200]
    assert server.headers()["range"] == "bytes=150-199"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {"etag": '"f"'}, False),
        ({}, {"etag": None}, False),
        ({}, {"content_range": "bytes 100-199/1023"}, False),
        ({"etag": 'W/"1"'}, {"etag": 'W/"2"'}, True),
        ({"etag": None}, {"etag": None}, True),
        ({"etag": None}, {"etag": '"e"'}, True),
    ],
)
def test_a_file_that_changes(first, second, same):
    with serving(answer(**first), answer(**second)) as server:
        assert taken(server) == taken(server) == 100
    with serving(answer(**first), answer(**second)) as server:
        file = ranges(server)
        assert file.read(100, 200).tobytes() == FILE[100:200]
        if same:
            assert file.read(100, 200).tobytes() == FILE[100:200]
        else:
            with pytest.raises(ProbexError, match=server.url):
                file.read(100, 200)


def test_an_etag_that_is_known_before():
    with serving(answer()) as server:
        assert got(server, etag='"e"') == FILE[100:200]
        refused(server, ProbexError, etag='"f"')
        assert got(server, etag="") == FILE[100:200]


# Redirects, and who is told what.

SECRET = {"authorization": "Bearer x", "cookie": "x"}


def test_another_host_is_not_told_the_token():
    with serving(answer()) as other, serving(redirect(other.url)) as server:
        assert got(server, headers=SECRET) == FILE[100:200]
    assert server.headers()["authorization"] == "Bearer x"
    assert not SECRET.keys() & other.headers().keys()
    with serving(redirect("/g"), answer()) as server:
        assert got(server, headers=SECRET) == FILE[100:200]
    assert server.headers()["authorization"] == "Bearer x"


def test_a_password_is_shown_to_its_server_alone():
    with serving(answer()) as other, serving(redirect(other.url)) as server:
        url = server.url.replace("//", "//me:se%20cret@") + "?signature=secret"
        file = RemoteRanges(url, Remote(), size=len(FILE), first=0)
        assert file.read(100, 200).tobytes() == FILE[100:200]
        assert file.name == server.url
    assert server.headers()["authorization"] == "Basic bWU6c2UgY3JldA=="
    assert server.asked[0].startswith("GET /f.safetensors?signature=secret ")
    assert "authorization" not in other.headers()
    with serving(plain("403 No", b"secret")) as server:
        url = server.url.replace("//", "//me:secret@") + "?signature=secret"
        with pytest.raises(Refused) as caught:
            read(url)
        assert "secret" not in str(caught.value)


def test_no_error_shows_what_is_secret():
    url = "https://me:secret@host/a?signature=secret"
    with pytest.raises(ProbexError, match=r"^https://host/a: ") as caught, problems(url):
        raise obstore.exceptions.GenericError(f"what {url} - is {url} new\n\nDebug: {url}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://localhost/x", "/f.safetensors"])
def test_redirects_that_are_not_followed(to):
    with serving(redirect(to)) as server:
        refused(server)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of localhost as PEM, and what serves with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return made.public_bytes(pem), context


def test_obstore_follows_no_redirect_from_https_to_http(certificate):
    pem, context = certificate
    with serving(answer()) as unsafe, serving(redirect(unsafe.url), tls=context) as server:
        store, key = store_of(server.url.replace("127.0.0.1", "localhost"), SECRET)
        known = {"client_options": {**store.client_options, "root_certificate": pem}}
        store = HTTPStore(store.url, retry_config=store.retry_config, **known)
        with pytest.raises(obstore.exceptions.GenericError):
            obstore.get(store, key, options={"range": (100, 200)})
    assert server.asked
    assert not unsafe.asked


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("/a+b%20c.safetensors", "/a+b%20c.safetensors"),
        ("/a%2Bb.safetensors?x=%2F&y", "/a%2Bb.safetensors?x=%2F&y"),
        ("/%C3%A4/a%2Fb.safetensors", "/%C3%A4/a%2Fb.safetensors"),
        ("/a/b-1_2~.safetensors#part", "/a/b-1_2~.safetensors"),
    ],
)
def test_an_address_is_asked_for_as_it_is_written(url, asked):
    with serving(plain("200 OK", b"{}")) as server:
        assert read(server.url.replace("/f.safetensors", url)).data == b"{}"
    assert server.asked[0].split()[1] == asked


def of_content(content):
    """Gives ranges of a file."""

    def given(begin, end):
        stated = f"bytes {begin}-{min(end, len(content)) - 1}/{len(content)}"
        return answer(content=content[begin:end], content_range=stated)

    return given


@pytest.mark.parametrize("query", ["", "?type=Model&format=SafeTensor&token=secret"])
def test_a_download_by_its_number(query):
    """As civitai's; the bytes tell the format."""
    content = safetensors.numpy.save({"fc.weight": np.ones((4, 3), "f4")})
    with serving(of_content(content)) as server:
        url = server.url.replace("f.safetensors", "models/123")
        with open_model(url + query) as m:
            np.testing.assert_array_equal(m.matrix("fc.weight"), np.ones((4, 3)))
            assert m.path == url
        assert server.asked[0].startswith(f"GET /models/123{query} ")
    with (
        serving(of_content(b"<html>" * 9)) as server,
        pytest.raises(ProbexError, match=r"models/123: expected .*safetensors"),
    ):
        open_model(server.url.replace("f.safetensors", "models/123"))


# Interruptions.


def hang():
    """Nothing at all."""
    time.sleep(2)
    yield b""


@pytest.mark.parametrize("given", [hang(), slow()], ids=["nothing comes", "little comes"])
def test_a_wait_ends_when_it_is_stopped(monkeypatch, given):
    monkeypatch.setattr(stores, "PATIENCE", Patience())
    remote = Remote()
    with serving(given) as server:
        threading.Timer(0.2, remote.stopped.set).start()
        started = time.monotonic()
        with pytest.raises(ProbexError, match=f"{server.url}: interrupted"):
            got(server, remote=remote)
        assert time.monotonic() - started < 20
    with pytest.raises(ProbexError, match="interrupted"):
        open_model(server.url, remote=remote)


def test_a_wait_ends_at_ctrl_c(monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE", Patience())
    with serving(hang()) as server, hearing_interrupts():
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            got(server)
        assert time.monotonic() - started < 20


def test_reading_where_a_loop_runs():
    """As in a notebook."""
    import asyncio

    async def cell(server):
        return got(server)

    with serving(answer()) as server:
        assert asyncio.run(cell(server)) == FILE[100:200]


def test_what_is_read_is_ones_own():
    with serving(answer(0, 200)) as server:
        file = ranges(server)
        file.fetch([(0, 200)])
        first = file.read(100, 200)
        first[:] = 0
        np.testing.assert_array_equal(file.read(100, 200), np.frombuffer(FILE, np.uint8)[100:200])
