"""Which pages may send something: this server's own alone."""

import asyncio

import httpx
import pytest

from probex_jax.web.guard import Guard

DESCRIBE = "/api/describe"


@pytest.fixture
def sent():
    """Sends a request to a guarded application: the status, and whether it came through."""

    def send(headers, method="POST", path=DESCRIBE, hosts=(), proxies=()):
        reached = []

        async def app(scope, receive, send):
            reached.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def asked():
            transport = httpx.ASGITransport(Guard(app, hosts, proxies))
            async with httpx.AsyncClient(transport=transport, base_url="http://unused") as client:
                return await client.request(method, path, headers=headers)

        answer = asyncio.run(asked())
        assert answer.text.count("\n") <= 1
        return answer.status_code, bool(reached)

    return send


HERE = ("Host", "localhost:7860")
REFUSED, PASSED = (403, False), (200, True)


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "http://evil.example")],
        [("Origin", "null")],
        [("Origin", "")],
        [("Origin", "http://")],
        [("Origin", "localhost:7860")],
        [("Origin", "file://localhost:7860")],
        [("Origin", "http://localhost")],
        [("Origin", "http://localhost:7861")],
        [("Origin", "http://localhost:7860.evil.example")],
        [("Origin", "http://localhost:7860@evil.example")],
        [("Origin", "http://[::1")],
        [("Origin", "http://localhost:port")],
        [("Origin", "http://localhost:7860"), ("Origin", "http://evil.example")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost:7860")],
        [("Sec-Fetch-Site", "same-origin"), ("Origin", "http://evil.example")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
    ],
)
def test_pages_of_other_sites_send_nothing(sent, headers):
    assert sent([HERE, *headers]) == REFUSED


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", DESCRIBE), ("POST", "/api/search"), ("DELETE", "/")],
)
def test_nothing_that_has_a_body_is_taken_from_them(sent, method, path):
    assert sent([HERE, ("Origin", "http://evil.example")], method, path) == REFUSED


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Origin", "http://localhost:7860")],
        [("Origin", "HTTP://LOCALHOST:7860")],
        [("Origin", "https://localhost:7860")],
        [("Origin", "http://localhost:7860"), ("Sec-Fetch-Site", "same-origin")],
        [("Sec-Fetch-Site", "none")],
    ],
)
def test_the_page_itself_and_programs_do(sent, headers):
    assert sent([HERE, *headers]) == PASSED


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("[::1]:7860", "http://[::1]:7860", PASSED),
        ("[::1]:7860", "http://[::2]:7860", REFUSED),
        ("Models.Example.ORG", "https://models.example.org", PASSED),
        ("models.example.org:443", "https://models.example.org", PASSED),
        ("models.example.org", "http://models.example.org:80", PASSED),
        ("models.example.org", "https://models.example.org:8443", REFUSED),
        ("other.example.org", "https://models.example.org", REFUSED),
    ],
)
def test_an_origin_is_compared_with_the_host_that_was_asked(sent, host, origin, expected):
    assert sent([("Host", host), ("Origin", origin)]) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://models.example.org", PASSED),
        ("https://models.example.org:8443", REFUSED),
        ("http://localhost", REFUSED),
    ],
)
def test_a_proxy_need_not_pass_its_name_on(sent, origin, expected):
    names = ("localhost", "Models.example.org")
    headers = [HERE, ("Origin", origin)]
    assert sent(headers, hosts=names, proxies=names[1:]) == expected


def test_reading_is_open_to_all(sent):
    headers = [HERE, ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")]
    assert sent(headers, "GET", "/api/search?query=cat") == PASSED


@pytest.mark.parametrize(("site", "expected"), [("same-origin", PASSED), ("none", REFUSED)])
def test_a_proxy_may_have_a_port_that_it_does_not_pass_on(sent, site, expected):
    names = ("models.example.org",)
    origin = ("Origin", "https://models.example.org:8443")
    headers = [("Host", names[0]), origin, ("Sec-Fetch-Site", site)]
    assert sent(headers, hosts=names, proxies=names) == expected
