"""Buckets by their address, `s3://BUCKET/KEY` or `gs://BUCKET/KEY`; obstore speaks with them.

Where they are and who asks, environment variables say: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID and the like, GOOGLE_APPLICATION_CREDENTIALS.
"""

import os
import re
from functools import cache
from typing import Any

from probex_jax.errors import ProbexError

# A `Path` of an address has lost a slash.
_ADDRESS = re.compile(r"(s3|gs):/{1,2}([^/]*)/*(.*)", re.DOTALL)


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether this is an address in a bucket.

    Example:
      >>> is_address("s3://mine/stores/x"), is_address("stores/x")
      (True, False)
    """
    return _ADDRESS.fullmatch(str(path)) is not None


def store_of(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """The bucket of an address, as obstore has it, and the key in it.

    Raises:
      ProbexError: if it is no address, or obstore is missing (extra `buckets`).
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or not found[2]:
        raise ProbexError(f"{path}: no address of a bucket, such as s3://BUCKET/FOLDER")
    return _bucket(found[1], found[2]), found[3].rstrip("/")


@cache
def _bucket(scheme: str, name: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise ProbexError(
            f"{scheme}://{name}: reading buckets needs obstore: pip install 'obstore>=0.12' "
            "(extra `buckets`)"
        ) from None
    is_plain = endpoint().startswith("http://")
    return from_url(f"{scheme}://{name}", client_options={"allow_http": is_plain})


def endpoint() -> str:
    """The server of S3 that the environment names; "" for Amazon's."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((value for name in names if (value := os.environ.get(name))), "")


def tensorstore_spec(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The folder of an address, as TensorStore's own drivers for buckets take it.

    Raises:
      ProbexError: if it is no address.
    """
    found = _ADDRESS.fullmatch(str(folder))
    if found is None:
        raise ProbexError(f"{folder}: no address of a bucket, such as s3://BUCKET/FOLDER")
    path = found[3].rstrip("/") + "/"
    if found[1] == "gs":
        return {"driver": "gcs", "bucket": found[2], "path": path}
    told = {"endpoint": endpoint(), "aws_region": os.environ.get("AWS_REGION", "")}
    kind = "environment" if "AWS_ACCESS_KEY_ID" in os.environ else "default"
    return {
        "driver": "s3",
        "bucket": found[2],
        "path": path,
        "aws_credentials": {"type": kind},
        **{name: value for name, value in told.items() if value},
    }
