"""Model-J's table of models on the hub: the models of each subset, with their splits.

The table is a dataset with one configuration per subset, as Parquet, CSV or JSON lines with one row
per model. `hf_model_id` names the model's repository; all LoRAs share one, at `hf_model_path`.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from probex_jax.buckets import NotThere
from probex_jax.errors import ProbexError
from probex_jax.model_files.front_matter import front_matter
from probex_jax.model_files.hub import HubAddress, HubRepo, hub_repo
from probex_jax.model_files.remote import Remote, read_whole
from probex_jax.model_files.untrusted_text import (
    is_plain_path,
    is_text,
    json_list,
    json_object,
    quoted,
)
from probex_jax.zoo.model_j import LABEL_KEYS, SPLITS
from probex_jax.zoo.table_columns import Columns, columns_of

DATASET = "ProbeX/Model-J"
SUBSETS = ("SupViT", "DINO", "MAE", "ResNet", "SD_200", "SD_1k")
LORA_FILE = "pytorch_lora_weights.safetensors"

_MAX_TABLE_BYTES = 256 * 2**20
_MAX_README_BYTES = 2**20
_CONVERTED = "refs/convert/parquet"  # where the hub keeps Parquet copies of datasets
_READ = (".parquet", ".csv", ".jsonl", ".json")
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_NAMES = {"validation": "val", "validation_holdout": "val_holdout"}
_NUMBER = re.compile(r"[0-9]{1,9}")
# Columns that say which model a row is of.
_NAMES = ("hf_model_id", "hf_model_path", "model_idx", "split")
_WORD = re.compile(r"[a-z]+(?:_[a-z]+)*")


@dataclass(frozen=True)
class ListedModel:
    """A row of the table.

    Args:
      id: the model's name on disk and in a store.
      split: one of `SPLITS`.
      repo: "org/repo" on the hub.
      path: of the model in it; "" if the repository is the model.
    """

    id: str
    split: str
    repo: str
    path: str = ""

    def address(self, commit: str = "") -> HubAddress:
        """Its address on the hub."""
        return HubAddress(self.repo, commit, self.path)


@dataclass(frozen=True)
class Table:
    """The rows of one subset.

    Args:
      subset: its name.
      models: sorted by split, then by id, as in a `Zoo`.
      texts: class to the words for it, for classes whose name is an id.
      columns: what else the table says of models, as `zoo.table_columns` has it.
    """

    subset: str
    models: tuple[ListedModel, ...]
    texts: Mapping[str, str]
    columns: Columns = field(default_factory=dict)


def read_table(subset: str, splits: Sequence[str], remote: Remote, dataset: str = DATASET) -> Table:
    """Reads the table of a subset from the hub.

    Args:
      subset: the dataset's configuration, such as "SupViT".
      splits: some of `SPLITS`; none for all that the subset has.
      remote: how it is read.
      dataset: "org/name" of the table.

    Returns:
      The models of these splits, and the words for their classes.

    Raises:
      ProbexError: if the hub has no such table, subset or split, or a row names no model.

    Example:
      >>> read_table("SupViT", ["val"], Remote()).models[0].split  # doctest: +SKIP
      'val'
    """
    files, repo = _files_of_subset(subset, remote, dataset)
    models: list[ListedModel] = []
    rows: list[Mapping[str, Any]] = []
    for split_of_file, path in files:
        where = str(HubAddress(dataset, repo.commit[:12], path, "dataset"))
        for row in _rows(read_whole(repo.open(path, remote), _MAX_TABLE_BYTES), path, where):
            split = split_of_file or _split(str(row.get("split")))
            if not split:
                raise ProbexError(f"{where}: a row says no split, expected one of {SPLITS}")
            models.append(_listed(row, subset, split, where))
            rows.append(row)
    found = {model.split for model in models}
    if missing := [split for split in splits if split not in found]:
        there = ", ".join(split for split in SPLITS if split in found)
        raise ProbexError(f"{subset}: no split {missing[0]!r}, it has {there}")
    if not models:
        raise ProbexError(f"{dataset}: lists no model of {subset}")
    chosen = {
        listed: model
        for listed, model in _distinct(models, dataset).items()
        if model.split in (splits or SPLITS)
    }
    in_order = sorted(chosen.values(), key=lambda model: (SPLITS.index(model.split), model.id))
    own = {
        chosen[listed].id: row for listed, row in zip(models, rows, strict=True) if listed in chosen
    }
    return Table(subset, tuple(in_order), _words(rows), columns_of(own, _NAMES))


def _distinct(models: Sequence[ListedModel], dataset: str) -> dict[ListedModel, ListedModel]:
    """Each model once, to itself with its id; ids that two splits share get the split in front."""
    splits: dict[str, set[str]] = defaultdict(set)
    for model in models:
        splits[model.id].add(model.split)
    distinct: dict[ListedModel, ListedModel] = {}
    known: set[str] = set()
    for listed in dict.fromkeys(models):
        model = listed
        if len(splits[model.id]) > 1 and model.path:
            model = replace(model, id=f"{model.split}_{model.id}")
        if model.id in known:
            raise ProbexError(f"{dataset}: the model {model.id} is there twice")
        known.add(model.id)
        distinct[listed] = model
    return distinct


def _files_of_subset(
    subset: str, remote: Remote, dataset: str
) -> tuple[list[tuple[str, str]], HubRepo]:
    """The splits and paths of the table's files, and the repository they are in.

    A split is "" if only the rows can state it.
    """
    repo = hub_repo(HubAddress(dataset, kind="dataset"), remote)
    stated, guessed = _stated_files(repo, subset, remote), _guessed_files(repo, subset)
    for files in (_with_split(stated), _with_split(guessed), stated, guessed):
        if files:
            return files, repo
    try:
        repo = hub_repo(HubAddress(dataset, _CONVERTED, kind="dataset"), remote)
        files = _guessed_files(repo, subset)
    except ProbexError:
        files = []
    if not files:
        raise ProbexError(f"{dataset}: has no table of {subset}; the subsets: {', '.join(SUBSETS)}")
    return files, repo


def _with_split(files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(split, path) for split, path in files if split]


def _stated_files(repo: HubRepo, subset: str, remote: Remote) -> list[tuple[str, str]]:
    """Splits and files as the front matter of the dataset's README lists them."""
    try:
        readme = read_whole(repo.open("README.md", remote), _MAX_README_BYTES)
    except NotThere:
        return []
    configs = front_matter(readme).get("configs")
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict) and config.get("config_name") == subset:
            return [
                (split or _split_in(path), path)
                for split, pattern in _patterns(config.get("data_files"))
                for path in sorted(repo.files)
                if fnmatchcase(path, pattern) and path.endswith(_READ)
            ]
    return []


