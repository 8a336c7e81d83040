"""Requests for bytes of a file, against a server that answers as a test says."""

import email.utils

import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import http
from probex_jax.model_files.http import NotFound, RemoteFile, json_body
from tests.model_files.scripted import FILE, Server, answer, endless, library, part, status


@pytest.fixture
def server(monkeypatch):
    return Server(monkeypatch)


def read(begin=100, end=200, whole=True, url="https://a.test/f", headers=None):
    file = RemoteFile(url, "NAME", headers)
    return b"".join(file.stream(begin, end, whole=whole)), file


def refused(message, *range_, **options):
    with pytest.raises(ProbexError, match=message) as caught:
        read(*range_, **options)
    assert str(caught.value).startswith("NAME: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    return caught.value


def test_asks_for_a_range_as_it_is(server):
    content, file = read()
    assert content == FILE[100:200]
    assert server.requests[0].headers["range"] == "bytes=100-199"
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert file.answer == http.Answer(1024, "e")
    assert read(1000, 5000, whole=False)[0] == FILE[1000:]
    refused(
        "asked for bytes 1000 to 4999, the server answers with 1000 to 1023 of 1024", 1000, 5000
    )


def test_a_server_that_sends_whole_files(server):
    server.answers = [answer(status=200, content_range=None)]
    assert read(0, 1024)[0] == read(0, 5000, whole=False)[0] == FILE
    refused("answers with 0 to 1023 of 1024", 0, 5000)
    for range_ in ((1, 1024), (0, 1023)):
        server.answers = [answer(status=200, content=FILE, content_length="1024")]
        refused("whole files only, no byte ranges; download", *range_)
    for length in (None, "-1", "9" * 5000, "1e3", "\u0661"):
        length = length and length.encode()
        server.answers = [answer(status=200, content_length=length)]
        refused("whole files only", 0, 1024)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504, 520, 599])
def test_tries_again_what_may_pass(server, code):
    server.answers = [status(code), status(code), None]
    assert read()[0] == FILE[100:200]
    assert server.waits == [0.5, 1.0]


def test_waits_longer_each_time_and_gives_up(server):
    server.answers = [status(503, "Sorry " * 1000)]
    refused("HTTP 503 Sorry .*; tried many times, try again later")
    assert server.waits == [0.5, 1, 2, 4, 8, *[10.0] * 6]
    assert len(server.requests) == http.ATTEMPTS
    server.waits.clear()
    server.answers = [library.ConnectError("refused\x1b[31m\n it")]
    refused(r"refused\?\[31m it; tried many")
    assert server.waits == [1.0, 4.0, *[10.0] * 3]
    server.waits.clear()
    server.answers = [library.ReadTimeout("")]
    refused("ReadTimeout; tried many")
    assert len(server.waits) == 2  # each took long


def test_retry_after(server, monkeypatch):
    monkeypatch.setattr(http.time, "time", lambda: 1e9)
    date = email.utils.formatdate
    for text, wait_s in [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("86400", 600.0),
        ("9" * 5000, 600.0),
        (date(1e9 + 30, usegmt=True), 30.0),
        (date(1e9 - 30, usegmt=True), 0.0),
        (date(1e9 + 1e6, usegmt=True), 600.0),
        ("-1", 0.5),
        ("soon", 0.5),
        ("", 0.5),
        ("1.5", 0.5),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0.5),
        ("Mon, 01 Jan 2020 00:00:00 +99999999999999999999", 0.5),
        ("Mon, 01 Jan 2020 00:00:00 +9999", 0.5),
        ("\u0661".encode(), 0.5),
    ]:
        for code in (429, 503):
            server.answers = [status(code, retry_after=text), None]
            server.waits.clear()
            read()
            assert server.waits == [wait_s], text


REFUSED = dict.fromkeys([400, 418], "refuses") | dict.fromkeys([404, 410], "nothing there")
REFUSED |= dict.fromkeys([401, 403], "not allowed") | {416: "no such bytes"}
REFUSED |= dict.fromkeys([204, 304], "expected a range of bytes")


