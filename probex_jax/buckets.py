"""Objects in buckets, `s3://…` and `gs://…`, and files on other servers: obstore asks for them.

obstore signs, retries with growing waits, resumes a body that breaks off and refuses answers that
are not the range that was asked for. It lacks, and is added here: credentials of a profile or an
instance (boto3, google-auth), no signature where there are none, names and passwords in addresses,
errors of one line without secrets, and an end of waiting at Ctrl-C.
"""

import asyncio
import base64
import os
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from probex_jax.errors import ProbexError

_ADDRESS = re.compile(r"(s3|gs|hf|https?):/{1,2}(?=[^/])")
_IN_BUCKET = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,221})(?:/(.*))?", re.DOTALL)
# What obstore would ask for in other words is an address, not a key.
_PLAIN_PATH = re.compile(r"(/[\w.~+-]+)+", re.ASCII)

_POLL_S = 0.1

# What obstore finds by itself; without any of it the vendor's own library is asked.
_CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE",
    ),
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
}
HINTS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with boto3 installed",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or install google-auth",
    "hf": "log in with `hf auth login` or set HF_TOKEN; some models have terms to accept",
}
_STATUS = re.compile(r"status code: (\d{3}(?: [A-Za-z ]{1,40})?)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_CAUSE = re.compile(r'(?:message|error): "([^"]{1,200})"')

_OTHER_RANGE = re.compile(r"Requested (\d+)\.\.(\d+), got (\d+)\.\.(\d+)")
# What statuses and parts of obstore's messages mean.
_STATUSES = {
    "301": "the bucket is in another region; set AWS_REGION",
    "3": "the server redirects to where it is not followed",
    "416": "has no such bytes; is it empty?",
}
_SIGNS = {
    "Range request not supported": "the server sends whole files only, no byte ranges; download "
    "the file and open it from the disk",
    "Content-Length Header missing": "the server does not say how long its answer is",
    "TooManyRedirects": "the server redirects in a circle",
    "builder error": "the server redirects to where it is not followed",
    "following redirect": "the server redirects to where it is not followed",
    "TimedOut": "the server is too slow; tried several times, try again later",
    "kind: Timeout": "the server is too slow; tried several times, try again later",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long servers are waited for; by default about a minute if none answers.

    Args:
      retries: of a request.
      first_wait_s, longest_wait_s: before a retry; each wait is twice the one before.
      timeout_s: for one try, with its body; the next one goes on where it broke off.
      longest_s: for all tries of a request.
      too_many_s: waits after "too many requests" on top of that; the hub counts for five minutes.
    """

    retries: int = 10
    first_wait_s: float = 0.25
    longest_wait_s: float = 10.0
    timeout_s: float = 30.0
    longest_s: float = 180.0
    too_many_s: tuple[float, ...] = (15.0, 60.0, 120.0, 120.0)

    def waits_s(self) -> list[float]:
        """The waits before the retries of a request."""
        return [
            min(self.first_wait_s * 2**number, self.longest_wait_s)
            for number in range(self.retries)
        ]


PATIENCE = Patience()


class NotThere(ProbexError):
    """There is no such object."""


class Unreachable(ProbexError):
    """The server does not answer, or not what it was asked."""


class Refused(Unreachable):
    """The server does not tell whether there is such an object."""


class Conflict(ProbexError):
    """Somebody else has written the object."""


class _Interrupted(Exception):
    pass


@dataclass(frozen=True)
class Entry:
    """What a bucket says of an object: its size in bytes and its ETag."""

    size: int
    etag: str


class Listing(NamedTuple):
    """The objects of a folder, by name, and its folders."""

    files: dict[str, Entry]
    folders: list[str]


class Content(NamedTuple):
    """An object's bytes and its ETag."""

    data: bytes
    etag: str


def address_of(path: str | os.PathLike[str]) -> str:
    """The address that a path stands for; "" for a path on this machine.

    `pathlib.Path` turns two slashes into one; this restores the second.

    Example:
      >>> from pathlib import Path
      >>> address_of(Path("s3://bucket/zoo")), address_of("hf://org/repo"), address_of("zoo")
      ('s3://bucket/zoo', 'hf://org/repo', '')
    """
    text = str(path)
    found = _ADDRESS.match(text)
    return f"{found[1]}://{text[found.end() :]}" if found else ""


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a bucket.

    Example:
      >>> is_address("s3://bucket/zoo"), is_address("https://host/a"), is_address("zoo")
      (True, False, False)
    """
    return address_of(path).startswith(("s3://", "gs://"))


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path, or an address as others may read it: without a password, or a signed query.

    Example:
      >>> shown_path("https://me:secret@host/a.safetensors?signature=secret")
      'https://host/a.safetensors'
    """
    url = address_of(path)
    if not url:
        return os.fspath(path)
    scheme, _, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    host = host if scheme == "hf" else host.rpartition("@")[2]
    return "".join(c if c.isprintable() else "?" for c in f"{scheme}://{host}{slash}{path}")


def joined(url: str, name: str) -> str:
    """The address of what is called so in a folder."""
    return f"{url.rstrip('/')}/{name}"


def store_of(url: str, headers: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """The obstore store of an address, and the key in it; made once for a bucket.

    A bucket's credentials, region and endpoint are those of the environment (AWS_…, GOOGLE_…).

    Args:
      url: `s3://bucket/key`, `gs://bucket/key` or `http(s)://host/path`.
      headers: sent with each request to a server that is no bucket; of those that identify the
        user none goes on to another server.

    Raises:
      ProbexError: if it is no such address, or obstore is not installed.
    """
    _obstore()
    found = _IN_BUCKET.fullmatch(url)
    if found:
        scheme, bucket, key = found.groups()
        environment = tuple(
            (name, value)
            for name, value in sorted(os.environ.items())
            if name.startswith(("AWS_", "GOOGLE_"))
        )
        return _bucket(f"{scheme}://{bucket}", environment, PATIENCE), (key or "").strip("/")
    if url.startswith(("s3://", "gs://")):
        raise ProbexError(f"{shown_path(url)}: expected {url[:5]}bucket/path")
    parts = urlsplit(url)
    sent = dict(headers or {})
    if parts.username:
        known = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent["authorization"] = f"Basic {base64.b64encode(known.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.query or not _PLAIN_PATH.fullmatch(parts.path):
        return _server(url, tuple(sent.items()), PATIENCE), ""
    root = parts._replace(netloc=parts.netloc.rpartition("@")[2], path="/", fragment="")
    return _server(root.geturl(), tuple(sent.items()), PATIENCE), parts.path[1:]


def _object(url: str) -> tuple[Any, str]:
    store, key = store_of(url)
    if not key and is_address(url):
        raise ProbexError(f"{url}: expected {url.rstrip('/')}/path")
    return store, key


def listed(url: str, stopped: threading.Event | None = None) -> Listing:
    """What lies in a folder of a bucket, but not in its folders; nothing if there is none.

    Raises:
      ProbexError: if there is no such bucket, or the server does not answer.
    """
    store, key = store_of(url)
    ask = partial(_obstore().list_with_delimiter_async, store, key or None)
    with problems(url):
        said = waited(lambda: _whole(ask), stopped)
    begin = len(key) + 1 if key else 0
    return Listing(
        {
            found["path"][begin:]: _entry(found)
            for found in said["objects"]
            if found["path"][begin:]
        },
        sorted(path[begin:].rstrip("/") for path in said["common_prefixes"]),
    )


def all_below(url: str, limit: int) -> dict[str, Entry]:
    """All objects in a folder of a bucket and in its folders, by their paths in it.

    Raises:
      ProbexError: if they are more than `limit`, or as `listed`.
    """
    store, key = store_of(url)
    entries: dict[str, Entry] = {}
    begin, last = len(key) + 1 if key else 0, None

    async def more() -> None:
        nonlocal last
        async for page in _obstore().list(store, key or None, offset=last, chunk_size=1000):
            entries.update({each["path"][begin:]: _entry(each) for each in page})
            last = page[-1]["path"]
            if len(entries) > limit:
                raise ProbexError(f"{url}: more than {limit} objects; give a folder among them")

    with problems(url):
        waited(lambda: _whole(more))
    entries.pop("", None)
    return entries


def _entry(said: Any) -> Entry:
    return Entry(said["size"], said["e_tag"] or "")


async def _whole(ask: Callable[[], Awaitable[_T]]) -> _T:
    """A list, asked for again if it breaks off, which obstore does for objects only."""
    from obstore.exceptions import GenericError

    for wait_s in PATIENCE.waits_s():
        try:
            return await ask()
        except GenericError as error:
            if "body error" not in str(error):
                raise
            await asyncio.sleep(wait_s)
    return await ask()


def stated(url: str) -> Entry | None:
    """What is said of an object; None if there is none."""
    store, key = _object(url)
    try:
        with problems(url):
            said = waited(lambda: _obstore().head_async(store, key))
    except NotThere:
        return None
    return _entry(said)


def read(url: str, limit: int | None = None, stopped: threading.Event | None = None) -> Content:
    """Reads an object whole.

    Args:
      url: its address.
      limit: of its size in bytes; None for any.
      stopped: once set, reading ends with an error.

    Raises:
      NotThere, Refused: if there is none, or the user may not read it.
      ProbexError: if it is larger, or the server does not answer.
    """
    store, key = _object(url)

    async def whole() -> Content:
        found = await _obstore().get_async(store, key)
        if limit is not None and found.meta["size"] > limit:
            size = found.meta["size"]
            raise ProbexError(f"{shown_path(url)}: {size} bytes, the limit is {limit}")
        return Content(bytes(await found.bytes_async()), found.meta["e_tag"] or "")

    with problems(url):
        return waited(whole, stopped)


def write(url: str, data: bytes, *, over: str | None = None) -> str:
    """Writes an object, whole or not at all; returns its ETag.

    Args:
      url: its address.
      data: its new content.
      over: the ETag of what it may replace: "" for nothing, which must not exist; None for
        whatever is there.

    Raises:
      Conflict: if something else is there. After a retry it may be one's own: if it matters, give
        the content something of one's own and read it.
      ProbexError: if the user may not write it, or the server does not answer.
    """
    store, key = _object(url)
    mode: Any = "overwrite" if over is None else {"e_tag": over} if over else "create"
    with problems(url):
        said = waited(lambda: _obstore().put_async(store, key, data, mode=mode))
    return said["e_tag"] or ""


def delete(*urls: str) -> None:
    """Deletes objects of one bucket; those that are not there are no error."""
    stores = [store_of(url) for url in urls]
    if stores:
        with problems(urls[0]):
            waited(lambda: _obstore().delete_async(stores[0][0], [key for _, key in stores]))


def waited(work: Callable[[], Awaitable[_T]], stopped: threading.Event | None = None) -> _T:
    """The result of asynchronous work, in a thread of its own since the caller may be in a loop.

    Once `stopped` is set, or at Ctrl-C, it is cancelled, with its requests.
    """
    interrupted = threading.Event()

    async def watched() -> _T:
        task = asyncio.ensure_future(_persisting(work))
        while not task.done():
            if interrupted.is_set() or (stopped is not None and stopped.is_set()):
                task.cancel()
                await asyncio.wait([task], timeout=_POLL_S)
                raise _Interrupted
            await asyncio.wait([task], timeout=_POLL_S)
        return task.result()

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, watched()).result()
        except BaseException:
            interrupted.set()
            raise


async def _persisting(work: Callable[[], Awaitable[_T]]) -> _T:
    """The result of work, begun again where an answer broke off: obstore resumes those of `get`."""
    from obstore.exceptions import GenericError

    for wait_s in PATIENCE.waits_s():
        try:
            return await work()
        except GenericError as error:
            if "response body" not in str(error):
                raise
            await asyncio.sleep(wait_s)
    return await work()


@contextmanager
def problems(url: str, name: str = "") -> Iterator[None]:
    """Turns obstore's errors into ProbexErrors: one line, without what is secret in an address.

    Args:
      url: what was asked for.
      name: what messages call it; "" for its address.
    """
    from obstore import exceptions as kinds

    where = name or shown_path(url)
    try:
        yield
    except _Interrupted:
        raise ProbexError(f"{where}: interrupted") from None
    except (kinds.BaseError, OSError, ValueError) as error:
        text = str(error)
        said = ", ".join(found[1] for found in (_STATUS.search(text), _CODE.search(text)) if found)
        told = f" ({said})" if said else ""
        if isinstance(error, FileNotFoundError) or said.startswith(("404", "410")):
            raise NotThere(f"{where}: nothing there{told}") from None
        if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
            hint = HINTS.get(where.partition("://")[0], "it may need a token or a password")
            raise Refused(f"{where}: not allowed, or nothing there{told}; {hint}") from None
        if isinstance(error, kinds.AlreadyExistsError | kinds.PreconditionError):
            raise Conflict(f"{where}: somebody else has written it{told}") from None
        raise Unreachable(f"{where}: {_reason(text, said)}") from None


def _reason(text: str, said: str) -> str:
    """What failed, in few words; addresses in obstore's own may hold signatures."""
    tried = "; tried several times, try again later"
    if said:
        known = next((why for status, why in _STATUSES.items() if said.startswith(status)), "")
        again = tried if said[0] == "5" or said.startswith("429") else ""
        return f"{known or 'the server answers'} ({said}){again}"
    if found := _OTHER_RANGE.search(text):
        begin, end, *theirs = found.groups()
        return f"asked for bytes {begin} to {end}, the server answers with {' to '.join(theirs)}"
    for sign, why in _SIGNS.items():
        if sign in text:
            return why
    if cause := _CAUSE.search(text):
        return f"{cause[1]}{tried}"
    last = re.sub(r"\w+://\S*", "…", text.partition("\n\n")[0].rpartition(" - ")[2])
    last = "".join(c if c.isprintable() else " " for c in last)[:200]
    return last + (tried if "HTTP error" in last else "")


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise ProbexError(
            "reading from a server needs obstore: pip install probex_jax[hub] or [buckets]"
        ) from None
    return obstore


def _options(patience: Patience, **options: Any) -> dict[str, Any]:
    first, longest = patience.first_wait_s, patience.longest_wait_s
    return {
        "client_options": {"timeout": timedelta(seconds=patience.timeout_s), **options},
        "retry_config": {
            "max_retries": patience.retries,
            "retry_timeout": timedelta(seconds=patience.longest_s),
            "backoff": {
                "init_backoff": timedelta(seconds=first),
                "max_backoff": timedelta(seconds=longest),
                "base": 2,
            },
        },
    }


@lru_cache(maxsize=256)
def _bucket(url: str, environment: tuple[tuple[str, str], ...], patience: Patience) -> Any:
    from obstore.store import from_url

    known, scheme = dict(environment), url[:2]
    endpoints = [known[name] for name in _ENDPOINTS[scheme] if known.get(name)]
    plain = endpoints[:1] and endpoints[0].startswith("http://")  # as the user says
    try:
        return from_url(url, **_options(patience, allow_http=bool(plain)), **_signed(scheme, known))
    except Exception as error:  # of obstore or of a vendor's library
        raise ProbexError(f"{url}: {_reason(str(error), '')}") from error


def _signed(scheme: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """How requests are signed; not at all, as public buckets allow it, if nothing says how."""
    if any(map(environment.get, _CREDENTIALS[scheme])):
        return {}
    try:
        if scheme == "s3":
            from obstore.auth.boto3 import Boto3CredentialProvider

            return {"credential_provider": Boto3CredentialProvider()}
        from google.auth.exceptions import DefaultCredentialsError
        from obstore.auth.google import GoogleCredentialProvider

        try:
            return {"credential_provider": GoogleCredentialProvider()}
        except DefaultCredentialsError:
            pass
    except (ImportError, ValueError):  # boto3 raises a ValueError where it finds none
        pass
    return {"skip_signature": True}


@lru_cache(maxsize=256)
def _server(url: str, headers: tuple[tuple[str, str], ...], patience: Patience) -> Any:
    from obstore.store import HTTPStore

    plain = url.startswith("http://")  # else redirects to http are refused
    try:
        options = _options(patience, allow_http=plain, default_headers=dict(headers))
        return HTTPStore(url, **options)
    except ValueError as error:
        where = shown_path(url)
        raise ProbexError(f"{where}: is no address of a file on a server ({error})") from None
