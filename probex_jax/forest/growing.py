"""Adding trees to a forest, each atomically."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, calibrated
from probex_jax.experts.alignment import class_sentences
from probex_jax.files import disk_errors, layer_folder, one_writer, write_json
from probex_jax.forest.forest import FORMAT, VERSION, Tree, tree_folders
from probex_jax.forest.router import ROUTER_VERSION, TreeRouter, check_apart
from probex_jax.language import embed
from probex_jax.layer_store import LayerStore


def grow(
    path: str | Path, store: LayerStore, expert: Expert | None = None, root: str = ""
) -> tuple[Tree, str]:
    """Adds a tree to a forest, which is created if necessary.

    Args:
      path: the forest's folder.
      store: models of the tree; the router learns from the training split.
      expert: predicts for its models and was trained on the tree. If it is not calibrated yet and
        was trained on this store, it is calibrated on the validation split. None for a tree whose
        models are only recognised.
      root: the model that they were fine-tuned from, preferably a hub id; "" if unknown.

    Returns:
      The tree, and "added", "replaced" or "unchanged".

    Raises:
      ProbexError: if the expert is of another tree or reads a layer that the store lacks, the
        models cannot be told apart from those of another tree or from unrelated ones, the folder
        holds other files or is being written, or the disk is full.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> folder, rng = pathlib.Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> cat = rng.normal(size=(8, 8))
      >>> (folder / "cats" / "train").mkdir(parents=True)
      >>> for number in range(3):
      ...     save_file({"body.weight": (cat + 0.1 * rng.normal(size=(8, 8))).astype("f4")},
      ...               folder / "cats" / "train" / f"{number}.safetensors",
      ...               {"dataset_chosen_targets": "['cat']"})
      >>> store = pack(scan(folder / "cats"), folder / "store").store
      >>> tree, done = grow(folder / "forest", store, root="me/cats")
      >>> tree.router.tree, tree.router.root, done
      ('cats', 'me/cats', 'added')
      >>> grow(folder / "forest", store, root="me/cats")[1]
      'unchanged'
    """
    path = Path(path)
    folder = layer_folder(path / "trees", store.tree)
    if folder.name.startswith("."):
        raise ProbexError(f"tree {store.tree}: its name starts with a dot; rename the zoo")
    with one_writer(path):
        trees = _begun(path, folder)
        given = None if expert is None else expert.hash
        if expert is not None:
            expert.check_fits(store.tree, store.classes)
        source = _source(store, given, root)
        before = trees.get(store.tree)
        if before is not None and before.about["source"] == source and _is_whole(before, folder):
            return before, "unchanged"
        router = TreeRouter.fit(store, root, () if expert is None else expert.layers)
        for name, tree in trees.items():
            if name != store.tree:
                check_apart(router, tree.router)
        if expert is not None and expert.card.calibration is None:
            if expert.card.store_hash not in (None, store.hash):
                raise ProbexError(
                    f"{store.path}: the expert of {store.tree} was trained on another store, which "
                    "may overlap with the validation split of this one; calibrate it there"
                )
            expert = calibrated(expert, store)
        beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
        with disk_errors(path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            _write(beside, router, expert, source)
            if there := folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(folder, old)
            os.replace(beside, folder)
            shutil.rmtree(old, ignore_errors=True)
        return Tree(folder), "replaced" if there else "added"


def _source(store: LayerStore, expert: str | None, root: str) -> dict[str, Any]:
    """Everything that a tree depends on, as JSON values."""
    models = sorted((model.id, model.fingerprint, model.base) for model in store.split("train"))
    return {
        "store_hash": store.hash,
        "models": hashlib.sha256(json.dumps(models).encode()).hexdigest(),
        "expert": expert,
        "root": root,
        "router": ROUTER_VERSION,
    }


def _is_whole(tree: Tree, folder: Path) -> bool:
    try:
        return tree.path == folder and (tree.expert is not None or not tree.about["expert"])
    except ProbexError:
        return False


def _begun(path: Path, folder: Path) -> dict[str, Tree]:
    """The trees of a forest, which is created in a new or empty folder.

    A damaged tree in `folder`, which will be replaced, is left out.
    """
    if not (path / "forest.json").exists():
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            others = [entry.name for entry in path.iterdir() if entry.name[0] != "."]
        others = [name for name in others if not name.startswith("forest.json.")]  # partial
        if others:
            raise ProbexError(f"{path}: holds other files ({others[0]}); choose another folder")
        write_json(path / "forest.json", {"format": FORMAT, "version": VERSION})
    trees = {}
    for found in tree_folders(path):
        try:
            tree = Tree(found)
        except ProbexError:
            if found not in (folder, folder.with_name(f".{folder.name}.old")):
                raise
        else:
            trees[tree.router.tree] = tree
    return trees


def _write(folder: Path, router: TreeRouter, expert: Expert | None, source: dict[str, Any]) -> None:
    arrays = {"centres": np.ascontiguousarray(router.centres_CD, np.float32)}
    about: dict[str, Any] = {
        "version": VERSION,
        "router": router.as_json(),
        "source": source,
        "expert": None,
    }
    if expert is not None:
        expert.save(folder / "expert")
        layers = {name: list(shape) for name, shape in expert.layers.items()}
        about["expert"] = {"hash": expert.hash, "layers": layers}
        if expert.card.text is not None:
            arrays["texts"] = np.ascontiguousarray(_embedded(expert), np.float32)
    data = save(arrays)
    (folder / "arrays.safetensors").write_bytes(data)
    about["arrays_sha256"] = hashlib.sha256(data).hexdigest()
    write_json(folder / "tree.json", json.loads(json.dumps(about)))


def _embedded(expert: Expert) -> np.ndarray:
    """Embedded texts of the classes [Y, D], so that describing needs no text encoder."""
    text = expert.text
    sentences = class_sentences(expert.card.classes, text.texts, text.template)
    return embed(expert.text_encoder(), sentences)
