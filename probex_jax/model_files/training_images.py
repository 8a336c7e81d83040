"""What kohya's header says of the images trained on, without its regularisation images.

Those show what the model must not forget. Their tags stand in the same tables, and the words that
call them beside the trigger words; `is_reg` and `ss_reg_dataset_dirs` tell which they are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files.stated_values import MAX_MEMBERS, last_name
from probex_jax.model_files.untrusted_text import json_list, json_object

_DEPTH, _VALUES = 12, 500_000


def parsed(text: str) -> Any:
    """The value of a text that is JSON; the text, if it is none."""
    try:
        data = text.encode()
        return (
            json_list(data, "")
            if text.lstrip()[0] == "["
            else json_object(data, "", depth=_DEPTH, values=_VALUES)
        )
    except (ProbexError, UnicodeEncodeError):
        return text


def training_images(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields about images, parsed, without regularisation images.

    Args:
      metadata: of the header.

    Returns:
      `ss_tag_frequency`, `ss_dataset_dirs` and `ss_datasets`, those that are there.

    Example:
      >>> tags = '{"10_sks": {"cat": 9}, "1_animal": {"dog": 500}}'
      >>> regularisation = '{"1_animal": {"img_count": 500}}'
      >>> training_images({"ss_tag_frequency": tags, "ss_reg_dataset_dirs": regularisation})
      {'ss_tag_frequency': {'10_sks': {'cat': 9}}}
    """
    keys = ("ss_tag_frequency", "ss_dataset_dirs", "ss_datasets")
    found = {key: parsed(metadata[key]) for key in keys if metadata.get(key, "").strip()}
    dirs, aside = found.get("ss_dataset_dirs"), parsed(metadata.get("ss_reg_dataset_dirs") or "{}")
    subsets = list(_subsets(found.get("ss_datasets")))
    trained = {last_name(subset["image_dir"]) for subset in subsets if not subset.get("is_reg")}
    trained |= set(dirs) if isinstance(dirs, dict) else set()
    left_out = {last_name(subset["image_dir"]) for subset in subsets if subset.get("is_reg")}
    left_out = (left_out | (set(aside) if isinstance(aside, dict) else set())) - trained

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(v) for v in value if not (isinstance(v, dict) and v.get("is_reg"))]
        if isinstance(value, dict):
            return {key: kept(v) for key, v in value.items() if last_name(key) not in left_out}
        return value

    return {key: kept(value) for key, value in found.items()}


def _subsets(datasets: Any) -> Iterator[dict[str, Any]]:
    """Those that name a folder."""
    for dataset in datasets[:MAX_MEMBERS] if isinstance(datasets, list) else ():
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        for subset in subsets[:MAX_MEMBERS] if isinstance(subsets, list) else ():
            if isinstance(subset, dict) and isinstance(subset.get("image_dir"), str):
                yield subset
