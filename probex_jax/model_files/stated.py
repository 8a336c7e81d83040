"""What the files of a model say of themselves: quoted, never trusted.

`_ROWS` says where each field may stand: in the header's metadata, in `config.json`,
`adapter_config.json` and the front matter of `README.md`, and in what managers of LoRAs write
beside the weights (`NAME.civitai.info` and so on). Of a file among others, README and configs are
not read: which model they are about is unknown. What is damaged, too long or not printable is
left out, whatever is around it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files import stated_values as values
from probex_jax.model_files.front_matter import front_matter
from probex_jax.model_files.hub_tags import says_of_training
from probex_jax.model_files.model_file import ModelFile
from probex_jax.model_files.training_images import parsed, training_images

HEADERS, SIDECARS, FRONT_MATTER = "headers", "sidecars", "front_matter"
SOURCES = (HEADERS, SIDECARS, FRONT_MATTER)
# Of the training data, in this project's metadata: a list of classes, and fields of one class.
LABELS_KEY, LABEL_KEYS = "dataset_chosen_targets", ("imagenet_class_id", "concept")

_SIDECARS = (".civitai.info", ".metadata.json", ".cm-info.json", ".json")
_MAX_README_BYTES = 2**20
_SHARE = 0.3  # of the images that have a tag


@dataclass(frozen=True)
class Stated:
    """What the files of a model say; empty, 0 or "" where they say nothing.

    Args:
      labels: the classes that it was trained to tell or on.
      base: the model that it was fine-tuned from: a hub id, a path or a word.
      base_version: its family, such as "sdxl_base_v1-0"; base_hash: its checksum.
      architecture: a class of transformers or diffusers, or what `modelspec` or GGUF call it.
      title, author, date, licence, description: as they stand there.
      tags: of the training images, to the number of images, the most frequent first.
      folders: of the training images, without repeats, to the number of images, 0 if not stated.
      topics: tags of the model itself.
      triggers: words that call up what it learnt.
      captions: example prompts.
      datasets: names of datasets.
      images, steps, epochs, batch_size, learning_rate, resolution, optimiser: of its training.
      method: the network module, algorithm or type of adapter; rank, alpha, modules: of it.
      library, task: as the front matter names them.
      session, checksum: of the training run, and of the tensors.
      sources: field to the file and key where it stands.

    Example:
      >>> said = Stated(tags={"cat": 20, "sofa": 5}, triggers=("sks",))
      >>> said.shares
      {'cat': 1.0, 'sofa': 0.25, 'sks': 1.0}

    References:
      docs/formats.md, "What files say of themselves".
    """

    labels: tuple[str, ...] = ()
    base: str = ""
    base_version: str = ""
    base_hash: str = ""
    architecture: str = ""
    title: str = ""
    author: str = ""
    date: str = ""
    licence: str = ""
    description: str = ""
    tags: Mapping[str, int] = field(default_factory=dict)
    folders: Mapping[str, int] = field(default_factory=dict)
    topics: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    images: int = 0
    steps: int = 0
    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    resolution: str = ""
    optimiser: str = ""
    method: str = ""
    rank: float = 0.0
    alpha: float = 0.0
    modules: tuple[str, ...] = ()
    library: str = ""
    task: str = ""
    session: str = ""
    checksum: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Tag to the share of the images that have it.

        A trigger word is of all images, and a topic, unless it says how the model was made.
        """
        counts = {**self.folders, **self.tags}
        images = self.images if any(self.folders.values()) else 0  # of more folders than are listed
        total = max([images, sum(self.folders.values()), *counts.values(), 1])
        shares = {tag: count / total for tag, count in self.tags.items()}
        for name, count in self.folders.items():
            share = count / total if count else 1 / len(self.folders)
            shares[name] = max(share, shares.get(name, 0.0))
        topics = filter(says_of_training, self.topics)
        return shares | dict.fromkeys((*topics, *self.triggers), 1.0)

    @property
    def about(self) -> tuple[str, ...]:
        """What it was trained on: the labels, or else what most of the images have in common."""
        return self.labels or tuple(tag for tag, share in self.shares.items() if share >= _SHARE)


