"""Upload forms, written to disk as they arrive.

Starlette's form parser spools files without a limit for all files together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from probex_jax.web.models import plain_name
from probex_jax.web.uploads import MAX_FILES, Arrival, Refused

_HEADER_BYTES = 2**13
_DAMAGED = "the form is damaged or incomplete"


async def read_form(content_type: str, chunks: AsyncIterator[bytes], arrival: Arrival) -> None:
    """Writes the files of a form.

    Args:
      content_type: of the request.
      chunks: its body.
      arrival: the writer.

    Raises:
      Refused: if it is not a form, is damaged, or has too many files; and as `Arrival.write`.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise Refused("expected a form with files")
    with _damage():
        files = _Files(arrival)
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_header_field": files.on_header,
                "on_header_value": files.on_value,
                "on_header_end": files.on_header_end,
                "on_part_data": files.on_data,
                "on_part_end": files.on_end,
                "on_end": files.on_form_end,
            },
        )
        async for chunk in chunks:
            parser.write(chunk)
    if not files.is_whole:  # the parser does not tell
        raise Refused(_DAMAGED)
    if not arrival.paths:
        raise Refused("the form has no files")


class _Files:
    """Follows the parser: which part is a file, and its content."""

    def __init__(self, arrival: Arrival):
        self._arrival, self._is_file, self.is_whole = arrival, False, False
        self._header, self._value = b"", b""

    def on_header(self, data: bytes, start: int, end: int) -> None:
        self._header = _short(self._header + data[start:end])

    def on_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _short(self._value + data[start:end])

    def on_header_end(self) -> None:
        header, value, self._header, self._value = self._header.lower(), self._value, b"", b""
        name = parse_options_header(value)[1].get(b"filename")
        if header != b"content-disposition" or name is None:
            return
        if len(self._arrival.paths) == MAX_FILES:
            raise Refused(f"more than {MAX_FILES} files at once")
        self._arrival.begin(plain_name(name.decode("utf-8", "replace")))
        self._is_file = True

    def on_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._arrival.write(data[start:end])

    def on_end(self) -> None:
        self._arrival.end()
        self._is_file = False

    def on_form_end(self) -> None:
        self.is_whole = True


def _short(header: bytes) -> bytes:
    if len(header) > _HEADER_BYTES:
        raise Refused("a header of the form is too long")
    return header


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except FormParserError:
        raise Refused(_DAMAGED) from None
