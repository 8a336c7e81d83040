"""Adding trees to a forest, each atomically."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from probex_jax.bucket_paths import BucketPath, as_path
from probex_jax.buckets import Unreachable
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert, calibrated
from probex_jax.experts.alignment import class_sentences
from probex_jax.experts.tags import vocabulary
from probex_jax.files import disk_errors, layer_folder, one_writer, write_json
from probex_jax.forest.description import abbreviated
from probex_jax.forest.forest import FORMAT, tree_folders
from probex_jax.forest.router import ROUTER_VERSION, TreeRouter, check_apart
from probex_jax.forest.tree import VERSION, ExpertEntry, Tree, arrays_file, tags_of, texts_of
from probex_jax.forest.usual import USUAL_VERSION, Usual
from probex_jax.integrity import sealed
from probex_jax.language import embed
from probex_jax.layer_store import LayerStore


def grow(
    path: str | Path,
    store: LayerStore,
    expert: Expert | None = None,
    root: str = "",
    label_set: str | None = None,
    tags: Sequence[str] = (),
) -> tuple[Tree, str]:
    """Adds a tree to a forest, or an expert of another label set to one of its trees.

    The forest is created if necessary. A tree has one router, learnt from the store with the most
    training models, and an expert for each label set. A store of another name whose models are of
    a tree of the forest brings its expert there, if that knows other classes.

    Args:
      path: the forest's folder.
      store: models of the tree; the router learns from the training split.
      expert: predicts for its models and was trained on the tree. If it is not calibrated yet and
        was trained on this store, it is calibrated on the validation split. None for a tree whose
        models are only recognised.
      label_set: what the classes of the expert are about. An expert takes the place of one with the
        same label set. None for what the expert's card or the store says: "" if neither names it.
      root: the model that they were fine-tuned from, preferably a hub id; "" if unknown. Of a path
        on this machine, models are told that are hardly changed.
      tags: that an expert that ranks tags ranks as well.

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
    path = as_path(path)
    folder = layer_folder(path / "trees", store.tree)
    if folder.name.startswith("."):
        raise ProbexError(f"tree {store.tree}: its name starts with a dot; rename the zoo")
    with one_writer(path):
        trees = _begun(path, folder)
        if expert is not None:
            expert.check_fits(store.tree, store.classes)
        if label_set is None:
            label_set = _said_label_set(store, expert)
        joint = () if expert is None else expert.card.attributes  # calibrated, each by itself
        before = trees.get(store.tree) or _of_the_same_tree(trees, store, expert, label_set)
        if before is not None and before.router.tree != store.tree:
            label_set = label_set or store.tree
            folder = layer_folder(path / "trees", before.router.tree)
        elif before is not None and expert is not None:
            label_set = label_set or _unsaid_label_set(before, expert)
        source = _source(store, expert, root, label_set, tags)
        if before is not None and source in before.about["sources"] and _is_whole(before, folder):
            return before, "unchanged"
        known = [] if before is None else list(before.entries.values())
        kept = [entry for entry in known if entry.label_set != label_set]
        if before is not None and joint:  # what knows no attribute more is not asked any more
            names = {each.name for each in joint}
            cards = {name: found.card for name, found in before.experts.items()}
            asked = {name: {each.name for each in card.attributes} for name, card in cards.items()}
            kept = [e for e in kept if not asked[e.label_set] or asked[e.label_set] - names]
        router, owner = _router(store, expert, root, label_set, before, kept)
        usual = before.usual if before is not None and owner != label_set else None
        if usual is None:
            usual = Usual.fit(store, {layer.name for layer in router.checked.layers}, router.root)
        for tree in trees.values():
            if before is None or tree.router.tree != before.router.tree:
                check_apart(router, tree.router)
        if expert is not None and not joint and expert.card.calibration is None:
            if expert.card.store_hash not in (None, store.hash):
                raise ProbexError(
                    f"{store.path}: the expert of {store.tree} was trained on another store, which "
                    "may overlap with the validation split of this one; calibrate it there"
                )
            expert = calibrated(expert, store)
        return _replaced(folder, router, usual, owner, expert, source, before, kept)


