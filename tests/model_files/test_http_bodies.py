"""Answers that are no files, and where servers redirect to; against a scripted server."""

import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import http
from probex_jax.model_files.http import RemoteFile, json_body
from tests.model_files.scripted import FILE, Body, Server, answer, endless, library, status


@pytest.fixture
def server(monkeypatch):
    return Server(monkeypatch)


def body(limit=10, url="https://a.test/f"):
    return json_body(url, {"x": "y"}, "NAME", limit)


def plain(content=b'{"a": [1]}', **headers):
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda request: library.Response(200, headers=headers, stream=Body(content))


def test_small_bodies(server):
    server.answers = [plain(content_length="10"), plain()]
    assert body() == body() == {"a": [1]}
    assert {r.headers["accept-encoding"] for r in server.requests} == {"identity"}
    assert {r.headers["x"] for r in server.requests} == {"y"}
    assert not {"range"} & server.requests[0].headers.keys()
    server.answers = [
        status(500),
        plain(b"{", content_length="10"),
        library.ReadError("x"),
        plain(content_length="10"),
    ]
    assert body() == {"a": [1]}
    assert server.waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (plain(), "sends more bytes"),
        (plain(endless()), "sends more bytes"),
        (plain(endless(), content_length="3"), "sends more bytes"),
        (plain(content_length="10"), "sends more bytes"),
        (plain(content_encoding="br"), "sends it as 'br'"),
        (plain(content_length="9" * 5000), "sends more bytes"),
    ],
)
def test_small_bodies_that_are_not(server, given, message):
    server.answers = [given]
    with pytest.raises(ProbexError, match=f"^NAME: .*{message}"):
        body(9)
    assert (len(server.requests), server.waits) == (1, [])


def test_slow_small_bodies(server):
    def slow():
        for _ in range(100):
            server.clock += 10
            yield b"x"

    for length in (None, "90"):
        server.clock = 0
        server.answers = [
            lambda r, n=length: plain(slow(), **{"content-length": n} if n else {})(r)
        ]
        with pytest.raises(ProbexError, match="too slowly; tried many"):
            body(100)
        assert server.clock < 150


def to(location, **options):
    """302, with a body that is never read."""

    def redirect(request):
        def pieces():
            raise AssertionError("read")
            yield b""

        headers = {"location": location, **options}
        return library.Response(302, headers=headers, stream=Body(pieces()))

    return redirect


def read(file, begin=0, end=10):
    return b"".join(file.stream(begin, end))


def hosts(server):
    found = [(r.url.scheme, r.url.host, r.headers.get("authorization")) for r in server.requests]
    server.requests.clear()
    return found


SECRET = {"Authorization": "Bearer x", "X-Other": "y"}


def test_redirects_are_remembered_and_not_told_the_token(server):
    server.answers = [to("https://b.test/x?sign=1"), None, None]
    file = RemoteFile("https://a.test/f", "NAME", SECRET)
    assert read(file) == FILE[:10]
    assert {r.headers["range"] for r in server.requests} == {"bytes=0-9"}
    assert hosts(server) == [("https", "a.test", "Bearer x"), ("https", "b.test", None)]
    assert read(file) == FILE[:10]
    assert str(server.requests[0].url) == "https://b.test/x?sign=1"
    assert server.requests[0].headers["x-other"] == "y"
    assert hosts(server) == [("https", "b.test", None)]


def test_the_same_host_is_told_the_token(server):
    server.answers = [to("/g"), None, None]
    file = RemoteFile("https://a.test/f", "NAME", SECRET)
    read(file), read(file)
    assert hosts(server) == [("https", "a.test", "Bearer x")] * 3