def _patterns(stated: Any) -> Iterator[tuple[str, str]]:
    """Splits, "" if not stated, and patterns of files; only entries with a split, if any has."""
    entries = stated if isinstance(stated, list) else [stated]
    saying = [one for one in entries if isinstance(one, dict) and "split" in one]
    for one in saying or entries:
        split, paths = (one.get("split"), one.get("path")) if isinstance(one, dict) else ("", one)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield _split(str(split)), path


def _guessed_files(repo: HubRepo, subset: str) -> list[tuple[str, str]]:
    """Splits and files by file name: `SupViT/train-00000-of-00001.parquet`, `SupViT_val.csv`."""
    begins = re.compile(rf"(?:.*/)?{re.escape(subset)}(?=[-_./])(.*)\.\w+")
    found = ((begins.fullmatch(path), path) for path in sorted(repo.files) if path.endswith(_READ))
    return [(_split_in(match[1]), path) for match, path in found if match]


def _split_in(path: str) -> str:
    """The last split that a word of a path names, or ""."""
    names = [_split(word.strip("_")) for word in _WORD.findall(path.lower())]
    return next((name for name in reversed(names) if name), "")


def _split(name: str) -> str:
    name = _OTHER_NAMES.get(name, name)
    return name if name in SPLITS else ""


