"""What a store says of itself, in its `store.json`."""

from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.files import read_json
from probex_jax.integrity import unsealed

FORMAT = "probex_jax layer store"
VERSION = 4
# A store of version 3 is one without vectors.
_READ = (3, VERSION)


def read_about(path: Path) -> dict[str, Any]:
    """The content of the store.json of a store; a ProbexError if it is none of ours."""
    try:
        about = read_json(path / "store.json")
    except (FileNotFoundError, NotADirectoryError):
        raise ProbexError(f"{path}: no layer store here; make one with probex pack") from None
    version = about.get("version") if isinstance(about, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT or version not in _READ:
        raise ProbexError(
            f"{path / 'store.json'}: store of version {version!r}, expected {VERSION}; pack it "
            "again"
        )
    return unsealed(about, path / "store.json")