def read_stated(model: ModelFile, sources: Sequence[str] = SOURCES) -> Stated:
    """Reads what the files of a model say of themselves.

    Args:
      model: the model, open.
      sources: which files are asked: "headers" (the metadata, `config.json` and
        `adapter_config.json`), "sidecars" and "front_matter".

    Returns:
      The fields; what is damaged is as if it were not there.

    Example:
      >>> import tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax.model_files import open_model
      >>> metadata = {"ss_tag_frequency": '{"10_cat": {"cat": 20, "sofa": 5}}', "ss_steps": "100"}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_file({"w": np.ones((2, 2))}, f"{folder}/model.safetensors", metadata)
      ...     with open_model(folder) as m:
      ...         said = read_stated(m)
      >>> said.tags, said.folders, said.steps, said.sources["tags"]
      ({'cat': 20, 'sofa': 5}, {'cat': 0}, 100, 'metadata, ss_tag_frequency')
    """
    found, stands = _found(model, sources, _ROWS)
    folders = found.get("folders", {})
    if images := sum(folders.values()):  # `ss_num_train_images` counts repeats
        found["images"], stands["images"] = images, stands["folders"]
    found["folders"] = dict(islice(folders.items(), values.MAX_LISTED))
    return Stated(**found, sources=stands)


def stated_base(model: ModelFile) -> str:
    """The model that this one was fine-tuned from, as its files state.

    Args:
      model: the model, open.

    Returns:
      A hub id, a path or a word, as it stands there; "" if nothing states a usable name.
    """
    found, _ = _found(model, SOURCES, [row for row in _ROWS if row[0] == "base"])
    return found.get("base", "")


def files_of_labels(stem: str) -> tuple[str, ...]:
    """The names of the files beside a file of weights, called so, in which something may stand."""
    configs = (_FILES[file] for file in "car")
    return (*configs, *(stem + ending for ending in _SIDECARS))


