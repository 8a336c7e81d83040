"""Addresses of files and folders that are not on this machine."""

import os
import re

_ADDRESS = re.compile(r"(s3|gs|hf|https?):/{1,2}(?=[^/])")


def address_of(path: str | os.PathLike[str]) -> str:
    """The address that a path stands for; "" for a path on this machine.

    `pathlib.Path` turns two slashes into one; this restores the second.

    Args:
      path: a path or an address, as a text or a `Path`.

    Returns:
      `s3://…`, `gs://…`, `hf://…`, `https://…` or `http://…`; or "".

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

    Args:
      path: as for `address_of`.

    Returns:
      True for `s3://…` and `gs://…`.

    Example:
      >>> is_address("s3://bucket/zoo"), is_address("https://host/a"), is_address("zoo")
      (True, False, False)
    """
    return address_of(path).startswith(("s3://", "gs://"))


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path, or an address as others may read it: without a password, or a signed query.

    Args:
      path: as for `address_of`.

    Returns:
      A line to print.

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
    """The address of what is called so in a folder.

    Args:
      url: of the folder.
      name: in it.

    Returns:
      The address.

    Example:
      >>> joined("s3://bucket/zoo/", "zoo.json")
      's3://bucket/zoo/zoo.json'
    """
    return f"{url.rstrip('/')}/{name}"
