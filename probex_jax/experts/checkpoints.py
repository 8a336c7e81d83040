"""Arrays and their card on disk: one Orbax checkpoint, with a hash that loading checks.

Orbax takes a millisecond for each array, and a committee has hundreds of small ones: these lie one
after the other in one array. Arrays of equal content are there once, whoever has them.

In a bucket they are the same files, made here and put: an expert has a few megabytes, and Orbax has
no commit there that a kill cannot tear. Its own metadata is put last.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from probex_jax.bucket_paths import BucketPath, fetched, remove_folder, sizes_below
from probex_jax.errors import ProbexError
from probex_jax.files import is_full, read_json, write_json
from probex_jax.integrity import crc_of, noted, sealed, unsealed

# The file of Orbax's without which there is no checkpoint.
MARK = "_CHECKPOINT_METADATA"
_BESIDE = "orbax.checkpoint"
# Checksums of all other files: Orbax reads some of them alone.
_SUMS = "sums.json"
_HASH, _PLACES = "content_hash", "arrays_at"
# Arrays of fewer bytes lie together.
_SMALL = 2**16
# Of a checkpoint's files beside what they hold.
_OVERHEAD = 2**17
# Orbax saves and loads in one thread at a time: two at once mix up their files.
_ORBAX = threading.Lock()
# It is imported where it is used: that takes half a second.


def save(path: Path, arrays: Any, card: Mapping[str, Any]) -> None:
    """Saves nested dicts of arrays and a JSON card, whole or not at all.

    Args:
      path: a folder; one that is there is replaced once the new one is whole beside it.
      arrays: nested dicts of arrays.
      card: what can be written as JSON; the hash of the arrays and of the card is added to it.

    Raises:
      ProbexError: if the disk is full.
    """
    from orbax.checkpoint import v1 as ocp

    if isinstance(path, BucketPath):
        with TemporaryDirectory(prefix="probex-jax-") as made:
            save(Path(made, path.name), arrays, card)
            return path.upload(Path(made, path.name), last=MARK)
    arrays = jax.tree.map(np.asarray, arrays)
    places, stored = _packed(arrays)
    metadata = {**card, _HASH: content_hash(arrays, card), _PLACES: places}
    # Orbax would remove what is there before it begins to write.
    beside = path.resolve().with_name(path.name + ".new")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        size = sum(leaf.nbytes for leaf in stored.values()) + len(json.dumps(metadata))
        if shutil.disk_usage(beside.parent).free < size + _OVERHEAD:
            # Orbax would leave half of it there, and TensorStore print tracebacks.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _ORBAX:
            if jax.process_count() == 1:
                ocp.save(beside, stored, custom_metadata=metadata, overwrite=True)
            else:
                _save_alone(beside, stored, metadata)
        names = (path.relative_to(beside).as_posix() for path in sizes_below(beside))
        write_json(beside / _SUMS, sealed({name: crc_of(beside / name) for name in names}))
        if path.exists():
            remove(path)
        os.replace(beside, path)
    except (OSError, ValueError, RuntimeError) as error:
        if is_full(error):
            raise ProbexError(
                f"{path}: no space left on the disk; free some and run the same command again"
            ) from error
        raise


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """Loads what `save` wrote.

    Returns:
      Nested dicts of NumPy arrays, and the card without its hash.

    Raises:
      ProbexError: if there is no checkpoint, or what it holds is not what was saved.
    """
    from orbax.checkpoint import v1 as ocp

    try:
        with fetched(path) as here, _ORBAX, _this_process():
            metadata = ocp.metadata(here.resolve())
            leaves = metadata.metadata
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), leaves)
            arrays = ocp.load(here.resolve(), template)
        card = dict(metadata.custom_metadata or {})
        if (places := card.pop(_PLACES, None)) is not None:  # earlier versions have none
            arrays = _unpacked(places, arrays)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        ocp.errors.InvalidLayoutError,
    ) as error:
        if not path.exists():
            raise ProbexError(
                f"{path}: no such expert or checkpoint; probex train makes one"
            ) from None
        if path.is_dir() and not is_there(path):
            raise ProbexError(f"{path}: no expert here; probex train makes one") from None
        reason = " ".join(str(error).split())[:200]
        raise ProbexError(f"{path}: not a whole checkpoint ({reason})") from error
    if card.pop(_HASH, None) != content_hash(arrays, card):
        raise ProbexError(f"{path}: damaged: its content does not match its hash")
    return arrays, card


def _packed(arrays: Any) -> tuple[Any, dict[str, Any]]:
    """What is stored of arrays, each content once: large ones by number, small ones by dtype.

    Returns:
      Nested dicts as `arrays`, with the place of each: its number, or dtype, start and shape; and
      what is stored.
    """
    known: dict[Any, Any] = {}
    large: dict[str, np.ndarray] = {}
    small: dict[str, list[np.ndarray]] = {}

    def place(leaf: np.ndarray) -> Any:
        content = hashlib.sha256(np.ascontiguousarray(leaf).data).digest()
        key = leaf.dtype.str, leaf.shape, content
        if key in known:
            return known[key]
        if leaf.nbytes >= _SMALL:
            known[key] = [str(len(large))]
            large[known[key][0]] = leaf
        else:
            together = small.setdefault(leaf.dtype.name, [])
            known[key] = [leaf.dtype.name, sum(each.size for each in together), list(leaf.shape)]
            together.append(leaf)
        return known[key]

    places = jax.tree.map(place, arrays)
    joined = {
        name: np.concatenate([leaf.ravel() for leaf in leaves]) for name, leaves in small.items()
    }
    return places, large | joined


def _unpacked(places: Any, stored: Mapping[str, np.ndarray]) -> Any:
    """The arrays that `_packed` made places of; other errors than ProbexError if they are none."""
    if isinstance(places, Mapping):
        return {name: _unpacked(place, stored) for name, place in places.items()}
    if places is None:
        return None
    if len(places) == 1:
        return stored[places[0]]
    name, start, shape = places
    return stored[name][start : start + math.prod(shape)].reshape(shape)


def _save_alone(path: Path, arrays: Any, metadata: Mapping[str, Any]) -> None:
    """As `ocp.save`, which in a distributed run waits for all processes to save with this one."""
    import orbax.checkpoint as v0

    index = jax.process_index()
    ours = v0.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    handler = v0.CompositeCheckpointHandler(
        composite_options=v0.CompositeOptions(multiprocessing_options=ours),
        pytree=v0.PyTreeCheckpointHandler(multiprocessing_options=ours),
    )
    with v0.Checkpointer(handler, multiprocessing_options=ours) as checkpointer:
        content = v0.args.Composite(pytree=v0.args.PyTreeSave(arrays))
        checkpointer.save(path, args=content, custom_metadata=dict(metadata), force=True)


def _this_process() -> AbstractContextManager[Any]:
    """Loads what this process asks for, whatever others do."""
    if jax.process_count() == 1:
        return nullcontext()
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def damages(path: Path) -> Iterator[str]:
    """A line for each listed file of a checkpoint that is damaged or missing."""
    found: list[str] = []
    file = path / _SUMS
    with noted(found):
        if not file.is_file():  # earlier versions wrote no list
            return
        sums = unsealed(read_json(file), file)
        for name, crc in sums.items() if isinstance(sums, dict) else ():
            if (now := crc_of(path / name)) != crc:
                found.append(f"{path / name}: {'missing' if now is None else 'damaged'}")
    yield from found


def is_there(path: Path) -> bool:
    """Whether there is a whole checkpoint."""
    return (path / MARK).is_file()


def looks_like_one(path: Path) -> bool:
    """Whether a folder has what Orbax writes beside that mark."""
    return (path / _BESIDE).is_file()


def remove(path: Path) -> None:
    """Removes a checkpoint, or a folder of them."""
    remove_folder(path, first=MARK)


def content_hash(arrays: Any, card: Mapping[str, Any]) -> str:
    """SHA-256 of nested dicts of arrays and a JSON card."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    leaves = jax.tree_util.tree_flatten_with_path(jax.tree.map(np.asarray, arrays))[0]
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        digest.update(json.dumps([path, leaf.shape, leaf.dtype.str]).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