@pytest.mark.parametrize(("code", "message"), REFUSED.items())
def test_does_not_try_again_what_is_refused(server, code, message):
    server.answers = [status(code, "Why")]
    error = refused(f"{message}.*HTTP {code}")
    assert isinstance(error, NotFound) == (code in (404, 410))
    assert (len(server.requests), server.waits) == (1, [])
    with pytest.raises(ProbexError, match=f"^NAME: .*HTTP {code}"):
        json_body("https://a.test/f", {}, "NAME", 1)


def test_says_why_it_is_not_allowed(server):
    server.answers = [status(403, x_error_code="GatedRepo")]
    refused(r"\(HTTP 403, GatedRepo\); log in .* accept the model's terms")
    server.answers = [status(403, x_error_code="x" * 1000)]
    refused(r"x{40}\)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content_range": "bytes 99-198/1024"}, "answers with 99 to 198 of 1024"),
        ({"content_range": "bytes 100-198/1024"}, "answers with 100 to 198"),
        ({"content_range": "bytes 100-200/1024"}, "answers with 100 to 200"),
        ({"content_range": None}, "HTTP 206, Content-Range 'missing'"),
        ({"content_range": "bytes */1024"}, "Content-Range"),
        ({"content_range": "bytes 100-199/*"}, "Content-Range"),
        ({"content_range": "lines 100-199/1024"}, "Content-Range"),
        ({"content_range": f"bytes 100-199/{'9' * 5000}"}, "Content-Range"),
        ({"content_range": "bytes 100-199/150"}, "answers with 100 to 199 of 150"),
        ({"content": bytes(101)}, "sends more bytes"),
        ({"content": endless()}, "sends more bytes"),
        ({"content_encoding": "gzip"}, "sends it as 'gzip', expected no encoding"),
        ({"content_encoding": "x" * 9000}, "expected no encoding"),
        ({"status": 200, "content_range": None}, "whole files only"),
    ],
)
def test_wrong_answers(server, changes, message):
    server.answers = [answer(**changes)]
    refused(message)
    assert (len(server.requests), server.waits) == (1, [])


def test_goes_on_where_it_broke_off(server):
    server.answers = [
        answer(content=FILE[100:150]),
        library.ReadError("x"),
        answer(content=[FILE[150:160], FILE[160:165]]),
        None,
    ]
    assert read()[0] == FILE[100:200]
    ranges = [request.headers["range"] for request in server.requests]
    assert ranges == ["bytes=100-199", "bytes=150-199", "bytes=150-199", "bytes=165-199"]
    # What came is progress: the waits begin anew.
    assert server.waits == [0.5, 1.0, 0.5]


def test_a_byte_a_try_is_no_progress(server):
    server.answers = [lambda r: part(r, content=part(r).read()[:1])]
    refused(r"broke off, 88 bytes are missing; tried many")
    assert len(server.requests) == http.ATTEMPTS


def test_slow_bodies(server):
    def slow(count=100):
        for _ in range(count):
            server.clock += 10
            yield b"x"

    server.answers = [lambda request: part(request, content=slow())]
    refused("too slowly; tried many")
    assert len(server.requests) == 3
    assert server.clock < 150
    # Where all has come, slow is fine.
    server.answers = [lambda request: part(request, content=slow(4))]
    assert read(0, 4)[0] == b"xxxx"


@pytest.mark.parametrize(
    ("first", "second", "ok"),
    [
        ({}, {"etag": '"f"'}, False),
        ({}, {"etag": None}, False),
        ({}, {"content_range": "bytes 0-9/1023"}, False),
        ({"etag": "W/1"}, {"etag": "W/2"}, True),
        ({"etag": None}, {"etag": None}, True),
        ({}, {"x-linked-etag": '"f"'}, True),
    ],
)
def test_a_file_that_changes(server, first, second, ok):
    server.answers = [answer(**first), answer(**second)]
    file = RemoteFile("https://a.test/f", "NAME")
    assert b"".join(file.stream(0, 10)) == FILE[:10]
    if ok:
        assert b"".join(file.stream(0, 10)) == FILE[:10]
        return
    with pytest.raises(ProbexError, match=r"^NAME: changed on the server"):
        b"".join(file.stream(0, 10))
    assert not server.waits


def test_a_file_that_changes_between_tries(server):
    server.answers = [answer(content=FILE[100:150]), answer(etag='"f"')]
    refused("changed on the server")