@pytest.mark.parametrize(
    "problem",
    [
        *map(status, (400, 401, 403, 404, 410, 416, 503)),
        library.ConnectError("x"),
        answer(content=b""),
    ],
)
def test_where_a_redirect_leads_may_be_gone(server, problem):
    server.answers = [to("https://b.test/1"), None, problem, to("https://b.test/2"), None]
    file = RemoteFile("https://a.test/f", "NAME", SECRET)
    assert read(file) == read(file) == FILE[:10]
    assert [r.url.path for r in server.requests] == ["/f", "/1", "/1", "/f", "/2"]


def test_a_refusal_by_way_of_a_redirect_is_one(server):
    server.answers = [to("https://b.test/1"), status(403)]
    with pytest.raises(ProbexError, match=r"^NAME: not allowed, .*\(HTTP 403\)"):
        read(RemoteFile("https://a.test/f", "NAME"))
    assert not server.waits
    server.answers = [to("https://b.test/1"), None, *[status(403), to("https://b.test/1")] * 2]
    file = RemoteFile("https://a.test/f", "NAME")
    read(file)
    with pytest.raises(ProbexError, match=r"^NAME: not allowed, .*\(HTTP 403\)"):
        read(file, 10, 20)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["http://b.test/"], "redirects from https to http$"),
        (["http://b.test/", "https://a.test/"], "redirects from https to http$"),
        (["https://b.test/", "http://b.test/"], "redirects from https to http$"),
        (["file:///etc/passwd"], "redirects from https to f\\w+$"),
        (["ftp://b.test/"], "redirects from https to f\\w+$"),
        ([f"https://b.test/{n}" for n in range(11)], "redirects more than 10 times$"),
    ],
)
def test_redirects_that_are_not_followed(server, path, message):
    server.answers = [*map(to, path), None]
    for ask in (lambda: read(RemoteFile("https://a.test/f", "NAME", SECRET)), body):
        server.answers = [*map(to, path), None]
        with pytest.raises(ProbexError, match=f"^NAME: .*{message}"):
            ask()
        asked = hosts(server)
        assert {scheme for scheme, *_ in asked} == {"https"}
        assert len(asked) <= len(path)
        assert not server.waits


def test_redirects_that_are_followed(server):
    server.answers = [*[to(f"https://b.test/{n}") for n in range(10)], None]
    assert read(RemoteFile("http://a.test/f", "NAME")) == FILE[:10]
    server.answers = [to("http://b.test/"), to("https://c.test/"), to("http://d.test/"), None]
    assert read(RemoteFile("http://a.test/f", "NAME")) == FILE[:10]


def test_what_redirects_say_of_the_file(server):
    said = {"x-linked-etag": '"linked"', "x-repo-commit": "c"}
    server.answers = [to("https://b.test/1", **said), None]
    file = RemoteFile("https://a.test/f", "NAME")
    read(file)
    assert file.answer == http.Answer(len(FILE), "e", "linked", "c")


def test_invalid_addresses(server):
    for url in ("https://a b\x00/", "https://\u2603\ufffe/f"):
        with pytest.raises(ProbexError, match=r"^NAME: "):
            read(RemoteFile(url, "NAME"))
    assert not server.requests
    server.answers = [to("https://host:port/")]
    with pytest.raises(ProbexError, match=r"^NAME: .*(tried many|HTTP 302)"):
        read(RemoteFile("https://a.test", "NAME"))


def test_an_object_that_breaks_off_is_asked_for_again(server):
    """As a proxy may send it, whose length is that of what is there."""
    server.answers = [plain(b'{"a": ', content_length="6"), plain(b'{"a":1}\n', content_length="8")]
    assert body() == {"a": 1}
    server.answers = [plain(b'{"a": ', content_length="6")]
    with pytest.raises(ProbexError, match=r"^NAME: the answer breaks off; tried many times"):
        body()


def test_a_file_of_another_commit(server):
    server.answers = [answer(x_repo_commit="c")]
    assert read(RemoteFile("https://a.test/f", "NAME", commit="c")) == FILE[:10]
    with pytest.raises(ProbexError, match=r"^NAME: .*another commit, 'c'"):
        read(RemoteFile("https://a.test/f", "NAME", commit="d"))