def _said_label_set(store: LayerStore, expert: Expert | None) -> str:
    """What the classes of an expert are about, by its card or the store; "" if neither says."""
    said = None if expert is None else expert.card.more.get("label_set")
    return said if isinstance(said, str) else store.label_set


def _unsaid_label_set(before: Tree, expert: Expert) -> str:
    """The label set with which an expert has classes in common, or else its first classes."""
    classes = expert.card.classes
    alike = [name for name, e in before.entries.items() if set(classes) & set(e.classes)]
    new = abbreviated(sorted(classes)) if before.entries else ""
    return alike[0] if alike else new


def _of_the_same_tree(
    trees: Mapping[str, Tree], store: LayerStore, expert: Expert | None, label_set: str
) -> Tree | None:
    """The tree that a store of another name belongs to, if its expert tells something else there.

    A second store of a tree for the same label set is refused later on (`check_apart`).
    """
    if expert is None:
        return None
    for tree in trees.values():
        if store.tree in tree.names:
            return tree
    near = [tree for tree in trees.values() if _is_same(store, tree)]
    if len(near) != 1:
        return None
    [tree] = near
    known = {name for entry in tree.entries.values() for name in entry.classes}
    is_new = label_set not in tree.entries if label_set else not known & set(expert.card.classes)
    return tree if is_new else None


def _is_same(store: LayerStore, tree: Tree) -> bool:
    router = tree.router
    if not {model.fingerprint for model in store.split("train")} & set(router.fingerprints):
        return False
    try:
        check_apart(TreeRouter.fit(store), router)
    except ProbexError:
        return True
    return False


def _router(
    store: LayerStore,
    expert: Expert | None,
    root: str,
    label_set: str,
    before: Tree | None,
    kept: Sequence[ExpertEntry],
) -> tuple[TreeRouter, str]:
    """What recognises the tree, and the label set of the store that it was learnt from.

    With several label sets that is the store with the most training models.
    """
    reads = set() if expert is None else set(expert.layers)
    others = {name for entry in kept for name in entry.layers}
    if before is None or not kept:
        return TreeRouter.fit(store, root, reads), label_set
    known = before.router
    root = root or known.root
    checked = {layer.name for layer in known.checked.layers}
    owner = before.about["router_of"]
    if others <= set(store.layers):
        router = TreeRouter.fit(store, root, reads | others)
        if owner == label_set or router.n_models > known.n_models or not reads <= checked:
            router = replace(
                router,
                tree=known.tree,
                fingerprints=tuple(sorted({*router.fingerprints, *known.fingerprints})),
                bases=tuple(sorted({*router.bases, *known.bases})),
            )
            return router, label_set
    elif not reads <= checked:
        missing = sorted(others - set(store.layers))
        raise ProbexError(
            f"{store.path}: lacks layer {missing[0]}, which another expert of {known.tree} reads"
        )
    return replace(known, root=root), owner


def _source(
    store: LayerStore, expert: Expert | None, root: str, label_set: str, tags: Sequence[str]
) -> dict[str, Any]:
    """Everything that an expert's place in a tree depends on, as JSON values."""
    models = sorted((model.id, model.fingerprint, model.base) for model in store.split("train"))
    return {
        "tree": store.tree,
        "label_set": label_set,
        "store_hash": store.hash,
        "models": hashlib.sha256(json.dumps(models).encode()).hexdigest(),
        "expert": None if expert is None else expert.hash,
        "root": root,
        "router": ROUTER_VERSION,
        **({"tags": list(tags)} if tags else {}),
        "usual": USUAL_VERSION,
    }


def _is_whole(tree: Tree, folder: Path) -> bool:
    try:
        return tree.path == folder and len(tree.experts) == len(tree.entries)
    except Unreachable:
        raise
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
        except Unreachable:  # what it holds may be whole
            raise
        except ProbexError:
            if found not in (folder, folder.with_name(f".{folder.name}.old")):
                raise
        else:
            trees[tree.router.tree] = tree
    return trees


