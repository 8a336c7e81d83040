"""What obstore raises, as errors of one line that hold no secrets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from probex_jax.buckets.addresses import shown_path
from probex_jax.errors import ProbexError

# What to do where a server refuses.
HINTS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with boto3 installed",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
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


class NotThere(ProbexError):
    """There is no such object."""


class Unreachable(ProbexError):
    """The server does not answer, or not what it was asked."""


class Refused(Unreachable):
    """The server does not tell whether there is such an object."""


class Conflict(ProbexError):
    """Somebody else has written the object."""


class Interrupted(Exception):
    """Waiting was ended."""


@contextmanager
def problems(url: str, name: str = "") -> Iterator[None]:
    """Turns obstore's errors into ProbexErrors: one line, without what is secret in an address.

    Args:
      url: what was asked for.
      name: what messages call it; "" for its address.

    Yields:
      None.

    Raises:
      NotThere, Refused, Conflict: where the server says so.
      Unreachable: for all else that obstore raises.
    """
    from obstore import exceptions as kinds

    where = name or shown_path(url)
    try:
        yield
    except Interrupted:
        raise ProbexError(f"{where}: interrupted") from None
    except TimeoutError:
        raise Unreachable(f"{where}: takes too long to list; are there too many objects?") from None
    except (kinds.BaseError, FileNotFoundError, ValueError) as error:
        text = str(error)
        if isinstance(error, ValueError) and "parse path" not in text:
            raise
        said = ", ".join(found[1] for found in (_STATUS.search(text), _CODE.search(text)) if found)
        told = f" ({said})" if said else ""
        if isinstance(error, FileNotFoundError) or said.startswith(("404", "410")):
            raise NotThere(f"{where}: nothing there{told}") from None
        if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
            hint = HINTS.get(where.partition("://")[0], "it may need a token or a password")
            raise Refused(f"{where}: not allowed, or nothing there{told}; {hint}") from None
        if isinstance(error, kinds.AlreadyExistsError | kinds.PreconditionError):
            raise Conflict(f"{where}: somebody else has written it{told}") from None
        raise Unreachable(f"{where}: {reason(text, said)}") from None


def reason(text: str, said: str) -> str:
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
    return last[:200] + (tried if "HTTP error" in last else "")
