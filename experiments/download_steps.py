"""Steps of `download_model_j`: the table, what a download would move, and the download."""

import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

import probex_jax as px
from experiments import cli
from experiments.steps import Row
from probex_jax.layer_store import pack_from_hub
from probex_jax.model_files import Remote
from probex_jax.model_files.untrusted_text import is_unicode, json_object
from probex_jax.prefetch import prefetch
from probex_jax.zoo import SPLITS
from probex_jax.zoo.download import Lists, bytes_of
from probex_jax.zoo.download import download as download_whole
from probex_jax.zoo.model_j_table import ListedModel, Table
from probex_jax.zoo.model_j_table import read_table as read_table_of

_REFRESH_S = 0.2
_TRIED = 5  # models, for the size of a layer


def read_table(subset: str, splits: Sequence[str], class_names: str | None, dataset: str) -> Table:
    """The models of a subset, with words for classes from the file given, or else the table's."""
    table = read_table_of(subset, splits, Remote(), dataset)
    return table if class_names is None else replace(table, texts=_words_in(Path(class_names)))


def _words_in(path: Path) -> Mapping[str, str]:
    """Class to words, of a JSON object or of lines with a class and its words."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise px.ProbexError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    if not text.lstrip().startswith("{"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = [re.split(r"[\s,]+", line, maxsplit=1) for line in lines]
        words = {pair[0]: pair[-1] for pair in pairs if len(pair) == 2}
        is_whole = len(words) == len(pairs)
    else:
        words = json_object(text.encode(), str(path))
        is_whole = True
    are_words = (
        isinstance(each, str) and each.strip() and is_unicode(each) for each in words.values()
    )
    if not (is_whole and words and all(are_words)):
        raise px.ProbexError(
            f'{path}: expected {{"n02111277": "Newfoundland dog", …}}, or lines with a class and '
            "its words, each class once"
        )
    return words


class _Bar:
    """A progress bar in models that shows the bytes, too."""

    def __init__(self, total: int, what: str):
        self.bar: tqdm = cli.progress(total, what, "model")
        self.bytes, self._shown, self._lock = 0, 0.0, threading.Lock()

    def count(self, n: int) -> None:
        """Counts bytes that came, in whatever thread."""
        with self._lock:
            self.bytes += n
            now = time.monotonic()
            if now - self._shown > _REFRESH_S and not self.bar.disable:
                self._shown = now
                self.bar.set_postfix_str(size(self.bytes))

    def model(self, fault: str) -> None:
        """Counts a model, and says why where it failed."""
        self.bar.update()
        if fault:
            self.bar.write(cli.one_line(f"failed {fault}"), file=sys.stderr)


def planned_rows(table: Table, layers: str, jobs: int) -> list[Row]:
    """Models and bytes by split; with layers, those of the first model times their number."""
    counts = {split: [m for m in table.models if m.split == split] for split in SPLITS}
    if layers:
        each = _bytes_of_layers(table, layers)
        sizes = {split: each * len(models) for split, models in counts.items()}
    else:
        lists, bar = Lists(Remote()), _Bar(len(table.models), "asking the hub")

        def count(model: ListedModel) -> tuple[int, str]:
            try:
                return bytes_of(model, lists), ""
            except px.ProbexError as error:
                return 0, f"{model.id}: {error}"

        of_model = {}
        with bar.bar:
            for model, (found, fault) in prefetch(count, table.models, jobs):
                of_model[model.id] = found
                bar.model(fault)
        sizes = {s: sum(of_model[m.id] for m in models) for s, models in counts.items()}
    counted = {split: (len(models), sizes[split]) for split, models in counts.items() if models}
    counted["all"] = (len(table.models), sum(sizes.values()))
    return [
        {"subset": table.subset, "split": s, "models": n, "bytes": b, "size": size(b)}
        for s, (n, b) in counted.items()
    ]


def _bytes_of_layers(table: Table, layers: str) -> int:
    """Of the first model that can be read: those of a tree are alike."""
    for place, model in enumerate(table.models):
        try:
            with px.open_model(str(model.address())) as file:
                chosen = px.select_layers(file.all_layers, layers, file.vectors)
                tensors = [file.tensors[t] for name in chosen for t in file.tensors_of(name)]
                return sum(tensor.end - tensor.begin for tensor in tensors)
        except px.ProbexError:
            if place == min(_TRIED, len(table.models)) - 1:
                raise
    raise px.ProbexError(f"{table.subset}: has no models")


def download(table: Table, out: str, layers: str, jobs: int) -> tuple[Row, int]:
    """Downloads what is missing; a row for the summary, and how many models failed."""
    bar = _Bar(len(table.models), "downloading")
    remote = Remote(on_bytes=bar.count)
    with bar.bar:
        if layers:
            summary = pack_from_hub(
                table,
                out,
                layers,
                remote,
                jobs=jobs,
                on_models=bar.bar.reset,
                on_model=bar.model,
            )
            where, added, failed = summary.store.path, summary.added, len(summary.skipped)
        else:
            whole = download_whole(table, out, remote, jobs=jobs, on_model=bar.model)
            if len(whole.failed) == whole.models:
                first = next(iter(whole.failed.values()))
                raise px.ProbexError(f"{whole.folder}: no model could be had; the first: {first}")
            where, added, failed = whole.folder, whole.added, len(whole.failed)
    row: Row = {
        "subset": table.subset,
        "models": len(table.models),
        "there before": len(table.models) - added - failed,
        "downloaded": added,
        "failed": failed,
        "size": size(bar.bytes),
        "folder": str(where),
    }
    return row, failed


def size(count: int) -> str:
    """A number of bytes as people read it.

    Example:
      >>> size(343_000_000), size(512)
      ('343.0 MB', '512 B')
    """
    value, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