def _replaced(
    folder: Path,
    router: TreeRouter,
    usual: Usual | None,
    owner: str,
    expert: Expert | None,
    source: dict[str, Any],
    before: Tree | None,
    kept: Sequence[ExpertEntry],
) -> tuple[Tree, str]:
    """Writes a tree beside its folder, and then into its place."""
    joins = before is not None and source["label_set"] not in before.label_sets
    if isinstance(folder, BucketPath):
        there = (folder / "tree.json").exists()
        _write(folder, router, usual, owner, expert, source, before, kept)
        tree = Tree(folder)
        _tidy(folder, tree)
        return tree, "replaced" if there and not joins else "added"
    new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    with disk_errors(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _write(new, router, usual, owner, expert, source, before, kept)
        if there := folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    return Tree(folder), "replaced" if there and not joins else "added"


def _tidy(folder: BucketPath, tree: Tree) -> None:
    """Deletes what a `tree.json` in a bucket does not name any more."""
    used = {entry.folder for entry in tree.entries.values()}
    used |= {"tree.json", arrays_file(folder, tree.about).name}
    for path in folder.iterdir():
        if path.name not in used:
            path.unlink()
            path.remove()


def _write(
    folder: Path,
    router: TreeRouter,
    usual: Usual | None,
    owner: str,
    expert: Expert | None,
    source: dict[str, Any],
    before: Tree | None,
    kept: Sequence[ExpertEntry],
) -> None:
    # In a bucket new files lie beside the old ones, until `tree.json` names them.
    in_place = isinstance(folder, BucketPath)
    arrays = {"centres": np.ascontiguousarray(router.centres_CD, np.float32)}
    arrays |= {} if usual is None else usual.arrays
    entries, sources = list(kept), [source]
    if before is not None:
        others = {entry.label_set for entry in kept}
        sources = [s for s in before.about["sources"] if s["label_set"] in others] + sources
        for entry in kept:
            if not in_place:
                shutil.copytree(before.path / entry.folder, folder / entry.folder)
            if (texts := before.texts(entry)) is not None:
                arrays[texts_of(entry.folder)] = texts
            if (known := before.vocabulary(entry)) is not None:
                arrays[tags_of(entry.folder)] = known.texts_VD
    if expert is not None:
        there = before.entries.values() if before is not None and in_place else kept
        used = {entry.folder for entry in there}
        names = itertools.chain(["expert"], (f"expert-{n}" for n in itertools.count(1)))
        place = next(name for name in names if name not in used)
        expert.save(folder / place)
        entry = ExpertEntry(
            source["label_set"], place, expert.hash, expert.layers, expert.card.classes
        )
        if expert.card.text is not None:
            arrays[texts_of(place)] = np.ascontiguousarray(_embedded(expert), np.float32)
            if (more := source.get("tags", ())) or expert.text.tags is not None:
                known = vocabulary(expert, more)
                entry = replace(entry, tags=known.tags)
                arrays[tags_of(place)] = np.ascontiguousarray(known.texts_VD, np.float32)
        entries.append(entry)
    if before is not None:  # each keeps its place
        order = list(before.entries)
        entries.sort(key=lambda e: order.index(e.label_set) if e.label_set in order else len(order))
    data = save(arrays)
    sha256 = hashlib.sha256(data).hexdigest()
    named = {"arrays": f"arrays-{sha256[:16]}.safetensors"} if in_place else {}
    arrays_file(folder, named).write_bytes(data)
    about = {
        **named,
        "version": VERSION,
        "router": router.as_json(),
        "router_of": owner,
        "usual": None if usual is None else usual.as_json(),
        "experts": [entry.as_json() for entry in entries],
        "sources": sources,
        "arrays_sha256": sha256,
    }
    write_json(folder / "tree.json", sealed(json.loads(json.dumps(about))))


def _embedded(expert: Expert) -> np.ndarray:
    """Embedded texts of the classes [Y, D], so that describing needs no text encoder."""
    text = expert.text
    sentences = class_sentences(expert.card.classes, text.texts, text.template)
    return embed(expert.text_encoder(), sentences)
