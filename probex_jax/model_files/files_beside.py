"""The small files beside a model's weights: configs and the README."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probex_jax.model_files.locate import FORMATS, Folder, format_of
from probex_jax.model_files.untrusted_text import json_object

_MAX_JSON_BYTES = 16 * 1024 * 1024


class FilesBeside:
    """The small files of a model's folder, each read at most once.

    Args:
      folder: the model's folder.
      depth: how deep JSON may be nested.
    """

    def __init__(self, folder: Folder, depth: int):
        self.depth = depth
        self._folder = folder
        self._read: dict[str, bytes | None] = {}

    def path(self, name: str) -> str:
        """Where a file is, or would be; for messages."""
        return self._folder.path_of(name)

    def are_of(self, files: Sequence[str]) -> bool:
        """Whether what the small files say is said of the model in these files.

        It is if they are called as a folder's main model is, or no other model is seen beside them.
        """
        file, *shards = files or ("",)
        if shards or any(file.startswith(f"{stem}.") for stem in FORMATS.get(format_of(file), ())):
            return True
        stem = Path(file).stem
        names = self._folder.names()
        return not any(format_of(name) and Path(name).stem != stem for name in names)

    def bytes(self, name: str, limit: int) -> bytes | None:
        """The content of a file, or None if there is none; errors as `ModelFile.bytes_beside`."""
        if name not in self._read:
            self._read[name] = self._folder.read_beside(name, limit)
        return self._read[name]

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file, or {} if there is none; errors as `ModelFile.beside`."""
        data = self.bytes(name, _MAX_JSON_BYTES)
        return {} if data is None else json_object(data, self.path(name), depth=self.depth)
