"""Models whose layers lie in files on this machine as they are wanted: copied out piece by piece.

Reading a header takes longer than reading a small model. Who knows where the layers lie, and that
the files are the same still, need not do so again. What is copied out stays in the processor's
cache, from the file to wherever the pieces go.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import ByteRanges
from probex_jax.model_files.finite import count_unfit, unfit

_PAGE = 4096
_PIECE_BYTES = 2**20
# Some of AMD's processors copy at a fifth of their speed where the target, counted within its page,
# lies up to 31 bytes behind the source. NumPy's large arrays begin 16 bytes behind a page.
_CLOSE = 64


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file that was read once, and where in it the data of its tensors begin."""

    path: Path
    identity: tuple[int, ...]
    data_begin: int


# Of a layer: the number of its file, and its bytes `begin:end` counted from the data's start.
Places = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Plain:
    """Where the layers of a model lie that are stored as float32; made by `ModelFile.plain`.

    Args:
      files: of the model.
      places: of its layers; equal for models that were written alike.
    """

    files: tuple[PlainFile, ...]
    places: Places

    def open(self) -> "OpenPlain | None":
        """Opens the files again, or None where one of them is gone or another one by now."""
        opened = []
        with ExitStack() as on_error:
            for file in self.files:
                try:
                    opened.append(on_error.enter_context(ByteRanges(file.path)))
                except ProbexError:
                    return None
                if opened[-1].identity != file.identity:
                    return None
            on_error.pop_all()
        return OpenPlain(self, opened)


class OpenPlain:
    """The files of a `Plain`, open."""

    def __init__(self, plain: Plain, files: Sequence[ByteRanges]):
        self._plain, self._files = plain, files

    def pieces(self, name: str, target: int, buffer: "Buffer") -> Iterator[np.ndarray]:
        """Copies out a layer.

        Args:
          name: one of `places`.
          target: where in a file the pieces will be written.
          buffer: what holds a piece until the next one.

        Yields:
          float32 [n], the values one piece after the other; the checks of all come after the last.

        Raises:
          ProbexError: if values are NaN or infinite, or the file cannot be read.
        """
        number, begin, end = self._plain.places[name]
        file, data_begin = self._files[number], self._plain.files[number].data_begin
        bad, done = 0, begin
        while done < end:
            # Pieces end where pages of the target do.
            size = min(_PIECE_BYTES - (target + done - begin) % _PAGE, end - done)
            data = buffer.between(data_begin + done, target + done - begin, size)
            file.read_into(data_begin + done, data)
            values = data.view("<f4")
            bad += count_unfit(values)
            yield values
            done += size
        if bad:
            raise unfit(file.name, name, bad, (end - begin) // 4)

    def check_unchanged(self) -> None:
        """Raises a ProbexError if a file was written to since it was opened."""
        for file in self._files:
            file.check_unchanged()

    def __enter__(self) -> "OpenPlain":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()


class Buffer:
    """Memory for one piece, of one thread, which begins with a page."""

    def __init__(self) -> None:
        self._bytes = np.frombuffer(mmap.mmap(-1, _PIECE_BYTES + 2 * _PAGE), np.uint8)

    def between(self, source: int, target: int, size: int) -> np.ndarray:
        """Bytes of it that are fast to copy into and out of.

        Args:
          source: where in a file they come from.
          target: where in a file they go.
          size: how many.
        """
        begin = source % _PAGE
        if begin % 4 or 0 < (target - begin) % _PAGE < _CLOSE:
            begin += _CLOSE + -begin % 4
            if (target - begin) % _PAGE < _CLOSE:
                begin += _CLOSE
        return self._bytes[begin : begin + size]