def _found(
    model: ModelFile, sources: Sequence[str], rows: Sequence["_Row"]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of some rows, and where they stand."""
    reader, found, stands = _Reader(model, sources), dict[str, Any](), dict[str, str]()
    for name, kind, places in rows:
        for place in places.split(" | "):
            if name in found and kind is not values.words:
                break
            stated = islice(reader.values(place), values.MAX_MEMBERS)
            value = kind([one for one in stated if one is not None])
            if value and name in found:
                value = tuple(dict.fromkeys(found[name] + value))[: values.MAX_LISTED]
            elif value:
                stands[name] = f"{_FILES[place[0]]}, {place[2:].replace('/*', '')}"
            if value:
                found[name] = value
    return found, stands


class _Reader:
    """Values by place, as `m:training_info/step`; "*" is every member."""

    def __init__(self, model: ModelFile, sources: Sequence[str]):
        self._model, self._sources = model, sources
        self._files: dict[str, list[Mapping[str, Any]]] = {}
        self._parsed: dict[str, Any] = {}

    def values(self, place: str) -> Iterator[Any]:
        file, keys = place[0], place[2:].split("/")
        if file not in self._files:
            self._files[file] = self._read(file)
        for content in self._files[file]:
            yield from self._below(content, keys)

    def _read(self, file: str) -> list[Mapping[str, Any]]:
        model = self._model
        of = {"r": FRONT_MATTER, "s": SIDECARS}.get(file, HEADERS)
        if of not in self._sources or (of == SIDECARS and not isinstance(model.path, Path)):
            return []
        if file in "car" and not model.is_alone:
            return []
        if of == FRONT_MATTER:
            return [_front_matter(model)]
        if of == SIDECARS:
            stems = [Path(name).stem for name in model.files[:1]]
            return [_beside(model, stem + ending) for stem in stems for ending in _SIDECARS]
        if file == "i":
            return [training_images(model.metadata)]
        return [dict(model.metadata) if file == "m" else _beside(model, _FILES[file])]

    def _below(self, value: Any, keys: Sequence[str]) -> Iterator[Any]:
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # JSON in JSON
            if value not in self._parsed:
                self._parsed[value] = parsed(value)
            value = self._parsed[value]
        if not keys:
            yield value
        elif keys[0] == "*":
            members = value.values() if isinstance(value, dict) else value
            if isinstance(value, dict | list):
                for member in islice(members, values.MAX_MEMBERS):
                    yield from self._below(member, keys[1:])
        elif isinstance(value, dict):
            yield from self._below(value.get(keys[0]), keys[1:])


def _beside(model: ModelFile, name: str) -> dict[str, Any]:
    try:
        return model.beside(name)
    except ProbexError:
        return {}  # the weights can be read beside a damaged config


def _front_matter(model: ModelFile) -> dict[str, Any]:
    try:
        return front_matter(model.bytes_beside("README.md", _MAX_README_BYTES) or b"")
    except ProbexError:
        return {}


# Field, how its values are read, and the places where they may stand, the first one first. A field
# of words is put together from all places.
_Row = tuple[str, Callable[[Sequence[Any]], Any], str]
_ROWS: tuple[_Row, ...] = (
    ("labels", values.listed_labels, f"m:{LABELS_KEY}"),
    ("labels", values.one_label, f"m:{LABEL_KEYS[0]} | m:{LABEL_KEYS[1]}"),
    ("labels", values.named_labels, "c:id2label"),
    (
        "base",
        values.first_text,
        "m:base_model | a:base_model_name_or_path | c:_name_or_path | r:base_model | "
        "r:base_model/* | m:ss_sd_model_name | m:ot_config/base_model_name | "
        "m:general.base_model.0.repo_url | m:general.base_model.0.name | "
        "m:ss_base_model_version | s:baseModel | s:civitai/baseModel | s:base_model | "
        "s:BaseModel | s:sd version",
    ),
    (
        "base_version",
        values.first_text,
        "m:ss_base_model_version | m:ot_config/model_type | s:baseModel | s:civitai/baseModel | "
        "s:base_model | s:BaseModel | s:sd version",
    ),
    ("base_hash", values.first_text, "m:ss_new_sd_model_hash | m:ss_sd_model_hash"),
    (
        "architecture",
        values.first_text,
        "c:architectures/* | c:_class_name | m:modelspec.architecture | m:general.architecture",
    ),
    (
        "title",
        values.first_text,
        "m:modelspec.title | m:ss_output_name | m:general.name | m:name | s:model/name | "
        "s:model_name | s:ModelName",
    ),
    (
        "author",
        values.first_text,
        "m:modelspec.author | m:general.author | m:author | s:creator/username | "
        "s:civitai/creator/username",
    ),
    ("date", values.first_text, "m:modelspec.date | m:general.date | s:publishedAt"),
    (
        "licence",
        values.first_text,
        "m:modelspec.license | m:general.license | r:license_name | r:license",
    ),
    (
        "description",
        values.first_prose,
        "m:modelspec.description | m:ss_training_comment | m:general.description | "
        "s:model/description | s:modelDescription | s:ModelDescription | s:description | s:notes",
    ),
    ("tags", values.image_counts, "i:ss_tag_frequency | i:ss_datasets/*/tag_frequency"),
    (
        "folders",
        values.folder_counts,
        "i:ss_dataset_dirs | i:ss_datasets/*/subsets/* | i:ss_tag_frequency",
    ),
    (
        "topics",
        values.words,
        "m:modelspec.tags | m:general.tags | m:ot_config/concepts/*/name | s:model/tags | "
        "s:civitai/model/tags | s:tags | s:Tags | r:tags",
    ),
    (
        "triggers",
        values.words,
        "m:modelspec.trigger_phrase | m:trigger_word | m:training_info/trigger_word | "
        "i:ss_datasets/*/subsets/*/class_tokens | s:trainedWords | s:civitai/trainedWords | "
        "s:TrainedWords | s:activation text | r:instance_prompt",
    ),
    ("captions", values.texts, "r:widget/*/text | m:ss_sample_prompts | s:images/*/meta/prompt"),
    (
        "datasets",
        values.words,
        "r:datasets | r:model-index/*/results/*/dataset/name | m:general.datasets",
    ),
    ("images", values.first_count, "m:ss_num_train_images"),
    ("steps", values.first_count, "m:ss_steps | m:training_info/step | m:ss_max_train_steps"),
    ("epochs", values.first_count, "m:ss_epoch | m:training_info/epoch | m:ss_num_epochs"),
    (
        "batch_size",
        values.first_count,
        "m:ss_total_batch_size | m:ss_batch_size_per_device | m:ot_config/batch_size",
    ),
    (
        "learning_rate",
        values.first_number,
        "m:ss_learning_rate | m:ss_unet_lr | m:ot_config/learning_rate",
    ),
    (
        "resolution",
        values.first_text,
        "m:ss_resolution | m:modelspec.resolution | m:ot_config/resolution",
    ),
    ("optimiser", values.first_text, "m:ss_optimizer | m:ot_config/optimizer/optimizer"),
    (
        "method",
        values.first_text,
        "m:ss_network_args/algo | m:ss_network_module | m:ot_config/peft_type | a:peft_type",
    ),
    ("rank", values.first_number, "m:ss_network_dim | m:ot_config/lora_rank | a:r"),
    ("alpha", values.first_number, "m:ss_network_alpha | m:ot_config/lora_alpha | a:lora_alpha"),
    ("modules", values.words, "a:target_modules"),
    ("library", values.first_text, "r:library_name"),
    ("task", values.first_text, "r:pipeline_tag | a:task_type"),
    ("session", values.first_text, "m:ss_session_id"),
    ("checksum", values.first_text, "m:sshs_model_hash"),
)
# The first letter of a place.
_FILES = {
    "m": "metadata",
    "i": "metadata",  # of training images
    "c": "config.json",
    "a": "adapter_config.json",
    "r": "README.md",
    "s": "sidecar",
}
