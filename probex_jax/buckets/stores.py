"""obstore's stores of buckets and servers, made of the environment.

obstore signs, retries with growing waits, resumes a body that breaks off and refuses answers that
are not the range that was asked for. It lacks, and is added here: credentials of an AWS profile
(boto3), no signature where there are none, names and passwords in addresses.
"""

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from probex_jax.buckets.addresses import shown_path
from probex_jax.buckets.problems import reason
from probex_jax.errors import ProbexError

_IN_BUCKET = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,221})(?:/(.*))?", re.DOTALL)
# What obstore would ask for in other words is an address, not a key.
_PLAIN_PATH = re.compile(r"(/[\w.~+-]+)+", re.ASCII)

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
}
# Where a machine of a cloud is asked for its credentials; as in obstore's errors.
_OF_MACHINE = re.compile(r"/latest/(api/token|meta-data/)|/computeMetadata/")
# What tells obstore how to sign; without any of it the vendor's own library is asked.
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


def store_of(url: str, headers: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """The obstore store of an address, and the key in it; made once for a bucket.

    A bucket's credentials, region and endpoint are those of the environment (AWS_…, GOOGLE_…).

    Args:
      url: `s3://bucket/key`, `gs://bucket/key` or `http(s)://host/path`.
      headers: sent with each request to a server that is no bucket; of those that identify the
        user none goes on to another server.

    Returns:
      The store, and the key; "" for the bucket itself, and where the store is of the one file.

    Raises:
      ProbexError: if it is no such address, or obstore is not installed.
    """
    obstore()
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


def obstore() -> Any:
    """The library; a ProbexError if it is not installed."""
    try:
        import obstore as library
    except ImportError:
        raise ProbexError(
            "reading from a server needs obstore: pip install probex_jax[hub] or [buckets]"
        ) from None
    return library


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
    endpoint = next(filter(None, map(known.get, _ENDPOINTS[scheme])), "")
    options = {"allow_http": endpoint.startswith("http://")}  # as the user says
    try:
        return from_url(url, **_options(patience, **options), **_signed(url, options, known))
    except Exception as error:  # of obstore or of a vendor's library
        raise ProbexError(f"{url}: {reason(str(error), '')}") from error


def _signed(url: str, options: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """How requests are signed; not at all, as public buckets allow it, if nothing says how."""
    if any(map(known.get, _CREDENTIALS[url[:2]])):
        return {}
    try:
        if url.startswith("s3"):
            from obstore.auth.boto3 import Boto3CredentialProvider

            return {"credential_provider": Boto3CredentialProvider()}
        from google.auth.exceptions import DefaultCredentialsError
        from obstore.auth.google import GoogleCredentialProvider

        try:
            return {"credential_provider": GoogleCredentialProvider()}
        except DefaultCredentialsError:
            pass
    except ImportError:
        if _finds_credentials(url, options):
            return {}
    except ValueError:  # boto3 finds none
        pass
    return {"skip_signature": True}


def _finds_credentials(url: str, options: Mapping[str, Any]) -> bool:
    """Whether obstore finds a file of gcloud's, or a machine of a cloud that has some."""
    from obstore.store import from_url

    once = _options(Patience(retries=0, timeout_s=5.0), **options)
    try:
        next(iter(obstore().list(from_url(url, **once), chunk_size=1)), None)
    except Exception as error:  # of the bucket, mostly
        return not _OF_MACHINE.search(str(error))
    return True


@lru_cache(maxsize=256)
def _server(url: str, headers: tuple[tuple[str, str], ...], patience: Patience) -> Any:
    from obstore.store import HTTPStore

    plain = url.startswith("http://")  # else redirects to http are refused
    try:
        options = _options(patience, allow_http=plain, default_headers=dict(headers))
        return HTTPStore(url, **options)
    except ValueError as error:
        where = shown_path(url)
        raise ProbexError(f"{where}: is not an address of a file on a server ({error})") from None
