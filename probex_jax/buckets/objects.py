"""Reading, writing and listing the objects of buckets."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from probex_jax.buckets import stores
from probex_jax.buckets.addresses import is_address, shown_path
from probex_jax.buckets.problems import Interrupted, NotThere, problems
from probex_jax.buckets.stores import obstore, store_of
from probex_jax.errors import ProbexError

_POLL_S = 0.1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
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


def listed(url: str, stopped: threading.Event | None = None) -> Listing:
    """What lies in a folder of a bucket, but not in its folders.

    Args:
      url: of the folder.
      stopped: once set, waiting ends with an error.

    Returns:
      The files and folders; none if there is no such folder.

    Raises:
      ProbexError: if there is no such bucket, or the server does not answer.
    """
    store, key = store_of(url)

    async def whole() -> Any:
        asked = obstore().list_with_delimiter_async(store, key or None)
        return await asyncio.wait_for(asked, stores.PATIENCE.longest_s)

    with problems(url):
        said = waited(whole, stopped)
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
    """All objects in a folder of a bucket and in its folders.

    Args:
      url: of the folder.
      limit: of their number.

    Returns:
      By their paths in the folder.

    Raises:
      ProbexError: if they are more than `limit`, or as `listed`.
    """
    store, key = store_of(url)
    entries: dict[str, Entry] = {}
    begin, last, seen = len(key) + 1 if key else 0, None, 0

    async def more() -> None:
        nonlocal last, seen
        async for page in obstore().list(store, key or None, offset=last, chunk_size=1000):
            entries.update({each["path"][begin:]: _entry(each) for each in page})
            last, seen = page[-1]["path"], seen + len(page)
            if seen > limit:
                raise ProbexError(f"{url}: more than {limit} objects; give a folder among them")

    with problems(url):
        waited(more)
    entries.pop("", None)
    return entries


def _entry(said: Any) -> Entry:
    return Entry(said["size"], said["e_tag"] or "")


def stated(url: str) -> Entry | None:
    """What a bucket says of an object.

    Args:
      url: of the object.

    Returns:
      Its size and ETag; None if there is none.

    Raises:
      ProbexError: if the user may not ask, or the server does not answer.
    """
    store, key = _object(url)
    try:
        with problems(url):
            said = waited(lambda: obstore().head_async(store, key))
    except NotThere:
        return None
    return _entry(said)


def read(url: str, limit: int | None = None, stopped: threading.Event | None = None) -> Content:
    """Reads an object whole.

    Args:
      url: of the object, or of a file on any server.
      limit: of its size in bytes; None for any.
      stopped: once set, reading ends with an error.

    Returns:
      The bytes and the ETag.

    Raises:
      NotThere, Refused: if there is none, or the user may not read it.
      ProbexError: if it is larger, or the server does not answer.
    """
    store, key = _object(url)

    async def whole() -> Content:
        found = await obstore().get_async(store, key)
        if limit is not None and found.meta["size"] > limit:
            size = found.meta["size"]
            raise ProbexError(f"{shown_path(url)}: {size} bytes, the limit is {limit}")
        return Content(bytes(await found.bytes_async()), found.meta["e_tag"] or "")

    with problems(url):
        return waited(whole, stopped)


def write(url: str, data: bytes) -> str:
    """Writes an object, whole or not at all.

    Args:
      url: of the object.
      data: its new content.

    Returns:
      Its new ETag.

    Raises:
      ProbexError: if the user may not write it, or the server does not answer.
    """
    store, key = _object(url)
    with problems(url):
        said = waited(lambda: obstore().put_async(store, key, data))
    return said["e_tag"] or ""


def delete(*urls: str) -> None:
    """Deletes objects of one bucket; those that are not there are no error.

    Args:
      *urls: of the objects.

    Raises:
      ProbexError: if the user may not, or the server does not answer.
    """
    stores = [store_of(url) for url in urls]
    if stores:
        with problems(urls[0]):
            waited(lambda: obstore().delete_async(stores[0][0], [key for _, key in stores]))


def waited(work: Callable[[], Awaitable[_T]], stopped: threading.Event | None = None) -> _T:
    """Runs asynchronous work, in a thread of its own since the caller may be in a loop.

    obstore's functions that are not asynchronous do not hear of Ctrl-C.

    Args:
      work: makes what is awaited.
      stopped: once set, the work is cancelled with its requests, as at Ctrl-C.

    Returns:
      Its result.

    Raises:
      Interrupted: if it was stopped; `problems` makes it a ProbexError.
    """
    interrupted = threading.Event()

    async def watched() -> _T:
        task = asyncio.ensure_future(_persisting(work))
        while not task.done():
            if interrupted.is_set() or (stopped is not None and stopped.is_set()):
                task.cancel()
                await asyncio.wait([task], timeout=_POLL_S)
                raise Interrupted
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

    for wait_s in stores.PATIENCE.waits_s():
        try:
            return await work()
        except GenericError as error:
            if "response body" not in str(error):
                raise
            await asyncio.sleep(wait_s)
    return await work()


def _object(url: str) -> tuple[Any, str]:
    store, key = store_of(url)
    if not key and is_address(url):
        raise ProbexError(f"{url}: expected {url.rstrip('/')}/path")
    return store, key