def _rows(data: bytes, path: str, where: str) -> Iterator[Mapping[str, Any]]:
    unread = f"{where}: cannot be read as a table"
    try:
        if path.endswith(".parquet"):
            yield from _parquet_rows(data, where)
        elif path.endswith(".csv"):
            yield from _csv_rows(data.decode("utf-8-sig"), unread)
        elif data.lstrip().startswith(b"["):
            for number, row in enumerate(json_list(data, f"{unread}: it"), 1):
                if not isinstance(row, dict):
                    raise ProbexError(f"{unread}: row {number} is not an object, but {quoted(row)}")
                yield row
        else:
            for number, line in enumerate(data.split(b"\n"), 1):
                if line.strip():
                    yield json_object(line, f"{unread}: line {number}")
    except (ValueError, csv.Error) as error:
        raise ProbexError(f"{unread}: {error}") from error


def _csv_rows(text: str, unread: str) -> Iterator[Mapping[str, Any]]:
    rows = csv.DictReader(io.StringIO(text))
    names = rows.fieldnames or ()
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ProbexError(f"{unread}: the column {quoted(twice[0])} is there twice")
    yield from rows


def _parquet_rows(data: bytes, where: str) -> list[Mapping[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ProbexError(
            f"{where}: reading it needs pyarrow: pip install probex_jax[hub]"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        kinds = {field.name: field.type for field in file.schema_arrow}
        types = pyarrow.types

        def is_read(kind: Any) -> bool:
            is_list = types.is_list(kind) and types.is_string(kind.value_type)
            return is_list or not types.is_nested(kind)

        return file.read(columns=[name for name in kinds if is_read(kinds[name])]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ProbexError(f"{where}: cannot be read as Parquet: {error}") from error


def _listed(row: Mapping[str, Any], subset: str, split: str, where: str) -> ListedModel:
    path, repo = row.get("hf_model_path") or "", row.get("hf_model_id") or ""
    number = row.get("model_idx")
    if not path and not repo:
        if not _NUMBER.fullmatch(str(number)):
            raise ProbexError(
                f"{where}: a row has neither hf_model_id, hf_model_path nor model_idx"
            )
        path = f"{split}/model_idx_{int(str(number)):04d}/{LORA_FILE}"
    repo = repo or f"{DATASET}__{subset}"
    if not (isinstance(repo, str) and _ID.fullmatch(repo)):
        raise ProbexError(f"{where}: hf_model_id {quoted(repo)} is not a model id of the hub")
    if not path:
        return ListedModel(f"models--{repo.replace('/', '--')}", split, repo)
    if not (isinstance(path, str) and is_plain_path(path) and "/" in path):
        raise ProbexError(f"{where}: hf_model_path {quoted(path)} is not a path in a repository")
    folder = path.rpartition("/")[0] if path.endswith(".safetensors") else path
    return ListedModel(folder.rpartition("/")[2], split, repo, path)


def _words(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """Class to words, from a column of names that corresponds to the classes' ids."""
    # The csv module gives surplus fields the name None.
    columns = {name for row in rows for name in row if isinstance(name, str)}
    for key in LABEL_KEYS:
        if key not in columns:
            continue
        others = sorted(
            (name for name in columns - {key} if "class" in name.lower() or "name" in name.lower()),
            key=lambda name: ("name" not in name.lower(), name),
        )
        for other in others:
            found = [(row.get(key), row.get(other)) for row in rows]
            if not all(_are_words(text) for pair in found for text in pair):
                continue
            pairs: set[tuple[Any, Any]] = set(found)
            ids, words = {pair[0] for pair in pairs}, Counter(pair[1] for pair in pairs)
            if len(pairs) == len(ids) <= 1.1 * len(words):
                # Two classes may share a name: a crane is a bird or a machine.
                return {
                    name: f"{text} ({name})" if words[text] > 1 else text
                    for name, text in sorted(pairs)
                }
    return {}


def _are_words(text: object) -> bool:
    return isinstance(text, str) and any(map(str.isalpha, text)) and is_text(text)
