r"""Converts experts of ProbeX's and MVProbe's PyTorch code, both ways.

A PyTorch state dict does not say what it was trained on: give --layer, --tree and --classes, and
for an expert aligned with text --text_encoder too. Files that this command wrote say it themselves.
A committee is a folder with one file for each member.

Example:
  probex convert --from_torch=theirs.safetensors \
    --to=out/theirs --classes=cifar100.json --tree=SupViT \
    --layer=classifier.weight
  probex convert --from_expert=out/mvprobe \
    --to_torch=out/mvprobe.safetensors
"""

from typing import Any

from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.bucket_paths import as_path
from probex_jax.experts import Alignment, from_torch, to_torch
from probex_jax.files import disk_errors, one_writer, read_json

_FROM_TORCH = flags.DEFINE_string(
    "from_torch", None, "State dict to read (.safetensors), or a committee's folder."
)
_TO = flags.DEFINE_string("to", None, "Folder of the expert to write.")
_FROM_EXPERT = flags.DEFINE_string("from_expert", None, "Expert to read, or a --workdir of train.")
_TO_TORCH = flags.DEFINE_string(
    "to_torch", None, "State dict to write (.safetensors); for a committee, a folder."
)
_LAYER = flags.DEFINE_string("layer", None, "Name of the layer it was trained on.")
_TREE = flags.DEFINE_string("tree", None, "Name of the tree it was trained on.")
_CLASSES = flags.DEFINE_string(
    "classes",
    None,
    "Its classes, in the order of its outputs: separated by commas, or a JSON file that holds a "
    "list, or an object of classes and their words.",
)
_LAYOUT = flags.DEFINE_string(
    "layout",
    None,
    "Give reference if the layer is a convolution larger than 1x1 and the PyTorch implementation "
    "trained the expert: it orders such kernels otherwise.",
)
_ENCODER = flags.DEFINE_string(
    "text_encoder",
    None,
    "Text encoder it was aligned with, such as clip:openai/clip-vit-large-patch14.",
)
_TEMPLATE = flags.DEFINE_string(
    "template", None, "Sentence for a class. Default: a photo of a {class}."
)
_SCALE = flags.DEFINE_float("logit_scale", None, "Cosine scale it was trained with. Default: 1.")


def main() -> None:
    flags_of = {"from_torch": _FROM_TORCH, "to": _TO, "from_expert": _FROM_EXPERT}
    flags_of |= {"to_torch": _TO_TORCH}
    paths = {name: as_path(flag.value) for name, flag in flags_of.items() if flag.value}
    if paths.keys() not in ({"from_torch", "to"}, {"from_expert", "to_torch"}):
        raise px.ProbexError("give --from_torch and --to, or --from_expert and --to_torch")
    about = _about()
    if "to" in paths:
        with one_writer(paths["to"], beside=True):
            if paths["to"].exists():
                raise px.ProbexError(f"{paths['to']}: is there already; choose another")
            expert = from_torch(paths["from_torch"], **about)
            expert.save(paths["to"])
    elif about:
        raise px.ProbexError(f"--{next(iter(about))}: the expert's card says so already")
    else:
        expert = px.Expert.load(paths["from_expert"])
        to_torch(expert, paths["to_torch"])
    print(cli.table([_row(expert, member) for member in expert.members]))
    print(
        f"classes, in the order of the outputs: {', '.join(map(cli.one_line, expert.card.classes))}"
    )


def _about() -> dict[str, Any]:
    """What is said of a state dict, as `from_torch` takes it."""
    classes, texts = _classes(_CLASSES.value) if _CLASSES.value else (None, None)
    about: dict[str, Any] = {
        "layer": _LAYER.value,
        "tree": _TREE.value,
        "classes": classes,
        "texts": texts,
    }
    about |= {"layout": _LAYOUT.value, "text": None}
    if _ENCODER.value:
        about["text"] = Alignment(
            px.text_encoder(_ENCODER.value),
            spec=_ENCODER.value,
            template="a photo of a {class}" if _TEMPLATE.value is None else _TEMPLATE.value,
            logit_scale=1.0 if _SCALE.value is None else _SCALE.value,
        )
    elif _TEMPLATE.value is not None or _SCALE.value is not None:
        raise px.ProbexError("--template and --logit_scale belong to a --text_encoder")
    return {name: value for name, value in about.items() if value is not None}


def _classes(text: str) -> tuple[list[str], dict[str, str] | None]:
    """Class names, and the words for them where a file has any."""
    if not text.endswith(".json"):
        return [name.strip() for name in text.split(",")], None
    with disk_errors(as_path(text)):
        value = read_json(as_path(text))
    names = [*value, *value.values()] if isinstance(value, dict) else value
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise px.ProbexError(f"{text}: expected a list of class names, or an object of such")
    return list(value), value if isinstance(value, dict) else None


def _row(expert: px.Expert, member: Any) -> dict[str, Any]:
    rows, columns = member.card.shape
    return {
        "tree": expert.card.tree,
        "layer": member.layer,
        "shape": f"{rows}x{columns}",
        "layout": member.card.layout,
        "encoder": member.card.encoder["name"],
        "head": expert.card.head,
        "classes": len(expert.card.classes),
        "normalise": member.card.normalise or "none",
        "weight": f"{member.card.weight:.3f}",
    }


if __name__ == "__main__":
    cli.run(main)
