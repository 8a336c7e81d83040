"""What the pages say of `/api`: every request named is one that it answers, and none is missing."""

import asyncio
import contextlib
import itertools
import re
from unittest.mock import MagicMock

import pytest

from probex_jax.web import api
from tests.docs import markdown

PAGE = (markdown.ROOT / "docs" / "page.md").read_text()
README = (markdown.ROOT / "README.md").read_text()


def fields_of(endpoint):
    """The fields of the query that it looks at."""
    names = set()

    class Query:
        def get(self, name, default):
            names.add(name)
            return default

        def __contains__(self, name):
            names.add(name)

    with contextlib.suppress(Exception):  # of what is no catalogue
        asyncio.run(endpoint(MagicMock(query_params=Query(), headers={})))
    return names


def parameters():
    """(method, path) to the names of its query's fields."""
    server = api.application(MagicMock(), MagicMock(file_bytes=1), MagicMock(), hub=False)
    return {
        (method, route.path): fields_of(route.endpoint)
        for route in server.routes
        for method in route.methods - {"HEAD"}
        if route.path.startswith("/api")
    }


ROUTES = parameters()


def requests(text):
    """Those that a text names, as (methods, path, fields); without a method it may be any."""
    for line in text.splitlines():
        for found in re.finditer(
            r"(?P<before>[^|]*?)(?P<path>/api\b[\w/]*)(\?(?P<query>[^\s\"`]*))?", line
        ):
            methods = set(re.findall(r"\b(?:GET|POST|PUT|DELETE|PATCH)\b", found["before"]))
            if "curl " in found["before"]:
                methods = {"PUT"} if " -T " in found["before"] else {"GET"}
            fields = re.findall(r"(?:^|&)(\w+)=", found["query"] or "")
            yield methods, found["path"], set(fields)


def faults(text):
    for methods, path, fields in requests(text):
        known = {method for method, of in ROUTES if of == path}
        if not known:
            yield f"no {path}"
        for method in methods - known if known else ():
            yield f"no {method} {path}"
        taken = [ROUTES[method, path] for method in methods & known or known]
        for field in fields if known else ():
            if not all(field in names for names in taken):
                yield f"{path} has no {field}"


def test_the_routes_are_found():
    assert ROUTES["GET", "/api/search"] > {"query", "like"}


@pytest.mark.parametrize(
    "text", [PAGE, README, "\n".join(api._ABOUT)], ids=["page", "README", "/api"]
)
def test_requests_that_are_named_are_answered(text):
    assert list(requests(text))
    assert not list(faults(text))


def test_the_table_has_every_route_and_the_page_every_field():
    rows = "\n".join(re.findall(r"^\| .*/api.*$", PAGE, re.MULTILINE))
    named = {(method, path) for methods, path, _ in requests(rows) for method in methods}
    assert named == ROUTES.keys() - {("GET", "/api")}
    for field in set(itertools.chain(*ROUTES.values())):
        assert re.search(rf"`{field}`|[?&]{field}=", PAGE), field


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('curl "localhost:7860/api/serach?query=x"', "no /api/serach"),
        ('curl "localhost:7860/api/search?query=x&count=5"', "/api/search has no count"),
        ("curl -T model.safetensors localhost:7860/api/search", "no PUT /api/search"),
        ("| `POST` or `DELETE /api/describe` | x |", "no DELETE /api/describe"),
        ("| `GET /api/describe?name=x` | x |", "/api/describe has no name"),
    ],
)
def test_a_request_that_is_not_answered_is_noticed(text, fault):
    assert list(faults(text)) == [fault]
